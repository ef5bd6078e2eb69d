"""The tables that `holdfast reproduce` knows: named cells, rows made of them, and a writer of the rows."""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from holdfast.cli.cells import Cell
from holdfast.cli.methods import BACKUPS, COMPARED, TASKS, method_cells, set_cells
from holdfast.cli.methods_report import (
    method_markdown,
    method_rows,
    missing,
    set_markdown,
    set_rows,
    verdicts,
    write_method_table,
    write_set_table,
)
from holdfast.cli.safeguards_report import results_of, safeguards_table, write_safeguards_table
from holdfast.cli.safeguards_report import verdicts as of_safeguards
from holdfast.cli.safeguards_table import ALGORITHMS, STEPS, safeguard_cells
from holdfast.cli.trials import Size
from holdfast.plots import safeguard_markdown

#: By the name of an option, what of a table is asked for.
Parts = Mapping[str, tuple[str, ...]]
Found = Mapping[str, Mapping[str, Any]]


class Table(abc.ABC):
    """A published table that can be computed anew.

    Attributes:
        parts: by the name of an option of `holdfast reproduce`, what can be asked for, in its order.
        usual: the same, if nothing is asked for.
        size: how much a cell computes.
        kept_in: directory of its cells, below runs/reproduced; tables that share one share cells.
    """

    size: ClassVar[Size] = Size()
    kept_in: ClassVar[str]
    parts: Parts
    usual: Parts = MappingProxyType({})

    def chosen(self, asked: Parts) -> Parts:
        """What was asked for, in the order in which it is known; all that is usual where nothing was.

        Raises:
            ValueError: for a part, or a kind of part, that the table has not.
        """
        for name, values in asked.items():
            known = self.parts.get(name)
            if known is None and values:
                raise ValueError(f"{name} = {', '.join(values)}: this table has none; it is asked by {self._options}")
            unknown = [each for each in values if known is not None and each not in known]
            if known is not None and unknown:
                raise ValueError(f"{name} = {', '.join(unknown)}: the table has {', '.join(known)}")
        return {
            name: tuple(each for each in known if each in (asked.get(name) or self.usual.get(name, known)))
            for name, known in self.parts.items()
        }

    @property
    def _options(self) -> str:
        return " and ".join(f"--{name}" for name in self.parts)

    @abc.abstractmethod
    def cells(self, parts: Parts, size: Size) -> list[Cell]:
        """The cells of some parts, in the order in which they are computed."""

    @abc.abstractmethod
    def rows(self, found: Found, parts: Parts) -> dict[str, list[dict]]:
        """By task, the rows of the cells that are there."""

    @abc.abstractmethod
    def words(self, rows: Mapping[str, list[dict]]) -> dict[str, str]:
        """By task, the rows as Markdown and what they say."""

    @abc.abstractmethod
    def write(
        self, rows: Mapping[str, list[dict]], found: Found, parts: Parts, out: Path, *, command: str
    ) -> list[Path]:
        """Writes the table's files; returns where."""


class Safeguards(Table):
    """Variants of the safeguard x algorithms x tasks (arXiv 2506.01665)."""

    kept_in = "safeguards"

    def __init__(self):
        self.parts = {"tasks": tuple(STEPS), "algorithms": ALGORITHMS}

    def cells(self, parts, size):
        return safeguard_cells(parts["tasks"], parts["algorithms"], size)

    def rows(self, found, parts):
        return safeguards_table(found, parts["tasks"], parts["algorithms"])

    def words(self, rows):
        return {
            task: safeguard_markdown([results_of(row) for row in each]) + "\n".join(of_safeguards(each))
            for task, each in rows.items()
        }

    def write(self, rows, found, parts, out, *, command):
        return write_safeguards_table(rows, out, command=command)


class Methods(Table):
    """Ours and its rivals on one task, or our own road with parts taken away (arXiv 2606.14536)."""

    size = Size(curve_episodes=50)
    kept_in = "methods"

    def __init__(self, name: str):
        self.name = name
        self.tasks = (name,) if name in TASKS else TASKS
        self.parts = {"tasks": self.tasks, "methods": COMPARED[name]}
        # The published ablation is of the power loop.
        self.usual = {} if name in TASKS else {"tasks": ("power-loop",)}

    def cells(self, parts, size):
        return [cell for task in parts["tasks"] for cell in method_cells(task, parts["methods"], size)]

    def rows(self, found, parts):
        return {task: method_rows(task, parts["methods"], found, self.name) for task in parts["tasks"]}

    def words(self, rows):
        return {task: method_markdown(task, each) + "\n".join(verdicts(task, each)) for task, each in rows.items()}

    def write(self, rows, found, parts, out, *, command):
        absent = [each for task in parts["tasks"] for each in missing(task, parts["methods"])]
        return write_method_table(self.name, rows, found, absent, out, command=command)


class Sets(Table):
    """How much a learned backup certifies (arXiv 2606.14536)."""

    name = kept_in = "invariant-set"

    def __init__(self):
        self.parts = {"tasks": TASKS}

    def cells(self, parts, size):
        return set_cells(parts["tasks"], size)

    def rows(self, found, parts):
        return set_rows(parts["tasks"], tuple(BACKUPS), found)

    def words(self, rows):
        return {task: set_markdown(each) for task, each in rows.items()}

    def write(self, rows, found, parts, out, *, command):
        return write_set_table(self.name, rows, found, out, command=command)


TABLES: dict[str, Table] = {
    "safeguards": Safeguards(),
    **{name: Methods(name) for name in COMPARED},
    "invariant-set": Sets(),
}


def kept_cells(cells: Sequence[Cell], out: Path) -> list[Cell]:
    """Those whose file is there."""
    return [cell for cell in cells if (out / f"{cell.name}.json").is_file()]
