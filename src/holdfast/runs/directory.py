"""The directory of one run. Its layout:

================  ===================================================================
config.json       format, version, and the configuration the run was started with
metrics.jsonl     one JSON object a line, appended as training goes
metrics.csv       the same as a table
checkpoint/       state.safetensors, and header.json to read by eye
certificate.json  what was proved, checked, sampled, assumed
report.json       the numbers
report.html       the numbers, to look at; pictures lie beside it
================  ===================================================================

Every file is replaced atomically: a run that is killed at any instant leaves whole files only.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from holdfast.runs.checkpoint import load_checkpoint, save_checkpoint
from holdfast.runs.config import config_from_json, config_to_json
from holdfast.runs.files import TEMPORARY_PREFIX, RunError, atomic_write, from_json, read_json, to_json, write_json
from holdfast.runs.sinks import Csv, JsonLines, Sink, Sinks

FORMAT = "holdfast-run"
VERSION = 1
CLAIM = ".claim"
C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Make one with `RunDirectory.create` or `RunDirectory.open`.

    Attributes:
        path: the directory.
        config: the configuration the run was started with, in JSON's types.
        trackers: where each row of metrics goes beside the files; whoever opened them closes them.
    """

    path: Path
    config: dict[str, Any]
    trackers: tuple[Sink, ...] = ()

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Any, *, suffix: bool = False) -> "RunDirectory":
        """A new run. Nothing that exists is ever overwritten.

        Args:
            config: a dataclass instance with flat fields, or a mapping that JSON can hold.
            suffix: where `path` is taken, use the first free one of path-2, path-3, ... instead of raising.

        Raises:
            RunError: if `path` is a file or a directory that is not empty.
            ConfigError: if the config has no JSON form.
        """
        is_mapping = isinstance(config, Mapping)
        data = to_json(config, "config") if is_mapping else config_to_json(config)
        path = Path(path)
        claimed, number = path, 1
        while not _claim(claimed):
            if not suffix:
                found = "a run" if (path / "config.json").exists() else "something else"
                raise RunError(
                    f"{path} holds {found} already, and nothing is overwritten; give another directory (--out), or "
                    "resume the run that is there (--resume)"
                )
            number += 1
            claimed = path.with_name(f"{path.name}-{number}")
        write_json(claimed / "config.json", {"format": FORMAT, "version": VERSION, "config": data})
        _release(claimed)
        return cls(claimed, from_json(data))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunDirectory":
        """A run that exists.

        Raises:
            RunError: if the directory is missing, is no run, or was written by another version.
        """
        path = Path(path)
        if not path.exists():
            near = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
            beside = f"beside it there are: {', '.join(near[:8])}" if near else "there is nothing beside it"
            raise RunError(f"{path} does not exist; {beside}. Start one with `holdfast train TASK --out {path}`")
        if not path.is_dir():
            raise RunError(f"{path} is a file; a run is a directory with config.json in it")
        if not (path / "config.json").is_file():
            names = sorted(p.name for p in path.iterdir())
            found = f"it holds {', '.join(names[:8])}" if names else "it is empty"
            raise RunError(f"{path} is not a run: it has no config.json ({found}); give a directory that a run wrote")
        document = read_json(path / "config.json")
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise RunError(f"{path / 'config.json'} was not written by holdfast; give a directory that a run wrote")
        version, config = document.get("version"), document.get("config")
        if version != VERSION:
            raise RunError(
                f"{path / 'config.json'} has version {version!r}, this holdfast reads version {VERSION}; use the "
                "holdfast that wrote it, or train again"
            )
        if not isinstance(config, dict):
            raise RunError(f"{path / 'config.json'}: config is {config!r}; it must be an object. Restore the file")
        return cls(path, config)

    def read_config(self, cls: type[C]) -> C:
        """The configuration as the dataclass `cls`; raises ConfigError naming the first field that does not fit."""
        return config_from_json(cls, self.config)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl and metrics.csv, and hand it to the trackers. A line that an earlier kill left
        torn is removed first."""
        Sinks(*self._tables, *self.trackers).write(row)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows; none where nothing was logged yet. A torn last line is dropped.

        Raises:
            RunError: if a line before the last is not JSON.
        """
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        *lines, _torn = file.read_bytes().split(b"\n")
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = from_json(json.loads(line))
            except ValueError as error:
                raise RunError(
                    f"{file}, line {number} is not JSON ({error}); holdfast appends whole lines, so the file was "
                    "edited or the disk was full: remove that line"
                ) from None
            rows.append(row)
        return rows

    def rewind_metrics(self, iteration: int) -> None:
        """Drop rows whose "iteration" exceeds `iteration`: a run resumed from a checkpoint writes them again."""
        rows = [row for row in self.read_metrics() if row.get("iteration", iteration) <= iteration]
        for table in self._tables:
            table.replace(rows)

    @property
    def _tables(self) -> tuple[JsonLines, Csv]:
        return JsonLines(self.path / "metrics.jsonl"), Csv(self.path / "metrics.csv")

    def save_checkpoint(self, tree: Any, header: Mapping[str, Any]) -> None:
        """Replace the run's checkpoint; see `holdfast.runs.save_checkpoint`."""
        save_checkpoint(self.path / "checkpoint", tree, header)

    def load_checkpoint(self, like: Any, expect: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The run's checkpoint and its header; see `holdfast.runs.load_checkpoint`."""
        return load_checkpoint(self.path / "checkpoint", like, expect)

    @property
    def has_checkpoint(self) -> bool:
        return (self.path / "checkpoint" / "state.safetensors").is_file()

    def write_certificate(self, certificate: Any) -> None:
        """Write certificate.json from a mapping or a dataclass."""
        write_json(self.path / "certificate.json", certificate)

    def read_certificate(self) -> dict[str, Any]:
        """certificate.json; raises RunError if the run has none yet."""
        return read_json(self.path / "certificate.json")

    def write_report(self, report: Any) -> None:
        """Write report.json from a mapping or a dataclass."""
        write_json(self.path / "report.json", report)

    def read_report(self) -> dict[str, Any]:
        """report.json; raises RunError if the run was not evaluated yet."""
        return read_json(self.path / "report.json")

    def write_file(self, name: str, data: str | bytes) -> Path:
        """Write report.html or a picture; returns its path.

        Raises:
            RunError: if `name` is not a plain file name, or is one that another method writes.
        """
        reserved = {"config.json", "metrics.jsonl", "metrics.csv", "certificate.json", "report.json", "checkpoint"}
        if name != Path(name).name or name in ("", ".", "..") or name in reserved:
            raise RunError(f"name = {name!r} must be a plain file name, and none of {', '.join(sorted(reserved))}")
        atomic_write(self.path / name, data.encode() if isinstance(data, str) else data)
        return self.path / name


def _claim(path: Path) -> bool:
    """Whether `path` is ours now: new, or empty but for leftovers of a killed write.

    The file `.claim`, made exclusively and held until config.json is there, keeps two runs that start at the same
    instant from taking one directory.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return False
    except NotADirectoryError:
        raise RunError(f"{path}: a part of it is a file; choose another directory") from None
    if not _is_free(path):
        return False
    try:
        os.close(os.open(path / CLAIM, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    if not _is_free(path):  # another run finished its own claim between the first look and ours
        _release(path)
        return False
    for leftover in path.glob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink()
    return True


def _is_free(path: Path) -> bool:
    return all(p.name == CLAIM or p.name.startswith(TEMPORARY_PREFIX) for p in path.iterdir())


def _release(path: Path) -> None:
    (path / CLAIM).unlink(missing_ok=True)
