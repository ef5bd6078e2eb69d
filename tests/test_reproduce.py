"""PS2-RL's tables from the command line, at toy size: filled, kept, refused; and what their rows say."""

import importlib
import json

import numpy as np
import pytest

from command_line import command, terminal
from holdfast.cli import methods
from holdfast.cli.methods import COMPARED, METHODS, method_cells, pack, unpack
from holdfast.cli.methods_report import (
    method_markdown,
    method_rows,
    missing,
    still_learning,
    verdicts,
    write_method_table,
)
from holdfast.cli.trials import Size

TINY = Size(256, 2, 1, 4, 8, 4)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    with terminal():
        monkeypatch.setattr(importlib.import_module("holdfast.cli.tables"), "QUICK", TINY)
        yield


def test_the_table_is_filled_written_kept_and_refused(tmp_path, monkeypatch):
    asked = ("reproduce", "lane-keeping", "--quick", "--methods", "ppo-lagrangian", "--out", str(tmp_path))
    answer = command(*asked, "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.json["table"]["lane-keeping"]
    assert row["row"] == "PPO-Lagrangian (in place of CPO)" and row["wall_seconds"] > 0
    assert (
        row["seeds"] == 2 and row["steps"] >= 256 and set(row["metrics"]) == {"y_rmse", "v_rmse", "psi_rmse", "return"}
    )
    low, high = row["metrics"]["y_rmse"]["ci95"]
    assert low <= row["metrics"]["y_rmse"]["iqm"] <= high
    assert row["episodes"] == 16 and row["unsafe_bound"] >= 3 / 16 and row["interventions"] == 0
    assert row["violations"] > 0 and row["worst_violation"] > 0 and row["safe"] < 1
    files = [name.rsplit("/", 1)[-1] for name in answer.json["files"]]
    assert files == ["lane-keeping.json", "lane-keeping.md", "lane-keeping-curves.png", "lane-keeping-paths.png"]
    assert "PPO-Lagrangian" in (tmp_path / "lane-keeping.md").read_text(encoding="utf-8")
    # Again: nothing is computed; part of it is written from what is kept, somewhere else; other settings are refused.
    monkeypatch.setattr(methods, "compute", None)
    assert command(*asked, "--json").json["table"] == answer.json["table"]
    there = tmp_path / "results"
    kept = command("reproduce", "lane-keeping", "--quick", "--kept", "--out", tmp_path, "--results", there, "--json")
    assert kept.json["table"] == answer.json["table"] and (there / "lane-keeping.md").is_file()
    monkeypatch.setattr(importlib.import_module("holdfast.cli.tables"), "QUICK", Size(512, 2, 1, 4, 8, 4))
    refused = command(*asked)
    assert refused.code == 2 and "was computed with" in refused.err
    assert (tmp_path / "lane-keeping" / "ppo-lagrangian.json").is_file()


def test_the_table_of_sets_has_shares_and_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("holdfast.cli.tables"), "QUICK", Size(256, 1, 1, 4, 8, 4))
    answer = command(*("reproduce", "invariant-set", "--quick", "--tasks", "lane-keeping", "--out", tmp_path, "--json"))
    assert answer.code == 0, answer.err
    *learned, analytic = answer.json["table"]["lane-keeping"]
    assert analytic["backup"] == "analytic (LQR)" and learned[0]["backup"] == "learned (simulator)"
    for row in (*learned, analytic):
        share = row["shares"]["of the viability kernel"]
        assert 0 < share["ci95"][0] <= share["iqm"] <= share["ci95"][1] <= 1 and row["impossible"] == 0
    assert (tmp_path / "invariant-set-lane-keeping.png").stat().st_size > 10_000


def test_the_published_ablation_tells_one_error_and_a_share_of_safe_episodes():
    removed = "ours, safeguard removed at deployment"
    table = cell({"ours": ([0.37, 0.38], 0), removed: ([0.1, 0.1], 5)})
    for row in table["rows"].values():
        row["metrics"] = dict.fromkeys(("p_rmse", "v_rmse", "att_rmse"), row["metrics"]["y_rmse"])
    _, row = method_rows("power-loop", ("ours",), {"power-loop/ours": table}, "ablation")
    told = {name: each["published"] for name, each in row["metrics"].items()}
    assert told == {"p_rmse": 0.74, "v_rmse": None, "att_rmse": None} and row["safe_published"] == 0.0


@pytest.mark.parametrize(
    "asked, said",
    [
        (("lane-keeping", "--methods", "ours", "witchcraft"), "methods = witchcraft: the table has ours, analytic"),
        (("power-loop", "--tasks", "lane-keeping"), "tasks = lane-keeping: the table has power-loop"),
        (("lane-keeping", "--algorithms", "sac"), "this table has none; it is asked by --tasks and --methods"),
        (("safeguards", "--methods", "ours"), "this table has none; it is asked by --tasks and --algorithms"),
        (("ablation", "--kept"), "holds no cell of the table"),
    ],
)
def test_what_a_table_has_not_is_refused(asked, said, tmp_path):
    answer = command("reproduce", *asked, "--out", tmp_path)
    assert answer.code == 2 and said in answer.err
    assert not list(tmp_path.iterdir())


def test_every_method_is_a_composition_that_training_knows():
    for name, compared in COMPARED.items():
        for task in ("lane-keeping", "power-loop") if name == "ablation" else (name,):
            cells = {cell.name: cell for cell in method_cells(task, compared, Size())}
            assert f"{task}/ours" in cells
            assert cells[f"{task}/ours"].settings["seeds"] == 10
            absent = missing(task, compared)
            assert len(cells) + len(absent) == len(compared)
    assert missing("power-loop", ("barrier",)) == ["barrier: not on this task"]
    rows = [row for method in METHODS.values() for row in method.rows]
    assert len(set(rows)) == len(rows)


def cell(rows, gains=(-10.0, -2.0, -1.99, -1.99, -1.99, -1.99)):
    """A kept cell of two seeds and 20 episodes each: row -> (y-RMSE of the seeds, violating episodes)."""
    found = {
        name: {
            "metrics": {"y_rmse": values, "v_rmse": [0.5, 0.5], "psi_rmse": [0.1, 0.1], "return": [-900.0, -950.0]},
            "safe_episodes": [20, 20 - bad],
            "moved": [0.1, 0.2],
            "evaluation": {
                "episodes": 40,
                "steps": 16000,
                "violations": 7 * bad,
                "worst_margin": -0.25 if bad else 0.01,
                "uncertified_starts": 0,
            },
            "states": np.tile([[0.1, 5.0, 0.0]], (9, 1)).tolist(),
            "reference": np.linspace([0.0, 5.0, 0.0], [2.5, 5.0, 0.0], 9).tolist(),
        }
        for name, (values, bad) in rows.items()
    }
    seconds = {"backup": 1.0, "train": 2.0, "compile": 3.0, "evaluate": 4.0}
    curve = [{"step": 100 * i, "per_seed": [gain, gain]} for i, gain in enumerate(gains)]
    training = {"steps": 1000, "violations": 0, "unpromised_violations": 3}
    return {"seeds": 2, "steps": 500, "seconds": seconds, "curve": curve, "training": training, "rows": found}


def test_rows_tell_bounds_published_numbers_and_who_is_better(tmp_path):
    cells = {
        "lane-keeping/ours": cell(
            {"ours": ([0.37, 0.38], 0), "ours, safeguard removed at deployment": ([0.1, 0.1], 5)}
        ),
        "lane-keeping/shielding": cell({"model-predictive shielding, as published": ([0.3, 0.3], 2)}),
        "lane-keeping/barrier": cell({"CBF-QP by hand": ([0.6, 0.7], 0)}, gains=(-10.0, -8.0, -6.0, -5.0, -4.0, -2.0)),
    }
    names = ("ours", "shielding", "barrier")
    rows = method_rows("lane-keeping", names, cells, "lane-keeping")
    ours, _, shield, barrier = rows
    assert ours["unsafe_bound"] == 3 / 40 and ours["safe"] == 1 and ours["metrics"]["y_rmse"]["published"] == 0.52
    assert shield["safe"] == 0.95 and shield["safe_published"] == 0.978 and shield["worst_violation"] == 0.25
    assert 0.1 < shield["unsafe_bound"] < 0.2 and shield["training_violations"] == 3 and shield["wall_seconds"] == 6
    said = verdicts("lane-keeping", rows)
    # Who violates is no rival, and neither is ours without its safeguard.
    assert said[0].startswith("y_rmse: ours 0.375 is below every rival without a violation; next is CBF-QP by hand")
    assert "the intervals are apart" in said[0] and "barrier (25" in said[-1] and "ours" not in said[-1]
    cells["lane-keeping/barrier"]["rows"]["CBF-QP by hand"]["metrics"]["y_rmse"] = [0.2, 0.2]
    worse = verdicts("lane-keeping", method_rows("lane-keeping", names, cells, "lane-keeping"))
    assert worse[0] == "y_rmse: ours 0.375; lower without a violation: CBF-QP by hand (0.2)."
    words = method_markdown("lane-keeping", rows)
    assert len({line.count("|") for line in words.splitlines()}) == 1 and "published 97.8" in words
    written = write_method_table("lane-keeping", {"lane-keeping": rows}, cells, ["x: no"], tmp_path, command="holdfast")
    assert [file.name for file in written][2:] == ["lane-keeping-curves.png", "lane-keeping-paths.png"]
    assert json.loads(written[0].read_text())["missing"] == ["x: no"]
    assert barrier["still_learning"] == pytest.approx(0.25)


def test_a_curve_is_asked_what_its_last_fifth_gained():
    point = lambda step, value: {"step": step, "per_seed": [value]}  # noqa: E731
    assert still_learning([point(i, float(min(i, 5))) for i in range(11)]) == 0
    assert still_learning([point(i, float(i)) for i in range(11)]) == pytest.approx(0.2)
    assert still_learning([point(0, 1.0), point(1, 0.0)]) is None
    assert still_learning([point(0, float("nan")), point(1, 0.0)]) is None


def test_masks_survive_packing():
    mask = np.random.default_rng(0).random((5, 13)) < 0.5
    np.testing.assert_array_equal(unpack(pack(mask), 13), mask)
