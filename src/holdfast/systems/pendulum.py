"""A pendulum on a motor: two states."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.base import ContinuousSystem


class Pendulum(ContinuousSystem):
    """theta'' = 3 g sin(theta) / (2 l) + 3 torque / (m l^2) + w: a uniform rod about its end, theta = 0 upright.

    Semi-implicit Euler. The angle is not wrapped: a safe set keeps it away from upside down.
    Source: arXiv 2506.01665, balancing a pendulum; the torque there is 30 times an action in [-1, 1].

    Attributes:
        mass, length, gravity: kg, m, m/s².
        disturbance: bounds of w, an angular acceleration in rad/s², one number; None: undisturbed.
    """

    state_names: ClassVar = ("theta", "omega")
    state_units: ClassVar = ("rad", "rad/s")
    input_names: ClassVar = ("torque",)
    input_units: ClassVar = ("N m",)
    integrator: ClassVar = "semi_implicit_euler"
    velocities: ClassVar = (1,)

    dt: float = 0.05
    mass: float = 1.0
    length: float = 1.0
    gravity: float = 9.81
    input_box: Box = eqx.field(default_factory=lambda: Box([-30.0], [30.0]))
    disturbance: Box | None = None

    @property
    def disturbance_box(self) -> Box | None:
        return self.disturbance

    def derivative(self, x: Float[Array, " 2"], u: Float[Array, " 1"], w: Float[Array, " d"]) -> Float[Array, " 2"]:
        theta, omega = x
        push = 3 / (self.mass * self.length**2) * u[0]
        acceleration = 1.5 * self.gravity / self.length * jnp.sin(theta) + push
        return jnp.stack([omega, acceleration + w[0] if w.shape[0] else acceleration])

    def equilibrium(self) -> tuple[Float[Array, " 2"], Float[Array, " 1"]]:
        return jnp.zeros(2), jnp.zeros(1)
