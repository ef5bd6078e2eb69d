"""One episode of several methods in one picture, against the reference and what is unsafe."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from holdfast.plots.theme import LIGHT, Theme, Width, figure_legend, new_figure, with_unit
from holdfast.plots.trajectory import draw_unsafe, finite, state_limits
from holdfast.tasks import Task

_COLOURS = ("actual", "proposed", "backup", "corrected", "fell_back", "bad", "analytic", "ink", "muted")
_DASHES = ("-", "--", "-.", ":")


def paths_figure(
    task: Task,
    paths: Mapping[str, np.ndarray],
    reference: np.ndarray,
    *,
    shown: tuple[int | None, int],
    theme: Theme = LIGHT,
    width: Width = "wide",
) -> Figure:
    """A state component over time, or over another one, for each method; the first is drawn boldly. Unsafe is shaded where a
    constraint bounds the component on the vertical axis alone.

    Args:
        task: gives names, units, the sampling period and the constraints.
        paths: method -> states x_0..x_T of one episode from a common start, shape [T+1, n].
        reference: what was asked for, shape [T+1, n].
        shown: component on the horizontal axis (None: time), component on the vertical axis.

    Raises:
        ValueError: if there is no path.
    """
    if not paths:
        raise ValueError("paths_figure: paths is empty; give method -> states [T+1, n]")
    across, up = shown
    figure, axes = new_figure(theme, width, 1, row_height=4.6, share_x=False)
    ax, system = axes[0, 0], task.system
    wanted = finite(reference)

    def horizontal(states):
        return task.system.dt * np.arange(len(states)) if across is None else states[:, across]

    # What fled far away must not flatten the rest: the axes show the reference and its surroundings.
    near = np.ptp(wanted[:, up])
    seen = np.concatenate([wanted[:, up], *(finite(states)[:, up] for states in paths.values())])
    middle = 0.5 * (wanted[:, up].min() + wanted[:, up].max())
    limits = state_limits(task, up, seen[np.abs(seen - middle) <= 1.2 * near + 1e-6])
    draw_unsafe(ax, task, up, limits, theme)
    ax.plot(horizontal(wanted), wanted[:, up], color=theme.reference, linewidth=1.2, linestyle="--", label="reference")
    for i, (name, states) in enumerate(paths.items()):
        states = finite(states)
        look = {"color": getattr(theme, _COLOURS[i % len(_COLOURS)]), "linestyle": _DASHES[i // 3 % len(_DASHES)]}
        ax.plot(
            horizontal(states), states[:, up], linewidth=1.3 if i else 2.6, zorder=2 if i else 3, label=name, **look
        )
    ax.set_ylim(limits)
    units = system.state_units or ("",) * system.state_size
    if across is None:
        ax.set_xlabel("time (s)")
    else:
        reach = np.ptp(wanted[:, across])
        ax.set_xlim(wanted[:, across].min() - 0.5 * reach, wanted[:, across].max() + 0.5 * reach)
        ax.set_xlabel(with_unit(system.state_names[across], units[across]))
    ax.set_ylabel(with_unit(system.state_names[up], units[up]))
    lines = figure_legend(figure, theme, width)
    figure.set_figheight(figure.get_figheight() + 0.2 * lines)
    return figure
