"""Euclidean length with a derivative everywhere."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def length(v: Float[Array, " k"]) -> Float[Array, ""]:
    """|v|, shape []; its derivative at zero is taken as zero."""
    squared = jnp.sum(v * v)
    away = squared > 0
    # The square root's derivative at zero is infinite, and infinity times zero is NaN: hence the inner `where`.
    # Where not: zero, or NaN, which stays.
    return jnp.where(away, jnp.sqrt(jnp.where(away, squared, 1.0)), squared)
