"""Pictures for people: figures, animations and the report page. Nothing here knows a particular task."""

from holdfast.plots.animation import render_episode
from holdfast.plots.learning_curve import learning_figure
from holdfast.plots.learning_curves import Curve, learning_curves_figure
from holdfast.plots.margins import margin_figure
from holdfast.plots.paths import paths_figure
from holdfast.plots.report_page import PageFigure, report_page, write_report_page
from holdfast.plots.safeguard_table import SAFEGUARD_LEGEND, VariantResult, safeguard_html, safeguard_markdown
from holdfast.plots.set_projection import can_be_projected, projected_pairs, projection_figure
from holdfast.plots.set_slice import slice_figure
from holdfast.plots.snapshot import Snapshot
from holdfast.plots.theme import DARK, LIGHT, Theme, to_png, to_svg
from holdfast.plots.trajectory import trajectory_figure

__all__ = [
    "DARK",
    "LIGHT",
    "SAFEGUARD_LEGEND",
    "Curve",
    "PageFigure",
    "Snapshot",
    "Theme",
    "VariantResult",
    "can_be_projected",
    "learning_curves_figure",
    "learning_figure",
    "margin_figure",
    "paths_figure",
    "projected_pairs",
    "projection_figure",
    "render_episode",
    "report_page",
    "safeguard_html",
    "safeguard_markdown",
    "slice_figure",
    "to_png",
    "to_svg",
    "trajectory_figure",
    "write_report_page",
]
