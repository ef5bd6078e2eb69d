"""The table of safeguard variants: returns, cost and safety beside published numbers, as Markdown and as HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.evaluate import PairedComparison
from holdfast.plots.html import NOTHING, number, percent, table, text

# A cell has a main part and a lesser one: in brackets in Markdown, on a small second line in HTML.
_Cell = tuple[str, str]
_HEAD: tuple[_Cell, ...] = (
    ("algorithm", "seeds x steps"),
    ("safeguard", ""),
    ("return", "IQM, 95 %"),
    ("published", ""),
    ("against unsafe", "IQM, 95 %"),
    ("steps to 95 %", ""),
    ("interventions", ""),
    ("violations", "training / evaluation / chosen noise"),
    ("time", "of unsafe"),
)
_NUMERIC = tuple(range(2, len(_HEAD)))

SAFEGUARD_LEGEND = (
    "Return: interquartile mean of the trained policies' returns over seeds and starts, with a bootstrap 95 % interval. "
    "Against unsafe: IQM of the differences to the unsafe variant, paired over seeds and common starts, relative to the "
    "unsafe variant's |IQM|; seeds and starts are resampled. Steps to 95 %: environment steps of the first evaluation that "
    "gained 95 % of what training gained between the first evaluation and the best one. Interventions: share of steps on "
    "which something else than the policy's action was applied. Violations: samples outside the safe set, no tolerance. "
    "Time: wall time of training relative to unsafe training, both trained in turns by one process. "
    f"{NOTHING}: not measured, or not published."
)
"""What the columns mean, to stand below the table."""


@dataclass(frozen=True)
class VariantResult:
    """One row: an algorithm with one safeguard on one task. None: not measured, or not published.

    Attributes:
        algorithm, safeguard: names; the safeguard of the unsafe variant is "none".
        seeds, steps: trained seeds, and environment steps of each.
        iqm, interval: of the final return, over seeds and starts.
        published: the published mean final return.
        against_unsafe: paired comparison with the unsafe variant.
        steps_to_95: environment steps to 95 % of the gain (`evaluate.steps_to_share`).
        interventions: share of evaluation steps, between 0 and 1.
        training_violations, violations, chosen_noise_violations: samples outside the safe set in training, in evaluation
            under the task's own noise, and under noise that an adversary chose.
        relative_time: wall time of training over that of unsafe training.
    """

    algorithm: str
    safeguard: str
    seeds: int
    steps: int
    iqm: float
    interval: tuple[float, float]
    published: float | None = None
    against_unsafe: PairedComparison | None = None
    steps_to_95: float | None = None
    interventions: float | None = None
    training_violations: int | None = None
    violations: int | None = None
    chosen_noise_violations: int | None = None
    relative_time: float | None = None


def safeguard_markdown(rows: Sequence[VariantResult]) -> str:
    """The table of one task in Markdown, one row a variant, with a line end after each."""

    def line(cells: Sequence[_Cell]) -> list[str]:
        words = (f"{main} ({lesser})" if lesser else main for main, lesser in cells)
        return [each.replace("|", "\\|") for each in words]

    rule = ["---:" if i in _NUMERIC else "---" for i in range(len(_HEAD))]
    lines = [line(_HEAD), rule, *(line(_cells(row)) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def safeguard_html(rows: Sequence[VariantResult]) -> str:
    """The table of one task as an HTML fragment in the style of the report page; everything in it is escaped."""

    def line(cells: Sequence[_Cell]) -> list[str]:
        return [f"{text(main)}<br><small>{text(lesser)}</small>" if lesser else text(main) for main, lesser in cells]

    return table(line(_HEAD), [line(_cells(row)) for row in rows], numeric=_NUMERIC)


def _cells(row: VariantResult) -> tuple[_Cell, ...]:
    counts = (row.training_violations, row.violations, row.chosen_noise_violations)
    steps = None if row.steps_to_95 is None or not math.isfinite(row.steps_to_95) else int(row.steps_to_95)
    total = None if counts == (None,) * 3 else sum(count or 0 for count in counts)
    return (
        (row.algorithm, f"{row.seeds} x {row.steps:,}"),
        (row.safeguard, ""),
        (_number(row.iqm), f"{_number(row.interval[0])} to {_number(row.interval[1])}"),
        (_number(row.published), ""),
        _against(row.against_unsafe),
        (_number(steps), ""),
        (NOTHING if row.interventions is None else percent(row.interventions, 2), ""),
        (_number(total), "" if total is None else " / ".join(_number(count) for count in counts)),
        (NOTHING if row.relative_time is None else f"{row.relative_time:.2g}x", ""),
    )


def _number(value: float | None) -> str:
    """Four digits: returns of variants differ in the third."""
    return NOTHING if value is None else number(value, 4)


def _against(found: PairedComparison | None) -> _Cell:
    if found is None:
        return NOTHING, ""
    if not math.isfinite(found.relative):
        return "not comparable", ""
    low, high = found.relative_interval
    return percent(found.relative), f"{percent(low)} to {percent(high)}"
