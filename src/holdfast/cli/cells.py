"""Resumable tables: a cell is computed once, kept in a file of its own, and never computed again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.runs import RunError, from_json, read_json, to_json, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        name: path of its file below the table's directory, without the ending, as "balance-pendulum/shac/none".
        settings: everything that its numbers depend on, JSON values. A kept file has to agree.
        compute: -> numbers, JSON values.
        before: what settings were before there was such a setting; a kept file that lacks one was computed with that.
    """

    name: str
    settings: dict[str, Any]
    compute: Callable[[], dict[str, Any]]
    before: dict[str, Any] = field(default_factory=dict)


def fill(
    cells: Sequence[Cell], directory: Path, say: Callable[[str], None] = lambda words: None
) -> dict[str, dict[str, Any]]:
    """Every cell's numbers by name: kept ones are read, missing ones computed and written at once, whole or not at all.

    A process that is stopped loses the cell at which it was, and nothing else.

    Raises:
        RunError: if a kept file is damaged, or was computed with other settings; nothing is computed then.
    """
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        path = directory / f"{cell.name}.json"
        if path.is_file():
            found[cell.name] = _kept(cell, path)
    for i, cell in enumerate(cells):
        path = directory / f"{cell.name}.json"
        if cell.name in found:
            continue
        if path.is_file():  # another process was faster
            found[cell.name] = _kept(cell, path)
            continue
        say(f"{cell.name} ({i + 1} of {len(cells)})")
        numbers = cell.compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": SCHEMA, "settings": cell.settings, "numbers": numbers})
        found[cell.name] = from_json(to_json(numbers))
    return found


def _kept(cell: Cell, path: Path) -> dict[str, Any]:
    kept = read_json(path)
    if not isinstance(kept, dict) or not {"schema", "settings", "numbers"} <= set(kept) or kept["schema"] != SCHEMA:
        raise RunError(f"{path} is no cell of a table of this version: delete it, or give another --out")
    asked = from_json(to_json(cell.settings))
    had = _as_before(kept["settings"], asked, from_json(to_json(cell.before)))
    for name in sorted(set(asked) | set(had)):
        has, wants = had.get(name), asked.get(name)
        if has != wants:
            raise RunError(
                f"{path} was computed with {name} = {has!r}, but {name} = {wants!r} is asked for: delete it to compute it "
                "again, or give another --out"
            )
    return kept["numbers"]


def _as_before(settings: dict[str, Any], asked: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The settings of a kept file, with what there was no setting for yet; settings within settings too."""
    missing = {name: before[name] for name in asked if name in before and name not in settings}
    inner = {
        name: _as_before(value, asked[name], before)
        for name, value in settings.items()
        if isinstance(value, dict) and isinstance(asked.get(name), dict)
    }
    return settings | missing | inner
