"""Planar quadrotor: fly a figure eight that is larger than the room, without touching walls, floor or ceiling."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import PlanarQuadrotor
from holdfast.tasks.base import SafetySettings, Task
from holdfast.tasks.limits import limits
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Scene
from holdfast.tasks.side_view import quadrotor_from_the_side
from holdfast.tasks.tracking import tracking_rmse

WALL, CEILING = 2.0, 2.0


class PlanarQuadrotorRoom(Task):
    """|x| <= 2 m and 0 <= z <= 2 m for a planar quadrotor; its reference, a figure eight, leaves on all four sides.

    The weights of the base controller were picked by random search for a large base set, as far as the floor and the
    ceiling, that takes few boxes to prove.
    """

    name: ClassVar = "planar-quadrotor"
    episode_steps: ClassVar = 400
    metric_units: ClassVar = {"p_rmse": "m", "v_rmse": "m/s"}
    training: ClassVar = {"backup_updates": 250, "updates": 400, "window": 32, "discount": 0.98, "actor_rate": 2e-3}
    amplitude: ClassVar = (2.3, 1.2)
    period: ClassVar = 8.0
    #: Half-widths of the box from which the backup is trained and measured, about hovering in the middle.
    sampled: ClassVar = (WALL, CEILING / 2, 0.8, 2.5, 2.0, 3.0)

    system: PlanarQuadrotor = eqx.field(default_factory=PlanarQuadrotor)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: limits(x=(0, -WALL, WALL, "m"), z=(1, 0.0, CEILING, "m"))
    )
    # Plans may tilt and turn faster than the states from which they start.
    state_box: Box = eqx.field(
        default_factory=lambda: Box([-WALL, 0.0, -np.pi, -8.0, -8.0, -30.0], [WALL, CEILING, np.pi, 8.0, 8.0, 30.0])
    )
    safety: SafetySettings = eqx.field(
        default_factory=lambda: SafetySettings(
            state_cost=(1.0, 1.0, 7.5, 0.44, 0.15, 0.07), input_cost=(0.69, 270.0), horizon=75
        )
    )

    def sample_start(self, key):
        return self._around(key, (0.3, 0.3, 0.1, 0.3, 0.3, 0.3))

    def sample_state(self, key):
        return self._around(key, self.sampled)

    def reference(self, t, context):
        across, up = self.amplitude
        rate = 2 * np.pi / self.period
        phase = rate * self.system.dt * t
        x, z = across * jnp.sin(phase), self.system.hover_height + up * jnp.sin(2 * phase)
        vx, vz = across * rate * jnp.cos(phase), 2 * up * rate * jnp.cos(2 * phase)
        return jnp.stack([x, z, 0 * x, vx, vz, 0 * x])

    def reward(self, x, u, x_next, t, context):
        error = x_next - self.reference(t + 1, context).astype(x.dtype)
        weights = jnp.asarray([2.0, 2.0, 0.2, 0.1, 0.1, 0.005], x.dtype)
        box = self.system.input_box
        effort = (u - jnp.asarray(box.centre, x.dtype)) / jnp.asarray(box.half_widths, x.dtype)
        return -jnp.sum(weights * error**2) - 0.02 * jnp.sum(effort**2)

    def metrics(self, states, context):
        return {
            "p_rmse": tracking_rmse(self, states, context, [0, 1]),
            "v_rmse": tracking_rmse(self, states, context, [3, 4]),
        }

    def scene(self, states, t, context, futures):
        """Seen from the side; the limits hold for the robot's middle."""
        left, right, bottom, top = -2.8, 2.8, -0.5, 2.5

        def path(f, role):
            return Polyline(f[:, :2], role)

        walls = [(side * (right + WALL) / 2, CEILING / 2, right - WALL, top - bottom) for side in (-1, 1)]
        slabs = [(0.0, bottom / 2, 2 * WALL, -bottom), (0.0, (CEILING + top) / 2, 2 * WALL, top - CEILING)]
        shapes = tuple(Rectangle((x, z), (w, h), "unsafe") for x, z, w, h in walls + slabs)
        room = [[-WALL, 0], [WALL, 0], [WALL, CEILING], [-WALL, CEILING], [-WALL, 0]]
        phase = 2 * np.pi / self.period * self.system.dt
        eight = phase * np.arange(self.episode_steps + 1)
        across, up = self.amplitude
        wanted = np.stack([across * np.sin(eight), self.system.hover_height + up * np.sin(2 * eight)], axis=1)
        shapes += (Polyline(np.array(room), "limit"), Polyline(wanted, "reference"))
        shapes += (path(states[: t + 1], "trail"),)
        shapes += tuple(path(f, role) for role, f in futures.items())
        shapes += (Circle((float(wanted[t, 0]), float(wanted[t, 1])), 0.05, "reference"),)
        phi = float(states[t, 2])
        along, upwards = np.array([np.cos(phi), np.sin(phi)]), np.array([-np.sin(phi), np.cos(phi)])
        shapes += quadrotor_from_the_side(states[t, :2], along, upwards, 0.25)
        return Scene(shapes, (left, right, bottom, top), ("x (m)", "z (m)"), still=True)

    def _around(self, key, spread):
        """A state within `spread`, half-widths of a box, of hovering in the middle of the room."""
        return self.system.equilibrium()[0] + jnp.asarray(spread) * jax.random.uniform(key, (6,), minval=-1, maxval=1)
