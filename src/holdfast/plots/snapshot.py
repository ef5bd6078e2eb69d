"""One frame of an episode that is still running, drawn without a display."""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from holdfast.plots.scene_view import SceneView
from holdfast.plots.theme import LIGHT, Theme, new_figure, with_unit
from holdfast.plots.trajectory import draw_unsafe, finite, state_limits
from holdfast.tasks import Task


class Snapshot:
    """Draws a task's scene, or its states over time where it has none; keeps the figure from frame to frame.

    Args:
        task: what is drawn.
        theme: colours by role.
        dpi: the frame is 9.2 inches wide.
    """

    def __init__(self, task: Task, theme: Theme = LIGHT, dpi: int = 70):
        self.task, self.theme, self.dpi = task, theme, dpi
        self._view: SceneView | None = None
        self._canvas: FigureCanvasAgg | None = None

    def frame(self, states: np.ndarray, context: Any) -> np.ndarray:
        """The picture at the last of the states x_0..x_t, shape [height, width, 3], uint8.

        Args:
            states: the episode so far, shape [t+1, n].
            context: of the episode.
        """
        states, t = finite(states), len(states) - 1
        # A scene is written for whole episodes: what is not known yet stands still.
        ahead = np.repeat(states[-1:], max(self.task.episode_steps - t, 0), axis=0)
        scene = self.task.scene(np.concatenate([states, ahead]), t, context, {})
        if scene is None:
            return self._over_time(states)
        if t == 0 or self._view is None or self._canvas is None:
            left, right, bottom, top = scene.window
            height = float(np.clip(8.2 * (top - bottom) / (right - left) + 0.5, 1.8, 5.0))
            figure, axes = new_figure(self.theme, "wide", 1, row_height=height)
            self._view, self._canvas = SceneView(axes[0, 0], scene, self.theme), self._canvas_of(figure)
        else:
            self._view.update(scene)
        return self._pixels(self._canvas)

    def _over_time(self, states: np.ndarray) -> np.ndarray:
        system = self.task.system
        figure, axes = new_figure(self.theme, "wide", system.state_size, row_height=1.1)
        times = system.dt * np.arange(len(states))
        for i, ax in enumerate(axes[:, 0]):
            limits = state_limits(self.task, i, states[:, i])
            draw_unsafe(ax, self.task, i, limits, self.theme)
            ax.plot(times, states[:, i], color=self.theme.actual, linewidth=1.9)
            unit = system.state_units[i] if i < len(system.state_units) else ""
            ax.set(xlim=(0.0, system.dt * self.task.episode_steps), ylim=limits)
            ax.set_ylabel(with_unit(system.state_names[i], unit))
        axes[-1, 0].set_xlabel("time (s)")
        return self._pixels(self._canvas_of(figure))

    def _canvas_of(self, figure) -> FigureCanvasAgg:
        figure.set_dpi(self.dpi)
        return FigureCanvasAgg(figure)

    def _pixels(self, canvas: FigureCanvasAgg) -> np.ndarray:
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
