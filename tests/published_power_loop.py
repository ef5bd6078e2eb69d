"""The power loop with its published base set, to be refuted: `holdfast verify tests/published_power_loop.py:PublishedPowerLoop`.

Source: PS2-RL (arXiv 2606.14536): hover LQR in e = (z - 2, v, 2 vec(conj q)), 7 numbers with yaw, in the world frame.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from holdfast.sets import Box
from holdfast.systems import Quadrotor, System
from holdfast.tasks import PowerLoop, SafetySettings


class PublishedQuadrotor(System):
    """`Quadrotor` with the published error coordinates."""

    state_names: ClassVar = Quadrotor.state_names
    input_names: ClassVar = Quadrotor.input_names

    model: Quadrotor = eqx.field(default_factory=Quadrotor)
    dt: float = 0.02
    input_box: Box = eqx.field(default_factory=lambda: Quadrotor().input_box)

    @property
    def gravity(self):
        return self.model.gravity

    def step(self, x, u, w=None):
        return self.model.step(x, u)

    def equilibrium(self):
        return self.model.equilibrium()

    def error(self, x):
        q = x[6:]
        tilt = 2 * jnp.where(q[0] < 0, 1.0, -1.0) * q[1:]
        return jnp.concatenate([x[2:3] - self.model.hover_height, x[3:6], tilt])

    def lift(self, e):
        half = e[4:] / 2
        scalar = jnp.sqrt(1 - half @ half)[None]
        zero = jnp.zeros(2, e.dtype)
        return jnp.concatenate([zero, e[:1] + self.model.hover_height, e[1:4], scalar, -half])


class PublishedPowerLoop(PowerLoop):
    """The published weights and level."""

    system: PublishedQuadrotor = eqx.field(default_factory=PublishedQuadrotor)
    safety: SafetySettings = eqx.field(
        default_factory=lambda: SafetySettings(
            state_cost=(1, 0.16, 0.16, 0.4, 0.8, 0.8, 0.16),
            input_cost=(0.02, 0.012, 0.012, 0.004),
            horizon=100,
            level=8.0,
        )
    )
