"""States and inputs of episodes over time, against constraints and reference."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from holdfast.evaluate import Trajectories
from holdfast.evaluate.episodes import INTERVENED
from holdfast.plots.bounds import unsafe_intervals
from holdfast.plots.theme import LIGHT, UNSAFE_ALPHA, Theme, Width, figure_legend, new_figure, with_unit
from holdfast.tasks import Task
from holdfast.types import Status

STATUS_ROLES: dict[Status, str] = {
    Status.accepted: "actual",
    Status.corrected: "corrected",
    Status.fell_back: "fell_back",
    Status.bad_action: "bad",
    Status.bad_state: "bad",
    Status.uncertified: "unsafe",
    Status.unguarded: "muted",
}
SHOWN_INTERVENTIONS = (*INTERVENED, Status.uncertified)


def trajectory_figure(
    task: Task,
    trajectories: Trajectories,
    *,
    episode: int = 0,
    theme: Theme = LIGHT,
    width: Width = "wide",
    most: int = 20,
) -> Figure:
    """One panel for each state and each input over time in s; one episode in full, up to `most` others faint.

    Unsafe regions of constraints that bound one state are shaded. A strip at the foot of each panel marks the steps at
    which the safeguard intervened.

    Args:
        episode: which one is drawn in full.
    """
    system = task.system
    states, reference = finite(trajectories.states), finite(trajectories.reference[episode])
    proposed, applied = finite(trajectories.proposed[episode]), finite(trajectories.applied[episode])
    times = trajectories.dt * np.arange(states.shape[1])
    others = [e for e in range(len(states)) if e != episode][:most]

    n, m = system.state_size, system.input_size
    columns = 2 if width == "wide" and n + m > 6 else 1
    rows = -(-(n + m) // columns)
    figure, axes = new_figure(theme, width, rows, columns, row_height=1.35)
    panels = list(axes.flat)
    for i, ax in enumerate(panels[:n]):
        limits = state_limits(task, i, np.concatenate([states[[episode, *others], :, i].ravel(), reference[:, i]]))
        draw_unsafe(ax, task, i, limits, theme)
        for e in others:
            ax.plot(times, states[e, :, i], color=theme.actual, linewidth=0.7, alpha=0.18)
        ax.plot(times, reference[:, i], "--", color=theme.reference, linewidth=1.3, label="reference")
        ax.plot(times, states[episode, :, i], color=theme.actual, linewidth=1.9, label="this episode")
        ax.set_ylim(limits)
        ax.set_ylabel(with_unit(system.state_names[i], _get(system.state_units, i)))
    for i, ax in enumerate(panels[n : n + m]):
        _draw_input(ax, task, i, times, proposed[:, i], applied[:, i], theme)
    for ax in panels[: n + m]:
        draw_interventions(ax, times, np.asarray(trajectories.status[episode]), theme)
        ax.set_xlim(times[0], times[-1])
    for ax in panels[n + m :]:
        ax.set_visible(False)
    if others:
        panels[0].plot([], [], color=theme.actual, linewidth=1.2, alpha=0.4, label=f"{len(others)} other episodes")
    for ax in axes[-1] if not panels[n + m :] else [*axes[-1, :-1], axes[-2, -1]]:
        ax.set_xlabel("time (s)")
        ax.tick_params(labelbottom=True)
    figure_legend(figure, theme, width)
    return figure


def state_limits(task: Task, index: int, values: np.ndarray) -> tuple[float, float]:
    """Axis limits that show all finite values, and the nearest unsafe region where it is near enough to matter."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (-1.0, 1.0)
    span = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)
    pad, reach = 0.08 * span, 0.6 * span
    for interval in unsafe_intervals(task, index, (low - reach, high + reach)):
        if low - reach < interval.upper < low:
            low = interval.upper - pad
        if high < interval.lower < high + reach:
            high = interval.lower + pad
    return low - pad, high + pad


def draw_unsafe(ax: Axes, task: Task, index: int, limits: tuple[float, float], theme: Theme) -> None:
    """Shades where a constraint that bounds state `index` alone is violated, with a line at the bound."""
    for interval in unsafe_intervals(task, index, limits):
        ax.axhspan(interval.lower, interval.upper, color=theme.unsafe, alpha=UNSAFE_ALPHA, linewidth=0, label="unsafe")
        for edge in (interval.lower, interval.upper):
            if limits[0] < edge < limits[1]:
                ax.axhline(edge, color=theme.unsafe, linewidth=1.0)


def draw_interventions(ax: Axes, times: np.ndarray, status: np.ndarray, theme: Theme) -> None:
    """A strip at the foot of the panel, coloured by status [T] where it was an intervention."""
    for value in SHOWN_INTERVENTIONS:
        during = np.append(status == value, False)
        if during.any():
            ax.fill_between(
                times,
                0.0,
                0.055,
                where=during | np.roll(during, 1),
                step="post",
                transform=ax.get_xaxis_transform(),
                color=getattr(theme, STATUS_ROLES[value]),
                linewidth=0,
                label=value.name.replace("_", " "),
            )


def _draw_input(ax, task, index, times, proposed, applied, theme) -> None:
    system = task.system
    low, high = float(system.input_box.lower[index]), float(system.input_box.upper[index])
    for bound in (low, high):
        ax.axhline(bound, color=theme.muted, linewidth=1.0, linestyle=":", label="input bounds")
    # The last input holds until the end of the episode.
    held_proposed, held_applied = (np.append(values, values[-1:]) for values in (proposed, applied))
    ax.step(times, held_proposed, where="post", color=theme.proposed, linewidth=1.2, linestyle="--", label="proposed")
    ax.step(times, held_applied, where="post", color=theme.actual, linewidth=1.5, label="applied")
    # A proposal may be anything, even 1e30: the axis shows the box and a little more.
    span = high - low
    if np.isfinite(span):
        lowest, highest = np.nanmin([np.nanmin(proposed), low]), np.nanmax([np.nanmax(proposed), high])
        ax.set_ylim(max(lowest, low - 0.5 * span) - 0.1 * span, min(highest, high + 0.5 * span) + 0.1 * span)
    ax.set_ylabel(with_unit(system.input_names[index], _get(system.input_units, index)))


def finite(values: Any) -> np.ndarray:
    """As float64 with NaN for infinity: a gap in the line, not an error in the axis limits."""
    values = np.array(values, np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _get(units: tuple[str, ...], index: int) -> str:
    return units[index] if index < len(units) else ""
