"""A pole hinged on a cart: four states."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.base import ContinuousSystem


class CartPole(ContinuousSystem):
    """A uniform pole on a cart without friction, theta = 0 upright. With M = m_cart + m_pole and l half the pole's length:

        t = (force + m_pole l omega^2 sin theta) / M
        theta'' = (g sin theta - t cos theta) / (l (4/3 - m_pole cos^2 theta / M)) + w
        x'' = t - m_pole l theta'' cos theta / M

    Semi-implicit Euler. The angle is not wrapped: a safe set keeps it away from upside down.
    Sources: Barto, Sutton & Anderson (1983), without friction; arXiv 2506.01665, balancing a cart-pole, where the force
    is 10 times an action in [-1, 1].

    Attributes:
        cart_mass, pole_mass, half_length, gravity: kg, kg, m, m/s².
        disturbance: bounds of w, an angular acceleration in rad/s², one number; None: undisturbed.
    """

    state_names: ClassVar = ("x", "theta", "v", "omega")
    state_units: ClassVar = ("m", "rad", "m/s", "rad/s")
    input_names: ClassVar = ("force",)
    input_units: ClassVar = ("N",)
    integrator: ClassVar = "semi_implicit_euler"
    velocities: ClassVar = (2, 3)

    dt: float = 0.02
    cart_mass: float = 1.0
    pole_mass: float = 0.1
    half_length: float = 0.5
    gravity: float = 9.8
    input_box: Box = eqx.field(default_factory=lambda: Box([-10.0], [10.0]))
    disturbance: Box | None = None

    @property
    def disturbance_box(self) -> Box | None:
        return self.disturbance

    def derivative(self, x: Float[Array, " 4"], u: Float[Array, " 1"], w: Float[Array, " d"]) -> Float[Array, " 4"]:
        _, theta, v, omega = x
        sin, cos = jnp.sin(theta), jnp.cos(theta)
        total = self.cart_mass + self.pole_mass
        moment = self.pole_mass * self.half_length
        pushed = (u[0] + moment * (omega * omega) * sin) / total
        inertia = self.half_length * (4 / 3 - self.pole_mass / total * (cos * cos))
        turning = (self.gravity * sin - pushed * cos) / inertia
        turning = turning + w[0] if w.shape[0] else turning
        return jnp.stack([v, omega, pushed - moment / total * turning * cos, turning])

    def equilibrium(self) -> tuple[Float[Array, " 4"], Float[Array, " 1"]]:
        return jnp.zeros(4), jnp.zeros(1)
