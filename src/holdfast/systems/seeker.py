"""A point that moves as it is told, and is pushed about: two states."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.base import System


class Seeker(System):
    """p+ = p + dt v + w in the plane: the velocity v is the input, w a displacement.

    Source: arXiv 2506.01665, navigation among obstacles.

    Attributes:
        disturbance: bounds of w, displacements in m, two numbers; None: undisturbed.
    """

    state_names: ClassVar = ("x", "y")
    state_units: ClassVar = ("m", "m")
    input_names: ClassVar = ("vx", "vy")
    input_units: ClassVar = ("m/s", "m/s")

    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0, -1.0], [1.0, 1.0]))
    disturbance: Box | None = eqx.field(default_factory=lambda: Box([-0.05, -0.05], [0.05, 0.05]))

    @property
    def disturbance_box(self) -> Box | None:
        return self.disturbance

    def step(
        self, x: Float[Array, " 2"], u: Float[Array, " 2"], w: Float[Array, " d"] | None = None
    ) -> Float[Array, " 2"]:
        moved = x + self.dt * u
        return moved if w is None or not w.shape[0] else moved + w

    def equilibrium(self) -> tuple[Float[Array, " 2"], Float[Array, " 2"]]:
        return jnp.zeros(2), jnp.zeros(2)
