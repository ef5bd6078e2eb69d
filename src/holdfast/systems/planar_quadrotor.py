"""A quadrotor in a vertical plane, driven by thrust and torque: six states."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.base import ContinuousSystem

_MASS, _GRAVITY = 0.486, 9.81


class PlanarQuadrotor(ContinuousSystem):
    """x'' = -thrust sin(phi) / m, z'' = thrust cos(phi) / m - g, phi'' = torque / I, phi counter-clockwise from upright.

    Semi-implicit Euler. The angle is not wrapped: a state box keeps it within a turn.
    Source of equations, mass and inertia: R. Tedrake, Underactuated Robotics, chapter 3, where two rotors at arms l make
    thrust = u1 + u2 and torque = l (u1 - u2). The bounds are ours: hovering is the middle of the input box.

    Attributes:
        mass, inertia, gravity: kg, kg m², m/s².
        hover_height: z of the equilibrium, m; its x is 0.
    """

    state_names: ClassVar = ("x", "z", "phi", "vx", "vz", "omega")
    state_units: ClassVar = ("m", "m", "rad", "m/s", "m/s", "rad/s")
    input_names: ClassVar = ("thrust", "torque")
    input_units: ClassVar = ("N", "N m")
    integrator: ClassVar = "semi_implicit_euler"
    velocities: ClassVar = (3, 4, 5)

    dt: float = 0.02
    mass: float = _MASS
    inertia: float = 0.00383
    gravity: float = _GRAVITY
    hover_height: float = 1.0
    input_box: Box = eqx.field(default_factory=lambda: Box([0.0, -0.2], [2 * _MASS * _GRAVITY, 0.2]))

    def derivative(self, x: Float[Array, " 6"], u: Float[Array, " 2"], w: Float[Array, " 0"]) -> Float[Array, " 6"]:
        _, _, phi, vx, vz, omega = x
        thrust, turning = u[0] / self.mass, u[1] / self.inertia
        return jnp.stack([vx, vz, omega, -thrust * jnp.sin(phi), thrust * jnp.cos(phi) - self.gravity, turning])

    def equilibrium(self) -> tuple[Float[Array, " 6"], Float[Array, " 2"]]:
        return jnp.zeros(6).at[1].set(self.hover_height), jnp.array([self.mass * self.gravity, 0.0])
