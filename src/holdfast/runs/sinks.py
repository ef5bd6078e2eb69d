"""Where rows of metrics go: files always, trackers where they are asked for, all behind one small interface."""

import abc
import csv
import importlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from holdfast.runs.files import RunError, atomic_write, from_json, to_json


class Sink(abc.ABC):
    """Takes one row after the other: names to numbers, words, or lists with one number a seed.

    A row's place on a tracker's axis is its "iteration", else its "step", else its number. Use it in a `with` statement,
    or close it.
    """

    @abc.abstractmethod
    def write(self, row: Mapping[str, Any]) -> None:
        """Takes one row."""

    def close(self) -> None:
        """No row comes any more."""
        return

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class JsonLines(Sink):
    """One JSON object a line.

    Args:
        path: appended to, if it is there.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends the row. A line that an earlier kill left torn is removed first."""
        append_line(self.path, json_line(row))

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Makes these all the rows there are."""
        atomic_write(self.path, b"".join(json_line(row) for row in rows))


class Csv(Sink):
    """A table with a line of names on top; lists become columns `name[0]`, `name[1]`, ... A row with a new name widens it.

    Args:
        path: appended to, if it is there.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._names: list[str] | None = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends the row. A line that an earlier kill left torn is removed first."""
        cells = flat(row)
        if self._names is None and self.path.exists():
            self._names = _csv_names(self.path)
        if self._names is None or not cells.keys() <= set(self._names):
            self._widen(cells)
        append_line(self.path, _csv_line([cells.get(name, "") for name in self._names or ()]))

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Makes these all the rows there are."""
        tables = [flat(row) for row in rows]
        self._names = list(dict.fromkeys(name for cells in tables for name in cells))
        lines = [self._names, *([cells.get(name, "") for name in self._names] for cells in tables)]
        atomic_write(self.path, b"".join(_csv_line(line) for line in lines) if self._names else b"")
        self._names = self._names or None

    def _widen(self, cells: Mapping[str, Any]) -> None:
        names, *lines = (_csv_rows(self.path) if self.path.exists() else []) or [[]]
        wider = [*names, *(name for name in cells if name not in names)]
        kept = [line + [""] * (len(wider) - len(line)) for line in lines]
        atomic_write(self.path, b"".join(_csv_line(line) for line in [wider, *kept]))
        self._names = wider


class TensorBoard(Sink):
    """TensorBoard's event files, one scalar for every number of a row; words become the first part of the name.

    Nothing is written before the first row.

    Args:
        directory: where they go; `tensorboard --logdir DIRECTORY` shows them.

    Raises:
        RunError: without the extra `tensorboard`.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._module = _extra("tensorboardX", "tensorboard")
        self._directory, self._writer, self._count = os.fspath(directory), None, 0

    def write(self, row: Mapping[str, Any]) -> None:
        cells, at = from_json(flat(row)), _place(row, self._count)
        if self._writer is None:
            # A resumed run writes the rows after its checkpoint again: what stood there is purged.
            self._writer = self._module.SummaryWriter(logdir=self._directory, purge_step=at)
        words = "/".join(value for value in cells.values() if isinstance(value, str))
        for name, value in cells.items():
            if not isinstance(value, str | None):
                self._writer.add_scalar(f"{words}/{name}" if words else name, float(value), at)
        self._count += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases(Sink):
    """A run of Weights & Biases, which has its own settings (WANDB_MODE=offline and so on). It begins with the first row.

    Args:
        project, name: as shown there.
        config: settings of the run, shown there.
        directory: where it keeps its files.

    Raises:
        RunError: without the extra `wandb`.
    """

    def __init__(
        self,
        project: str = "holdfast",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ):
        self._module = _extra("wandb", "wandb")
        place = None if directory is None else os.fspath(directory)
        self._settings = {"project": project, "name": name, "config": dict(config or {}), "dir": place}
        self._run, self._count = None, 0

    def write(self, row: Mapping[str, Any]) -> None:
        if self._run is None:
            self._run = self._module.init(**self._settings)
        self._run.log(from_json(flat(row)), step=_place(row, self._count))
        self._count += 1

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class Sinks(Sink):
    """Several sinks as one; the files first, so that a tracker that fails loses nothing.

    Args:
        sinks: in the order in which they get each row.
    """

    def __init__(self, *sinks: Sink):
        self.sinks = sinks

    def write(self, row: Mapping[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(row)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
TRACKERS = tuple(_MODULES)
"""Names of the sinks that are asked for; JSONL and CSV are written always."""


def require_trackers(names: Sequence[str]) -> None:
    """That these trackers can be had, before anything is made for them.

    Raises:
        RunError: for an unknown name, or one whose extra is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise RunError(f"tracker = {name!r} is unknown; the trackers are: {', '.join(TRACKERS)}")
    for name in names:
        _extra(_MODULES[name], name)


def open_trackers(names: Sequence[str], path: str | os.PathLike[str], config: Mapping[str, Any]) -> tuple[Sink, ...]:
    """The trackers of a run directory by name.

    Args:
        names: of `TRACKERS`.
        path: the run directory; event files go into `tensorboard/` in it.
        config: the run's settings.

    Raises:
        RunError: for an unknown name, or one whose extra is not installed.
    """
    require_trackers(names)
    path = Path(path)
    kinds = {
        "tensorboard": lambda: TensorBoard(path / "tensorboard"),
        "wandb": lambda: WeightsAndBiases(name=path.name, config=config, directory=path),
    }
    return tuple(kinds[name]() for name in dict.fromkeys(names))


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row in JSON's types with a number of its own for each entry of a list: {"loss": [1, 2]} -> loss[0], loss[1];
    {"a": {"b": 1}} -> a.b."""
    found: dict[str, Any] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, list):
            for i, item in enumerate(value):
                visit(f"{name}[{i}]", item)
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(f"{name}.{key}", item)
        else:
            found[name] = value

    for name, value in to_json(row, "row").items():
        visit(name, value)
    return found


def json_line(row: Mapping[str, Any]) -> bytes:
    """The row as a line of strict JSON."""
    return (json.dumps(to_json(row, "row"), ensure_ascii=False, allow_nan=False) + "\n").encode()


def append_line(path: Path, line: bytes) -> None:
    """Appends a whole line, after removing one that an earlier kill left torn."""
    # One write call, and no fsync: a killed process loses nothing the kernel has, and training should not wait for the
    # disk at every row. A power cut may cost the last rows, never the file.
    with open(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)


def _csv_line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _csv_rows(path: Path) -> list[list[str]]:
    """Whole lines only: a torn one at the end is left out."""
    text = path.read_bytes()
    return list(csv.reader(io.StringIO(text[: text.rfind(b"\n") + 1].decode())))


def _csv_names(path: Path) -> list[str] | None:
    with open(path, encoding="utf-8", newline="") as file:
        line = file.readline()
    return next(csv.reader([line])) if line.endswith("\n") else None


def _place(row: Mapping[str, Any], count: int) -> int:
    return int(row.get("iteration", row.get("step", count)))


def _extra(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(
            f"tracker {extra!r} needs {module}, which is not installed: pip install 'holdfast[{extra}]', or leave it out "
            "(metrics.jsonl and metrics.csv are written always)"
        ) from error
