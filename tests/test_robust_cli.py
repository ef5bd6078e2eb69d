"""Tasks with invariant sets on the command line: proved, refuted, trained, attacked, and tabulated."""

import importlib
import json

import numpy as np
import pytest

from command_line import command, terminal
from holdfast.cli import safeguards_table
from holdfast.runs import RunDirectory

TOY = ("--updates", "3", "--environments", "4", "--window", "4", "--episodes", "4")


@pytest.fixture(autouse=True, scope="module")
def settings():
    with terminal():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A toy run behind a ray mask, trained with PPO."""
    out = tmp_path_factory.mktemp("robust") / "run"
    answer = command(
        *("train", "balance-pendulum", "--algorithm", "ppo", "--safeguard", "ray_mask", "--centre", "chord"),
        *("--placement", "environment", *TOY, "--updates", "2", "--window", "8", "--out", str(out), "--json"),
    )
    assert answer.code == 0, answer.err
    return out, answer.json


@pytest.mark.parametrize("task", ["balance-pendulum", "balance-cartpole", "balance-quadrotor", "seeker", "household"])
def test_what_a_task_ships_is_proved(task):
    answer = command("verify", task, "--json")
    found = {each["name"]: each["discharge"] for each in answer.json["obligations"]}
    assert answer.code == 0 and answer.json["holds"]
    assert found["safe"] == "proved"
    assert set(found.values()) <= {"proved", "assumed", "checked"}


def test_a_set_of_ones_own_is_proved_or_refuted_with_a_state_and_a_disturbance(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"centre": [0, 0], "generators": [[1.0, 0.0, 0.5], [0.0, 3.0, -0.5]]}))
    own, shipped = (command("verify", "balance-pendulum", *set_, "--json").json for set_ in (("--set", str(file)), ()))
    assert own["holds"] and own["physics"] != shipped["physics"]
    file.write_text(json.dumps({"centre": [0, 0], "generators": [[3.1, 0.0], [0.0, 7.9]]}))
    answer = command("verify", "balance-pendulum", "--set", str(file), "--json")
    assert answer.code == 1 and not answer.json["holds"]
    refuted = {each["name"]: each for each in answer.json["obligations"] if each["discharge"] == "refuted"}
    numbers = refuted["some action keeps the set"]["numbers"]
    x, w = np.asarray(numbers["state"]), np.asarray(numbers["disturbances"])
    assert np.all(np.abs(x) <= np.array([3.1, 7.9]) + 1e-6) and np.all(np.abs(w) <= 0.1)
    file.write_text(json.dumps({"centre": [0, 0], "generators": [[4.0, 0.0], [0.0, 2.0]]}))
    answer = command("verify", "balance-pendulum", "--set", str(file), "--json")
    assert "'inside the feasible set' is refuted" in answer.json["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no object; give centre and generators"),
        ('{"centre": [0, 0]}', "generators is missing"),
        ('{"centre": [0, 0], "generators": "wide"}', "generators is no array of numbers"),
        ('{"centre": [0, 0], "generators": [[1, 0, 0]]}', "give [n] and [n, g]"),
        ('{"centre": [0, 0], "generators": [[1, 1], [0, 0]]}', "flat"),
        ('{"normals": [[1, 0]], "offsets": [1]}', "lacks"),
    ],
)
def test_a_file_that_holds_no_set_is_named(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    answer = command("verify", "balance-pendulum", "--set", str(tmp_path / "bad.json"))
    assert answer.code == 2 and message in " ".join(answer.err.split())


def test_a_task_with_a_backup_takes_no_set(tmp_path):
    answer = command("verify", "lane-keeping", "--set", str(tmp_path / "mine.json"))
    assert answer.code == 2 and "is kept by a backup" in " ".join(answer.err.split())


@pytest.mark.parametrize("option", [("--level", "3"), ("--horizon", "5")])
def test_an_invariant_set_has_no_level_and_no_horizon(option, tmp_path):
    answer = command("train", "balance-pendulum", *option, "--out", str(tmp_path / "run"))
    assert answer.code == 2 and "kept by a robust control invariant set" in " ".join(answer.err.split())
    assert not (tmp_path / "run").exists()


def test_a_run_without_phase_1_reports_what_it_promises(trained):
    out, report = trained
    assert report["training_safety"]["violations"] == report["safety"]["violations"] == 0
    assert report["training_safety"]["steps"] == 2 * 4 * 8
    assert report["safety"]["uncertified_starts"] == 0 and report["wall_seconds"]["backup"] is None
    assert set(report["safety"]["noise"]) == {"uniform", "vertices", "gradient"}
    assert "rays from the chord centre" in report["safeguard"] and report["coverage"]["base_set"] is None
    assert "invariant set" in (out / "report.html").read_text(encoding="utf-8")
    phases = {row["phase"] for row in RunDirectory.open(out).read_metrics()}
    assert phases == {"policy"}


def test_it_is_attacked_with_chosen_noise_and_rendered(trained):
    out, _ = trained
    answer = command("attack", str(out), "--steps", "4000", "--json")
    assert answer.code == 0 and answer.json["violations"] == 0
    assert answer.json["certified_steps"] == answer.json["steps"]
    assert all(each["steps"] > 0 for each in answer.json["disturbances"].values())
    assert command("evaluate", str(out), "--episodes", "4", "--json").json["safety"]["violations"] == 0


def test_a_finished_run_is_resumed_to_the_same_policy(trained):
    out, _ = trained
    before = (out / "checkpoint" / "header.json").read_text() if (out / "checkpoint" / "header.json").exists() else ""
    answer = command("train", "balance-pendulum", "--algorithm", "ppo", "--resume", "--out", str(out), "--json")
    assert answer.code == 0
    assert not before or before == (out / "checkpoint" / "header.json").read_text()


def test_it_is_exported_and_equals_the_original(trained):
    pytest.importorskip("flatbuffers", reason="install the extra 'export'")
    out, _ = trained
    answer = command("export", str(out), "--states", "64", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["agreement"]["equal"] + answer.json["agreement"]["both_pass"] == 64
    assert command("export", str(out), "--index", "3").code == 2


def test_the_table_is_filled_written_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(safeguards_table, "MODEL_FREE", ("none", "boundary projection"))
    monkeypatch.setattr(safeguards_table, "CHOSEN_NOISE", ("boundary projection",))
    monkeypatch.setattr(
        importlib.import_module("holdfast.cli.safeguards_report"), "MODEL_FREE", safeguards_table.MODEL_FREE
    )
    size = safeguards_table.Size(512, 2, 1, 4, 8, 4)
    monkeypatch.setattr(importlib.import_module("holdfast.cli.tables"), "QUICK", size)
    asked = ("reproduce", "safeguards", "--quick", "--tasks", "balance-pendulum", "--algorithms", "ppo")
    answer = command(*asked, "--out", str(tmp_path), "--json")
    assert answer.code == 0, answer.err
    unsafe, safe = answer.json["table"]["balance-pendulum"]
    assert unsafe["safeguard"] == "none" and unsafe["violations"] + unsafe["training_violations"] > 0
    assert safe["violations"] == safe["training_violations"] == safe["chosen_noise_violations"] == safe["lapses"] == 0
    assert safe["against_unsafe"]["seeds"] == 2 and safe["against_unsafe"]["starts"] == 8
    assert unsafe["relative_time"] == 1.0 and safe["relative_time"] > 0
    chosen = safe["training_under_chosen_noise"]
    assert chosen["noise"] == ["vertices", "gradient"] and chosen["steps"] == 2048 and chosen["violations"] == 0
    words = (tmp_path / "safeguards.md").read_text(encoding="utf-8")
    assert "boundary projection" in words and "holdfast" in words and "--kept" not in words
    # Again: nothing is computed, and other settings are refused.
    monkeypatch.setattr(safeguards_table, "compute", None)
    assert command(*asked, "--out", str(tmp_path), "--json").json["table"] == answer.json["table"]
    monkeypatch.setattr(
        importlib.import_module("holdfast.cli.tables"), "QUICK", safeguards_table.Size(512, 3, 1, 4, 8, 4)
    )
    refused = command(*asked, "--out", str(tmp_path))
    assert refused.code == 2 and "was computed with" in refused.err


def test_tables_and_tasks_that_there_are_not():
    answer = command("reproduce", "safeguards", "--tasks", "balance-broom")
    assert answer.code == 2 and "the table has balance-pendulum" in " ".join(answer.err.split())
    assert command("reproduce", "unicorns").code == 2
    answer = command("synthesise", "lane-keeping")
    assert answer.code == 2 and "not kept by a polytope" in " ".join(answer.err.split())
