"""Limits on single states: the plainest safe sets."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import SuperlevelSet


class _Limits(eqx.Module):
    """x -> distances to the limits; static numbers, so that two tasks of one kind are equal."""

    indices: tuple[int, ...] = eqx.field(static=True)
    lower: tuple[float, ...] = eqx.field(static=True)
    upper: tuple[float, ...] = eqx.field(static=True)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " p"]:
        sides = zip(self.indices, self.lower, self.upper)
        return jnp.stack([margin for i, lower, upper in sides for margin in (x[i] - lower, upper - x[i])])


def limits(**bounds: tuple[int, float, float, str]) -> SuperlevelSet:
    """{x : lower <= x[index] <= upper}, from name=(index, lower, upper, unit) for each state that has limits.

    Two margins each, in the state's unit: "lowest NAME", "highest NAME", with underscores in NAME read as spaces.
    """
    indices, lower, upper, units = zip(*bounds.values())
    names = tuple(f"{side} {name.replace('_', ' ')}" for name in bounds for side in ("lowest", "highest"))
    return SuperlevelSet(_Limits(indices, lower, upper), names, tuple(unit for unit in units for _ in range(2)))
