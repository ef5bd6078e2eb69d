"""Pendulum: swing further than the stops allow, without touching them."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import Pendulum
from holdfast.tasks.base import SafetySettings, Task
from holdfast.tasks.limits import limits
from holdfast.tasks.scene import Circle, Polyline, Scene
from holdfast.tasks.tracking import tracking_rmse

LIMIT = 0.6
TOP_RATE = 8.0


class PendulumSwing(Task):
    """|theta| <= 0.6 rad for an upright pendulum whose reference swings with an amplitude of 0.9 rad."""

    name: ClassVar = "pendulum"
    episode_steps: ClassVar = 200
    metric_units: ClassVar = {"theta_rmse": "rad", "omega_rmse": "rad/s"}
    training: ClassVar = {"backup_updates": 150, "updates": 200}
    amplitude: ClassVar = 0.9
    period: ClassVar = 4.0

    system: Pendulum = eqx.field(default_factory=Pendulum)
    safe_set: SuperlevelSet = eqx.field(default_factory=lambda: limits(angle=(0, -LIMIT, LIMIT, "rad")))
    state_box: Box = eqx.field(default_factory=lambda: Box([-LIMIT, -TOP_RATE], [LIMIT, TOP_RATE]))
    safety: SafetySettings = eqx.field(
        default_factory=lambda: SafetySettings(state_cost=(1.0, 0.1), input_cost=(0.001,), horizon=20)
    )

    def sample_start(self, key):
        return jnp.array([0.3, 1.0]) * jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

    def reference(self, t, context):
        rate = 2 * np.pi / self.period
        phase = rate * self.system.dt * t
        return self.amplitude * jnp.stack([jnp.sin(phase), rate * jnp.cos(phase)])

    def reward(self, x, u, x_next, t, context):
        theta, omega = x_next - self.reference(t + 1, context).astype(x.dtype)
        return -(theta**2) - 0.02 * omega**2 - 0.001 * (u[0] / 30) ** 2

    def metrics(self, states, context):
        return {name: tracking_rmse(self, states, context, [i]) for i, name in enumerate(self.metric_units)}

    def scene(self, states, t, context, futures):
        """Seen from the side, theta to the right."""
        length = float(self.system.length)

        def tips(theta):
            return length * np.stack([np.sin(theta), np.cos(theta)], axis=-1)

        def rod(theta, role):
            return Polyline(np.stack([np.zeros(2), tips(theta)]), role)

        def path(f, role):
            return Polyline(tips(f[:, 0]), role)

        stops = tuple(rod(side * LIMIT, "limit") for side in (-1, 1))
        beyond = np.linspace(LIMIT, np.pi / 2, 24)
        unsafe = tuple(
            Polyline(np.concatenate([np.zeros((1, 2)), tips(side * beyond)]), "unsafe", filled=True) for side in (-1, 1)
        )
        wanted = self.amplitude * np.sin(2 * np.pi / self.period * self.system.dt * t)
        shapes = (*unsafe, *stops, rod(wanted, "reference"))
        shapes += tuple(path(f, role) for role, f in futures.items())
        tip = tips(float(states[t, 0]))
        shapes += (rod(float(states[t, 0]), "body"), Circle((float(tip[0]), float(tip[1])), 0.05 * length, "body"))
        window = (-1.6 * length, 1.6 * length, -0.1 * length, 1.15 * length)
        return Scene(shapes, window, ("across (m)", "height (m)"))
