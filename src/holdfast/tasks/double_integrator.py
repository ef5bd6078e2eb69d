"""Double integrator: follow a circle that is larger than the room, without leaving the room."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import DoubleIntegrator
from holdfast.tasks.base import SafetySettings, Task
from holdfast.tasks.limits import limits
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Scene
from holdfast.tasks.tracking import tracking_rmse

ROOM = 1.0
TOP_SPEED = 2.5


class DoubleIntegratorRoom(Task):
    """|x|, |y| <= 1 m for a point with bounded acceleration whose reference is a circle of radius 1.15 m."""

    name: ClassVar = "double-integrator"
    episode_steps: ClassVar = 200
    metric_units: ClassVar = {"p_rmse": "m", "v_rmse": "m/s"}
    training: ClassVar = {"backup_updates": 150, "updates": 200}
    radius: ClassVar = 1.15
    period: ClassVar = 10.0

    system: DoubleIntegrator = eqx.field(default_factory=DoubleIntegrator)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: limits(x=(0, -ROOM, ROOM, "m"), y=(1, -ROOM, ROOM, "m"))
    )
    state_box: Box = eqx.field(
        default_factory=lambda: Box([-ROOM, -ROOM, -TOP_SPEED, -TOP_SPEED], [ROOM, ROOM, TOP_SPEED, TOP_SPEED])
    )
    safety: SafetySettings = eqx.field(
        default_factory=lambda: SafetySettings(state_cost=(1.0, 1.0, 0.3, 0.3), input_cost=(0.3, 0.3), horizon=25)
    )

    def sample_start(self, key):
        return jnp.array([0.5, 0.5, 0.3, 0.3]) * jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)

    def reference(self, t, context):
        rate = 2 * np.pi / self.period
        phase = rate * self.system.dt * t
        sin, cos = self.radius * jnp.sin(phase), self.radius * jnp.cos(phase)
        return jnp.stack([sin, cos, rate * cos, -rate * sin])

    def reward(self, x, u, x_next, t, context):
        error = x_next - self.reference(t + 1, context).astype(x.dtype)
        return -jnp.sum(error[:2] ** 2) - 0.1 * jnp.sum(error[2:] ** 2) - 0.01 * jnp.sum(u**2)

    def metrics(self, states, context):
        return {
            "p_rmse": tracking_rmse(self, states, context, [0, 1]),
            "v_rmse": tracking_rmse(self, states, context, [2, 3]),
        }

    def viable(self, x):
        """Closed form, axis by axis: x is viable iff full braking stops it inside the room.

        No other inputs get it less far at any sample before its speed is spent, and then it can come to rest.
        """
        dt, brake = self.system.dt, jnp.asarray(self.system.input_box.upper, x.dtype)
        speed, away = jnp.abs(x[2:]), jnp.sign(x[2:]) * x[:2]
        # The farthest sample is the last before the speed is spent, or the one after.
        steps = jnp.floor(speed / (brake * dt))
        reach = away + dt * steps * speed - 0.5 * brake * (dt * steps) ** 2
        rest = speed - brake * dt * steps
        reach = jnp.maximum(reach, reach + dt * rest - 0.5 * brake * dt**2)
        return jnp.all(reach <= ROOM) & self.safe_set.contains(x)

    def scene(self, states, t, context, futures):
        """Seen from above."""
        edge = 1.5

        def path(f, role):
            return Polyline(f[:, :2], role)

        corners = np.array([[-ROOM, -ROOM], [ROOM, -ROOM], [ROOM, ROOM], [-ROOM, ROOM], [-ROOM, -ROOM]])
        middle, width = (edge + ROOM) / 2, edge - ROOM
        shapes = tuple(Rectangle((side * middle, 0.0), (width, 2 * edge), "unsafe") for side in (-1, 1))
        shapes += tuple(Rectangle((0.0, side * middle), (2 * ROOM, width), "unsafe") for side in (-1, 1))
        angle = np.linspace(0, 2 * np.pi, 121)
        circle = self.radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        phase = 2 * np.pi / self.period * self.system.dt * t
        shapes += (Polyline(corners, "limit"), Polyline(circle, "reference"), path(states[: t + 1], "trail"))
        shapes += (Circle((self.radius * np.sin(phase), self.radius * np.cos(phase)), 0.04, "reference"),)
        shapes += tuple(path(f, role) for role, f in futures.items())
        shapes += (Circle((float(states[t, 0]), float(states[t, 1])), 0.06, "body"),)
        return Scene(shapes, (-edge, edge, -edge, edge), ("x (m)", "y (m)"), still=True)
