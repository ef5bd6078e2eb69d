"""Slices through invariant sets: learned, analytic, viable, possible, base."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from holdfast.evaluate import Slice
from holdfast.plots.bounds import unsafe_intervals
from holdfast.plots.theme import LIGHT, UNSAFE_ALPHA, Theme, Width, figure_legend, new_figure, with_unit
from holdfast.tasks import Task

_LOOK: dict[str, tuple[str, Any, str]] = {
    "certified": ("actual", "-", "learned set"),
    "analytic": ("analytic", "--", "analytic set"),
    "viable": ("ink", "-.", "viability kernel"),
    "possible": ("muted", ":", "not ruled out by physics"),
    "base": ("backup", "-", "base set"),
}


def slice_figure(task: Task, slices: Sequence[Slice], *, theme: Theme = LIGHT, width: Width = "wide") -> Figure:
    """One panel for each slice: the certified set filled, the others as outlines; what is unsafe is shaded.

    Args:
        task: gives names and units of the states that are held.
        slices: as from `evaluate.coverage.invariant_slice`.

    Raises:
        ValueError: if there are no slices.
    """
    if not slices:
        raise ValueError("slice_figure: slices is empty; give at least one Slice")
    columns = min(len(slices), 2) if width == "wide" else 1
    rows = -(-len(slices) // columns)
    height = 3.6 if width == "wide" else 2.9
    figure, axes = new_figure(theme, width, rows, columns, row_height=height, share_x=False)
    for ax, piece in zip(axes.flat, slices):
        _draw_slice(ax, task, piece, theme)
    for ax in list(axes.flat)[len(slices) :]:
        ax.set_visible(False)
    handles: list[Artist] = [Patch(facecolor=theme.unsafe, alpha=UNSAFE_ALPHA, label="unsafe")]
    for name, (role, dash, label) in _LOOK.items():
        if all(getattr(piece, name) is None for piece in slices):
            continue
        colour = getattr(theme, role)
        if name == "certified":
            label = "invariant set" if all(piece.base is None for piece in slices) else label
            handles.append(Patch(facecolor=colour, alpha=0.35, edgecolor=colour, label=label))
        else:
            handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=1.8, label=label))
    figure_legend(figure, theme, width, handles)
    return figure


def _draw_slice(ax: Axes, task: Task, piece: Slice, theme: Theme) -> None:
    # The grid often ends where a constraint begins: there the outlines are closed, and the picture goes on a little.
    below, above = zip(*(_unsafe_beyond(task, axis, g) for axis, g in zip(piece.axes, (piece.first, piece.second))))
    pads = [(int(below[1]), int(above[1])), (int(below[0]), int(above[0]))]
    first, second = (_with_rim(g, *pad) for g, pad in zip((piece.first, piece.second), pads[::-1]))

    def signed(mask):
        return np.where(np.pad(np.asarray(mask, bool), pads), 1.0, -1.0)

    def fill(mask, colour, alpha):
        if mask.any():
            ax.contourf(first, second, signed(mask), levels=[0.0, 2.0], colors=[colour], alpha=alpha)

    fill(~np.asarray(piece.safe), theme.unsafe, UNSAFE_ALPHA)
    fill(np.asarray(piece.certified), theme.actual, 0.3)
    for name, (role, dash, _) in _LOOK.items():
        mask = getattr(piece, name)
        # An outline needs both sides: matplotlib warns where a level is never crossed.
        if mask is not None and np.ptp(signed(mask)) > 0:
            style = {"colors": [getattr(theme, role)], "linestyles": [dash], "linewidths": [1.8]}
            ax.contour(first, second, signed(mask), levels=[0.0], **style)
    (left, right), (bottom, top) = (g[[0, -1]] for g in (first, second))
    wide, high = 0.04 * (right - left), 0.04 * (top - bottom)
    outer = (left - wide * below[0], right + wide * above[0], bottom - high * below[1], top + high * above[1])
    shade = {"color": theme.unsafe, "alpha": UNSAFE_ALPHA, "linewidth": 0}
    for y0, y1 in ((outer[2], bottom), (top, outer[3])):
        ax.fill_between(outer[:2], y0, y1, **shade)
    for x0, x1 in ((outer[0], left), (right, outer[1])):
        ax.fill_between([x0, x1], bottom, top, **shade)
    ax.set(xlim=outer[:2], ylim=outer[2:])
    ax.set_xlabel(with_unit(piece.names[0], piece.units[0]))
    ax.set_ylabel(with_unit(piece.names[1], piece.units[1]))
    ax.set_title(_held_text(task, piece), fontsize=10, color=theme.muted)


def _unsafe_beyond(task: Task, axis: int, grid: np.ndarray) -> tuple[bool, bool]:
    """Whether all states just below and just above the grid are known to be unsafe."""
    reach = 0.04 * (grid[-1] - grid[0])
    intervals = unsafe_intervals(task, axis, (float(grid[0] - reach), float(grid[-1] + reach)))
    below = any(i.lower < grid[0] - 0.9 * reach and i.upper > grid[0] - 0.1 * reach for i in intervals)
    above = any(i.upper > grid[-1] + 0.9 * reach and i.lower < grid[-1] + 0.1 * reach for i in intervals)
    return below, above


def _with_rim(grid: np.ndarray, below: int, above: int) -> np.ndarray:
    """The grid with one point more where asked, so close that an outline there lies on the edge."""
    close = 1e-4 * (grid[-1] - grid[0])
    return np.concatenate([grid[:1] - close] * below + [grid] + [grid[-1:] + close] * above)


def _held_text(task: Task, piece: Slice) -> str:
    system = task.system
    held = [k for k in range(system.state_size) if k not in piece.axes]
    units = system.state_units or ("",) * system.state_size
    words = [f"{system.state_names[k]} = {piece.fixed[k]:.3g} {units[k]}".strip() for k in held]
    if len(words) > 4:
        return "other states held"
    return "at " + ", ".join(words) if words else ""
