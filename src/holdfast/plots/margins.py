"""The worst safe-set margin over time, and what the safeguard did meanwhile."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from holdfast.evaluate import Trajectories
from holdfast.evaluate.attack import constraint_names
from holdfast.plots.bounds import constraint_units
from holdfast.plots.theme import LIGHT, UNSAFE_ALPHA, Theme, Width, figure_legend, new_figure
from holdfast.plots.trajectory import STATUS_ROLES
from holdfast.tasks import Task
from holdfast.types import Status

_DASHES = ("-", "--", "-.", ":")
_LINE_ROLES = ("actual", "analytic", "backup", "proposed", "reference", "bad")


def margin_figure(task: Task, trajectories: Trajectories, *, theme: Theme = LIGHT, width: Width = "wide") -> Figure:
    """For each unit, a panel with the smallest margin of each constraint over all episodes; below, shares by status.

    Time in s; margins in the constraints' units, negative means violated. A margin that is not finite leaves a gap and
    is counted in the panel's title.
    """
    margins = np.array(trajectories.margins, np.float64)
    status = np.asarray(trajectories.status)
    names, units = constraint_names(task, margins.shape[-1]), constraint_units(task, margins.shape[-1])
    times = trajectories.dt * np.arange(margins.shape[1])
    broken = ~np.isfinite(margins)
    # A broken margin must not vanish in a minimum: the whole instant is left blank.
    worst = np.where(broken.any(axis=0), np.nan, np.where(broken, np.inf, margins).min(axis=0))

    kinds = list(dict.fromkeys(units))
    # More constraints than colours: each panel names its own lines.
    crowded = len(names) > len(_LINE_ROLES)
    figure, axes = new_figure(theme, width, len(kinds) + 1, row_height=1.7, heights=[1.0] * len(kinds) + [0.6])
    for ax, unit in zip(axes[:-1, 0], kinds):
        rows = [i for i, u in enumerate(units) if u == unit]
        for k, i in enumerate(rows):
            role, dash = _LINE_ROLES[i % len(_LINE_ROLES)], _DASHES[k % len(_DASHES)]
            ax.plot(times, worst[:, i], color=getattr(theme, role), linestyle=dash, linewidth=1.7, label=names[i])
        shown = worst[:, rows]
        low, high = (0.0, 1.0) if np.isnan(shown).all() else (np.nanmin(shown), np.nanmax(shown))
        span = max(high - min(low, 0.0), 1e-6)
        low = min(low, 0.0) - 0.1 * span
        ax.axhspan(low, 0.0, color=theme.unsafe, alpha=UNSAFE_ALPHA, linewidth=0, label="violated")
        ax.axhline(0.0, color=theme.unsafe, linewidth=1.0)
        ax.set_ylim(low, high + (0.45 if crowded else 0.06) * span)
        if crowded:
            lines = [line for line in ax.lines if line.get_label() in names]
            columns, size = (4, 8.5) if width == "wide" else (2, 7.5)
            look = {"ncols": columns, "fontsize": size, "handlelength": 1.6, "columnspacing": 1.0}
            ax.legend(handles=lines, loc="upper right", frameon=False, labelcolor=theme.ink, **look)
        ax.set_ylabel(f"worst margin\n({unit})" if unit else "worst margin")
    if broken.any():
        axes[0, 0].set_title(f"{int(broken.sum())} margins were not finite", fontsize=10, color=theme.unsafe)
    _draw_shares(axes[-1, 0], times, status, theme)
    axes[-1, 0].set_xlim(times[0], times[-1])
    axes[-1, 0].set_xlabel("time (s)")
    figure_legend(figure, theme, width, _common(figure, names) if crowded else None)
    return figure


def _common(figure: Figure, names: Sequence[str]) -> list[Artist]:
    """What is labelled in all panels but for the constraints' lines, each once."""
    labelled = (pair for ax in figure.axes for pair in zip(*ax.get_legend_handles_labels()))
    return list({label: handle for handle, label in labelled if label not in names}.values())


def _draw_shares(ax, times: np.ndarray, status: np.ndarray, theme: Theme) -> None:
    """Share of episodes by status over time, stacked; one episode makes a plain strip."""
    base = np.zeros(status.shape[1] + 1)
    for value in sorted(Status, reverse=True):
        share = 100 * (status == value).mean(axis=0)
        if not share.any():
            continue
        top = base + np.append(share, share[-1:])
        colour = getattr(theme, STATUS_ROLES[value])
        alpha = 0.35 if value == Status.accepted else 0.95
        label = value.name.replace("_", " ")
        ax.fill_between(times, base, top, step="post", color=colour, alpha=alpha, linewidth=0, label=label)
        base = top
    ax.set_ylim(0, 100)
    ax.set_ylabel("episodes\n(%)")
