"""The README keeps its word: its examples run, its claims have tests, its numbers come from results files."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from benchmarks import _readme

from holdfast.tasks import make_task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_claim_names_a_test_that_exists():
    rows = [line for line in README.splitlines() if re.match(r"\| .*`test_\w+", line)]
    assert len(rows) >= 15
    for row in rows:
        for file, _, name in re.findall(r"`(test_\w+)(::(\w+))?`", row):
            source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
            assert not name or f"def {name}(" in source, f"{file}::{name} is claimed in the README but does not exist"


def test_the_example_runs_and_stops_at_the_wall():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    compiled = compile(code, "README.md", "exec")
    exec(compiled, names)
    position = float(names["x"][0])
    assert 0.9 < position <= 1.0 and bool(names["plan"].certified)
    assert names["proof"].certificate.holds
    assert np.all(np.isfinite(np.asarray(names["x"]))) and jnp.all(names["answer"].action <= 1)


def test_the_table_of_numbers_is_what_the_results_files_give():
    assert _readme.insert(README, _readme.table()) == README, "run `python -m benchmarks._readme`"


def test_the_committed_table_of_safeguards_says_what_the_docs_say():
    table, missed = _readme.reproduced("safeguards"), set()
    assert table is not None and len(table) == 5
    for task, rows in table.items():
        for row in rows:
            name, shac = row["safeguard"], row["algorithm"] == "shac"
            assert row["seeds"] >= (10 if shac else 3)
            if name == "none":
                continue
            counts = ("training_violations", "violations", "chosen_noise_violations", "lapses", "uncertified_starts")
            assert not any(row[count] for count in counts), (task, name)
            chosen = row["training_under_chosen_noise"]
            assert chosen is None or not chosen["violations"] + chosen["unpromised_violations"]
            assert 0 < row["relative_time"] <= 3
            if shac and task.startswith("balance-"):
                assert row["against_unsafe"]["relative_interval"][0] >= -0.05, (task, name)
                if row["last_against_best"]["relative_interval"][0] < -0.05:
                    missed.add((task, name))
    # What was asked for and missed is named in docs/safeguards_compared.md and in the README's row.
    assert missed == {("balance-cartpole", name) for name in ("ray mask", "ray mask, pass-through", "ray mask, chord")}


def test_the_picture_is_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file()


def test_every_command_of_the_readme_is_one_of_the_command_line():
    from holdfast.cli import main as cli

    for command in re.findall(r"^holdfast (\w+)", README, flags=re.MULTILINE):
        assert command in {
            "list",
            "train",
            "verify",
            "evaluate",
            "attack",
            "render",
            "reproduce",
            "synthesise",
            "export",
        }
    assert callable(cli)


def test_the_faces_of_shipped_sets_are_what_the_docs_say():
    words = (ROOT / "docs" / "invariant_sets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (\d) \| (?:zonotope|polytope), (\d+) faces", words, flags=re.MULTILINE)
    assert len(rows) == 4
    for name, states, faces in rows:
        region = make_task(name).safety.region
        assert region.normals.shape == (int(faces), int(states)), name
