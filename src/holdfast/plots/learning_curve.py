"""How learning went: return, interventions and violations over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from holdfast.plots.theme import LIGHT, Theme, Width, figure_legend, new_figure


def learning_figure(
    rows: Sequence[Mapping[str, Any]],
    *,
    x: str = "step",
    optimal_return: float | None = None,
    theme: Theme = LIGHT,
    width: Width = "wide",
) -> Figure:
    """Return and shares of intervened and violating steps over training, with bands over seeds.

    Args:
        rows: as in metrics.jsonl, in any order. Each holds `x` (the row's number where absent), `return_mean`, and
            optionally `interventions` and `violations` (shares of steps between 0 and 1); each a number or a list with
            one number a seed. Rows of several seeds may also stand apart, with a `seed`. Missing or non-finite numbers
            leave gaps.
        x: the row's key for the horizontal axis.
        optimal_return: of open-loop optimal control, drawn as a dashed line; None: not known.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("learning_figure: rows is empty; give at least one row of metrics.jsonl")
    steps, curves = _collect(rows, x, ("return_mean", "interventions", "violations"))
    figure, axes = new_figure(theme, width, 2, row_height=2.0, heights=[1.6, 1.0])
    _draw_band(axes[0, 0], steps, curves["return_mean"], theme.actual, "return", "-")
    if optimal_return is not None and np.isfinite(optimal_return):
        axes[0, 0].axhline(
            optimal_return, linestyle="--", color=theme.reference, linewidth=1.3, label="optimal control"
        )
    axes[0, 0].set_ylabel("episode return")
    shares = axes[1, 0]
    _draw_band(shares, steps, 100 * curves["interventions"], theme.corrected, "interventions", "-")
    _draw_band(shares, steps, 100 * curves["violations"], theme.unsafe, "violations", "--")
    shares.set_ylim(bottom=min(0.0, shares.get_ylim()[0]))
    shares.set_ylabel("share of steps (%)")
    shares.set_xlabel("environment steps" if x == "step" else x.replace("_", " "))
    shares.xaxis.set_major_locator(MaxNLocator(nbins=6 if width == "wide" else 4))
    shares.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if steps[-1] >= 10 else "{x:g}"))
    seeds = max(values.shape[1] for values in curves.values())
    if seeds > 1:
        words = f"mean, middle half and range of {seeds} seeds"
        axes[0, 0].set_title(words, fontsize=9.5, loc="left", color=theme.muted)
    figure_legend(figure, theme, width)
    return figure


def _collect(
    rows: Sequence[Mapping[str, Any]], x: str, keys: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps [R] and for each key the values [R, S] over steps and seeds, NaN where a row holds none."""
    cells: dict[str, dict[tuple[float, Any], float]] = {key: {} for key in keys}
    seeds: dict[str, list[Any]] = {key: [] for key in keys}
    counts: dict[Any, int] = {}
    steps = set()
    for row in rows:
        seed = row.get("seed")
        number = counts[seed] = counts.get(seed, -1) + 1
        step = float(row.get(x, number))
        steps.add(step)
        for key in keys:
            if row.get(key) is None:
                continue
            for i, value in enumerate(np.atleast_1d(np.asarray(row[key], np.float64))):
                name = (seed, i)
                if name not in seeds[key]:
                    seeds[key].append(name)
                cells[key][step, name] = float(value)
    ordered = np.array(sorted(steps))
    curves = {}
    for key in keys:
        table = [[cells[key].get((step, name), np.nan) for name in seeds[key]] for step in ordered]
        curves[key] = np.array(table, np.float64).reshape(len(ordered), len(seeds[key]))
    return ordered, curves


def _draw_band(ax, steps: np.ndarray, values: np.ndarray, colour: str, label: str, dash: str) -> None:
    """Mean over seeds with the range of all seeds and their middle half; one seed gives a line."""
    values = np.where(np.isfinite(values), values, np.nan)
    kept = ~np.isnan(values).all(axis=1)
    if not kept.any():
        return
    steps, values = steps[kept], values[kept]
    seeds = values.shape[1]
    marker = "o" if len(steps) == 1 else None
    ax.plot(steps, np.nanmean(values, axis=1), dash, color=colour, linewidth=1.9, marker=marker, label=label)
    if seeds > 1:
        low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
        ax.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)
        quarter, three_quarters = np.nanpercentile(values, [25, 75], axis=1)
        ax.fill_between(steps, quarter, three_quarters, color=colour, alpha=0.22, linewidth=0)
