"""The command line as a person in a terminal meets it: answers, refusals, exit codes, Ctrl-C and kill.

Commands run in this process but for one that is killed. One toy run is trained and shared; copies of it are damaged.
"""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import holdfast.cli.training as training
from command_line import command, terminal
from holdfast.cli import load_trained
from holdfast.runs import RunDirectory, RunError, save_checkpoint

commands = importlib.import_module("holdfast.cli.main")  # the package's `main` is the function
CHUNK = 2
TOY = [
    *("lane-keeping", "--safeguard", "ray", "--level", "5", "--backup-updates", "4", "--updates", "4"),
    *("--environments", "4", "--window", "4", "--episodes", "4"),
]


@pytest.fixture(autouse=True, scope="module")
def settings():
    with terminal() as patch:
        patch.setattr(training, "_CHUNK", CHUNK)
        yield patch


class SummaryWriter:
    """In place of TensorBoard's: the scalars by the directory that they were written to."""

    seen: dict = {}

    def __init__(self, logdir, purge_step):
        self.scalars = self.seen.setdefault(logdir, [])

    def add_scalar(self, name, value, at):
        self.scalars.append((name, at))

    def close(self):
        self.scalars.append("closed")


@pytest.fixture(scope="module")
def toy(settings, tmp_path_factory):
    """(directory of a finished run, what the command answered)."""
    settings.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    out = tmp_path_factory.mktemp("toy") / "run"
    return out, command("train", *TOY, "--out", out, "--tracker", "tensorboard")


@pytest.fixture
def copy(toy, tmp_path):
    return shutil.copytree(toy[0], tmp_path / "copy")


def arrays(directory):
    return load_file(Path(directory) / "checkpoint" / "state.safetensors")


# ------------------------------------------------------------------------------------------------------------- answers


def test_list_names_the_tasks_with_states_inputs_and_constraints():
    answer = command("list")
    assert answer.code == 0 and answer.err == ""
    assert "lane-keeping" in answer.out and "psi" in answer.out and "left lane edge" in answer.out
    assert command("list", "--json").json["tasks"]["lane-keeping"]["inputs"] == ["a", "r"]


def test_help_tells_what_there_is():
    answer = command("--help")
    assert answer.code == 0
    assert all(name in answer.out for name in ("list", "train", "verify", "evaluate", "attack", "render"))
    assert "--max-seconds" in command("verify", "--help").out


def test_verify_proves_lane_keeping():
    answer = command("verify", "lane-keeping")
    assert answer.code == 0
    assert "base set invariant" in answer.out and "assumed" in answer.out
    assert "refuted" not in answer.out and "not proved" not in answer.out


def test_verify_refutes_fourteen_with_a_counterexample():
    answer = command("verify", "lane-keeping", "--level", 14)
    assert answer.code == 1
    assert "'base set invariant' is refuted" in answer.err
    assert "counterexample to 'base set invariant': state y " in answer.out and "error [" in answer.out
    answer = command("verify", "lane-keeping", "--level", 14, "--json")
    assert answer.code == 1 and answer.err == ""
    assert answer.json["ok"] is False and answer.json["holds"] is False
    found = answer.json["obligations"][0]["numbers"]["counterexample"]
    assert found["before"] <= 14 < found["after"]


def test_verify_proves_the_published_cap():
    answer = command("verify", "lane-keeping", "--level", 1.05, "--json")
    assert answer.code == 0 and answer.json["ok"] and answer.json["holds"]


@pytest.mark.parametrize("level", [(), ("--level", 1.05)])
def test_a_spent_budget_says_not_proved(level):
    answer = command("verify", "lane-keeping", "--max-seconds", 1e-6, *level)
    assert answer.code == 1
    assert "not proved" in answer.err
    assert "is safe" not in answer.err + answer.out and "holds:" not in answer.out
    answer = command("verify", "lane-keeping", "--max-seconds", 1e-6, "--json", *level)
    assert answer.code == 1 and answer.json["ok"] is False and "not proved" in answer.json["error"]


def test_a_trained_safeguard_serves_a_program_of_ones_own(toy):
    out, _ = toy
    with jax.enable_x64(False):
        found = load_trained(str(out))
        x = jnp.asarray(found.task.system.equilibrium()[0], jnp.float32)
        plan = found.guard.init(x)
        answer, plan = found.guard.step(plan, x, jnp.array([jnp.nan, 1.0]))
        assert plan.certified and jnp.all(found.task.system.input_box.margin(answer.action) >= 0)
        assert found.certificate.holds and found.task.name == "lane-keeping"
        proposed = found.policy(jnp.zeros(found.task.observation_size))
        assert proposed.shape == (2,)
    with pytest.raises(ValueError, match="index = 1; the run has 1 seed"):
        load_trained(out, 1)
    with pytest.raises(RunError):
        load_trained(out / "nothing")


def test_a_trained_run_reports_what_it_promises(toy):
    out, answer = toy
    assert answer.code == 0
    assert "0 violations in 1,600 steps of 4 episodes" in answer.out
    assert "0 violations in 64 guarded training steps" in answer.out
    assert "phase 1: backup: 4/4" in answer.err and "phase 2: policy: 4/4" in answer.err
    names = {each.name for each in out.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoint", "certificate.json", "report.json", "report.html"} <= names
    assert not any(name.startswith(".") or name.endswith(".partial") for name in names)
    report = json.loads((out / "report.json").read_text())
    assert report["safety"]["violations"] == report["training_safety"]["violations"] == 0
    assert set(report["wall_seconds"]) >= {"compile", "verify", "backup", "policy", "evaluate"}
    rows = RunDirectory.open(out).read_metrics()
    assert [(row["phase"], row["iteration"]) for row in rows] == [
        *(("backup", 2), ("backup", 4), ("policy", 6), ("policy", 8))
    ]


def test_a_tracker_gets_every_row_and_is_closed(toy):
    scalars = SummaryWriter.seen[str(toy[0] / "tensorboard")]
    rows = RunDirectory.open(toy[0]).read_metrics()
    assert [at for name, at in scalars[:-1] if name.endswith("/wall_seconds")] == [row["iteration"] for row in rows]
    assert scalars[-1] == "closed" and (toy[0] / "metrics.csv").is_file()


def test_a_tracker_without_its_extra_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    answer = command("train", *TOY, "--out", tmp_path / "run", "--tracker", "tensorboard", "--tracker", "wandb")
    assert answer.code == 2 and "pip install 'holdfast[wandb]'" in answer.err
    assert not (tmp_path / "run").exists()
    assert "invalid choice 'mlflow'" in command("train", "lane-keeping", "--tracker", "mlflow").err


def test_a_run_is_verified_again_at_its_own_level(toy):
    answer = command("verify", toy[0], "--json")
    assert answer.code == 0 and answer.json["obligations"][0]["numbers"]["level"] == 5.0


def test_a_run_is_evaluated_attacked_and_rendered_from_its_files(copy):
    trained = (copy / "checkpoint" / "state.safetensors").read_bytes()
    answer = command("evaluate", copy, "--episodes", 4, "--json")
    assert answer.code == 0 and answer.json["ok"]
    assert answer.json["safety"]["episodes"] == 4 and answer.json["safety"]["violations"] == 0
    answer = command("attack", copy, "--steps", 2000, "--json")
    assert answer.code == 0 and answer.json["violations"] == 0 and answer.json["steps"] >= 2000
    answer = command("render", copy, "--out", copy / "episode.gif")
    assert answer.code == 0 and (copy / "episode.gif").read_bytes()[:4] == b"GIF8"
    assert (copy / "checkpoint" / "state.safetensors").read_bytes() == trained


# ------------------------------------------------------------------------------------------------------------ refusals

WRONG = [
    (["train", "lane-keepin"], "task = 'lane-keepin' is unknown; the tasks are: "),
    (["train", "lane-keeping", "--episodes", "0"], "episodes = 0; give a whole number >= 1"),
    (["train", "lane-keeping", "--seeds", "0"], "seeds = 0; give a whole number >= 1"),
    (["train", "lane-keeping", "--seed", "-1"], "seed = -1; give a whole number from 0"),
    (["train", "lane-keeping", "--window", "-3"], "window = -3; give a whole number >= 1"),
    (["train", "lane-keeping", "--horizon", "0"], "horizon = 0; give a whole number of steps >= 1"),
    (["train", "lane-keeping", "--discount", "1.5"], "discount = 1.5; give a number between 0 and 1"),
    (["train", "lane-keeping", "--actor-rate", "nan"], "actor_rate = nan; give a number > 0"),
    (["train", "lane-keeping", "--restart", "2"], "restart = 2.0; give a probability from 0 to 1"),
    (["train", "lane-keeping", "--level", "-1"], "level = -1.0; give a finite number > 0"),
    (["train", "lane-keeping", "--safeguard", "magic"], "invalid choice 'magic' for argument '--safeguard'"),
    (
        ["train", "lane-keeping", "--backup-training", "magic"],
        "invalid choice 'magic' for argument '--backup-training'",
    ),
    (
        ["train", "seeker", "--backup-training", "td3"],
        "backup_training = 'td3'; seeker is kept by a robust control invariant",
    ),
    (["train", "lane-keeping", "--resume", "--out", "NOWHERE"], "does not exist"),
    (["verify", "lane-keeping", "--level", "nan"], "level = nan; give a finite number > 0"),
    (["verify", "lane-keeping", "--max-seconds", "-1"], "max_seconds = -1.0; give a finite number > 0"),
    (["verify"], "TASK|RUN|FILE.py:NAME"),
    (["verify", "."], "is not a run: it has no config.json"),
    (["evaluate", "NOWHERE"], "NOWHERE does not exist"),
    (["evaluate", "NOWHERE", "--episodes", "0"], "episodes = 0; give a whole number >= 1"),
    (["attack", "NOWHERE", "--steps", "0"], "steps = 0.0; give a finite number > 0"),
    (["attack", "NOWHERE", "--delay", "-1"], "delay = -1; give a whole number >= 0"),
    (["attack", "NOWHERE", "--noise", "nan"], "noise = nan; give a finite number > 0"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_wrong_input_is_named_and_leaves_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = command(*arguments)
    assert answer.code == 2 and answer.out == ""
    assert message in answer.err
    assert not list(tmp_path.iterdir())


def test_wrong_input_in_json_is_one_object_too():
    answer = command("train", "lane-keeping", "--seeds", 0, "--json")
    assert answer.code == 2 and answer.err == ""
    assert answer.json == {"ok": False, "error": "ValueError: seeds = 0; give a whole number >= 1"}


def test_a_refuted_level_is_not_trained_on(tmp_path):
    answer = command("train", "lane-keeping", "--level", 14, "--out", tmp_path / "run")
    assert answer.code == 1
    assert "'base set invariant' is refuted at level = 14" in answer.err and "Without --level" in answer.err
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(toy, tmp_path):
    before = (toy[0] / "config.json").read_bytes()
    answer = command("train", "lane-keeping", "--out", toy[0])
    assert answer.code == 2 and "nothing is overwritten" in answer.err
    assert (toy[0] / "config.json").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    answer = command("train", "lane-keeping", "--out", tmp_path / "file")
    assert answer.code == 2 and (tmp_path / "file").read_text() == "mine"
    assert "is a file" in command("evaluate", tmp_path / "file").err


def test_a_run_is_resumed_with_its_own_settings_only(toy):
    answer = command("train", *TOY[:-1], "9", "--out", toy[0], "--resume")
    assert answer.code == 2 and "episodes = 9, but the run to resume has episodes = 4; leave it out" in answer.err


@pytest.mark.parametrize("arguments", [["--index", 1], ["--index", -1]])
def test_seeds_that_were_not_trained_cannot_be_attacked(toy, arguments):
    answer = command("attack", toy[0], *arguments)
    assert answer.code == 2 and f"index = {arguments[1]}; the run has 1 seed(s)" in answer.err


def test_what_cannot_be_rendered(copy):
    assert "the run kept 4" in command("render", copy, "--episode", 99).err
    assert "make it first" in command("render", copy, "--out", copy / "no" / "x.gif").err
    (copy / "trajectories.npz").write_bytes(b"PK torn")
    answer = command("render", copy)
    assert answer.code == 2 and "is damaged" in answer.err
    (copy / "trajectories.npz").unlink()
    answer = command("render", copy)
    assert answer.code == 2 and f"evaluate the run first: `holdfast evaluate {copy}`" in answer.err


def test_a_damaged_checkpoint_is_refused(copy):
    file = copy / "checkpoint" / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    for words in (["evaluate", copy], ["train", *TOY, "--out", copy, "--resume"]):
        answer = command(*words)
        assert answer.code == 2 and "is damaged" in answer.err and "train again" in answer.err


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("task", "power-loop", "'lane-keeping'"), ("physics", "0" * 64, "restore them"), ("seeds", 7, "expected 1")],
)
def test_a_checkpoint_of_something_else_is_refused(copy, field, value, expected):
    physics = json.loads((copy / "certificate.json").read_text())["physics"]
    header = {"task": "lane-keeping", "physics": physics, "seeds": 1, "phase": "policy", "updates": 4}
    save_checkpoint(copy / "checkpoint", {"weights": np.zeros(3)}, header | {field: value})
    answer = command("evaluate", copy)
    assert answer.code == 2 and f"{field} is {value!r}" in answer.err and expected in answer.err


def test_physics_other_than_the_certificates_is_refused_and_the_certificate_kept(copy):
    file = copy / "certificate.json"
    certificate = json.loads(file.read_text())
    file.write_text(json.dumps(certificate | {"physics": "f" * 64}))
    for words in (["evaluate", copy], ["verify", copy], ["train", *TOY, "--out", copy, "--resume"]):
        answer = command(*words)
        assert answer.code == 2 and "but the run's certificate is about ffffffffffff" in answer.err
    assert json.loads(file.read_text())["physics"] == "f" * 64
    file.write_text('{"subject": "nothing"}')
    answer = command("evaluate", copy)
    assert answer.code == 2 and "is no certificate" in answer.err


# ------------------------------------------------------------------------------------------------- Ctrl-C and kill


def press(patch, phase, times=1):
    """Presses Ctrl-C (a real signal) when the first chunk of a phase is logged."""
    log = RunDirectory.append_metrics

    def logging(self, row):
        log(self, row)
        if row["phase"] == phase:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(RunDirectory, "append_metrics", logging)


KILLED = """
import sys, time
import holdfast.cli.training as training
from holdfast.cli import main
from holdfast.runs import RunDirectory

training._CHUNK, training._KEEP_EVERY = {chunk}, -1.0
save = RunDirectory.save_checkpoint

def hang(self, tree, header):
    save(self, tree, header)
    print("saved", flush=True)
    time.sleep(600)

RunDirectory.save_checkpoint = hang
main(sys.argv[1:])
"""


def test_kill_ctrl_c_and_resume_end_where_an_uninterrupted_run_ends(toy, tmp_path):
    out = tmp_path / "run"
    words = ["train", *TOY, "--out", str(out)]

    # Killed in phase 1, right after its first checkpoint.
    environment = os.environ | {"HOLDFAST_CACHE": str(jax.config.jax_compilation_cache_dir)}
    script = [sys.executable, "-c", KILLED.format(chunk=CHUNK), *words]
    with subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "saved\n"
        process.kill()
    assert RunDirectory.open(out).has_checkpoint
    answer = command("evaluate", out)
    assert answer.code == 2 and f"go on with `holdfast train lane-keeping --out {out} --resume`" in answer.err

    # Resumed, and stopped by Ctrl-C in phase 2.
    with pytest.MonkeyPatch.context() as patch:
        press(patch, "policy")
        answer = command(*words, "--resume", "--json")
    assert answer.code == 130
    assert answer.json["error"].startswith("stopped; nothing is lost. Go on with `holdfast train lane-keeping --out")

    # Resumed, finished, and stopped by Ctrl-C in evaluation.
    def evaluate(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "evaluate_run", evaluate)
        answer = command(*words, "--resume")
    assert answer.code == 130 and "nothing is lost" in answer.err and "--resume" in answer.err

    # All that was learned is what the uninterrupted run learned, bit for bit.
    expected, found = arrays(toy[0]), arrays(out)
    assert expected.keys() == found.keys() and len(found) > 40
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    drop = lambda rows: [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows]  # noqa: E731
    rows = drop(RunDirectory.open(out).read_metrics())
    assert json.dumps(rows) == json.dumps(drop(RunDirectory.open(toy[0]).read_metrics()))

    # Resuming once more evaluates without training again.
    before = (out / "checkpoint" / "state.safetensors").stat().st_mtime_ns
    answer = command(*words, "--resume", "--json")
    assert answer.code == 0 and answer.json["safety"]["violations"] == 0
    assert (out / "checkpoint" / "state.safetensors").stat().st_mtime_ns == before
    uninterrupted = json.loads((toy[0] / "report.json").read_text())["metrics"]
    assert answer.json["metrics"]["y_rmse"]["mean"] == uninterrupted["y_rmse"]["mean"]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_phase_1_leaves_a_run_that_goes_on(tmp_path, times):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        press(patch, "backup", times)
        answer = command("train", *TOY, "--out", out)
    assert answer.code == 130
    assert "stopping after this chunk; press Ctrl-C again to stop at once" in answer.err
    kept = "nothing is lost" if times == 1 else "nothing was trained yet"
    assert f"stopped; {kept}. Go on with `holdfast train lane-keeping --out {out} --resume`" in answer.err
    assert RunDirectory.open(out).has_checkpoint == (times == 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.MonkeyPatch.context() as patch:
        press(patch, "backup")
        answer = command("train", *TOY, "--out", out, "--resume")
    assert answer.code == 130
    done = [row["iteration"] for row in RunDirectory.open(out).read_metrics()]
    assert done == ([2, 4] if times == 1 else [2])


def test_ctrl_c_while_proving_stops_before_training(tmp_path, monkeypatch):
    certify = training.certify_task

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return certify(*arguments, **options)

    monkeypatch.setattr(training, "certify_task", interrupted)
    answer = command("train", *TOY, "--out", tmp_path / "run")
    assert answer.code == 130 and "nothing was trained yet" in answer.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
