"""Pictures for people: figures, animations and the report page. Nothing here knows a particular task."""

from holdfast.plots.animation import render_episode
from holdfast.plots.learning_curve import learning_figure
from holdfast.plots.margins import margin_figure
from holdfast.plots.report_page import PageFigure, report_page, write_report_page
from holdfast.plots.set_slice import slice_figure
from holdfast.plots.snapshot import Snapshot
from holdfast.plots.theme import DARK, LIGHT, Theme, to_png, to_svg
from holdfast.plots.trajectory import trajectory_figure

__all__ = [
    "DARK",
    "LIGHT",
    "PageFigure",
    "Snapshot",
    "Theme",
    "learning_figure",
    "margin_figure",
    "render_episode",
    "report_page",
    "slice_figure",
    "to_png",
    "to_svg",
    "trajectory_figure",
    "write_report_page",
]
