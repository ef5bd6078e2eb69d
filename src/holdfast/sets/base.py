"""The one thing every set can do: tell how far inside a point is."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Set(eqx.Module):
    """A closed set {x : margin(x) >= 0}. Written for one point; `jax.vmap` for many."""

    @abc.abstractmethod
    def margin(self, x: Float[Array, " n"]) -> Float[Array, " p"]:
        """Margins of x, shape [p]; all >= 0 inside, some < 0 outside, in the units of each constraint."""

    def contains(self, x: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether x lies in the set. NaN lies in no set: every comparison with it is false, and `all` keeps that."""
        return jnp.all(self.margin(x) >= 0)
