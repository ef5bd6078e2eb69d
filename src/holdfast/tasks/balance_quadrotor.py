"""Holding a quadrotor where it was found, under a disturbance, from anywhere in a robust control invariant set."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from holdfast.sets import Box, SuperlevelSet, length
from holdfast.systems import LongitudinalQuadrotor
from holdfast.tasks.base import RobustSafety, Task
from holdfast.tasks.limits import limits
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Scene
from holdfast.tasks.shipped import shipped_safety
from holdfast.tasks.side_view import quadrotor_from_the_side
from holdfast.tasks.tracking import tracking_rmse

ROOM, TILT = 8.0, np.pi / 12
TOP_SPEEDS = (0.8, 1.0, np.pi / 2)
_HALF_WIDTHS = (ROOM, ROOM, TILT, *TOP_SPEEDS)


class BalanceQuadrotor(Task):
    """A room of 16 m by 16 m, tilts up to 15 degrees and slow speeds, for a quadrotor that is to stay where it started.

    Its start moves, so it has to brake and come back. The goal is the start's position, known from the context. Physics,
    feasible box, disturbance and reward as published (arXiv 2506.01665), the reward at the successor. The invariant set
    is ours, and starts are uniform in it. Hovering alone costs 46 an episode, for its thrust.
    """

    name: ClassVar = "balance-quadrotor"
    episode_steps: ClassVar = 240
    metric_units: ClassVar = {"p_rmse": "m"}
    training: ClassVar = {
        "updates": 512,
        "environments": 8,
        "window": 48,
        "discount": 0.9,
        "actor_rate": 3e-3,
        "restart": 0.01,
    }

    system: LongitudinalQuadrotor = eqx.field(default_factory=LongitudinalQuadrotor)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: limits(
            x=(0, -ROOM, ROOM, "m"),
            z=(1, -ROOM, ROOM, "m"),
            tilt=(2, -TILT, TILT, "rad"),
            speed_along_x=(3, -TOP_SPEEDS[0], TOP_SPEEDS[0], "m/s"),
            speed_along_z=(4, -TOP_SPEEDS[1], TOP_SPEEDS[1], "m/s"),
            rate=(5, -TOP_SPEEDS[2], TOP_SPEEDS[2], "rad/s"),
        )
    )
    state_box: Box = eqx.field(default_factory=lambda: Box([-h for h in _HALF_WIDTHS], list(_HALF_WIDTHS)))
    safety: RobustSafety = eqx.field(
        default_factory=lambda: shipped_safety(BalanceQuadrotor.name, LongitudinalQuadrotor().input_box)
    )

    def sample_context(self, key):
        """The goal (x, z), which is the start's position: `context_at`."""
        return jnp.zeros(2)

    def context_at(self, x, context):
        return x[:2]

    def reference(self, t, context):
        return jnp.concatenate([context, jnp.zeros(4, context.dtype)])

    def observe(self, x, t, context):
        return jnp.concatenate([x, x[:2] - context.astype(x.dtype)])

    def reward(self, x, u, x_next, t, context):
        away = length(x_next[:2] - context.astype(x.dtype))
        return -2.5 * away - 0.1 * jnp.sum(x_next[2:] ** 2) - 0.002 * u[0] ** 2 - 0.001 * u[1] ** 2

    def metrics(self, states, context):
        return {"p_rmse": tracking_rmse(self, states, context, [0, 1])}

    def scene(self, states, t, context, futures):
        """Seen from the side, the window about the goal; the limits hold for the robot's middle."""
        goal, edge = np.asarray(context, np.float64), 1.6

        def path(points, role):
            return Polyline(points[:, :2], role)

        middle = ROOM + edge
        walls = [((side * middle, 0.0), (2 * edge, 2 * ROOM + 4 * edge)) for side in (-1, 1)]
        walls += [((0.0, side * middle), (2 * ROOM, 2 * edge)) for side in (-1, 1)]
        room = ROOM * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
        shapes = tuple(Rectangle(centre, size, "unsafe") for centre, size in walls)
        shapes += (Polyline(room, "limit"), path(states[: t + 1], "trail"))
        shapes += tuple(path(f, role) for role, f in futures.items())
        # Tilting by phi moves it towards positive x: clockwise, as seen here.
        phi = float(states[t, 2])
        along, up = np.array([np.cos(phi), -np.sin(phi)]), np.array([np.sin(phi), np.cos(phi)])
        shapes += quadrotor_from_the_side(states[t, :2], along, up, 0.28)
        shapes += (Circle((float(goal[0]), float(goal[1])), 0.06, "reference"),)
        x, z = float(goal[0]), float(goal[1])
        window = (x - edge, x + edge, z - edge, z + edge)
        return Scene(shapes, window, ("x (m)", "z (m)"), still=True)
