"""Learning curves of several variants in one figure, a panel for each task or algorithm."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from holdfast.evaluate import curve_band
from holdfast.plots.html import number
from holdfast.plots.theme import LIGHT, Theme, Width, figure_legend, new_figure

# Neighbours differ in hue and lightness; markers tell lines apart where colours do not.
_COLOURS = ("ink", "actual", "unsafe", "backup", "proposed", "corrected", "bad", "muted")
_MARKERS = "os^Dv<>P"
# After as many variants as there are colours, lines tell apart what has the same.
_LINES = ("-", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """Evaluations of one variant in training.

    Attributes:
        steps: environment steps at the evaluations, shape [K].
        returns: return of each seed, shape [K, S]; numbers that are not finite are left out.
        published: final return that was published for this variant, drawn as a dashed line; None: not known.

    Raises:
        ValueError: if the shapes do not fit.
    """

    steps: np.ndarray
    returns: np.ndarray
    published: float | None = None

    def __post_init__(self):
        if np.ndim(self.steps) != 1 or np.ndim(self.returns) != 2 or len(self.steps) != len(self.returns):
            raise ValueError(
                f"Curve: steps {np.shape(self.steps)}, returns {np.shape(self.returns)}; give [K] and [K, seeds]"
            )


def learning_curves_figure(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    y_label: str = "episode return",
    y_limits: Mapping[str, tuple[float, float]] | None = None,
    theme: Theme = LIGHT,
    width: Width = "wide",
) -> Figure:
    """Interquartile mean over seeds with its pointwise 95 % bootstrap band, over environment steps.

    Args:
        panels: panel title -> variant -> its curve. A variant looks the same in all panels.
        y_label: what was measured, with its unit if it has one.
        y_limits: panel title -> range of the vertical axis where the untrained policy's return would dwarf the rest.
            Published values out of range are written at the edge instead.

    Raises:
        ValueError: if there is no curve.
    """
    variants = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    if not variants:
        raise ValueError("learning_curves_figure: panels holds no curve; give panel title -> variant -> Curve")
    columns = 1 if width == "narrow" else min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(theme, width, rows, columns, row_height=2.7, share_x=False)
    for ax, (title, curves) in zip(axes.flat, panels.items()):
        for name, curve in curves.items():
            again, look = divmod(variants.index(name), len(_COLOURS))
            line = _LINES[again % len(_LINES)]
            _draw(ax, curve, name, getattr(theme, _COLOURS[look]), _MARKERS[look], line)
        if y_limits and title in y_limits:
            ax.set_ylim(*y_limits[title])
        _tell_what_is_outside(ax, curves, variants, theme)
        _name(ax, title, curves, theme)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5 if width == "wide" else 4))
        ax.set_xlabel("environment steps")
    for ax in axes[:, 0]:
        ax.set_ylabel(y_label)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    handles = [handle for ax in axes.flat for handle in ax.get_legend_handles_labels()[0]]
    if any(curve.published is not None for curves in panels.values() for curve in curves.values()):
        handles.append(Line2D([], [], color=theme.reference, linestyle="--", linewidth=1.2, label="published, final"))
    lines = figure_legend(figure, theme, width, handles)
    figure.set_figheight(figure.get_figheight() + 0.2 * lines)
    return figure


def _draw(ax: Axes, curve: Curve, name: str, colour: str, marker: str, line: str) -> None:
    centre, low, high = curve_band(curve.returns)
    every = max(1, len(centre) // 6)
    look = {"color": colour, "linewidth": 1.8, "linestyle": line, "marker": marker, "markersize": 4.5}
    ax.plot(curve.steps, centre, **look, markevery=every, label=name)
    if np.shape(curve.returns)[1] > 1:
        ax.fill_between(curve.steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _tell_what_is_outside(ax: Axes, curves: Mapping[str, Curve], variants: list[str], theme: Theme) -> None:
    """Published values as dashed lines; those far from every curve, and curves that end off the axis, in words at its edge."""
    low, high = ax.get_ylim()
    reach = 0.0 if not ax.get_autoscaley_on() else 0.5 * (high - low)
    outside: dict[str, list[str]] = {"below": [], "above": []}
    for name, curve in curves.items():
        ends, value = float(curve_band(curve.returns)[0][-1]), curve.published
        if np.isfinite(ends) and not low <= ends <= high:
            outside["below" if ends < low else "above"].append(f"{name} ends at {number(ends)}")
        if value is None or not np.isfinite(value):
            continue
        if low - reach <= value <= high + reach:
            colour = getattr(theme, _COLOURS[variants.index(name) % len(_COLOURS)])
            ax.axhline(value, color=colour, linestyle="--", linewidth=1.2)
        else:
            outside["below" if value < low else "above"].append(f"{name}, published {number(float(value))}")
    for side, (where, align) in {"below": (0.03, "bottom"), "above": (0.97, "top")}.items():
        if outside[side]:
            words = f"{side} this axis:\n" + "\n".join(outside[side])
            ax.text(0.97, where, words, transform=ax.transAxes, ha="right", va=align, fontsize=8.5, color=theme.muted)


def _name(ax: Axes, title: str, curves: Mapping[str, Curve], theme: Theme) -> None:
    seeds = sorted({np.shape(curve.returns)[1] for curve in curves.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    words = "one seed" if seeds == [1] else f"IQM and 95 % band of {count} seeds"
    ax.set_title(f"{title}: {words}", fontsize=9.5, loc="left", color=theme.muted)
    last = max(float(np.max(curve.steps)) for curve in curves.values())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if last >= 10 else "{x:g}"))
