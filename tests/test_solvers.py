"""The projection QP and the LP against optimality conditions, Clarabel, SciPy and finite differences."""

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from holdfast.solvers import SolverStatus, chebyshev_centre, maximise, project

BATCH, ROWS = 64, 200
# One program per number of variables and precision: smaller problems are padded with vacuous rows to ROWS.
solve = jax.jit(jax.vmap(project))
solve_one = jax.jit(project)


def random_problems(m, p=ROWS, seed=0, slack=0.0, batch=BATCH):
    """Polytopes around a random point, at exponentially distributed distances; `slack` < 0 can make them empty."""
    rng = np.random.default_rng([seed, m, p])
    A = rng.normal(size=(batch, p, m)) * np.exp(rng.normal(size=(batch, p, 1)))
    inner = rng.uniform(-0.8, 0.8, (batch, m))
    distance = rng.exponential(0.3, (batch, p)) + slack
    b = np.einsum("bpm,bm->bp", A, inner) - np.linalg.norm(A, axis=-1) * distance
    ones = np.ones((batch, m))
    return pad(2 * rng.normal(size=(batch, m)), A, b, -ones, ones)


def pad(u, A, b, lower, upper):
    missing = ROWS - A.shape[1]
    A = np.pad(A, ((0, 0), (0, missing), (0, 0)))
    return u, A, np.pad(b, ((0, 0), (0, missing)), constant_values=-np.inf), lower, upper


def rows_of(A, b, lower, upper):
    eye = np.eye(A.shape[1])
    rows, offsets = np.concatenate([A, eye, -eye]), np.concatenate([b, lower, -upper])
    return rows[np.isfinite(offsets)], offsets[np.isfinite(offsets)]


def clarabel_projection(u, *constraints):
    rows, offsets = rows_of(*constraints)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    cones = [clarabel.NonnegativeConeT(len(rows))]
    hessian = sparse.eye(len(u), format="csc")
    answer = clarabel.DefaultSolver(hessian, -u, sparse.csc_matrix(-rows), -offsets, cones, settings).solve()
    return np.array(answer.x), str(answer.status)


def assert_optimal(problems, solution, tolerance):
    """The KKT conditions, sufficient because the problem is convex: a proof that needs no other solver."""
    for i in np.flatnonzero(solution.status == SolverStatus.solved):
        u, *constraints = (np.asarray(array[i], np.float64) for array in problems)
        A, b, lower, upper = constraints
        m, v, λ = len(u), np.asarray(solution.value[i], np.float64), np.asarray(solution.multipliers[i], np.float64)
        rows, offsets = np.concatenate([A, np.eye(m), -np.eye(m)]), np.concatenate([b, lower, -upper])
        norms = np.maximum(np.linalg.norm(rows, axis=1), 1e-300)
        with np.errstate(invalid="ignore", over="ignore"):
            slack = np.where(np.isfinite(offsets), (rows @ v - offsets) / norms, np.inf)
        assert slack.min() >= -tolerance
        assert np.all((lower <= v) & (v <= upper))
        assert λ.min() >= 0
        np.testing.assert_allclose(rows.T @ λ, v - u, atol=tolerance * max(1, np.abs(u).max()))
        active = np.asarray(solution.active[i])
        assert np.all(np.abs(slack[active]) <= tolerance)
        assert not np.any(λ[~active])
        assert active.sum() <= m


@pytest.mark.parametrize("m", [2, 3, 4])
def test_matches_clarabel_and_the_optimality_conditions(m):
    problems = random_problems(m)
    solution = solve(*problems)
    np.testing.assert_array_equal(solution.status, SolverStatus.solved)
    assert_optimal(problems, solution, 1e-12)
    for i in range(10):
        reference, status = clarabel_projection(*(array[i] for array in problems))
        assert status == "Solved"
        u, value = problems[0][i], solution.value[i]
        assert np.sum((value - u) ** 2) == pytest.approx(np.sum((reference - u) ** 2), abs=1e-7)
        # An interior point is only as near to the optimum as the root of its gap.
        np.testing.assert_allclose(value, reference, atol=1e-5)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_infeasibility_is_reported_where_clarabel_proves_it(m):
    # Some empty, some not.
    problems = random_problems(m, p=30, seed=1, slack=-0.05)
    solution = solve(*problems)
    assert_optimal(problems, solution, 1e-12)
    assert set(np.unique(solution.status)) == {SolverStatus.solved, SolverStatus.infeasible}
    for i in range(BATCH):
        _, status = clarabel_projection(*(array[i] for array in problems))
        assert (solution.status[i] == SolverStatus.solved) == (status == "Solved")
    assert np.all(solution.residual[solution.status == SolverStatus.infeasible] > 1e-6)


@pytest.mark.parametrize("m", [2, 3])
def test_float32_agrees_with_float64(m):
    for problems in (random_problems(m), random_problems(m, p=30, seed=1, slack=-0.05)):
        single = tuple(jnp.asarray(array, jnp.float32) for array in problems)
        # The same numbers in both precisions, so that only the arithmetic differs.
        double = tuple(np.asarray(array, np.float64) for array in single)
        answer, reference = solve(*single), solve(*double)
        assert answer.value.dtype == jnp.float32
        np.testing.assert_array_equal(answer.status, reference.status)
        solved = np.asarray(answer.solved)
        np.testing.assert_allclose(answer.value[solved], reference.value[solved], atol=1e-5)
        assert_optimal(double, answer, 1e-5)


def degenerate_problems(m):
    """name -> problems that have broken active-set methods."""
    rng = np.random.default_rng(m)
    u, A, b, lower, upper = random_problems(m, p=30, seed=2)
    A, b = A[:, :30], b[:, :30]
    inner = rng.uniform(-0.5, 0.5, (BATCH, 1, m))
    normal = rng.normal(size=(BATCH, 1, m))
    near = normal + 1e-6 * rng.normal(size=A.shape)
    cone = A * np.sign(A[..., :1])
    whole = np.round(2 * A)
    return {
        "duplicated": (u, np.tile(A, (1, 3, 1)), np.tile(b, (1, 3)), lower, upper),
        "scaled by 1e-6 to 1e6": (u, A * 10.0 ** rng.uniform(-6, 6, (BATCH, 30, 1)), b * 0 - 1e-3, lower, upper),
        "all rows through one point": (u, cone, np.sum(cone * inner, -1), lower, upper),
        "cone with its apex at 0": (u, cone, 0 * b, lower, upper),
        "nearly parallel": (u, near, np.sum(near * inner, -1) - 1e-7, lower, upper),
        "thin wedge": (u, *(x * np.where(np.arange(30) % 2, 1, -1).reshape(s) for x, s in (
            (near, (1, 30, 1)), (np.sum(near * inner, -1) - 1e-3 * np.where(np.arange(30) % 2, 1, -1), (1, 30)))),
            lower, upper),
        "an equality as two rows": (
            u, np.concatenate([normal, -normal], 1),
            np.concatenate([np.sum(normal * inner, -1), -np.sum(normal * inner, -1)], 1), lower, upper,
        ),
        "integers": (np.round(4 * u) / 2, whole, np.minimum(np.round(b) - 1, 0), lower, upper),
        "far away": (1e6 * u, A, b, lower, upper),
        "very far away": (1e30 * u, A, b, lower, upper),
        "no box": (u, A, b, lower * np.inf, upper * np.inf),
        "small box": (1e-3 * u, A, 1e-3 * b, 1e-3 * lower, 1e-3 * upper),
        "box of one point": (u, A, -10 * np.abs(A).sum(-1), inner[:, 0], inner[:, 0]),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("m", [2, 3])
def test_degenerate_problems_are_solved(m, dtype):
    for name, problems in degenerate_problems(m).items():
        problems = tuple(jnp.asarray(array, dtype) for array in pad(*problems))
        solution = solve(*problems)
        np.testing.assert_array_equal(solution.status, SolverStatus.solved, err_msg=name)
        assert_optimal(problems, solution, 2e-5 if dtype == jnp.float32 else 1e-12)
        again = solve(solution.value, *problems[1:])
        np.testing.assert_array_equal(again.value, solution.value, err_msg=name)


def one_problem(u=(2.0, 0.5), rows=(), b=(), lower=(-1.0, -1.0), upper=(1.0, 1.0)):
    problem = tuple(np.asarray(x, np.float64)[None] for x in (u, np.reshape(rows, (-1, 2)), b, lower, upper))
    padded = pad(*problem)
    return tuple(np.repeat(array, BATCH, 0) for array in padded)


@pytest.mark.parametrize(
    "changes, status, value",
    [
        ({}, "solved", [1.0, 0.5]),
        ({"rows": [0.0, 0.0], "b": [0.0]}, "solved", [1.0, 0.5]),
        ({"rows": [0.0, 0.0], "b": [1e-9]}, "infeasible", None),
        ({"rows": [-1.0, 0.0], "b": [np.inf]}, "infeasible", None),
        ({"rows": [[-1.0, 0.0], [1.0, 0.0]], "b": [0.5, 0.5]}, "infeasible", None),
        ({"rows": [1.0, 1.0], "b": [2.1]}, "infeasible", None),
        ({"lower": [1.0, -1.0], "upper": [1.0 - 1e-16, 1.0]}, "infeasible", None),
        ({"lower": [-np.inf, -np.inf], "upper": [np.inf, np.inf]}, "solved", [2.0, 0.5]),
        ({"rows": [-1e-200, 0.0], "b": [-0.5e-200]}, "solved", [0.5, 0.5]),
        ({"rows": [-1e200, 0.0], "b": [-0.5e200]}, "solved", [0.5, 0.5]),
        ({"u": [1e308, 0.5]}, "solved", [1.0, None]),
        ({"u": [np.nan, 0.5]}, "bad_input", [np.nan, 0.5]),
        ({"u": [2.0, -np.inf]}, "bad_input", [2.0, -np.inf]),
        ({"rows": [np.nan, 0.0], "b": [0.0]}, "bad_input", [2.0, 0.5]),
        ({"rows": [np.inf, 0.0], "b": [0.0]}, "bad_input", [2.0, 0.5]),
        ({"rows": [1.0, 0.0], "b": [np.nan]}, "bad_input", [2.0, 0.5]),
        ({"upper": [1.0, np.nan]}, "bad_input", [2.0, 0.5]),
    ],
)
def test_is_total(changes, status, value):
    solution = jax.tree.map(lambda x: x[0], solve(*one_problem(**changes)))
    assert SolverStatus(int(solution.status)).name == status
    assert not np.any(np.isnan(solution.multipliers))
    if value is not None:
        expected = [found if wanted is None else wanted for wanted, found in zip(value, solution.value)]
        np.testing.assert_allclose(solution.value, expected, rtol=1e-15)
    elif not changes.get("lower"):
        assert np.all(np.abs(solution.value) <= 1)


def test_too_few_iterations_are_reported():
    problem = (array[0] for array in random_problems(3))
    solution = jax.jit(lambda *p: project(*p, max_iterations=2))(*problem)
    assert solution.status == SolverStatus.not_converged
    assert solution.residual > 0
    assert np.all(np.abs(solution.value) <= 1)


def test_every_status_tells_cause_and_remedy():
    assert all(len(status.text) > 20 for status in SolverStatus)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"vmap"):
        project(jnp.zeros((3, 2)), jnp.zeros((1, 2)), jnp.zeros(1), -1.0, 1.0)
    with pytest.raises(ValueError, match=r"A \[p, 2\]"):
        project(jnp.zeros(2), jnp.zeros((1, 3)), jnp.zeros(1), -1.0, 1.0)
    with pytest.raises(ValueError, match=r"upper"):
        project(jnp.zeros(2), jnp.zeros((1, 2)), jnp.zeros(1), -1.0, jnp.ones(3))


# ---- laws ----


def test_feasible_points_come_back_bit_for_bit():
    for m in (2, 3):
        _, A, b, lower, upper = random_problems(m)
        rng = np.random.default_rng(m)
        inner = solve(np.zeros((BATCH, m)), A, b, lower, upper).value
        deeper = 0.9 * inner + 0.1 * solve(rng.uniform(-1, 1, (BATCH, m)), A, b, lower, upper).value
        for dtype in (np.float64, np.float32):
            single = tuple(np.asarray(array, dtype) for array in (deeper, A, b, lower, upper))
            solution = solve(*single)
            feasible = np.asarray(solution.iterations) == 0
            assert feasible.mean() > 0.5
            np.testing.assert_array_equal(np.asarray(solution.value)[feasible], single[0][feasible])


@pytest.mark.parametrize("m", [2, 3, 4])
def test_idempotent_and_non_expansive(m):
    u, *polytope = random_problems(m)
    value = solve(u, *polytope).value
    np.testing.assert_array_equal(solve(value, *polytope).value, value)
    other = u + np.random.default_rng(0).normal(size=u.shape)
    moved = np.linalg.norm(solve(other, *polytope).value - value, axis=1)
    assert np.all(moved <= np.linalg.norm(other - u, axis=1) + 1e-12)


def test_batch_is_loop_and_jit_is_eager():
    problems = random_problems(2)
    batch = solve(*problems)
    for i in range(8):
        alone = solve_one(*(array[i] for array in problems))
        np.testing.assert_allclose(alone.value, batch.value[i], atol=1e-14)
        np.testing.assert_array_equal(alone.active, batch.active[i])
    with jax.disable_jit():
        eager = project(*(array[0][:20] for array in problems))
    jitted = jax.jit(project)(*(array[0][:20] for array in problems))
    np.testing.assert_allclose(eager.value, jitted.value, atol=1e-14)


def test_weights_scale_the_metric():
    u, A, b, lower, upper = (jnp.asarray(array[0]) for array in random_problems(2))
    weights = jnp.array([3.0, 0.5])
    weighted = jax.jit(lambda w: project(u, A, b, lower, upper, weights=w))
    solution = weighted(weights)
    scaled = solve_one(u * weights, A / weights[None, :], b, lower * weights, upper * weights)
    np.testing.assert_allclose(solution.value, scaled.value / weights, atol=1e-14)
    rows, _ = rows_of(A, b, lower, upper)
    np.testing.assert_allclose(rows.T @ solution.multipliers, weights**2 * (solution.value - u), atol=1e-13)
    for bad in (0.0, -1.0, np.nan):
        assert weighted(weights.at[0].set(bad)).status == SolverStatus.bad_input


# ---- gradients ----

# A cube corner cut by three rows; u selects how many rows and bounds are active.
ROWS3 = np.array([[-1.0, -0.2, 0.1], [0.3, -2.0, 0.2], [-0.1, 0.3, -1.5], [1.0, 1.0, 1.0]])
OFFSETS3 = np.array([-0.5, -0.8, -0.6, -2.9])
REGIONS = {
    "none active": ([0.1, 0.2, 0.1], 0, 0),
    "one row": ([1.0, 0.0, 0.0], 1, 0),
    "two rows": ([1.5, 1.2, -0.5], 2, 0),
    "as many rows as variables": ([1.5, 1.5, 1.5], 3, 0),
    "one bound": ([-2.0, 0.0, 0.0], 0, 1),
    "a row and a bound": ([1.5, -2.0, -0.8], 1, 1),
    "bounds only": ([-2.0, -1.7, 0.0], 0, 2),
}


def weighted_solution(data):
    solution = project(*data[:5], weights=data[5])
    return (solution.value, solution.multipliers), solution


@jax.jit
def tangent(data, direction):
    (value, tangents, solution) = jax.jvp(weighted_solution, (data,), (direction,), has_aux=True)
    return value, tangents, solution


@jax.jit
def cotangent(data, weights):
    _, pull = jax.vjp(lambda data: weighted_solution(data)[0], data)
    return pull(weights)[0]


def gradient_data(u):
    return tuple(map(jnp.asarray, (np.array(u), ROWS3, OFFSETS3, -np.ones(3), np.ones(3), np.array([1.0, 2.0, 0.7]))))


@pytest.mark.parametrize("region", REGIONS)
def test_gradients_match_finite_differences_in(region):
    u, rows_active, bounds_active = REGIONS[region]
    data = gradient_data(u)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), data)
        _, derivative, solution = tangent(data, direction)
        assert (solution.active[:4].sum(), solution.active[4:].sum()) == (rows_active, bounds_active)
        there, _, _ = tangent(jax.tree.map(lambda x, d: x + 1e-6 * d, data, direction), direction)
        back, _, _ = tangent(jax.tree.map(lambda x, d: x - 1e-6 * d, data, direction), direction)
        for exact, plus, minus in zip(derivative, there, back):
            np.testing.assert_allclose(exact, (plus - minus) / 2e-6, atol=1e-7)
        weights = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), derivative)
        pulled = cotangent(data, weights)
        forward = sum(float(jnp.vdot(w, d)) for w, d in zip(weights, derivative))
        reverse = sum(float(jnp.vdot(p, d)) for p, d in zip(pulled, direction))
        assert forward == pytest.approx(reverse, abs=1e-11)


def test_gradient_on_the_boundary_is_the_one_from_inside():
    data = gradient_data([-1.0, 0.0, 0.0])
    outward = jax.tree.map(jnp.zeros_like, data)[1:]
    _, (derivative, _), _ = tangent(data, (jnp.array([-1.0, 0.0, 0.0]), *outward))
    np.testing.assert_array_equal(derivative, [-1.0, 0.0, 0.0])


@pytest.mark.parametrize("u, b0", [([np.nan, 0.0, 0.0], -0.5), ([0.1, 0.0, np.inf], -0.5), ([1.0, 0.0, 0.0], 5.0)])
def test_gradient_is_zero_without_a_solution(u, b0):
    data = gradient_data(u)
    data = (*data[:2], data[2].at[0].set(b0), *data[3:])
    pulled = cotangent(data, (jnp.ones(3), jnp.ones(10)))
    for gradient in pulled:
        np.testing.assert_array_equal(gradient, 0.0)


def test_gradients_of_degenerate_problems_are_finite():
    gradient = jax.jit(jax.vmap(jax.grad(lambda *p: jnp.sum(project(*p).value), argnums=(0, 1, 2, 3, 4))))
    for name, problems in degenerate_problems(2).items():
        for array in gradient(*map(jnp.asarray, pad(*problems))):
            assert np.all(np.isfinite(array)), name


# ---- linear programs ----

optimise = jax.jit(jax.vmap(maximise))
centre_of = jax.jit(jax.vmap(chebyshev_centre))


@pytest.mark.parametrize("slack", [0.0, -0.05])
def test_maximise_matches_scipy(slack):
    problems = random_problems(3, p=30, seed=3, slack=slack)
    solution = optimise(*problems)
    for i in range(20):
        c, A, b, lower, upper = (array[i] for array in problems)
        reference = linprog(-c, A_ub=-A[:30], b_ub=-b[:30], bounds=list(zip(lower, upper)))
        assert (reference.status == 0) == (solution.status[i] == SolverStatus.solved)
        assert reference.status in (0, 2)
        if reference.status == 0:
            assert c @ solution.value[i] == pytest.approx(-reference.fun, abs=1e-10)
            rows = np.concatenate([A, np.eye(3), -np.eye(3)])
            np.testing.assert_allclose(c + rows.T @ solution.multipliers[i], 0, atol=1e-12)


def test_maximise_is_total_and_breaks_ties():
    u, A, b, lower, upper = random_problems(3, p=30, seed=3)
    flat = optimise(np.zeros_like(u), A, b, lower, upper)
    np.testing.assert_array_equal(flat.status, SolverStatus.solved)
    cone = A * np.where(A[..., :1] < 0, -1.0, 1.0)
    apex = optimise(-np.eye(3)[np.zeros(BATCH, int)], cone, np.where(np.isfinite(b), 0.0, b), lower, upper)
    np.testing.assert_array_equal(apex.status, SolverStatus.solved)
    np.testing.assert_allclose(apex.value[:, 0], 0, atol=1e-13)
    np.testing.assert_array_equal(optimise(u * np.nan, A, b, lower, upper).status, SolverStatus.bad_input)
    np.testing.assert_array_equal(optimise(u, A, b, lower, upper * np.inf).status, SolverStatus.bad_input)
    np.testing.assert_array_equal(optimise(u, A, b, upper, lower).status, SolverStatus.infeasible)


def test_maximise_gradient_matches_finite_differences():
    c, A, b, lower, upper = (jnp.asarray(array[0, :30] if array.ndim > 2 else array[0]) for array in
                             random_problems(3, p=30, seed=3))  # fmt: skip
    b = b[:30]
    best = jax.jit(lambda c, A, b: c @ maximise(c, A, b, lower, upper).value)
    slope = jax.jit(jax.grad(best, argnums=(0, 1, 2)))(c, A, b)
    rng = np.random.default_rng(0)
    d = [jnp.asarray(rng.normal(size=x.shape)) for x in (c, A, b)]
    plus, minus = (best(*(x + s * y for x, y in zip((c, A, b), d))) for s in (1e-6, -1e-6))
    exact = sum(float(jnp.vdot(x, y)) for x, y in zip(slope, d))
    assert exact == pytest.approx(float(plus - minus) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("slack", [0.0, -0.05])
def test_chebyshev_centre_matches_scipy(slack):
    _, *polytopes = random_problems(2, p=30, seed=4, slack=slack)
    ball = centre_of(*polytopes)
    for i in range(20):
        rows, offsets = rows_of(*(array[i] for array in polytopes))
        norms = np.linalg.norm(rows, axis=1)
        reference = linprog(
            [0, 0, -1], A_ub=np.column_stack([-rows, norms]), b_ub=-offsets, bounds=[(-1, 1), (-1, 1), (None, None)]
        )
        np.testing.assert_allclose(ball.radius[i], -reference.fun, atol=1e-10)
        assert (ball.status[i] == SolverStatus.infeasible) == (-reference.fun < 0)
        depth = np.min((rows @ ball.centre[i] - offsets) / norms)
        np.testing.assert_allclose(depth, ball.radius[i], atol=1e-10)
