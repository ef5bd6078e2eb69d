"""A car on a straight road: the kinematic unicycle with speed as a state."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.angles import wrap
from holdfast.systems.base import ContinuousSystem


class Unicycle(ContinuousSystem):
    """y' = v sin(psi), v' = a, psi' = r: explicit Euler, then v clipped to [0, top_speed] and psi wrapped.

    The distance along the road is not a state, so driving at `cruise_speed` on the centre line is an equilibrium.
    Source: PS2-RL (arXiv 2606.14536), lane keeping.
    """

    state_names: ClassVar = ("y", "v", "psi")
    state_units: ClassVar = ("m", "m/s", "rad")
    input_names: ClassVar = ("a", "r")
    input_units: ClassVar = ("m/s²", "rad/s")

    dt: float = 0.05
    cruise_speed: float = 5.0
    top_speed: float = 12.0
    input_box: Box = eqx.field(default_factory=lambda: Box([-5.0, -1.0], [5.0, 1.0]))

    def derivative(self, x: Float[Array, " 3"], u: Float[Array, " 2"], w: Float[Array, " 0"]) -> Float[Array, " 3"]:
        _, v, psi = x
        a, r = u
        return jnp.stack([v * jnp.sin(psi), a, r])

    def post_step(self, x: Float[Array, " 3"]) -> Float[Array, " 3"]:
        y, v, psi = x
        return jnp.stack([y, jnp.clip(v, 0.0, self.top_speed), wrap(psi)])

    def equilibrium(self) -> tuple[Float[Array, " 3"], Float[Array, " 2"]]:
        return jnp.array([0.0, self.cruise_speed, 0.0]), jnp.zeros(2)
