"""A quadrotor along its flight direction, with an attitude loop of its own: six states."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.base import ContinuousSystem

_GRAVITY = 9.81


class LongitudinalQuadrotor(ContinuousSystem):
    """x'' = u sin(phi) + w1, z'' = u cos(phi) - g + w2, phi'' = 55 phi_d - 70 phi - 17 phi': thrust u and roll command phi_d.

    Semi-implicit Euler. An attitude loop of bandwidth 8 rad/s follows the command with a gain of 55/70 at rest; sampled
    at 0.05 s it is stable, with poles 0.78 and 0.19. phi is positive towards positive x.
    Source: arXiv 2506.01665, the longitudinal quadrotor; the inputs there are 6/7 a0 + g and pi/12 a1 for actions in
    [-1, 1].

    Attributes:
        gravity: m/s².
        command_gain, stiffness, damping: of the attitude loop, 1/s², 1/s², 1/s.
        disturbance: bounds of w, accelerations in m/s², two numbers; None: undisturbed.
    """

    state_names: ClassVar = ("x", "z", "phi", "vx", "vz", "omega")
    state_units: ClassVar = ("m", "m", "rad", "m/s", "m/s", "rad/s")
    input_names: ClassVar = ("thrust", "roll_command")
    input_units: ClassVar = ("m/s²", "rad")
    integrator: ClassVar = "semi_implicit_euler"
    velocities: ClassVar = (3, 4, 5)

    dt: float = 0.05
    gravity: float = _GRAVITY
    command_gain: float = 55.0
    stiffness: float = 70.0
    damping: float = 17.0
    input_box: Box = eqx.field(
        default_factory=lambda: Box([_GRAVITY - 6 / 7, -np.pi / 12], [_GRAVITY + 6 / 7, np.pi / 12])
    )
    disturbance: Box | None = eqx.field(default_factory=lambda: Box([-0.1, -0.1], [0.1, 0.1]))

    @property
    def disturbance_box(self) -> Box | None:
        return self.disturbance

    def derivative(self, x: Float[Array, " 6"], u: Float[Array, " 2"], w: Float[Array, " d"]) -> Float[Array, " 6"]:
        _, _, phi, vx, vz, omega = x
        along, up = u[0] * jnp.sin(phi), u[0] * jnp.cos(phi) - self.gravity
        turning = self.command_gain * u[1] - self.stiffness * phi - self.damping * omega
        if w.shape[0]:
            along, up = along + w[0], up + w[1]
        return jnp.stack([vx, vz, omega, along, up, turning])

    def equilibrium(self) -> tuple[Float[Array, " 6"], Float[Array, " 2"]]:
        return jnp.zeros(6), jnp.array([self.gravity, 0.0])
