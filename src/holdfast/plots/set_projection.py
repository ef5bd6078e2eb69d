"""Convex sets seen along pairs of coordinates: their projections, the feasible box around them and states within."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patches import Polygon as PolygonPatch

from holdfast.plots.theme import LIGHT, UNSAFE_ALPHA, Theme, Width, figure_legend, new_figure, with_unit
from holdfast.sets import Box, Polytope, Set, Zonotope
from holdfast.sets.geometry import projection
from holdfast.tasks import Task

#: Role of the colour and dash of each set; the first is filled.
_LOOKS: tuple[tuple[str, Any], ...] = (("actual", "-"), ("analytic", "--"), ("backup", "-."), ("ink", ":"))
_RIM = 0.04


def projection_figure(
    task: Task,
    shapes: Mapping[str, Set],
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    points: np.ndarray | None = None,
    theme: Theme = LIGHT,
    width: Width = "wide",
) -> Figure:
    """One panel for each pair of coordinates: the sets' projections, the first one filled, and what is not feasible shaded.

    A state in the projection need not lie in the set: the other coordinates have a say. A set is inside the feasible box if
    and only if it looks so in panels that show all coordinates.

    Args:
        task: gives names and units of the states, and the feasible box, `state_box`.
        shapes: label and set, up to four; polytopes, zonotopes, boxes.
        pairs: the coordinates of each panel, across and up; `projected_pairs` by default.
        points: states to mark, shape [k, n]; those that are not finite are left out.

    Raises:
        ValueError: if there are no sets or more than four, one is not of a kind that can be projected, a pair does not name
            two coordinates, or a polytope is empty or unbounded.
    """
    n = task.system.state_size
    pairs = projected_pairs(n) if pairs is None else tuple(pairs)
    if not 1 <= len(shapes) <= len(_LOOKS):
        raise ValueError(f"projection_figure: shapes has {len(shapes)} sets; give 1 to {len(_LOOKS)}")
    for label, shape in shapes.items():
        if not can_be_projected(shape):
            kind = type(shape).__name__
            raise ValueError(f"projection_figure: {label!r} is a {kind}; give a Polytope, a Zonotope or a Box")
    wrong = [pair for pair in pairs if len(set(pair)) != 2 or not all(0 <= axis < n for axis in pair)]
    if wrong or not pairs:
        raise ValueError(
            f"projection_figure: pairs = {wrong or pairs}; give pairs of two of the coordinates 0 to {n - 1}"
        )
    columns = min(len(pairs), 3) if width == "wide" else 1
    rows = -(-len(pairs) // columns)
    height = 3.6 if width == "wide" and columns < 3 else 2.9
    figure, axes = new_figure(theme, width, rows, columns, row_height=height, share_x=False)
    for ax, pair in zip(axes.flat, pairs):
        _draw(ax, task, shapes, pair, points, theme)
    for ax in list(axes.flat)[len(pairs) :]:
        ax.set_visible(False)
    handles: list[Artist] = [Patch(facecolor=theme.unsafe, alpha=UNSAFE_ALPHA, label="outside the feasible box")]
    for (role, dash), label in zip(_LOOKS, shapes):
        colour = getattr(theme, role)
        if dash == "-":
            handles.append(Patch(facecolor=colour, alpha=0.35, edgecolor=colour, label=label))
        else:
            handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=1.8, label=label))
    if points is not None:
        handles.append(Line2D([], [], color=theme.ink, linestyle="", marker=".", markersize=5, label="states"))
    figure_legend(figure, theme, width, handles)
    return figure


def can_be_projected(shape: object) -> bool:
    """Whether a set is of a kind that this figure knows."""
    return isinstance(shape, Polytope | Zonotope | Box)


def projected_pairs(state_size: int) -> tuple[tuple[int, int], ...]:
    """Pairs that show all coordinates: each position under its velocity where the second half of the state are the velocities
    of the first, as in the systems here; else each coordinate with the next, and the last with the first.

    Raises:
        ValueError: if there are fewer than two coordinates.
    """
    if state_size < 2:
        raise ValueError(f"projected_pairs: state_size = {state_size}; a picture takes two coordinates")
    if state_size % 2 == 0:
        half = state_size // 2
        return tuple((i, i + half) for i in range(half))
    return tuple((i, (i + 1) % state_size) for i in range(state_size))


def _draw(ax: Axes, task: Task, shapes: Mapping[str, Set], pair: tuple[int, int], points, theme: Theme) -> None:
    axes = list(pair)
    corners = {label: projection(shape, axes) for label, shape in shapes.items()}
    marked = np.zeros((0, task.system.state_size)) if points is None else np.asarray(points, np.float64)
    marked = marked[np.isfinite(marked).all(axis=1)][:, axes]
    seen = np.concatenate([*corners.values(), marked])
    lower, upper = task.state_box.lower[axes], task.state_box.upper[axes]
    bounded = np.isfinite(lower), np.isfinite(upper)
    # A set may be larger than the box that it should lie in: then that is what the picture is for.
    low = np.minimum(seen.min(axis=0), np.where(bounded[0], lower, np.inf))
    high = np.maximum(seen.max(axis=0), np.where(bounded[1], upper, -np.inf))
    rim = _RIM * np.where(high > low, high - low, 1.0)
    low, high = low - rim, high + rim
    shade = {"color": theme.unsafe, "alpha": UNSAFE_ALPHA, "linewidth": 0}
    left, bottom = np.clip(lower, low, high)
    right, top = np.clip(upper, low, high)
    for x0, x1 in ((low[0], left), (right, high[0])):
        ax.add_patch(Rectangle((x0, low[1]), x1 - x0, high[1] - low[1], **shade))
    for y0, y1 in ((low[1], bottom), (top, high[1])):
        ax.add_patch(Rectangle((left, y0), right - left, y1 - y0, **shade))
    for (role, dash), polygon in zip(_LOOKS, corners.values()):
        colour = getattr(theme, role)
        if dash == "-":
            ax.add_patch(PolygonPatch(polygon, closed=True, facecolor=colour, alpha=0.3, linewidth=0))
        ax.add_patch(PolygonPatch(polygon, closed=True, fill=False, edgecolor=colour, linestyle=dash, linewidth=1.8))
    dots = {"linestyle": "", "marker": ".", "markersize": 2.5, "markeredgewidth": 0, "color": theme.ink, "alpha": 0.5}
    ax.plot(*marked.T, **dots)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    names, units = task.system.state_names, task.system.state_units or ("",) * task.system.state_size
    ax.set_xlabel(with_unit(names[pair[0]], units[pair[0]]))
    ax.set_ylabel(with_unit(names[pair[1]], units[pair[1]]))
