"""Angles."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def wrap(angle: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Angle in rad wrapped to [-pi, pi], same shape; bit-identical where it already lies in (-pi, pi).

    Written with `round`, which is piecewise constant: the derivative is one everywhere, and interval arithmetic passes
    through exactly where no wrap happens (the subtraction of zero), which the remainder form does not give.
    """
    turns = jax.lax.stop_gradient(jnp.round(angle / (2 * np.pi)))
    return angle - 2 * np.pi * turns
