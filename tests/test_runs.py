"""Runs: nothing half-written, nothing overwritten, nothing loaded that does not fit."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.runs import (
    CheckpointMismatch,
    ConfigError,
    RunDirectory,
    RunError,
    atomic_write,
    config_from_json,
    config_to_json,
    environment,
    episode_key,
    load_checkpoint,
    read_header,
    save_checkpoint,
    seed_keys,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    task: str = "lane-keeping"
    seed: int = 0
    rate: float = 1e-3
    level: float | None = None
    widths: tuple[int, ...] = (64, 64)
    map: Literal["ray", "boundary"] = "ray"
    guarded: bool = True


# Directories ---------------------------------------------------------------------------------------------------------


def test_a_run_is_created_and_opened(tmp_path):
    run = RunDirectory.create(tmp_path / "a" / "demo", Settings(seed=3, level=math.inf))
    again = RunDirectory.open(run.path)
    assert again.config == run.config
    assert again.read_config(Settings) == Settings(seed=3, level=math.inf)
    assert os.listdir(run.path) == ["config.json"]


def test_nothing_is_overwritten(tmp_path):
    first = RunDirectory.create(tmp_path / "demo", {"seed": 0})
    with pytest.raises(RunError, match=r"demo holds a run already.*resume"):
        RunDirectory.create(first.path, {"seed": 1})
    assert RunDirectory.create(first.path, {"seed": 1}, suffix=True).path == tmp_path / "demo-2"
    assert RunDirectory.create(first.path, {"seed": 2}, suffix=True).path == tmp_path / "demo-3"
    assert RunDirectory.open(first.path).config == {"seed": 0}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="something else"):
        RunDirectory.create(tmp_path / "other", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        RunDirectory.create(tmp_path / "file", {})
    with pytest.raises(RunError, match="a part of it is a file"):
        RunDirectory.create(tmp_path / "file" / "run", {})


def test_a_directory_being_claimed_by_another_process_is_taken(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / ".claim").write_text("")
    assert RunDirectory.create(tmp_path / "demo", {}, suffix=True).path == tmp_path / "demo-2"


def test_leftovers_of_a_killed_write_do_not_occupy_a_directory(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / ".unfinished-x").write_text("{")
    RunDirectory.create(tmp_path / "demo", {})
    assert os.listdir(tmp_path / "demo") == ["config.json"]


def test_opening_explains_what_is_wrong(tmp_path):
    RunDirectory.create(tmp_path / "demo", {})
    with pytest.raises(RunError, match=r"dmeo does not exist; beside it there are: demo"):
        RunDirectory.open(tmp_path / "dmeo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty is not a run: it has no config\.json \(it is empty\)"):
        RunDirectory.open(tmp_path / "empty")
    with pytest.raises(RunError, match="is a file"):
        RunDirectory.open(tmp_path / "demo" / "config.json")
    config = tmp_path / "demo" / "config.json"
    for document, message in (
        ("{", "not JSON"),
        ('{"a": 1}', "not written by holdfast"),
        ('{"format": "holdfast-run", "version": 7, "config": {}}', "has version 7, this holdfast reads version 1"),
    ):
        config.write_text(document)
        with pytest.raises(RunError, match=message):
            RunDirectory.open(tmp_path / "demo")


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    atomic_write(file, b"old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        atomic_write(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_killed_writer_leaves_whole_files(tmp_path):
    """A process that rewrites a checkpoint and a report for ever, killed at full speed, leaves both readable."""
    program = f"""
import numpy as np
from holdfast.runs import RunDirectory
run = RunDirectory.create({str(tmp_path / "demo")!r}, {{}})
k = 0
while True:
    run.save_checkpoint({{"w": np.full(20000, float(k))}}, {{"iteration": k}})
    run.append_metrics({{"iteration": k, "padding": "x" * 5000}})
    run.write_report({{"iteration": k, "padding": "x" * 50000}})
    print(k, flush=True)
    k += 1
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        for _ in range(5):
            writer.stdout.readline()
        writer.kill()
    run = RunDirectory.open(tmp_path / "demo")
    tree, header = run.load_checkpoint({"w": np.zeros(20000)}, {})
    np.testing.assert_array_equal(tree["w"], float(header["iteration"]))
    assert header["iteration"] >= 4
    assert len(run.read_metrics()) >= 5
    assert run.read_report()["iteration"] >= 4


def test_metrics_survive_a_torn_line(tmp_path):
    run = RunDirectory.create(tmp_path / "demo", {})
    assert run.read_metrics() == []
    run.append_metrics({"iteration": 0, "return": jnp.float32(-1.5), "loss": math.nan})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 1, "ret')
    (row,) = run.read_metrics()
    assert row["return"] == -1.5 and math.isnan(row["loss"])
    run.append_metrics({"iteration": 1, "bound": -np.inf})
    assert [row["iteration"] for row in run.read_metrics()] == [0, 1]
    assert run.read_metrics()[1]["bound"] == -math.inf
    run.rewind_metrics(0)
    assert [row["iteration"] for row in run.read_metrics()] == [0]
    (run.path / "metrics.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(RunError, match="line 2 is not JSON"):
        run.read_metrics()


def test_reports_are_strict_json(tmp_path):
    run = RunDirectory.create(tmp_path / "demo", {})
    with pytest.raises(RunError, match=r"report\.json does not exist"):
        run.read_report()
    run.write_report({"rmse": np.float32(0.5), "seeds": (0, 1), "worst": jnp.array([1.0, jnp.nan])})

    def refuse(word):
        raise AssertionError(f"{word} is not strict JSON")

    json.loads((run.path / "report.json").read_text(), parse_constant=refuse)
    report = run.read_report()
    assert report["rmse"] == 0.5 and report["seeds"] == [0, 1] and math.isnan(report["worst"][1])
    run.write_certificate({"claims": []})
    assert run.read_certificate() == {"claims": []}
    assert run.write_file("report.html", "<p>") == run.path / "report.html"
    with pytest.raises(RunError, match="plain file name"):
        run.write_file("../report.html", "")
    with pytest.raises(RunError, match=r"report\.json\.policy = .* has no JSON form"):
        run.write_report({"policy": object()})


# Checkpoints ---------------------------------------------------------------------------------------------------------


def _tree(seed=0):
    key = jax.random.key(seed)
    return {
        "network": eqx.nn.MLP(2, 1, 4, 1, activation=jax.nn.tanh, key=key),
        "key": key,
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "half": jnp.full((2, 3), seed + 0.5, jnp.float32),
        "counts": (jnp.arange(3) + seed, np.arange(4.0) + seed),
        "mask": jnp.array([True, bool(seed)]),
        "empty": jnp.zeros((0, 2)),
        "scale": 0.1 + seed,
        "steps": 7 + seed,
        "on": seed == 0,
        "mode": "train",
        "nothing": None,
    }


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    tree = _tree(0)
    save_checkpoint(tmp_path, tree, {"task": "t", "physics": "p", "iteration": 12})
    loaded, header = load_checkpoint(tmp_path, _tree(1), {"task": "t", "physics": "p"})
    assert header == {"task": "t", "physics": "p", "iteration": 12} == read_header(tmp_path)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(loaded)):
        assert type(old) is type(new)
        if isinstance(old, jax.Array | np.ndarray):
            assert old.dtype == new.dtype
            if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
                old, new = jax.random.key_data(old), jax.random.key_data(new)
            np.testing.assert_array_equal(old, new)
        else:
            assert old == new
    readable = json.loads((tmp_path / "header.json").read_text())
    assert readable["leaves"]["['half']"] == {"kind": "array", "dtype": "float32", "shape": [2, 3]}


def test_a_checkpoint_loads_into_shapes(tmp_path):
    tree = {"w": jnp.arange(3.0), "key": jax.random.key(1)}
    save_checkpoint(tmp_path, tree, {})
    loaded, _ = load_checkpoint(tmp_path, jax.eval_shape(lambda: tree), {})
    assert eqx.tree_equal(loaded, tree)


@pytest.mark.parametrize(
    ("like", "field", "seen", "expected"),
    [
        ({"w": jnp.zeros((2, 3)), "b": 1.0}, "shape of leaf ['w']", [3, 2], [2, 3]),
        ({"w": jnp.zeros((3, 2), jnp.float32), "b": 1.0}, "dtype of leaf ['w']", "float64", "float32"),
        ({"w": jnp.zeros((3, 2)), "b": 1}, "kind of leaf ['b']", "float", "int"),
        ({"w": jnp.zeros((3, 2))}, "leaf ['b']", {"kind": "float"}, None),
        ({"w": jnp.zeros((3, 2)), "b": 1.0, "c": 2}, "leaf ['c']", None, {"kind": "int"}),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, like, field, seen, expected):
    save_checkpoint(tmp_path, {"w": jnp.zeros((3, 2)), "b": 1.0}, {})
    with pytest.raises(CheckpointMismatch) as caught:
        load_checkpoint(tmp_path, like, {})
    assert (caught.value.field, caught.value.seen, caught.value.expected) == (field, seen, expected)
    assert field in str(caught.value) and caught.value.remedy in str(caught.value)


def test_other_physics_is_refused(tmp_path):
    save_checkpoint(tmp_path, {"w": jnp.zeros(2)}, {"task": "t", "physics": "old"})
    with pytest.raises(CheckpointMismatch, match=r"physics is 'old', expected 'new'.*.*train again"):
        load_checkpoint(tmp_path, {"w": jnp.zeros(2)}, {"task": "t", "physics": "new"})
    with pytest.raises(CheckpointMismatch, match="algorithm is None"):
        load_checkpoint(tmp_path, {"w": jnp.zeros(2)}, {"algorithm": "shac"})


def test_damage_is_noticed(tmp_path):
    with pytest.raises(RunError, match="stopped before its first checkpoint"):
        read_header(tmp_path)
    save_checkpoint(tmp_path, {"w": jnp.arange(64.0)}, {})
    file = tmp_path / "state.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + b"abc")
    with pytest.raises(RunError, match="do not match its hash"):
        load_checkpoint(tmp_path, {"w": jnp.arange(64.0)}, {})
    for torn in (whole[:-20], whole[:5], b""):
        file.write_bytes(torn)
        with pytest.raises(RunError, match="is damaged"):
            read_header(tmp_path)


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"leaf \['x'\] is a object"):
        save_checkpoint(tmp_path, {"x": object()}, {})
    with pytest.raises(RunError, match="does not fit 64 bits"):
        save_checkpoint(tmp_path, {"x": 2**70}, {})
    assert os.listdir(tmp_path) == []


# Seeds, configs, environment -----------------------------------------------------------------------------------------


def test_an_episodes_key_depends_on_seed_and_number_alone():
    keys = seed_keys(5, 4, first=2)
    for i in range(4):
        assert keys[i] == episode_key(5, 2 + i)
    assert episode_key(5, 0) != episode_key(6, 0)
    assert jax.jit(lambda i: episode_key(5, i))(3) == episode_key(5, 3)
    for bad in (-1, 2**32, True):
        with pytest.raises(ValueError, match="seed = "):
            episode_key(bad, 0)
    with pytest.raises(ValueError, match="count = 0"):
        seed_keys(0, 0)


def test_configs_come_back_equal():
    for settings in (Settings(), Settings(level=2.5, widths=(), map="boundary", guarded=False)):
        data = json.loads(json.dumps(config_to_json(settings)))
        assert config_from_json(Settings, data) == settings
    assert config_from_json(Settings, {"rate": 1}, partial=True) == Settings(rate=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, r"Settings\.sed = 1: there is no such field; did you mean 'seed'"),
        ({"seed": 1.0}, r"Settings\.seed = 1\.0 is a float; it must be int"),
        ({"seed": True}, r"Settings\.seed = True is a bool"),
        ({"rate": "fast"}, r"Settings\.rate = 'fast' is a str; it must be float"),
        ({"level": "high"}, r"Settings\.level = 'high' is a str; it must be float or null"),
        ({"widths": [64, "64"]}, r"Settings\.widths\[1\] = '64' is a str; it must be int"),
        ({"map": "mirror"}, r"Settings\.map = 'mirror' .* one of 'ray', 'boundary'"),
        ({"guarded": 1}, r"Settings\.guarded = 1 is a int; it must be bool"),
    ],
)
def test_a_wrong_field_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_json(Settings, config_to_json(Settings()) | change)


def test_a_missing_field_is_an_error_unless_defaults_are_asked_for():
    data = config_to_json(Settings())
    del data["rate"]
    with pytest.raises(ConfigError, match=r"Settings\.rate is missing"):
        config_from_json(Settings, data)


def test_the_environment_says_what_matters_and_nothing_private():
    facts = environment()
    assert facts["precision"] == "float64" and facts["cpus"] >= 1
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["device"]["platform"] == jax.default_backend()
    text = json.dumps(facts)
    assert os.uname().nodename not in text and os.getcwd() not in text
