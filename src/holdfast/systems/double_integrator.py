"""A point that is accelerated, in any number of dimensions: everything about it is known in closed form."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.base import System

_AXES = ("x", "y", "z")


class DoubleIntegrator(System):
    """p+ = p + dt v + dt^2 u / 2, v+ = v + dt u: exact for an acceleration held over the step. State (p, v).

    The input box has one pair of bounds for each dimension d, and so says how many there are:
    `DoubleIntegrator(input_box=Box([-2.0] * 3, [2.0] * 3))` moves in space.
    """

    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-2.0] * 2, [2.0] * 2))

    @property
    def dimensions(self) -> int:
        """d."""
        return self.input_box.dimension

    @property
    def state_names(self) -> tuple[str, ...]:
        return (*self._axes, *(f"v{axis}" for axis in self._axes))

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(f"a{axis}" for axis in self._axes)

    @property
    def state_units(self) -> tuple[str, ...]:
        return ("m",) * self.dimensions + ("m/s",) * self.dimensions

    @property
    def input_units(self) -> tuple[str, ...]:
        return ("m/s²",) * self.dimensions

    def step(
        self, x: Float[Array, " 2d"], u: Float[Array, " d"], w: Float[Array, " 0"] | None = None
    ) -> Float[Array, " 2d"]:
        p, v = x[: self.dimensions], x[self.dimensions :]
        return jnp.concatenate([p + self.dt * v + 0.5 * self.dt**2 * u, v + self.dt * u])

    def equilibrium(self) -> tuple[Float[Array, " 2d"], Float[Array, " d"]]:
        return jnp.zeros(2 * self.dimensions), jnp.zeros(self.dimensions)

    @property
    def _axes(self) -> tuple[str, ...]:
        d = self.dimensions
        return _AXES[:d] if d <= len(_AXES) else tuple(str(i + 1) for i in range(d))
