"""The inscribed zonotope of fixed directions with the largest geometric mean of its generators' lengths."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from holdfast.solvers.innermost import batch_innermost

#: Most Newton steps, of which a dozen are usual.
_ITERATIONS = 20
#: Up to so many rows are all met; of more, so many are kept.
_ALL, _KEPT = 40, 24
# Every complementarity product ends here: the lengths' product is then within p e-4 (in its logarithm) of the largest.
_SMOOTHING = 1e-4
#: Lengths and slacks at the start, and the products there. The start need not lie inside.
_LENGTH, _SLACK, _PRODUCT = 0.25, 0.5, 0.3


class InscribedZonotope(eqx.Module):
    """{centre + sum_j beta_j lengths_j d_j, |beta_j| <= 1}: `centre` [m], `lengths` [g], and whether the iteration settled
    on one that lies in the polytope. Otherwise centre and lengths are zero."""

    centre: Float[Array, " m"]
    lengths: Float[Array, " g"]
    solved: Bool[Array, ""]


def inscribed_zonotope(
    A: Float[Array, "p m"], b: Float[Array, " p"], directions: Float[ArrayLike, "m g"]
) -> InscribedZonotope:
    """Maximises the mean of log(lengths) over zonotopes with A v >= b in the box [-1, 1]^m: A c - |A D| l >= b.

    Of more than 40 rows, the 24 that cut deepest into the box stand for all, and the result is held against every one. A
    primal-dual interior point method whose start need not lie inside. It ends on the central path at a fixed small
    parameter, which makes the result a smooth function of A and b; the centre's gradient is that of the perturbed KKT
    system, and the lengths are constants.
    Source of the problem: arXiv 2506.01665.

    Args:
        A, b: rows A v >= b, shapes [p, m] and [p].
        directions: D, unit vectors that span the space, shape [m, g].
    """
    D = np.asarray(directions)
    finite = jnp.all(jnp.isfinite(A)) & jnp.all(jnp.isfinite(b))
    norms = jnp.sqrt(jnp.sum(lax.stop_gradient(A) ** 2, axis=1))
    vacuous = ~(norms > 0) | ~finite
    # Rows of length one, and a row far away in place of one that says nothing.
    scale = jnp.where(vacuous, 1.0, 1 / jnp.where(vacuous, 1.0, norms))
    A = jnp.where(vacuous[:, None], 0.0, A * scale[:, None])
    b = jnp.where(vacuous, -1e3, b * scale)
    m, chosen = A.shape[1], slice(None)
    if A.shape[0] > _ALL:
        _, chosen = lax.top_k(lax.stop_gradient(b + jnp.sum(jnp.abs(A), axis=1)), _KEPT)
    eye = jnp.eye(m, dtype=A.dtype)
    rows, offsets = jnp.concatenate([A[chosen], eye, -eye]), jnp.concatenate([b[chosen], -jnp.ones(2 * m, b.dtype)])
    z, solved = _zonotope(D.tobytes(), D.shape, rows, offsets)
    room = A @ z[:m] - jnp.abs(A @ jnp.asarray(D, A.dtype)) @ z[m:] - b
    solved = solved & finite & jnp.all(lax.stop_gradient(room) > -1e-6)
    return InscribedZonotope(jnp.where(solved, z[:m], 0.0), jnp.where(solved, z[m:], 0.0), solved)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _zonotope(data: bytes, shape: tuple[int, int], A, b):
    z, solved, _, _ = _solve(data, shape, A, b)
    return z, solved


@_zonotope.defjvp
def _zonotope_jvp(data, shape, primals, tangents):
    dA, db = tangents
    z, solved, by_A, by_b = _solve(data, shape, *primals)
    dcentre = jnp.sum(by_A * dA[None], axis=(1, 2)) + jnp.sum(by_b * db[None], axis=1)
    dz = jnp.concatenate([dcentre, jnp.zeros(shape[1], dcentre.dtype)])
    return (z, solved), (dz, np.zeros(solved.shape, jax.dtypes.float0))


def _solve(data, shape, A, b):
    """(z, solved, derivative of the centre by A [m, p, m], by b [m, p]) with z = (centre, lengths) [k]."""
    D = np.frombuffer(data).reshape(shape)
    found = batch_innermost(partial(_solve_all, D))(lax.stop_gradient(A)[..., None], lax.stop_gradient(b)[..., None])
    return tuple(each[..., 0] for each in found)


# From here on every array carries the batch as its last axis N, and products are sums over Python's loops: XLA turns
# those into few loops over the batch that fill vector units. It calls a routine per batch entry for tiny products, and
# sums over an innermost axis one number after the other.


def _solve_all(D, A, b):
    """`_solve` of A [p, m, N] and b [p, N]."""
    (m, g), (p, _, N), dtype = D.shape, A.shape, A.dtype
    k, D = m + g, jnp.asarray(D, A.dtype)
    leaning = sum(A[:, i, None] * D[None, i, :, None] for i in range(m))
    C = jnp.concatenate([A, -jnp.abs(leaning)], axis=1)
    is_length = (jnp.arange(k) >= m)[:, None]
    z = jnp.where(is_length, jnp.full((k, N), _LENGTH, dtype), 0.0)
    s = jnp.maximum(_times(C, z) - b, _SLACK)
    # Rounding of slacks as small as the smoothing is what single precision leaves.
    tolerance = 3e-2 if jnp.finfo(dtype).eps > 1e-10 else 1e-7

    def system(z, s, y):
        curved = jnp.where(is_length, 1 / jnp.where(is_length, z, 1.0) ** 2, 0.0)
        weights, eye = y / s, jnp.eye(k, dtype=dtype)[:, :, None]
        return weights, sum((weights[i][None] * C[i])[:, None] * C[i][None] for i in range(p)) + eye * curved[None]

    def advance(state):
        z, s, y, settled, count = state
        aim = jnp.maximum(0.1 * jnp.mean(s * y, axis=0), _SMOOTHING)[None]
        weights, matrix = system(z, s, y)
        lost = _times(C, z) - s - b
        target = aim / s - weights * lost
        right = jnp.where(is_length, 1 / jnp.where(is_length, z, 1.0), 0.0) + sum(
            C[i] * target[i][None] for i in range(p)
        )
        dz = _eliminate(matrix, right[:, None])[:, 0]
        ds = _times(C, dz) + lost
        dy = (aim - y * ds) / s - y
        step = jnp.minimum(_longest(s, ds), jnp.minimum(_longest(y, dy), _longest(z[m:], dz[m:])))
        step = jnp.where(settled, 0.0, jnp.minimum(0.95 * step, 1.0))[None]
        # Selected, as what is broken must stay as it was: 0 * NaN is NaN.
        moved = [jnp.where(step > 0, old + step * change, old) for old, change in ((z, dz), (s, ds), (y, dy))]
        return *moved, settled | is_settled(*moved), count + 1

    def is_settled(z, s, y):
        off = jnp.max(jnp.abs(s * y / _SMOOTHING - 1), axis=0)
        lost = jnp.max(jnp.abs(_times(C, z) - s - b), axis=0)
        return (off < tolerance) & (lost < 1e-3 * tolerance)

    start = z, s, _PRODUCT / s, jnp.zeros(N, bool), 0
    z, s, y, settled, _ = lax.while_loop(lambda state: ~jnp.all(state[3]) & (state[4] < _ITERATIONS), advance, start)
    solved = settled & jnp.all(_times(C, z) - b > -1e-6, axis=0)
    # Double where: what is not solved has finite coefficients, all of them zero.
    z, s, y = (jnp.where(solved[None], each, other) for each, other in ((z, 1.0), (s, 1.0), (y, 0.0)))

    # With slacks s = C z - b, multipliers y, y s = mu and the Hessian H of -sum log lengths,
    #     (H + C' (Y/S) C) dz = dC' y - C' (Y/S) (dC z - db),
    # where a row a of A has the row (a, -|a D|) of C, and dC z = q da with q the point of the zonotope that it meets.
    weights, matrix = system(z, s, y)
    signs = jnp.sign(leaning)  # [p, g, N]
    # The matrix is symmetric: columns of its inverse are rows.
    inverse = _eliminate(matrix, jnp.broadcast_to(jnp.eye(k, m, dtype=dtype)[:, :, None], (k, m, N))).swapaxes(0, 1)
    by_b = sum(inverse[:, None, j] * (weights * C[:, j])[None] for j in range(k))
    met = z[None, :m] - sum(D[None, :, j, None] * (signs[:, j] * z[m + j][None])[:, None] for j in range(g))
    held = [
        inverse[:, None, i] - sum(inverse[:, None, m + j] * (signs[:, j] * D[i, j])[None] for j in range(g))
        for i in range(m)
    ]
    by_A = jnp.stack([y[None] * held[i] - by_b * met[None, :, i] for i in range(m)], axis=2)
    by_A = jnp.where(solved[None, None, None], by_A, 0.0)
    by_b = jnp.where(solved[None, None], by_b, 0.0)
    return jnp.where(solved[None], z, 0.0), solved, by_A, by_b


def _times(C, z):
    return sum(C[:, j] * z[j][None] for j in range(len(z)))


def _eliminate(matrix, right):
    """X with matrix X = right, for a positive definite matrix [k, k, N]: in place, and without pivoting."""
    k = len(matrix)
    # XLA would compute every entry anew wherever it is used.
    rows = lax.optimization_barrier(jnp.concatenate([matrix, right], axis=1))
    for i in range(k):
        pivot = rows[i] / rows[i, i][None]
        rows = (rows - rows[:, i, None] * pivot[None]).at[i].set(pivot)
    return rows[:, k:]


def _longest(value, change):
    """Largest step that keeps `value` positive, shape [N]."""
    ratios = jnp.where(change < 0, -value / jnp.where(change < 0, change, 1.0), jnp.inf)
    return jnp.min(ratios, axis=0)
