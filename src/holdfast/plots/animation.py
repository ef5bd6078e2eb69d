"""Animations of one episode: the task's scene, if it has one, and its states over time with a moving cursor."""

import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from holdfast.backup import ImplicitInvariantSet
from holdfast.evaluate import Trajectories
from holdfast.plots.scene_view import SceneView
from holdfast.plots.theme import LIGHT, UNSAFE_ALPHA, Theme, figure_legend, new_figure, style_axes, with_unit
from holdfast.plots.trajectory import STATUS_ROLES, draw_interventions, draw_unsafe, finite, state_limits
from holdfast.tasks import Task, episode_context
from holdfast.tasks.scene import Polyline
from holdfast.types import Status

#: Backup plans of earlier steps that stay in the picture, and how many of an episode's are drawn in all.
_FAN, _PLANS = 10, 36
_FUTURES = {"proposed": ("proposed", "--", "after the proposal"), "backup": ("backup", "-", "backup plan")}


def render_episode(
    task: Task,
    trajectories: Trajectories,
    path: str | Path,
    *,
    episode: int = 0,
    context: Any = None,
    implicit_set: ImplicitInvariantSet | None = None,
    fps: int | None = None,
    dpi: int | None = None,
    theme: Theme = LIGHT,
) -> Path:
    """Writes an animation of one episode, in real time.

    Args:
        path: ends in .mp4 or .gif. Without the package imageio-ffmpeg an .mp4 becomes a .gif beside it.
        episode: which of the trajectories.
        context: of that episode; by default the one that its key decides, as in the evaluation.
        implicit_set: if given, the backup plan from each state is drawn ahead of it, and what the backup could still
            do after the proposed action wherever that leaves the set.
        fps: frames a second; by default one frame a step, at most 30 (10 for a .gif).
        dpi: the frame is 9.2 inches wide; by default 100 (65 for a .gif).

    Returns:
        Where it was written.

    Raises:
        ValueError: for another suffix.
    """
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"render_episode: path = {str(path)!r} ends in {path.suffix!r}; give .mp4 or .gif")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        path = path.with_suffix(".gif")
    gif = path.suffix == ".gif"
    steps, dt = trajectories.applied.shape[1], trajectories.dt
    rate = fps or max(1, min(round(1 / dt), 10 if gif else 30))
    # Real time: frame k shows the step nearest to time k / rate.
    shown = np.minimum(np.round(np.arange(round(steps * dt * rate) + 1) / (rate * dt)), steps)
    player = _Player(task, trajectories, episode, context, implicit_set, theme, dpi or (65 if gif else 100))
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = (player.frame(int(t)) for t in shown)
    if gif:
        _write_gif(path, frames, rate, theme)
    else:
        _write_mp4(path, frames, rate)
    return path


def backup_futures(
    task: Task, trajectories: Trajectories, episode: int, implicit_set: ImplicitInvariantSet
) -> dict[str, np.ndarray]:
    """State sequences from each step of an episode, shape [T, N+2, n]: "backup" and "proposed".

    "backup" is the backup flow from the state. "proposed" starts with the proposed action (clipped to the input box)
    and goes on with the backup; it is NaN where that stays in the implicit set, or where the proposal is not finite.
    """
    system = task.system

    @jax.jit
    @jax.vmap
    def look(x, u):
        backup = implicit_set.flow(x).states
        after = system.step(x, system.input_box.clip(u))
        ahead = implicit_set.flow(after).states
        rejected = ~implicit_set.contains(after) & jnp.all(jnp.isfinite(u))
        last = system.step(backup[-1], implicit_set.policy(backup[-1]))
        proposed = jnp.concatenate([x[None], ahead])
        return jnp.concatenate([backup, last[None]]), jnp.where(rejected, proposed, jnp.nan)

    states = jnp.asarray(trajectories.states[episode, :-1])
    backup, proposed = look(states, jnp.asarray(trajectories.proposed[episode], states.dtype))
    return {"proposed": finite(proposed), "backup": finite(backup)}


class _Player:
    """Draws everything that stands still once, and for each frame only what moves."""

    def __init__(self, task, trajectories, episode, context, implicit_set, theme, dpi):
        self.task, self.theme = task, theme
        self.states = finite(trajectories.states[episode])
        if context is None:
            key = jax.random.fold_in(jax.random.key(trajectories.seed), episode)
            context = episode_context(task, key, jnp.asarray(self.states[0]))
        self.context = context
        self.status = np.asarray(trajectories.status[episode])
        self.times = trajectories.dt * np.arange(len(self.states))
        self.futures = {} if implicit_set is None else backup_futures(task, trajectories, episode, implicit_set)
        self.scene_view, self.fan, self.fan_lines = None, [], []
        figure, axes = self._layout(dpi)
        self._draw_panels(axes, finite(trajectories.reference[episode]))
        figure_legend(figure, theme, "wide")
        self.moving = (
            self.fan_lines + ([] if self.scene_view is None else self.scene_view.artists) + self.cursors + self.lines
        )
        for lines in self.future_lines.values():
            self.moving += lines
        self.moving.append(self.caption)
        for artist in self.moving:
            artist.set_animated(True)
        self.canvas = FigureCanvasAgg(figure)
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)

    def frame(self, t: int) -> np.ndarray:
        """The picture at step t, shape [height, width, 3], uint8."""
        futures = self._futures_at(t)
        if self.scene_view is not None:
            self.scene_view.update(self.task.scene(self.states, t, self.context, futures))
            self._spread_fan(t)
        for i, line in enumerate(self.lines):
            line.set_data(self.times[: t + 1], self.states[: t + 1, i])
            self.cursors[i].set_xdata([self.times[t]] * 2)
            for role, sequence in futures.items():
                ahead = self.times[t] + self.times[1] * np.arange(len(sequence))
                self.future_lines[role][i].set_data(ahead, sequence[:, i])
        self._caption(t)
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            artist.axes.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def _layout(self, dpi: int) -> tuple[Figure, list]:
        n, theme = self.task.system.state_size, self.theme
        columns = 1 if n <= 4 else 2
        rows = -(-n // columns)
        first = self.task.scene(self.states, 0, self.context, self._futures_at(0))
        if first is None:
            figure, axes = new_figure(theme, "wide", rows, columns, row_height=1.25)
            panels = list(axes.flat)
        else:
            left, right, bottom, top = first.window
            # As tall as equal scales make it, within reason.
            height = float(np.clip(8.2 * (top - bottom) / (right - left) + 0.5, 1.8, 5.0))
            figure, axes = new_figure(theme, "wide", 1, row_height=height + 1.15 * rows)
            figure.delaxes(axes[0, 0])
            grid = figure.add_gridspec(1 + rows, columns, height_ratios=[height] + [1.15] * rows)
            scene_axes = figure.add_subplot(grid[0, :])
            panels = [figure.add_subplot(grid[1 + k // columns, k % columns]) for k in range(rows * columns)]
            for ax in [scene_axes, *panels]:
                style_axes(ax, theme)
            self.scene_view = SceneView(scene_axes, first, theme)
            if first.still and "backup" in self.futures:
                self._make_fan(scene_axes)
        figure.set_dpi(dpi)
        # Video codecs want an even number of pixels.
        width, height = 2 * np.round(figure.get_size_inches() * dpi / 2) / dpi
        figure.set_size_inches(width, height)
        for ax in panels[n:]:
            ax.set_visible(False)
        for ax in panels[: n - columns]:
            ax.tick_params(labelbottom=False)
        for ax in panels[n - columns : n]:
            ax.set_xlabel("time (s)")
        return figure, panels[:n]

    def _draw_panels(self, panels: list, reference: np.ndarray) -> None:
        system, theme = self.task.system, self.theme
        self.lines, self.cursors = [], []
        self.future_lines: dict[str, list] = {role: [] for role in self.futures}
        for i, ax in enumerate(panels):
            limits = state_limits(self.task, i, np.concatenate([self.states[:, i], reference[:, i]]))
            draw_unsafe(ax, self.task, i, limits, theme)
            ax.plot(self.times, reference[:, i], "--", color=theme.reference, linewidth=1.1, label="reference")
            ax.plot(self.times, self.states[:, i], color=theme.actual, linewidth=0.8, alpha=0.3)
            draw_interventions(ax, self.times, self.status, theme)
            for role in self.future_lines:
                colour, dash, label = _FUTURES[role]
                line = ax.plot([], [], dash, color=getattr(theme, colour), linewidth=1.6, label=label)[0]
                self.future_lines[role].append(line)
            self.cursors.append(ax.axvline(0.0, color=theme.ink, linewidth=0.9))
            self.lines.append(ax.plot([], [], color=theme.actual, linewidth=2.0, label="state")[0])
            ax.set(xlim=(self.times[0], self.times[-1]), ylim=limits)
            unit = system.state_units[i] if i < len(system.state_units) else ""
            ax.set_ylabel(with_unit(system.state_names[i], unit))
        top = panels[0] if self.scene_view is None else self.scene_view.ax
        self.caption = top.text(
            0.995, 1.03, "", transform=top.transAxes, ha="right", va="bottom", fontsize=10.5, family="monospace"
        )

    def _make_fan(self, ax) -> None:
        """The backup plans of steps all over the episode as the scene draws them, and lines for those that are shown."""
        every = max(1, (len(self.states) - 1) // _PLANS)
        for t in range(0, len(self.states) - 1, every):
            shapes = self.task.scene(self.states, t, self.context, self._futures_at(t)).shapes
            plans = [shape.points for shape in shapes if isinstance(shape, Polyline) and shape.role == "backup"]
            self.fan.append((t, plans[0] if plans else np.full((1, 2), np.nan)))
        self.fan_lines = [ax.plot([], [], color=self.theme.backup, linewidth=1.1)[0] for _ in range(_FAN)]
        self.fan_lines[-1].set(label="earlier backup plans", alpha=0.5)

    def _spread_fan(self, t: int) -> None:
        past = [points for step, points in self.fan if step < t][-_FAN:]
        for i, line in enumerate(self.fan_lines):
            points = past[i] if i < len(past) else np.full((1, 2), np.nan)
            line.set_data(np.asarray(points, np.float64).T)
            # The older, the fainter.
            line.set_alpha(0.6 - 0.45 * max(len(past) - 1 - i, 0) / _FAN)

    def _futures_at(self, t: int) -> dict[str, np.ndarray]:
        # At the end of the episode there is no action left; the last futures would be stale, so they go.
        if t < len(self.states) - 1:
            return {role: sequences[t] for role, sequences in self.futures.items()}
        return {role: np.full_like(sequences[0], np.nan) for role, sequences in self.futures.items()}

    def _caption(self, t: int) -> None:
        status = Status(int(self.status[min(t, len(self.status) - 1)]))
        self.caption.set_text(f"{self.times[t]:6.2f} s   {status.name.replace('_', ' '):>11}")
        self.caption.set_color(getattr(self.theme, STATUS_ROLES[status]))


def _write_mp4(path: Path, frames: Iterable[np.ndarray], rate: int) -> None:
    with warnings.catch_warnings():
        # JAX warns of any fork. This one becomes ffmpeg at once and never returns to JAX.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        writer = imageio.get_writer(
            path, fps=rate, codec="libx264", macro_block_size=2, quality=7, output_params=["-preset", "veryfast"]
        )
        with writer:
            for frame in frames:
                writer.append_data(frame)


def _write_gif(path: Path, frames: Iterable[np.ndarray], rate: int, theme: Theme) -> None:
    """One palette for all frames: several times faster than one each, and no flicker."""
    palette = _palette(theme)
    images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    # The format counts in hundredths of a second.
    duration = 10 * round(100 / rate)
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=False)


def _palette(theme: Theme) -> Image.Image:
    """The theme's colours, and their blends with what they are drawn on: a palette of a frame loses thin lines."""
    colours = {f.name: 255 * np.array(to_rgb(getattr(theme, f.name))) for f in fields(theme)}
    panel = colours["panel"]
    shaded = panel + UNSAFE_ALPHA * (colours["unsafe"] - panel)
    blends = [
        ground + weight * (colour - ground)
        for ground, weights in ((panel, (1.0, 0.8, 0.6, 0.45, 0.3, 0.15)), (shaded, (1.0, 0.75, 0.5, 0.25, 0.0)))
        for colour in colours.values()
        for weight in weights
    ]
    image = Image.new("P", (1, 1))
    image.putpalette(np.array(blends).round().clip(0, 255).astype(np.uint8).tobytes())
    return image
