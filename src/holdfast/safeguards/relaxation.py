"""The derivative of a projection as interior-point layers have it: that of the relaxed KKT system."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_NEWTON_STEPS = 20


def with_relaxed_tangents(
    value: Float[Array, " m"],
    u: Float[Array, " m"],
    A: Float[Array, "p m"],
    b: Float[Array, " p"],
    lower: Float[Array, " m"],
    upper: Float[Array, " m"],
    weights: Float[Array, " m"],
    relaxation: float,
) -> Float[Array, " m"]:
    """`value`, the point of {A v >= b, lower <= v <= upper} nearest to u, with the derivative of the relaxed problem by
    u, A and b.

    Rows are scaled to size one, G z >= o in z = weights v, and z, slacks s and multipliers l made to satisfy

        z - u - G'l = 0,    G z - o = s,    s_i l_i = kappa,

    so that rows near the solution count a little before they are active, and a derivative is never lost altogether. Source:
    the relaxed implicit differentiation of qpax (arXiv 2406.11749).

    Args:
        value: the solution, shape [m]; bounds may be infinite.
        relaxation: kappa.
    """
    m = u.shape[0]
    eye = jnp.eye(m, dtype=u.dtype)
    rows = jnp.concatenate([A / weights[None], eye, -eye])
    bounded = jnp.isfinite(jnp.concatenate([lower, upper]))
    offsets = jnp.concatenate([b, weights * lower, -weights * upper])
    usable = jnp.concatenate([jnp.ones(A.shape[0], bool), bounded])
    rows = jnp.where(usable[:, None], rows, 0.0)
    # A bound that is none: a row of zeros with room for ever.
    offsets = jnp.where(usable, offsets, -1.0)
    size = jax.lax.stop_gradient(jnp.sum(jnp.abs(rows), axis=1) + jnp.abs(offsets))
    size = jnp.where(size > 0, size, 1.0)
    frozen = jax.lax.stop_gradient(weights * value)
    return _relaxed(frozen, weights * u, rows / size[:, None], offsets / size, relaxation) / weights


@jax.custom_jvp
def _relaxed(value, u, G, o, relaxation):
    del u, G, o, relaxation
    return value


@_relaxed.defjvp
def _relaxed_tangents(primals, tangents):
    value, u, G, o, relaxation = primals
    _, du, dG, do, _ = tangents
    z, s, multipliers = _relaxed_point(value, u, G, o, relaxation)
    weight = multipliers / s
    right = du + dG.T @ multipliers - G.T @ (weight * (dG @ z - do))
    return value, jnp.linalg.solve(_hessian(G, weight), right)


def _hessian(G, weight):
    return jnp.eye(G.shape[1], dtype=G.dtype) + G.T @ (weight[:, None] * G)


def _relaxed_point(value, u, G, o, relaxation):
    """(z, s, l) of the relaxed system, by a primal-dual Newton iteration from the solution."""
    s = jnp.maximum(G @ value - o, jnp.sqrt(relaxation))

    def improve(_, state):
        z, s, multipliers = state
        apart, complementary = G @ z - o - s, s * multipliers - relaxation
        right = -(z - u - G.T @ multipliers) + G.T @ ((-complementary - multipliers * apart) / s)
        dz = jnp.linalg.solve(_hessian(G, multipliers / s), right)
        ds = G @ dz + apart
        dl = (-complementary - multipliers * ds) / s
        # Not through zero: nine tenths of the way to the first slack or multiplier that would vanish.
        falls = jnp.max(jnp.concatenate([-ds / s, -dl / multipliers]))
        step = jnp.minimum(1.0, 0.9 / jnp.maximum(falls, 1e-12))
        return z + step * dz, s + step * ds, multipliers + step * dl

    return jax.lax.fori_loop(0, _NEWTON_STEPS, improve, (value, s, relaxation / s))
