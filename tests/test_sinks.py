"""Rows of metrics: files always, trackers on request, and what each makes of a row."""

import csv
import sys
import types

import numpy as np
import pytest

from holdfast.runs import (
    Csv,
    JsonLines,
    RunDirectory,
    RunError,
    Sink,
    Sinks,
    TensorBoard,
    WeightsAndBiases,
    open_trackers,
)

ROWS = [
    {"phase": "backup", "iteration": 25, "loss": [0.5, 0.25]},
    {"phase": "backup", "iteration": 50, "loss": np.array([0.4, np.nan])},
    {"phase": "policy", "iteration": 75, "return_mean": [-1.0, -2.0], "step": 800},
]
NAMES = ["phase", "iteration", "loss[0]", "loss[1]", "return_mean[0]", "return_mean[1]", "step"]


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


class Kept(Sink):
    def __init__(self):
        self.rows, self.closed = [], False

    def write(self, row):
        self.rows.append(row)

    def close(self):
        self.closed = True


def test_a_run_writes_both_files_and_hands_rows_to_its_trackers(tmp_path):
    kept = Kept()
    run = RunDirectory.create(tmp_path / "run", {"seed": 0})
    run = RunDirectory(run.path, run.config, (kept,))
    for row in ROWS:
        run.append_metrics(row)
    assert kept.rows == ROWS
    assert [row["iteration"] for row in run.read_metrics()] == [25, 50, 75]
    assert table(run.path / "metrics.csv") == [
        NAMES,
        ["backup", "25", "0.5", "0.25", "", "", ""],
        ["backup", "50", "0.4", "NaN", "", "", ""],
        ["policy", "75", "", "", "-1.0", "-2.0", "800"],
    ]
    run.rewind_metrics(50)  # a resumed run writes later rows again
    assert len(run.read_metrics()) == 2 and len(table(run.path / "metrics.csv")) == 3
    RunDirectory.open(run.path).append_metrics(ROWS[2])
    assert table(run.path / "metrics.csv")[0] == NAMES and len(table(run.path / "metrics.csv")) == 4


def test_a_torn_line_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "rows.csv"
    Csv(path).write({"a": 1, "word": "with, comma\nand line"})
    with open(path, "a") as file:
        file.write("2,torn")
    Csv(path).write({"a": 3})
    Csv(path).write({"b": 4})
    assert table(path) == [["a", "word", "b"], ["1", "with, comma\nand line", ""], ["3", "", ""], ["", "", "4"]]
    path.write_text("a,wo")  # torn in its first line
    Csv(path).write({"a": 5})
    assert table(path) == [["a"], ["5"]]
    Csv(path).replace([])
    Csv(path).write({"c": 1})
    assert table(path) == [["c"], ["1"]]


def test_several_sinks_are_one(tmp_path):
    kept = Kept()
    with Sinks(JsonLines(tmp_path / "rows.jsonl"), kept) as sink:
        sink.write({"a": np.float32(1), "b": float("inf")})
    assert kept.closed and (tmp_path / "rows.jsonl").read_text() == '{"a": 1.0, "b": "Infinity"}\n'
    with pytest.raises(RunError, match=r"row\.a"):
        JsonLines(tmp_path / "rows.jsonl").write({"a": object()})


def test_tensorboard_gets_every_number_at_its_iteration(monkeypatch, tmp_path):
    seen = []

    class SummaryWriter:
        def __init__(self, logdir, purge_step):
            seen.append((logdir, purge_step))

        def add_scalar(self, name, value, at):
            seen.append((name, value, at))

        def close(self):
            seen.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    (sink,) = open_trackers(("tensorboard", "tensorboard"), tmp_path, {})
    assert isinstance(sink, TensorBoard)
    sink.close()
    assert not seen  # nothing before the first row
    sink.write({"phase": "policy", "step": 7, "loss": [0.5, float("nan")], "done": None})
    sink.write({"loss": 1})
    sink.close()
    place, *scalars, last = seen
    assert place == (str(tmp_path / "tensorboard"), 7) and last == "closed"
    assert scalars[:2] == [("policy/step", 7.0, 7), ("policy/loss[0]", 0.5, 7)]
    assert scalars[2][0] == "policy/loss[1]" and np.isnan(scalars[2][1]) and scalars[3:] == [("loss", 1.0, 1)]


def test_weights_and_biases_gets_settings_and_rows(monkeypatch, tmp_path):
    seen = []
    run = types.SimpleNamespace(log=lambda row, step: seen.append((row, step)), finish=lambda: seen.append("finished"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: seen.append(given) or run))
    (sink,) = open_trackers(["wandb"], tmp_path / "mine", {"seed": 3})
    assert isinstance(sink, WeightsAndBiases)
    sink.close()
    assert not seen
    sink.write({"iteration": 4, "loss": [0.5, float("inf")]})
    sink.close()
    given = {"project": "holdfast", "name": "mine", "config": {"seed": 3}, "dir": str(tmp_path / "mine")}
    assert seen == [given, ({"iteration": 4, "loss[0]": 0.5, "loss[1]": float("inf")}, 4), "finished"]


@pytest.mark.parametrize("name, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_without_the_extra_the_message_names_it(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunError, match=rf"{module}, which is not installed: pip install 'holdfast\[{name}\]'"):
        open_trackers([name], tmp_path, {})


def test_an_unknown_tracker_is_refused_before_anything_is_opened(tmp_path):
    with pytest.raises(RunError, match="tracker = 'mlflow' is unknown; the trackers are: tensorboard, wandb"):
        open_trackers(["wandb", "mlflow"], tmp_path, {})
