"""Where a straight line meets a polytope: the minimum ratio, in closed form."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def stretch(
    A: Float[Array, "p m"], b: Float[Array, " p"], base: Float[Array, " m"], direction: Float[Array, " m"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(first, last): A (base + t direction) >= b for first <= t <= last and for no other t; first > last if for none.

    Infinite where no row limits the line. Differentiable by plain JAX, forward and reverse: the derivative is that of the
    row that is met. Numbers that are not finite give nothing to rely on, as everywhere: whoever applies what comes out
    checks it.
    """
    slope, slack = A @ direction, A @ base - b
    # Double where: a row along the line has no ratio, and 0 * inf is NaN in the derivative, where slopes are squared.
    along = ~(jnp.abs(slope) > jnp.finfo(slope.dtype).tiny ** 0.4)
    ratio = -slack / jnp.where(along, 1.0, slope)
    beside = jnp.any(along & (slack < 0))
    last = jnp.min(jnp.where(~along & (slope < 0), ratio, jnp.inf), initial=jnp.inf)
    first = jnp.max(jnp.where(~along & (slope > 0), ratio, -jnp.inf), initial=-jnp.inf)
    return first, jnp.where(beside, -jnp.inf, last)
