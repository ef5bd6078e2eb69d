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
    table = _readme.reproduced("safeguards")
    assert table is not None and len(table) == 5
    for task, rows in table.items():
        for row in rows:
            seeds, guarded = (10 if row["algorithm"] == "shac" else 3), row["safeguard"] != "none"
            assert row["seeds"] >= seeds
            if guarded:
                counts = (
                    "training_violations",
                    "violations",
                    "chosen_noise_violations",
                    "lapses",
                    "uncertified_starts",
                )
                assert not any(row[count] for count in counts), (task, row["safeguard"])
                assert row["relative_time"] is None or row["relative_time"] <= 3
            if guarded and task.startswith("balance-") and row["algorithm"] == "shac":
                assert row["against_unsafe"]["relative_interval"][0] >= -0.05, (task, row["safeguard"])


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
