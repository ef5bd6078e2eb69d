"""Linear programs of few variables in a finite box, and the largest ball inside a polytope."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from holdfast.solvers.qp import (
    DEPENDENT,
    Rows,
    Solution,
    SolverStatus,
    Working,
    as_arrays,
    decompose,
    finish,
    most_violated,
    refine,
    unit_rows,
    with_kkt_tangents,
    without_bad_data,
)


class _State(NamedTuple):
    z: Float[Array, " m"]
    working: Working
    tie_breaker: Float[Array, " m"]
    entering: Int[Array, ""]
    done: Bool[Array, ""]
    infeasible: Bool[Array, ""]
    iterations: Int[Array, ""]


def maximise(
    c: Float[ArrayLike, " m"],
    A: Float[ArrayLike, "p m"],
    b: Float[ArrayLike, " p"],
    lower: Float[ArrayLike, " #m"],
    upper: Float[ArrayLike, " #m"],
    *,
    max_iterations: int = 128,
) -> Solution:
    """A vertex of {v : A v >= b, lower <= v <= upper} that maximises c v, by the dual simplex method.

    Lemke, "The dual method of solving the linear programming problem", Naval Research Logistics Quarterly 1 (1954).
    The box must be finite: its corner along c is the start, optimal before any row is looked at. Ties between
    multipliers are broken by a second, generic objective, so that degenerate problems do not cycle.

    Rows, statuses and fields are those of `project`, but u = c and the multipliers satisfy
    c + [A; I; -I]^T multipliers = 0. The gradient of `value` is exact in A, b, lower and upper, and zero in c, as the
    vertex does not move; that of c @ value is hence exact in all. The multipliers carry no gradient. If several
    points are optimal, one vertex is returned, with the derivative of this vertex.

    **Arguments:**

    - `c` [m]: the objective, finite.
    - `A` [p, m], `b` [p]: rows A v >= b.
    - `lower`, `upper` [m]: finite bounds; scalars are broadcast. Infinite ones are `bad_input`.
    - `max_iterations`: most exchanges of rows.

    **Raises:** `ValueError` for shapes that do not fit; never for numbers.
    """
    c, A, b, lower, upper, ones = as_arrays(c, A, b, lower, upper, None)
    frozen = lax.stop_gradient((c, A, b, lower, upper, ones))
    bad = ~(
        jnp.all(jnp.isfinite(c) & jnp.isfinite(lower) & jnp.isfinite(upper))
        & jnp.all(jnp.isfinite(A))
        & ~jnp.any(jnp.isnan(b))
    )
    c, A0, b0, lower0, upper0, _ = without_bad_data(bad, *frozen)
    lower0, upper0 = jnp.where(bad, 0.0, lower0), jnp.where(bad, 0.0, upper0)
    solution, working = _solve(c, unit_rows(A0, b0, lower0, upper0, ones), lower0, upper0, max_iterations)
    status = jnp.where(bad, SolverStatus.bad_input, solution.status).astype(jnp.int32)
    value = jnp.where(bad, frozen[0], solution.value)
    # All m slots are used, so nothing but the rows decides the tangent of the value.
    value, _ = with_kkt_tangents(
        lax.stop_gradient(value), A, b, lower, upper, ones, value, jnp.zeros_like(solution.multipliers),
        working, status == SolverStatus.solved,
    )  # fmt: skip
    residual = jnp.where(bad, jnp.inf, solution.residual)
    return Solution(value, status, residual, solution.multipliers, solution.active, solution.iterations)


def _solve(c, rows: Rows, lower, upper, max_iterations) -> tuple[Solution, Working]:
    m, p = len(c), rows.offsets.shape[0] - 2 * len(c)
    eps = jnp.finfo(c.dtype).eps
    up = c >= 0
    sign = jnp.where(up, -1.0, 1.0).astype(c.dtype)
    corner = jnp.where(up, upper, lower)
    square = jnp.diag(sign)
    index = (p + jnp.arange(m) + jnp.where(up, m, 0)).astype(jnp.int32)
    slack = rows.slack(corner)
    entering = most_violated(slack)
    contradictory = jnp.any(rows.offsets == jnp.inf) | jnp.any(lower > upper)
    state = _State(
        corner,
        Working(jnp.ones(m, bool), index, square, sign * corner, jnp.abs(c), square),
        jnp.sqrt(jnp.arange(1, m + 1, dtype=c.dtype)),  # generic: no small integer relation between the entries
        entering,
        jnp.all(slack >= -rows.tolerance(corner) / 2) | contradictory,
        contradictory,
        jnp.zeros((), jnp.int32),
    )
    tie = 16 * eps * jnp.max(jnp.abs(c))

    def exchange(state: _State) -> _State:
        working = state.working
        normal = rows.normal(state.entering)
        r, _ = decompose(working, normal)
        blocking = r > DEPENDENT * eps * jnp.maximum(1.0, jnp.max(jnp.abs(r)))
        divisor = jnp.where(blocking, r, 1.0)
        ratios = jnp.where(blocking, working.multipliers / divisor, jnp.inf)
        tied = blocking & (working.multipliers <= jnp.min(ratios) * divisor + tie)
        leaving = jnp.argmin(jnp.where(tied, state.tie_breaker / divisor, jnp.inf))
        infeasible = ~jnp.any(blocking)
        slot = (jnp.arange(m) == leaving) & ~infeasible

        def move(multipliers):
            step = multipliers[leaving] / divisor[leaving]
            return jnp.where(slot, step, multipliers - jnp.where(infeasible, 0.0, step) * r)

        column = working.inverse[:, leaving] / divisor[leaving]
        inverse = jnp.where(slot[None, :], column[:, None], working.inverse - column[:, None] * r[None, :])
        working = Working(
            working.used,
            jnp.where(slot, state.entering, working.index).astype(jnp.int32),
            jnp.where(slot[:, None], normal[None, :], working.normals),
            jnp.where(slot, rows.offsets[state.entering], working.offsets),
            jnp.maximum(move(working.multipliers), 0.0),
            jnp.where(infeasible, working.inverse, inverse),
        )
        # Twice, as the step from vertex to vertex is itself made by the refinement.
        z = refine(working, refine(working, state.z))
        slack = rows.slack(z)
        entering = most_violated(slack)
        satisfied = slack[entering] >= -rows.tolerance(z) / 2
        iterations = state.iterations + 1
        return _State(z, working, move(state.tie_breaker), entering, satisfied | infeasible, infeasible, iterations)

    state = lax.while_loop(lambda s: ~s.done & (s.iterations < max_iterations), exchange, state)
    value = jnp.clip(state.z, lower, upper)
    value = jnp.where(jnp.all(jnp.isfinite(value)), value, corner)
    return finish(rows, value, value, state.working, state.done, state.infeasible, state.iterations)


class ChebyshevBall(eqx.Module):
    """Largest ball in a polytope: `centre` [m], `radius`, and the `status` of the polytope.

    `infeasible` means that the polytope is empty. The radius is then negative: every point of the box violates some
    row, and `centre` is where the largest violation, -radius as a distance, is smallest.
    """

    centre: Float[Array, " m"]
    radius: Float[Array, ""]
    status: Int[Array, ""]

    @property
    def solved(self) -> Bool[Array, ""]:
        """Whether the ball is a largest one of a polytope that is not empty."""
        return self.status == SolverStatus.solved


def chebyshev_centre(
    A: Float[ArrayLike, "p m"],
    b: Float[ArrayLike, " p"],
    lower: Float[ArrayLike, " m"],
    upper: Float[ArrayLike, " m"],
    *,
    max_iterations: int = 128,
) -> ChebyshevBall:
    """Centre and radius of a largest ball in {v : A v >= b, lower <= v <= upper}, the box finite.

    Boyd and Vandenberghe, *Convex Optimization* (2004), section 8.5.1: the linear program in (v, ρ) that maximises ρ
    with a_i v - |a_i| ρ >= b_i. The arguments are those of `maximise`; the gradient in all of them is that of the
    vertex. If several balls are largest, one is returned.

    **Raises:** `ValueError` for shapes that do not fit; never for numbers.
    """
    centre, A, b, lower, upper, _ = as_arrays(
        jnp.zeros(jnp.shape(A)[1:], jnp.asarray(A).dtype), A, b, lower, upper, None
    )
    m = len(centre)
    zero = jnp.all(A == 0, axis=1)
    # Double where: the norm of a zero row has no gradient.
    norms = jnp.where(zero, 1.0, jnp.sqrt(jnp.sum(jnp.where(zero[:, None], 1.0, A) ** 2, axis=1)))
    eye = jnp.eye(m, dtype=A.dtype)
    rows = jnp.concatenate([A / norms[:, None], eye, -eye])
    offsets = jnp.concatenate([b / norms, lower, -upper])
    # A vacuous row stays so: with a = 0 the ball is not limited by it.
    radial = jnp.concatenate([jnp.where(zero, 0.0, -1.0), -jnp.ones(2 * m, A.dtype)])
    # The radius lies between minus the depth of the worst row over the box and half the largest width.
    reach = jnp.max(jnp.maximum(jnp.abs(lower), jnp.abs(upper))) * m
    depth = jnp.max(jnp.where(jnp.isfinite(offsets), offsets, 0.0), initial=0.0)
    span = lax.stop_gradient(1 + depth + 2 * reach)
    ball = maximise(
        jnp.zeros(m + 1, A.dtype).at[m].set(1.0),
        jnp.concatenate([rows, radial[:, None]], axis=1),
        offsets,
        jnp.concatenate([lower, -span[None]]),
        jnp.concatenate([upper, span[None]]),
        max_iterations=max_iterations,
    )
    radius = ball.value[m]
    empty = ball.solved & (radius < -2 * ball.residual)
    return ChebyshevBall(ball.value[:m], radius, jnp.where(empty, SolverStatus.infeasible, ball.status))
