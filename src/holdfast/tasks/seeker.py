"""Seeking a goal among round obstacles while being pushed about."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from holdfast.sets import Box, FreeSpace, SuperlevelSet, length
from holdfast.systems import Retreat, Seeker
from holdfast.tasks.base import RobustSafety, Task
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Scene

WALL = 8.0
#: (x, y, radius) of the obstacles, m. Every gap is wider than 1 m.
OBSTACLES = (
    (-4.0, 3.5, 1.5),
    (0.0, 2.6, 1.2),
    (4.2, 3.8, 1.4),
    (-2.6, -1.6, 1.3),
    (2.4, -1.2, 1.2),
    (0.2, -4.8, 1.0),
)


def course() -> FreeSpace:
    """The free space of the course."""
    x_y, radii = np.asarray(OBSTACLES)[:, :2], np.asarray(OBSTACLES)[:, 2]
    return FreeSpace(Box([-WALL, -WALL], [WALL, WALL]), x_y, radii)


def _safety() -> RobustSafety:
    system = Seeker()
    noise = float(np.max(system.noise_box.upper))
    return RobustSafety(course(), Retreat(course(), system.dt, noise, system.input_box))


_NAMES = ("lowest x", "lowest y", "highest x", "highest y", *(f"obstacle {i + 1}" for i in range(len(OBSTACLES))))


class SeekerCourse(Task):
    """A square of 16 m with six round obstacles; start and goal lie anywhere in between.

    Physics, walls, disturbance and reward as published (arXiv 2506.01665), the reward at the successor; the course is
    ours. The goal is the context.

    Attributes:
        safety: the free space and what keeps to it.
    """

    name: ClassVar = "seeker"
    episode_steps: ClassVar = 400
    metric_units: ClassVar = {"final_distance": "m"}
    training: ClassVar = {
        "updates": 256,
        "environments": 16,
        "window": 48,
        "discount": 0.95,
        "actor_rate": 3e-3,
        "restart": 0.01,
    }

    system: Seeker = eqx.field(default_factory=Seeker)
    safety: RobustSafety = eqx.field(default_factory=_safety)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: SuperlevelSet(course().margin, _NAMES, ("m",) * len(_NAMES))
    )
    state_box: Box = eqx.field(default_factory=lambda: Box([-WALL, -WALL], [WALL, WALL]))

    def sample_context(self, key):
        """The goal, shape [2]."""
        return self.safety.region.sample(key)

    def reference(self, t, context):
        return context

    def observe(self, x, t, context):
        goal = context.astype(x.dtype)
        return jnp.concatenate([x, goal, goal - x, length(goal - x)[None], self.safe_set.margin(x)[4:]])

    def reward(self, x, u, x_next, t, context):
        return -2 * length(context.astype(x.dtype) - x_next)

    def metrics(self, states, context):
        return {"final_distance": length(states[-1] - context.astype(states.dtype))}

    def scene(self, states, t, context, futures):
        """Seen from above."""
        edge = WALL + 0.6
        middle, width = (edge + WALL) / 2, edge - WALL
        shapes = tuple(Rectangle((side * middle, 0.0), (width, 2 * edge), "unsafe") for side in (-1, 1))
        shapes += tuple(Rectangle((0.0, side * middle), (2 * WALL, width), "unsafe") for side in (-1, 1))
        shapes += tuple(Circle((x, y), radius, "unsafe") for x, y, radius in OBSTACLES)
        room = WALL * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
        shapes += (Polyline(room, "limit"), Polyline(states[: t + 1], "trail"))
        shapes += tuple(Polyline(f, role) for role, f in futures.items())
        shapes += (Circle((float(context[0]), float(context[1])), 0.2, "reference"),)
        shapes += (Circle((float(states[t, 0]), float(states[t, 1])), 0.15, "body"),)
        return Scene(shapes, (-edge, edge, -edge, edge), ("x (m)", "y (m)"), still=True)
