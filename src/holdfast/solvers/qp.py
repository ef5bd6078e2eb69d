"""Euclidean projection onto a polytope: few variables, many rows, every answer with its status.

The method is the dual active set of Goldfarb and Idnani, "A numerically stable dual method for solving strictly
convex quadratic programs", Mathematical Programming 27 (1983), with the Hessian scaled to the identity. It starts at
the unconstrained minimum u and takes in the most violated row until none is left. The optimum moves away from u
strictly with every row taken in, so the working set does not repeat, and a row that can neither be satisfied nor
exchanged proves infeasibility. With m variables at most m rows are active: the whole state is a few m x m arrays.
"""

import functools
from enum import IntEnum
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

# A row counts as satisfied if it is violated by no more than _TOLERANCE eps (|v|_1 + size of the box), in distance.
_TOLERANCE = 16
# Unit rows closer than this many eps to the span of the active ones are taken for dependent.
DEPENDENT = 64


class SolverStatus(IntEnum):
    """How a solve ended; `text` says why and what to do. Only `solved` carries a solution and a gradient."""

    solved = 0
    infeasible = 1
    not_converged = 2
    bad_input = 3

    @property
    def text(self) -> str:
        """Cause and remedy in one sentence."""
        return _TEXTS[self]


_TEXTS = {
    SolverStatus.solved: "All rows hold up to rounding and the point is optimal.",
    SolverStatus.infeasible: (
        "No point of the box satisfies all rows: fall back, relax b, or drop a row; "
        "`chebyshev_centre` gives the least violation that is possible."
    ),
    SolverStatus.not_converged: (
        "The active set did not settle, because rows are parallel up to rounding or the data overflow: "
        "scale the problem, use float64, or raise max_iterations."
    ),
    SolverStatus.bad_input: (
        "The data hold NaN or infinity, or weights that are not positive: look at what made them "
        "(b = -inf for a vacuous row and infinite bounds of `project` are fine)."
    ),
}


class Solution(eqx.Module):
    """Outcome of `project` and `maximise` for m variables and p rows.

    **Fields:**

    - `value` [m]: the solution if `status` is `solved`. Otherwise: the last iterate, clipped to the box (`infeasible`,
      `not_converged`), or the argument unchanged (`bad_input`), so that a NaN stays visible.
    - `status`: a `SolverStatus` as int32.
    - `residual`: largest violation max_i (b_i - a_i v) / |a_i| or 0, as a distance in the metric of the objective.
    - `multipliers` [p + 2 m]: of the rows, the lower and the upper bounds, in units of the rows as given; at least 0,
      and 0 where not active. They satisfy W^2 (v - u) = [A; I; -I]^T multipliers.
    - `active` [p + 2 m]: the working set, at most m linearly independent rows that hold with equality.
    - `iterations`: changes of the working set; 0 if u was feasible.
    """

    value: Float[Array, " m"]
    status: Int[Array, ""]
    residual: Float[Array, ""]
    multipliers: Float[Array, " rows"]
    active: Bool[Array, " rows"]
    iterations: Int[Array, ""]

    @property
    def solved(self) -> Bool[Array, ""]:
        """Whether `value` is the solution."""
        return self.status == SolverStatus.solved


class Rows(NamedTuple):
    """Unit rows n_i z >= offsets[i] of [A; I; -I] in z = W v; `norms` divided them.

    `columns[k]` holds entry k of all rows. The long axis is then contiguous whatever layout XLA chooses for A, which
    makes the product with z twice as fast in a batch.
    """

    columns: tuple[Float[Array, " rows"], ...]
    offsets: Float[Array, " rows"]
    norms: Float[Array, " rows"]
    size: Float[Array, ""]

    def slack(self, z: Float[Array, " m"]) -> Float[Array, " rows"]:
        products = (column * z[k] for k, column in enumerate(self.columns))
        return sum(products) - self.offsets

    def normal(self, index: Int[Array, ""]) -> Float[Array, " m"]:
        return jnp.stack([column[index] for column in self.columns])

    def tolerance(self, z: Float[Array, " m"]) -> Float[Array, ""]:
        return _TOLERANCE * jnp.finfo(z.dtype).eps * (jnp.sum(jnp.abs(z)) + self.size)


class Working(NamedTuple):
    """Working set in m slots: unit rows `normals` [m, m], and `inverse` [m, m], the pseudo-inverse of those rows.

    Free slots are zero in every field. Keeping the pseudo-inverse by rank-one updates (Greville, SIAM Review 2, 1960)
    costs a few fused products per change; a step of refinement at each use removes what the updates lose.
    """

    used: Bool[Array, " m"]
    index: Int[Array, " m"]
    normals: Float[Array, "m m"]
    offsets: Float[Array, " m"]
    multipliers: Float[Array, " m"]
    inverse: Float[Array, "m m"]


class _State(NamedTuple):
    z: Float[Array, " m"]
    working: Working
    entering: Int[Array, ""]
    violation: Float[Array, ""]
    entering_multiplier: Float[Array, ""]
    done: Bool[Array, ""]
    infeasible: Bool[Array, ""]
    iterations: Int[Array, ""]


def project(
    u: Float[ArrayLike, " m"],
    A: Float[ArrayLike, "p m"],
    b: Float[ArrayLike, " p"],
    lower: Float[ArrayLike, " #m"],
    upper: Float[ArrayLike, " #m"],
    *,
    weights: Float[ArrayLike, " #m"] | None = None,
    max_iterations: int = 64,
) -> Solution:
    """The point of {v : A v >= b, lower <= v <= upper} nearest to u: minimises 1/2 sum_i (weights_i (v_i - u_i))^2.

    Made for m <= 4 variables and some hundred rows, for `jit` and `vmap`, in float32 or float64; it is total, and
    anything but a solution shows in the status. If u lies in the box and A u >= b holds up to rounding, `value` is u
    bit for bit; hence projecting a `value` again returns the same bits. `value` is always inside the box exactly (if
    lower <= upper and u is finite); the rows hold up to `residual`, of the order of 16 eps times |v| plus the size of
    the box. To be strictly inside, move b.

    Duplicated, dependent and redundant rows are fine. A row of zeros is vacuous if b_i <= 0 and makes the problem
    infeasible otherwise. b_i = -inf switches a row off, so that a fixed number of rows can be padded.

    **Gradient.** Exact, forward and reverse, in u, A, b, lower, upper and weights, of `value` and `multipliers`: that
    of the KKT system with the working set held fixed. On a kink, this is the derivative from the side on which that
    working set stays optimal; for u feasible and exactly on the boundary it is the identity, the derivative from
    inside. Unless solved, the gradient is zero. `residual` has gradient zero.

    **Arguments:**

    - `u` [m]: the point to project, finite.
    - `A` [p, m], `b` [p]: rows A v >= b; p may be 0.
    - `lower`, `upper` [m]: bounds, scalars are broadcast; they may be infinite.
    - `weights` [m]: positive scales of the metric; ones if None.
    - `max_iterations`: most changes of the working set; some 2 m are usual.

    **Raises:** `ValueError` for shapes that do not fit; never for numbers.
    """
    u, A, b, lower, upper, weights = as_arrays(u, A, b, lower, upper, weights)
    frozen = lax.stop_gradient((u, A, b, lower, upper, weights))
    bad = ~(
        jnp.all(jnp.isfinite(u) & jnp.isfinite(u * weights) & jnp.isfinite(weights) & (weights > 0))
        & jnp.all(jnp.isfinite(A))
        & ~jnp.any(jnp.isnan(b))
        & ~jnp.any(jnp.isnan(lower) | jnp.isnan(upper))
    )
    solution, working = _solve(*without_bad_data(bad, *frozen), max_iterations)
    status = jnp.where(bad, SolverStatus.bad_input, solution.status).astype(jnp.int32)
    value, multipliers = with_kkt_tangents(
        u, A, b, lower, upper, weights, jnp.where(bad, frozen[0], solution.value), solution.multipliers,
        working, status == SolverStatus.solved,
    )  # fmt: skip
    residual = jnp.where(bad, jnp.inf, solution.residual)
    return Solution(value, status, residual, multipliers, solution.active, solution.iterations)


def as_arrays(u, A, b, lower, upper, weights):
    u, A, b, lower, upper = (jnp.asarray(array) for array in (u, A, b, lower, upper))
    weights = jnp.ones((), u.dtype) if weights is None else jnp.asarray(weights)
    dtype = jnp.result_type(u, A, b, lower, upper, weights, jnp.float32(0) if u.dtype.kind != "f" else u)
    if u.ndim != 1 or u.shape[0] == 0:
        raise ValueError(f"Solvers take one point of shape [m], got {u.shape}; for a batch use jax.vmap.")
    m = u.shape[0]
    if A.ndim != 2 or A.shape[1] != m or b.shape != A.shape[:1]:
        raise ValueError(f"Rows A v >= b need A [p, {m}] and b [p], got {A.shape} and {b.shape}.")
    for name, array in (("lower", lower), ("upper", upper), ("weights", weights)):
        if array.shape not in ((), (1,), (m,)):
            raise ValueError(f"`{name}` must have shape [{m}] or be a scalar, got {array.shape}.")
    lower, upper, weights = (jnp.broadcast_to(array, (m,)) for array in (lower, upper, weights))
    return tuple(array.astype(dtype) for array in (u, A, b, lower, upper, weights))


def without_bad_data(bad, u, A, b, lower, upper, weights):
    """An empty problem in place of bad data, so that no NaN enters the loop, where it would hold up a whole batch."""
    replacements = (0.0, 0.0, -jnp.inf, -jnp.inf, jnp.inf, 1.0)
    return tuple(jnp.where(bad, r, array) for r, array in zip(replacements, (u, A, b, lower, upper, weights)))


def unit_rows(A, b, lower, upper, weights) -> Rows:
    """Unit rows of [A; I; -I] v >= [b; lower; -upper] in z = weights * v."""
    m = A.shape[1]
    scaled = [A[:, k] / weights[k] for k in range(m)]
    # Dividing by the largest entry first keeps the squares from under- and overflowing.
    largest = functools.reduce(jnp.maximum, [jnp.abs(column) for column in scaled])
    # Below `tiny` numbers are flushed to zero on most devices: the row says 0 >= b.
    zero = largest < jnp.finfo(A.dtype).tiny
    largest = jnp.where(zero, 1.0, largest)
    scaled = [column / largest for column in scaled]
    length = jnp.where(zero, 1.0, jnp.sqrt(sum(column**2 for column in scaled)))
    unit = [jnp.where(zero, 0.0, column / length) for column in scaled]
    offsets = jnp.where(zero, jnp.where(b > 0, jnp.inf, -jnp.inf), b / largest / length)
    eye = jnp.eye(m, dtype=A.dtype)
    bound = weights * jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    bound = jnp.where(jnp.isfinite(bound) & (bound > 0), bound, jnp.inf)
    size = jnp.min(bound)
    return Rows(
        tuple(jnp.concatenate([unit[k], eye[k], -eye[k]]) for k in range(m)),
        jnp.concatenate([offsets, weights * lower, -weights * upper]),
        jnp.concatenate([largest * length, 1 / weights, 1 / weights]),
        jnp.where(jnp.isfinite(size), size, 1.0),
    )


def _solve(u, A, b, lower, upper, weights, max_iterations) -> tuple[Solution, Working]:
    """`project` for data without NaN, without gradient."""
    rows = unit_rows(A, b, lower, upper, weights)
    start, shrunk = _within_reach(weights * u, weights * lower, weights * upper)
    slack = rows.slack(start)
    inside_box = jnp.all((lower <= u) & (u <= upper))
    accepted = inside_box & jnp.all(slack >= -rows.tolerance(start))
    # Exactly, because bounds that cross by less than the tolerance would pass for a single point below.
    contradictory = jnp.any(rows.offsets == jnp.inf) | jnp.any(lower > upper)
    entering = most_violated(slack)
    state = _State(
        start,
        empty_working_set(len(u), u.dtype),
        entering,
        -slack[entering],
        jnp.zeros((), u.dtype),
        accepted | contradictory,
        contradictory,
        jnp.zeros((), jnp.int32),
    )
    state = lax.while_loop(
        lambda state: ~state.done & (state.iterations < max_iterations),
        lambda state: _change_working_set(rows, state),
        state,
    )
    value = jnp.clip(state.z / weights, lower, upper)
    # An overflow is reported as not converged; the point is then u clipped, rather than NaN.
    value = jnp.where(jnp.all(jnp.isfinite(value)), value, jnp.clip(u, lower, upper))
    value = jnp.where(accepted, u, value)
    working = state.working._replace(multipliers=state.working.multipliers / shrunk)
    return finish(rows, weights * value, value, working, state.done, state.infeasible, state.iterations)


def _within_reach(z, lower, upper):
    """z drawn in towards 0 to eps^-2 box sizes, and the factor: a u like 1e30 would overflow in float32.

    From that far away the objective is linear over the box up to rounding, so only the direction of z counts.
    """
    size = jnp.max(jnp.maximum(jnp.abs(lower), jnp.abs(upper)))
    limit = jnp.maximum(size, 1.0) / jnp.finfo(z.dtype).eps ** 2
    largest = jnp.max(jnp.abs(z))
    shrunk = jnp.where(largest > limit, limit / largest, 1.0)
    return jnp.where(largest > limit, z * shrunk, z), shrunk


def finish(rows, z, value, working, done, infeasible, iterations) -> tuple[Solution, Working]:
    """Solution from the end of a loop; the status trusts the residual of the value, not the loop."""
    slack = rows.slack(z)
    residual = jnp.maximum(-jnp.min(slack), 0.0)
    kept = jnp.all(slack >= -rows.tolerance(z))  # not by way of min, which may drop a NaN
    status = jnp.where(
        infeasible,
        SolverStatus.infeasible,
        jnp.where(done & kept, SolverStatus.solved, SolverStatus.not_converged),
    )
    slot_rows = jnp.where(working.used, working.index, rows.offsets.shape[0])
    scaled = jnp.where(working.used, working.multipliers / rows.norms[working.index], 0.0)
    multipliers = jnp.zeros_like(rows.offsets).at[slot_rows].set(scaled, mode="drop")
    active = jnp.zeros(rows.offsets.shape, bool).at[slot_rows].set(True, mode="drop")
    return Solution(value, status, residual, multipliers, active, iterations), working


def empty_working_set(m, dtype) -> Working:
    square, line = jnp.zeros((m, m), dtype), jnp.zeros((m,), dtype)
    return Working(jnp.zeros(m, bool), jnp.zeros(m, jnp.int32), square, line, line, square)


# Products of m x m arrays as sums, because XLA fuses these into the loop body and calls a routine per batch entry for
# a matrix product.
def _times(matrix, vector):
    return jnp.sum(matrix * vector[None, :], axis=1)


def _transposed_times(matrix, vector):
    return jnp.sum(matrix * vector[:, None], axis=0)


def most_violated(slack):
    """argmin as two plain reductions, which XLA vectorises on a CPU; the last index if there is a NaN."""
    p = slack.shape[0]
    index = jnp.where(slack == jnp.min(slack), jnp.arange(p, dtype=jnp.int32), p - 1)
    return jnp.min(index)


def decompose(working: Working, normal):
    """`normal` = normals^T r + d, with d orthogonal to the working rows: r by slot, and d."""
    r = _transposed_times(working.inverse, normal)
    d = normal - _transposed_times(working.normals, r)
    # Twice, as in Gram-Schmidt: otherwise d is lost in rounding when the row is nearly dependent.
    more = _transposed_times(working.inverse, d)
    return r + more, d - _transposed_times(working.normals, more)


def refine(working: Working, z):
    """z moved back onto the working rows: what rounding, or a u far away, has left over."""
    return z + _times(working.inverse, working.offsets - _times(working.normals, z))


def _change_working_set(rows: Rows, state: _State) -> _State:
    """One step of Goldfarb and Idnani (1983), section 3, for the entering row: it joins, or a row in its way leaves.

    With n the entering unit row, n = N^T r + d, a step of length t moves z by t d and the multipliers by -t r and +t.
    """
    working = state.working
    eps = jnp.finfo(state.z.dtype).eps
    normal = rows.normal(state.entering)
    r, d = decompose(working, normal)
    square = jnp.sum(d * d)
    dependent = jnp.all(working.used) | (square <= (DEPENDENT * eps) ** 2)

    # A multiplier reaches zero at `partial`, the entering row is satisfied at `full` (d n = d d).
    blocking = working.used & (r > DEPENDENT * eps * jnp.maximum(1.0, jnp.max(jnp.abs(r))))
    ratios = jnp.where(blocking, working.multipliers / jnp.where(blocking, r, 1.0), jnp.inf)
    leaving = jnp.argmin(ratios)
    partial = ratios[leaving]
    full = jnp.where(dependent, jnp.inf, jnp.maximum(state.violation, 0.0) / jnp.where(dependent, 1.0, square))
    # A number that has overflowed proves nothing: it ends the loop as not converged.
    broken = ~(jnp.all(jnp.isfinite(r)) & jnp.isfinite(state.violation))
    infeasible = dependent & ~jnp.any(blocking) & ~broken
    step = jnp.where(infeasible, 0.0, jnp.minimum(partial, full))
    z = state.z + jnp.where(dependent, 0.0, step) * d
    entering_multiplier = state.entering_multiplier + step
    multipliers = jnp.where(working.used, jnp.maximum(working.multipliers - step * r, 0.0), 0.0)

    joins = full <= partial
    slots = jnp.arange(len(z))
    slot = (slots == jnp.where(joins, jnp.argmin(working.used), leaving)) & ~infeasible
    put, out = slot & joins, slot & ~joins
    # Rank-one updates of the pseudo-inverse. Join: the new column is d / d d. Leave: with g the column of the leaving
    # row, remove the component along g, the one direction that becomes free.
    column = jnp.where(joins, d / jnp.where(square > 0, square, 1.0), jnp.sum(working.inverse * slot[None, :], axis=1))
    length = jnp.sum(column * column)
    along = jnp.where(joins, r, _transposed_times(working.inverse, column) / jnp.where(length > 0, length, 1.0))
    inverse = working.inverse - column[:, None] * along[None, :]
    inverse = jnp.where(put[None, :], column[:, None], jnp.where(out[None, :], 0.0, inverse))
    working = Working(
        (working.used | put) & ~out,
        jnp.where(put, state.entering, working.index).astype(jnp.int32),
        jnp.where(put[:, None], normal[None, :], jnp.where(out[:, None], 0.0, working.normals)),
        jnp.where(put, rows.offsets[state.entering], jnp.where(out, 0.0, working.offsets)),
        jnp.where(put, entering_multiplier, jnp.where(out, 0.0, multipliers)),
        jnp.where(infeasible, working.inverse, inverse),
    )

    z = refine(working, z)
    slack = rows.slack(z)
    entering = jnp.where(joins, most_violated(slack), state.entering)
    violation = -slack[entering]
    # Half the tolerance: a solution then passes the test for feasible points when it is projected again.
    satisfied = joins & (violation <= rows.tolerance(z) / 2)
    return _State(
        z,
        working,
        entering,
        violation,
        jnp.where(joins, 0.0, entering_multiplier),
        satisfied | infeasible | broken,
        infeasible,
        state.iterations + 1,
    )


@jax.custom_jvp
def with_kkt_tangents(u, A, b, lower, upper, weights, value, multipliers, working, solved):
    """(value, multipliers), with the tangents of the KKT system of `project`; the last four arguments are constants.

    With N v = β the working rows as given, H = W^2, the solution satisfies H (v - u) = N^T λ, N v = β. Then

        H dv = g + N^T dλ,   g = H du - dH (v - u) + dN^T λ,        N dv = dβ - dN v.

    In dz = W dv, with M = N W^-1 and its pseudo-inverse M^+, this is the projection

        dz = (I - M^+ M) W^-1 g + M^+ (dβ - dN v),        dλ = M^+^T (dz - W^-1 g),

    finite always, because the working rows are independent. It is linear in the tangents, so JAX can transpose it.
    """
    del u, A, b, lower, upper, weights, working, solved
    return value, multipliers


@with_kkt_tangents.defjvp
def _kkt_tangents(primals, tangents):
    u, A, _, _, _, weights, value, multipliers, working, solved = primals
    du, dA, db, dlower, dupper, dweights, *_ = tangents
    m = len(u)
    eye = jnp.eye(m, dtype=A.dtype)
    # Double where: unless solved, every coefficient must be finite too, since 0 * NaN is NaN in the transpose.
    offset = jnp.where(solved, value - u, 0.0)
    v = jnp.where(solved, value, 0.0)
    weights = jnp.where(solved, weights, 1.0)
    used = working.used & solved
    index = jnp.where(used, working.index, 0)

    def at_working_rows(array):
        mask = used.reshape(m, *[1] * (array.ndim - 1))
        return jnp.where(mask, array[index], 0.0)

    norms = jnp.sqrt(jnp.sum((jnp.concatenate([A, eye, -eye])[index] / weights[None, :]) ** 2, axis=1))
    norms = jnp.where(used, norms, 1.0)
    dN = at_working_rows(jnp.concatenate([dA, jnp.zeros((2 * m, m), A.dtype)]))
    dbeta = at_working_rows(jnp.concatenate([db, dlower, -dupper]))
    λ = at_working_rows(multipliers)
    N = jnp.where(used[:, None], working.normals, 0.0)
    inverse = jnp.where(used[None, :], working.inverse, 0.0)
    # One Newton-Schulz step removes what the rank-one updates have lost.
    inverse = 2 * inverse - inverse @ (N @ inverse)

    y = weights * du - 2 * dweights * offset + (dN.T @ λ) / weights
    dz = y - inverse @ (N @ y) + inverse @ ((dbeta - dN @ v) / norms)
    dλ = (inverse.T @ (dz - y)) / norms
    dmultipliers = jnp.zeros_like(multipliers).at[index].add(jnp.where(used, dλ, 0.0))
    dvalue = jnp.where(solved, dz / weights, 0.0)
    return (value, multipliers), (dvalue, jnp.where(solved, dmultipliers, 0.0))
