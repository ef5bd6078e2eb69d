"""Draws a task's `Scene`, reusing its artists from frame to frame."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Circle as CirclePatch
from matplotlib.patches import Polygon

from holdfast.plots.theme import Theme
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Scene

# Theme colour, line style, line width, opacity of a filled shape.
_LOOK: dict[str, tuple[str, str, float, float]] = {
    "body": ("actual", "-", 1.2, 0.9),
    "trail": ("actual", "-", 1.8, 0.5),
    "reference": ("reference", "--", 1.3, 0.5),
    "limit": ("unsafe", "-", 1.4, 1.0),
    "unsafe": ("unsafe", "-", 0.0, 0.2),
    "scenery": ("muted", "-", 1.0, 0.45),
    "backup": ("backup", "-", 2.0, 0.5),
    "proposed": ("proposed", "--", 1.6, 0.5),
}


class SceneView:
    """A scene on axes.

    Args:
        ax: where to draw; its limits and labels are set from the scene.
        scene: the first one; later ones have the same window and the same shapes in number, kind and role.
        theme: colours by role.

    Attributes:
        artists: to be redrawn for each frame, in order.
    """

    def __init__(self, ax: Axes, scene: Scene, theme: Theme):
        self.ax = ax
        left, right, bottom, top = scene.window
        ax.set(xlim=(left, right), ylim=(bottom, top), xlabel=scene.labels[0], ylabel=scene.labels[1])
        ax.set_aspect("equal")
        ax.grid(False)
        self.artists: list[Artist] = [self._artist(ax, shape, theme) for shape in scene.shapes]
        self._kinds = [_kind(shape) for shape in scene.shapes]

    def update(self, scene: Scene) -> None:
        """Moves the artists to the scene's shapes.

        Raises:
            ValueError: if the shapes are not those of the first scene in number, kind and role.
        """
        kinds = [_kind(shape) for shape in scene.shapes]
        if kinds != self._kinds:
            raise ValueError(
                f"Task.scene: the shapes changed from {self._kinds} to {kinds} during the episode; keep their number, "
                "kinds and roles, and move what is not seen out of the window"
            )
        for artist, shape in zip(self.artists, scene.shapes):
            if isinstance(shape, Circle):
                artist.set(center=shape.centre, radius=shape.radius)
            elif isinstance(shape, Polyline) and not shape.filled:
                artist.set(data=np.asarray(shape.points, np.float64).T)
            else:
                artist.set(xy=_corners(shape))

    def _artist(self, ax: Axes, shape: Polyline | Circle | Rectangle, theme: Theme) -> Artist:
        role, dash, width, alpha = _LOOK[shape.role]
        colour = getattr(theme, role)
        if isinstance(shape, Polyline) and not shape.filled:
            return ax.plot(*np.asarray(shape.points, np.float64).T, dash, color=colour, linewidth=width)[0]
        style = {"facecolor": colour, "alpha": alpha, "linewidth": 0}
        if isinstance(shape, Circle):
            return ax.add_patch(CirclePatch(shape.centre, shape.radius, **style))
        return ax.add_patch(Polygon(_corners(shape), closed=True, **style))


def _kind(shape: Polyline | Circle | Rectangle) -> str:
    return f"{type(shape).__name__} ({shape.role})"


def _corners(shape: Polyline | Rectangle) -> np.ndarray:
    if isinstance(shape, Polyline):
        return np.asarray(shape.points, np.float64)
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    corners = 0.5 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.asarray(shape.size)
    return corners @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(shape.centre)
