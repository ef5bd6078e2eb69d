"""A quadrotor in a vertical plane, driven by the thrusts of its two rotors: six states."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.base import ContinuousSystem

_MASS, _GRAVITY = 0.486, 9.81


class PlanarQuadrotor(ContinuousSystem):
    """With total thrust T = right + left and phi counter-clockwise from upright:

        x'' = -T sin(phi) / m,   z'' = T cos(phi) / m - g,   phi'' = l (right - left) / I

    Semi-implicit Euler. The angle is not wrapped: a state box keeps it within a turn.
    Source of the equations and of mass, arm and inertia: the planar quadrotor of Drake (R. Tedrake, Underactuated
    Robotics, chapter 3); bounds of the thrusts are ours, 2.5 times what hovering needs.

    Attributes:
        mass, arm, inertia, gravity: kg, m, kg m², m/s².
        hover_height: z of the equilibrium, m; its x is 0.
    """

    state_names: ClassVar = ("x", "z", "phi", "vx", "vz", "omega")
    state_units: ClassVar = ("m", "m", "rad", "m/s", "m/s", "rad/s")
    input_names: ClassVar = ("right", "left")
    input_units: ClassVar = ("N", "N")
    integrator: ClassVar = "semi_implicit_euler"
    velocities: ClassVar = (3, 4, 5)

    dt: float = 0.02
    mass: float = _MASS
    arm: float = 0.25
    inertia: float = 0.00383
    gravity: float = _GRAVITY
    hover_height: float = 1.0
    input_box: Box = eqx.field(default_factory=lambda: Box([0.0] * 2, [1.25 * _MASS * _GRAVITY] * 2))

    def derivative(self, x: Float[Array, " 6"], u: Float[Array, " 2"], w: Float[Array, " 0"]) -> Float[Array, " 6"]:
        _, _, phi, vx, vz, omega = x
        thrust = (u[0] + u[1]) / self.mass
        turning = self.arm / self.inertia * (u[0] - u[1])
        return jnp.stack([vx, vz, omega, -thrust * jnp.sin(phi), thrust * jnp.cos(phi) - self.gravity, turning])

    def equilibrium(self) -> tuple[Float[Array, " 6"], Float[Array, " 2"]]:
        hover = 0.5 * self.mass * self.gravity
        return jnp.zeros(6).at[1].set(self.hover_height), jnp.full(2, hover)
