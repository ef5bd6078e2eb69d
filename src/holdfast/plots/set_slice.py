"""Slices through invariant sets: learned, analytic, viable, base."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from holdfast.plots.theme import LIGHT, UNSAFE_ALPHA, Theme, Width, figure_legend, new_figure, with_unit
from holdfast.tasks import Task


@dataclass(frozen=True)
class SetSlice:
    """Sets on a grid over two states, the other states held.

    Attributes:
        axes: the two state indices, horizontal then vertical.
        horizontal, vertical: grid values, shapes [A] and [B], in the states' units.
        held: the full state that supplies the other states, shape [n].
        sets: by name ("learned", "analytic", "viable", "base", "safe"), each of shape [A, B]: booleans, or margins
            (>= 0 inside), which give smoother outlines. A set that is missing or None is not drawn.
    """

    axes: tuple[int, int]
    horizontal: np.ndarray
    vertical: np.ndarray
    held: np.ndarray
    sets: dict[str, np.ndarray | None] = field(default_factory=dict)


_LOOK = {
    "learned": ("actual", "-", "learned backup's set"),
    "analytic": ("analytic", "--", "analytic backup's set"),
    "viable": ("ink", "-.", "viability kernel"),
    "base": ("backup", "-", "base set"),
}


def slice_figure(
    task: Task, slices: Sequence[SetSlice], *, theme: Theme = LIGHT, width: Width = "wide"
) -> Figure:
    """One panel for each slice: the learned set filled, the others as outlines; what is unsafe is shaded.

    Raises:
        ValueError: if there are no slices, or a grid does not fit its axes.
    """
    if not slices:
        raise ValueError("slice_figure: slices is empty; give at least one SetSlice")
    columns = min(len(slices), 2) if width == "wide" else 1
    rows = -(-len(slices) // columns)
    height = 3.6 if width == "wide" else 2.9
    figure, axes = new_figure(theme, width, rows, columns, row_height=height, share_x=False)
    for ax, piece in zip(axes.flat, slices):
        _draw_slice(ax, task, piece, theme)
    for ax in list(axes.flat)[len(slices) :]:
        ax.set_visible(False)
    drawn = {name for piece in slices for name, values in piece.sets.items() if values is not None}
    handles = [
        Patch(facecolor=theme.actual, alpha=0.35, edgecolor=theme.actual, label=_LOOK[name][2])
        if name == "learned"
        else Line2D([], [], color=getattr(theme, role), linestyle=dash, linewidth=1.8, label=label)
        for name, (role, dash, label) in _LOOK.items()
        if name in drawn
    ]
    if "safe" in drawn:
        handles.append(Patch(facecolor=theme.unsafe, alpha=UNSAFE_ALPHA, label="unsafe"))
    figure_legend(figure, theme, width, handles)
    return figure


def _draw_slice(ax: Axes, task: Task, piece: SetSlice, theme: Theme) -> None:
    x, y = np.asarray(piece.horizontal), np.asarray(piece.vertical)
    for name, values in piece.sets.items():
        if values is not None and np.shape(values) != (len(x), len(y)):
            raise ValueError(
                f"SetSlice: sets[{name!r}] has shape {np.shape(values)}; the axes ask for {(len(x), len(y))}"
            )
    safe = piece.sets.get("safe")
    if safe is not None:
        ax.contourf(x, y, -_levels(safe).T, levels=[0.0, np.inf], colors=[theme.unsafe], alpha=UNSAFE_ALPHA)
    learned = piece.sets.get("learned")
    if learned is not None:
        ax.contourf(x, y, _levels(learned).T, levels=[0.0, np.inf], colors=[theme.actual], alpha=0.3)
    for name, (role, dash, _) in _LOOK.items():
        values = piece.sets.get(name)
        if values is None:
            continue
        values = _levels(values)
        # An outline needs both sides: matplotlib warns where a level is never crossed.
        if values.min() < 0 <= values.max():
            colour = getattr(theme, role)
            ax.contour(x, y, values.T, levels=[0.0], colors=[colour], linestyles=[dash], linewidths=[1.8])
    system, (i, j) = task.system, piece.axes
    ax.set_xlabel(with_unit(system.state_names[i], _unit(system.state_units, i)))
    ax.set_ylabel(with_unit(system.state_names[j], _unit(system.state_units, j)))
    ax.set_title(_held_text(task, piece), fontsize=10, color=theme.muted)


def _levels(values: np.ndarray) -> np.ndarray:
    """Margins with their sign; booleans become -1 and 1; what is not finite lies outside."""
    values = np.asarray(values)
    if values.dtype == bool:
        return np.where(values, 1.0, -1.0)
    values = values.astype(np.float64)
    return np.clip(np.where(np.isnan(values), -1.0, values), -1e9, 1e9)


def _held_text(task: Task, piece: SetSlice) -> str:
    system = task.system
    held = [k for k in range(system.state_size) if k not in piece.axes]
    words = [f"{system.state_names[k]} = {piece.held[k]:.3g} {_unit(system.state_units, k)}".strip() for k in held]
    return "at " + ", ".join(words) if 0 < len(words) <= 4 else ("other states held" if words else "")


def _unit(units: tuple[str, ...], index: int) -> str:
    return units[index] if index < len(units) else ""
