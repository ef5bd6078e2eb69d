"""The inscribed zonotope of fixed directions with the largest geometric mean of its generators' lengths."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from holdfast.solvers.lp import chebyshev_centre

_ITERATIONS = 14
_NEAREST = 28
# Every complementarity product ends here: the lengths' product is then within p e-4 (in its logarithm) of the largest.
_SMOOTHING = 1e-4


class InscribedZonotope(eqx.Module):
    """{centre + sum_j beta_j lengths_j d_j, |beta_j| <= 1}: `centre` [m], `lengths` [g], and whether the iteration settled
    on one that lies in the polytope. Otherwise the
    centre is that of a largest ball, and the lengths are zero."""

    centre: Float[Array, " m"]
    lengths: Float[Array, " g"]
    solved: Bool[Array, ""]


def inscribed_zonotope(
    A: Float[Array, "p m"], b: Float[Array, " p"], directions: Float[ArrayLike, "m g"]
) -> InscribedZonotope:
    """Maximises the mean of log(lengths) over zonotopes with A v >= b: A c - |A D| l >= b.

    A primal-dual interior point method with a fixed number of steps, from a largest ball, for a bounded polytope whose
    numbers are of order one. It ends on the central path at a fixed small parameter, which makes the result a smooth
    function of A and b; the gradient is that of the perturbed KKT system. Source of the problem: arXiv 2506.01665.

    Args:
        A, b: rows A v >= b, shapes [p, m] and [p].
        directions: D, unit vectors that span the space, shape [m, g].
    """
    D = jnp.asarray(directions, A.dtype)
    finite = jnp.all(jnp.isfinite(A)) & jnp.all(jnp.isfinite(b))
    norms = jnp.sqrt(jnp.sum(lax.stop_gradient(A) ** 2, axis=1))
    vacuous = ~(norms > 0) | ~finite
    # Rows of length one, and a row far away in place of one that says nothing.
    scale = jnp.where(vacuous, 1.0, 1 / jnp.where(vacuous, 1.0, norms))
    A = jnp.where(vacuous[:, None], 0.0, A * scale[:, None])
    b = jnp.where(vacuous, -1e3, b * scale)
    m, reach = A.shape[1], jnp.max(jnp.abs(b))[None].repeat(A.shape[1])
    # Inside a largest ball; from outside, steps are short for long.
    ball = chebyshev_centre(A, b, -reach, reach)
    near = lax.stop_gradient(ball)
    if A.shape[0] > _NEAREST + 2 * m:
        # Few of many rows are met; those nearest to the ball's centre stand for them, and the result is held against all.
        _, chosen = lax.top_k(-(A @ near.centre - b), _NEAREST)
        z, solved = _centre(A[chosen], b[chosen], D, near.centre, near.radius)
        room = _rows(A, D) @ z - b
        solved = solved & jnp.all(room > -1e-6)
    else:
        z, solved = _centre(A, b, D, near.centre, near.radius)
    solved = solved & finite & near.solved
    centre = jnp.where(solved, z[:m], ball.centre)
    return InscribedZonotope(centre, jnp.where(solved, z[m:], 0.0), solved)


def _rows(A, D):
    return jnp.concatenate([A, -jnp.abs(A @ D)], axis=1)


@jax.custom_jvp
def _centre(A, b, D, start, radius):
    z, _, _, solved = _solve(*lax.stop_gradient((A, b, D, start, radius)))
    return z, solved


def _solve(A, b, D, start, radius):
    """(z, multipliers, slacks, solved) with z = (centre, lengths)."""
    m, g = D.shape
    C = _rows(A, D)
    p = C.shape[0]
    inside = radius > 0
    z = jnp.concatenate([start, jnp.full(g, 0.5 * radius / g, A.dtype)])
    z = jnp.where(inside, z, jnp.where(jnp.arange(m + g) < m, 0.0, 1.0))
    s = jnp.where(inside, C @ z - b, 1.0)
    state = z, s, g / p / s

    def advance(_, state):
        z, s, multipliers = state
        gap = jnp.mean(s * multipliers)
        aim = jnp.maximum(0.1 * gap, _SMOOTHING)
        lengths = jnp.where(jnp.arange(m + g) < m, 1.0, z)
        entry = jnp.arange(m + g) >= m
        gradient, hessian = jnp.where(entry, -1 / lengths, 0.0), jnp.where(entry, 1 / lengths**2, 0.0)
        weights, lost = multipliers / s, _times(C, z) - s - b
        matrix = jnp.diag(hessian) + _gram(C, weights)
        right = -gradient + _times(C.T, aim / s - weights * lost)
        dz = _solve_positive(matrix, right)
        ds = _times(C, dz) + lost
        dmultipliers = (aim - multipliers * ds) / s - multipliers
        step = 0.95 * jnp.minimum(
            _longest(s, ds),
            jnp.minimum(_longest(multipliers, dmultipliers), _longest(lengths, jnp.where(entry, dz, 0))),
        )
        step = jnp.minimum(step, 1.0)
        return z + step * dz, s + step * ds, multipliers + step * dmultipliers

    z, s, multipliers = lax.fori_loop(0, _ITERATIONS, advance, state)
    room = C @ z - b
    finite = jnp.all(jnp.isfinite(z)) & jnp.all(jnp.isfinite(multipliers))
    solved = inside & finite & jnp.all(room > 0) & (jnp.max(s * multipliers) < 100 * _SMOOTHING)
    return jnp.where(finite, z, 0.0), multipliers, s, solved


@_centre.defjvp
def _centre_jvp(primals, tangents):
    """With C z >= b, slacks s = C z - b, multipliers y, y s = mu and the Hessian H of -sum log lengths,
    (H + C' (Y/S) C) dz = dC' y - C' (Y/S) (dC z - db)."""
    A, b, D, *start = primals
    dA, db, *_ = tangents
    m = D.shape[0]
    z, y, s, solved = _solve(A, b, D, *start)
    C = _rows(A, D)
    dC = jnp.concatenate([dA, -jnp.sign(A @ D) * (dA @ D)], axis=1)
    # Double where: what is not solved has finite coefficients, all of them zero.
    y, s = jnp.where(solved, y, 0.0), jnp.where(solved, s, 1.0)
    at = jnp.where(solved, z, 0.0)
    entry = jnp.arange(len(z)) >= m
    hessian = jnp.where(entry & solved, 1 / jnp.where(entry & solved, z, 1.0) ** 2, jnp.where(solved, 0.0, 1.0))
    matrix = jnp.diag(hessian) + _gram(C, y / s)
    right = dC.T @ y - C.T @ (y / s * (dC @ at - db))
    inverse = jax.vmap(lambda e: _solve_positive(matrix, e), out_axes=1)(jnp.eye(len(z), dtype=A.dtype))
    dz = inverse @ right
    return (z, solved), (dz, jnp.zeros(solved.shape, jax.dtypes.float0))


# Sums instead of products of tiny matrices: XLA fuses these, and calls a routine per batch entry for those.


def _times(matrix, vector):
    return jnp.sum(matrix * vector[None], axis=1)


def _gram(C, weights):
    """C' diag(weights) C, shape [k, k]."""
    return jnp.sum((C * weights[:, None])[:, :, None] * C[:, None, :], axis=0)


def _solve_positive(matrix, right):
    """x with matrix x = right, shape [k], by elimination in place; no pivoting, the matrix is positive definite."""
    k = len(right)
    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    for i in range(k):
        pivot = rows[i] / rows[i, i]
        rows = (rows - rows[:, i, None] * pivot[None]).at[i].set(pivot)
    return rows[:, k]


def _longest(value, change):
    """Largest step that keeps `value` positive."""
    return jnp.min(jnp.where(change < 0, -value / jnp.where(change < 0, change, 1.0), jnp.inf), initial=jnp.inf)
