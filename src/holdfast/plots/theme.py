"""Colours and the common look of all figures, for light and dark pages."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Width = Literal["wide", "narrow"]
UNSAFE_ALPHA = 0.2
WIDTH_INCHES: dict[Width, float] = {"wide": 9.2, "narrow": 4.1}


@dataclass(frozen=True)
class Theme:
    """Colours by what they stand for, as #rrggbb. All differ within a theme, so that a page can map them to variables.

    The hues are those of Okabe and Ito, which remain distinct for colour-blind readers; lines differ in dash as well.

    Attributes:
        page, panel: backgrounds of figure and axes.
        ink, muted, rule: text, secondary text, grid and frames.
        actual: what happened; also the learned set.
        proposed: what a policy asked for before the safeguard.
        reference: what was asked of the policy.
        unsafe: violations and unsafe regions.
        corrected, fell_back, bad: interventions, from mild to grave.
        backup: the backup plan; also the base set.
        analytic: the analytic backup's set.
    """

    page: str
    panel: str
    ink: str
    muted: str
    rule: str
    actual: str
    proposed: str
    reference: str
    unsafe: str
    corrected: str
    fell_back: str
    bad: str
    backup: str
    analytic: str


LIGHT = Theme(
    page="#ffffff",
    panel="#fbfbfa",
    ink="#1d2329",
    muted="#5b6570",
    rule="#d9dde1",
    actual="#0072b2",
    proposed="#b1548c",
    reference="#4a4f55",
    unsafe="#d55e00",
    corrected="#e69f00",
    fell_back="#c8102e",
    bad="#6a3d9a",
    backup="#00875f",
    analytic="#a3620a",
)

DARK = Theme(
    page="#14181c",
    panel="#1a1f24",
    ink="#e8ebee",
    muted="#a3adb8",
    rule="#343c44",
    actual="#56b4e9",
    proposed="#e59ac6",
    reference="#c3c9d0",
    unsafe="#f0812e",
    corrected="#f2b832",
    fell_back="#ff6b6b",
    bad="#b79be0",
    backup="#2fc796",
    analytic="#d9953f",
)


def css_variables(theme: Theme) -> str:
    """The theme as CSS custom properties `--hf-NAME`, for `to_svg(..., variables=True)`."""
    return "".join(f"--hf-{f.name.replace('_', '-')}:{getattr(theme, f.name)};" for f in fields(theme))


def new_figure(
    theme: Theme,
    width: Width,
    rows: int,
    columns: int = 1,
    *,
    row_height: float = 1.6,
    heights: Sequence[float] | None = None,
    share_x: bool = True,
) -> tuple[Figure, np.ndarray]:
    """A figure on the Agg canvas with styled axes, shape [rows, columns]. Touches no pyplot state.

    Args:
        row_height: inches a row.
        heights: relative heights of the rows.
    """
    figure = Figure(figsize=(WIDTH_INCHES[width], row_height * rows + 0.7), layout="constrained", facecolor=theme.page)
    FigureCanvasAgg(figure)
    ratios = None if heights is None else {"height_ratios": list(heights)}
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share_x, gridspec_kw=ratios)
    for ax in axes.flat:
        style_axes(ax, theme)
    return figure, axes


def style_axes(ax: Axes, theme: Theme) -> None:
    """Gives axes the common look: quiet frame, grid below the data, readable ticks."""
    ax.set_facecolor(theme.panel)
    ax.set_axisbelow(True)
    ax.grid(True, color=theme.rule, linewidth=0.6)
    ax.tick_params(colors=theme.muted, labelsize=9, length=3, width=0.6)
    for name, spine in ax.spines.items():
        spine.set_color(theme.rule)
        spine.set_visible(name in ("left", "bottom"))
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_color(theme.ink)
        axis.label.set_fontsize(10)
    ax.title.set_color(theme.ink)


def figure_legend(figure: Figure, theme: Theme, width: Width, handles: Sequence[Artist] | None = None) -> int:
    """One legend above the panels: for everything labelled in them, each label once, or for `handles`. Tells its lines."""
    if handles is None:
        found: dict[str, Artist] = {}
        for ax in figure.axes:
            for handle, label in zip(*ax.get_legend_handles_labels()):
                found.setdefault(str(label), handle)
    else:
        found = {str(handle.get_label()): handle for handle in handles}
    if not found:
        return 0
    # A column is as wide as its longest label: about 0.075 inches a character and 0.6 for the handle.
    columns = max(1, min(len(found), int(WIDTH_INCHES[width] // (0.6 + 0.075 * max(map(len, found))))))
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9.5,
        labelcolor=theme.ink,
    )
    return -(-len(found) // columns)


def with_unit(name: str, unit: str | None) -> str:
    """ "name (unit)", or the name alone where there is no unit."""
    return f"{name} ({unit})" if unit else name


def to_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_svg(figure: Figure, theme: Theme, *, name: str, variables: bool = False) -> str:
    """The figure as an `<svg>` element to stand in an HTML page.

    Args:
        theme: the theme that the figure was drawn with.
        name: prefix that keeps ids apart from those of other figures on the page; letters, digits and hyphens.
        variables: write `var(--hf-NAME)` for the theme's colours, so that one drawing serves light and dark pages.

    Raises:
        ValueError: if `name` holds other characters.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
        raise ValueError(f"to_svg: name = {name!r}; give letters, digits and hyphens, a letter first")
    buffer = io.StringIO()
    # Text stays text (smaller, selectable, in the page's font); the salt makes equal figures equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"font: ([^;\"']*?)'DejaVu Sans'[^;\"]*", r"font: \1system-ui, sans-serif", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r"(\d\.\d{2})\d+", r"\1", svg)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', r"<svg \1\2", svg, count=1)
    if variables:
        for field in fields(theme):
            svg = svg.replace(getattr(theme, field.name), f"var(--hf-{field.name.replace('_', '-')})")
    return svg.strip()
