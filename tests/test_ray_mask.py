"""Ray masks: the published formula, its limits, distances and centres against other solvers, derivatives, totality, loops."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from holdfast.safeguards import CENTRES, MASKS, BoundaryProjection, HalfSpaces, Ray, RayMask, SafeActionSet, Safeguard
from holdfast.safeguards.action_zonotope import ActionZonotope
from holdfast.safeguards.centres import directions
from holdfast.sets import Box
from holdfast.solvers import inscribed_zonotope, stretch
from holdfast.types import Status
from invariant_sets_for_tests import invariant_source, states
from systems_for_tests import HALF, TASK, bang_bang, certified_states, lane_source
from test_exact_sources import differences, proposals, violations

COUNT = 256
EVERY = [(shape, centre) for shape in MASKS.values() for centre in CENTRES]


@cache
def masked(axes, shape, centre, gradient="exact"):
    guard = Safeguard(invariant_source(axes), (BoundaryProjection(),), gradient, mask=RayMask(shape, centre))

    def look(x, u):
        state = guard.init(x)
        answer, after = guard.step(state, x, u)
        return answer, after, guard.mask(guard._actions(state, x), u)

    return guard, jax.jit(jax.vmap(look))


@cache
def polytopes(m=2, p=30, count=40):
    """Rows A v >= b around points of the box [-1, 1]^m, the box among them."""
    rng = np.random.default_rng(m)
    A, inner = rng.normal(size=(count, p, m)), rng.uniform(-0.6, 0.6, (count, m))
    b = np.einsum("bpm,bm->bp", A, inner) - np.linalg.norm(A, axis=2) * rng.exponential(0.3, (count, p))
    eye = np.broadcast_to(np.concatenate([np.eye(m), -np.eye(m)]), (count, 2 * m, m))
    return np.concatenate([A, eye], axis=1), np.concatenate([b, -np.ones((count, 2 * m))], axis=1), inner


def test_ray_distances_are_those_of_a_linear_program():
    A, b, inner = polytopes()
    r = np.random.default_rng(1).normal(size=inner.shape)
    first, last = jax.jit(jax.vmap(stretch))(A, b, inner, r)
    for i in range(len(A)):
        for sign, found in ((1, last[i]), (-1, -first[i])):
            program = linprog([-1.0], -(A[i] @ (sign * r[i]))[:, None], A[i] @ inner[i] - b[i], bounds=[(0, None)])
            assert found == pytest.approx(-program.fun, abs=1e-9)


@pytest.mark.parametrize("m", [2, 3])
def test_the_inscribed_zonotope_is_the_largest(m):
    A, b, _ = polytopes(m, count=12)
    D = directions(m)
    found = jax.jit(jax.vmap(lambda A, b: inscribed_zonotope(A, b, D)))(A, b)
    assert np.all(found.solved)
    for i in range(len(A)):
        C = np.concatenate([A[i], -np.abs(A[i] @ D)], axis=1)
        z = np.concatenate([found.centre[i], found.lengths[i]])
        assert np.all(C @ z >= b[i] - 1e-12), "the zonotope sticks out"
        objective = lambda z: -np.sum(np.log(np.maximum(z[m:], 1e-9)))  # noqa: E731
        constraint = {"type": "ineq", "fun": lambda z, C=C, i=i: C @ z - b[i], "jac": lambda z, C=C: C}
        best = minimize(objective, z, constraints=[constraint], method="SLSQP", options={"maxiter": 300, "ftol": 1e-10})
        assert objective(z) <= best.fun + 2e-3


def test_an_empty_or_broken_polytope_has_no_inscribed_zonotope():
    A, b, _ = polytopes(count=12)
    D = directions(2)
    solve = jax.jit(jax.vmap(lambda A, b: inscribed_zonotope(A, b, D)))
    assert not np.any(solve(A, b + 5.0).solved)
    assert not np.any(solve(A * np.nan, b).solved)
    slope = jax.jit(jax.vmap(jax.grad(lambda b, A: inscribed_zonotope(A, b, D).centre.sum())))
    assert np.all(np.isfinite(slope(b + 5.0, A))) and np.all(np.isfinite(slope(b * np.nan, A)))


@pytest.mark.parametrize("shape, centre", EVERY)
def test_the_mask_is_the_published_formula_and_verified(shape, centre):
    guard, look = masked(2, shape, centre)
    box = guard.source.input_box
    x, u = states(2, COUNT), proposals(2, COUNT, largest=1.0)
    answer, after, moved = look(x, u)
    assert np.all(after.certified)
    assert set(np.asarray(answer.status)) <= {Status.accepted, Status.corrected}
    equal = np.all(np.asarray(answer.action) == np.asarray(u), axis=1)
    np.testing.assert_array_equal(equal, answer.status == Status.accepted)
    # What the mask makes passes the check by itself.
    check = jax.jit(jax.vmap(guard.source.check))
    assert np.mean(check(x, moved).certified) == 1.0
    c = np.asarray(jax.jit(jax.vmap(lambda x, u: _centre(guard, x, u)))(x, u))
    y, v = ((np.asarray(a) - box.centre) / box.half_widths for a in (u, answer.action))
    la = np.linalg.norm(y - c, axis=1)
    r = (y - c) / la[:, None]
    polytope = jax.vmap(lambda x: _polytope(guard, x)[0])(x)
    A, b = np.asarray(polytope.normals), np.asarray(polytope.offsets)
    along, room = np.einsum("brm,bm->br", A, r), np.einsum("brm,bm->br", A, c) - b
    ratio = np.where(along < 0, room / -np.where(along < 0, along, -1), np.inf)
    ls, lA = np.maximum(ratio.min(axis=1), 0), ratio[:, -4:].min(axis=1)
    with np.errstate(divide="ignore"):
        w = la / lA if shape == "linear" else np.tanh(la / ls) / np.tanh(lA / ls)
    np.testing.assert_allclose(v, c + r * (ls * w)[:, None], atol=1e-9)


def _polytope(guard, x):
    """The safe actions in half-widths, with the box's four rows at the end, and the known safe one."""
    box = guard.source.input_box
    half, middle = jnp.asarray(box.half_widths), jnp.asarray(box.centre)
    actions, eye = guard._actions(guard.init(x), x), jnp.eye(2)
    spaces = actions.halfspaces
    normals = jnp.concatenate([spaces.normals * half[None], eye, -eye])
    offsets = jnp.concatenate([spaces.offsets - spaces.normals @ middle, -jnp.ones(4)])
    return HalfSpaces(normals, offsets), (actions.known_safe - middle) / half


def _centre(guard, x, u):
    box, find = guard.source.input_box, CENTRES[guard.mask.centre]
    polytope, known_safe = _polytope(guard, x)
    return known_safe if find is None else find(polytope, (u - jnp.asarray(box.centre)) / jnp.asarray(box.half_widths))


@pytest.mark.parametrize("shape", list(MASKS.values()))
def test_one_input_has_one_middle(shape):
    x, u = states(1, COUNT), proposals(1, COUNT, largest=1.0)
    found = [np.asarray(masked(1, shape, centre)[1](x, u)[2]) for centre in ("zonotope", "chord", "chebyshev")]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "shape, centre", [("linear", "zonotope"), ("hyperbolic", "chebyshev"), ("hyperbolic", "backup")]
)
def test_masks_are_one_to_one_and_onto(shape, centre):
    """Corners of the box go to the safe boundary, and no two actions to one: along a ray the order is kept."""
    guard, look = masked(2, shape, centre)
    box = guard.source.input_box
    x = states(2, COUNT)
    c = box.centre + box.half_widths * np.asarray(jax.jit(jax.vmap(lambda x: _centre(guard, x, jnp.zeros(2))))(x))
    angle = np.random.default_rng(2).uniform(0, 2 * np.pi, COUNT)
    ray = np.stack([np.cos(angle), np.sin(angle)], axis=1) * box.half_widths
    with np.errstate(divide="ignore"):
        reach = np.min(np.where(ray > 0, (box.upper - c) / ray, (box.lower - c) / ray), axis=1)
    shares = np.linspace(0.05, 1, 12)
    lengths = []
    for share in shares:
        v = look(x, jnp.asarray(np.clip(c + share * reach[:, None] * ray, box.lower, box.upper)))[2]
        lengths.append(np.sum((v - c) * ray, axis=1) / np.sum(ray**2, axis=1))
        np.testing.assert_allclose(v - c, lengths[-1][:, None] * ray, atol=1e-9)
    # Where the centre is on the boundary itself, nothing is left to be onto.
    roomy = lengths[-1] > 1e-6
    assert np.all(np.diff(np.array(lengths), axis=0)[:, roomy] > 0) and roomy.mean() > 0.9
    spaces = jax.vmap(guard.source.halfspaces)(x)
    margin = np.einsum("brm,bm->br", spaces.normals, v) - spaces.offsets
    at_wall = np.any(np.isclose(v, box.upper) | np.isclose(v, box.lower), axis=1)
    assert np.all(at_wall | (np.min(np.abs(margin), axis=1) < 1e-9))


@pytest.mark.parametrize("shape, centre", [*EVERY[:4], ("hyperbolic", "zonotope")])
def test_derivatives_match_differences_and_keep_the_rank(shape, centre):
    guard, _ = masked(2, shape, centre)
    x, u = states(2, COUNT, seed=5), proposals(2, COUNT, seed=6, largest=0.98)
    exact, finite, smooth = differences(guard, x, u, jax.vmap(guard.init)(x))
    good = np.max(np.abs(exact - finite), axis=(1, 2)) < 1e-4 * (1 + np.max(np.abs(exact), axis=(1, 2)))
    assert np.all(good[smooth]) and smooth.mean() > 0.9
    singular = np.linalg.svd(exact[:, :, :2], compute_uv=False)
    # The tails of the hyperbola are flat, and some backup actions lie on the boundary itself.
    assert np.mean(singular[:, -1] > (1e-3 if shape == "linear" else 1e-9)) > 0.9


def test_limits():
    box = Box([-1.0, -1.0], [1.0, 1.0])
    whole = ActionZonotope(lambda x: (x, 4 * jnp.eye(2, dtype=x.dtype)), box)
    point = ActionZonotope(lambda x: (x, jnp.zeros((2, 2), x.dtype)), box)
    x, u = jnp.array([0.25, -0.5]), jnp.array([[0.25, -0.5], [1.0, 1.0], [0.3, 0.9], [0.0, 0.0]])
    for shape in MASKS.values():
        for source, fixed in ((whole, shape == "linear"), (point, False)):
            mask = RayMask(shape, "backup")
            actions = SafeActionSet(source, x, x, jnp.asarray(jnp.nan), source.halfspaces(x))
            both = jax.jit(jax.vmap(lambda u, m=mask, a=actions: (m(a, u), jax.jacrev(lambda u: m(a, u))(u))))
            moved, slope = both(u)
            assert np.all(np.isfinite(moved))
            np.testing.assert_array_equal(moved[0], x)  # the centre stays
            assert np.all(np.isfinite(slope))
            if fixed:  # l_s = l_A: the linear mask is the identity, bit for bit
                np.testing.assert_array_equal(moved, u)
            elif source is point:  # l_s = 0: everything is the centre
                np.testing.assert_allclose(moved, jnp.broadcast_to(x, u.shape), atol=1e-12)


@pytest.mark.parametrize("gradient, expected", [("straight_through", 1.0), ("stopped", 0.0)])
def test_other_gradient_modes(gradient, expected):
    guard, look = masked(2, "linear", "backup", gradient)
    x, u = states(2, 64), proposals(2, 64, largest=1.0)
    status = look(x, u)[0].status
    jacobian = jax.jit(jax.vmap(jax.jacrev(lambda x, u: guard.step(guard.init(x), x, u)[0].action, argnums=1)))(x, u)
    assert np.sum(status == Status.corrected) > 20 and np.sum(status == Status.accepted) > 5
    np.testing.assert_array_equal(jacobian[status == Status.corrected][:, 0, 0], expected)
    np.testing.assert_array_equal(jacobian[status == Status.accepted][:, 0, 0], 1.0)
    # The regulariser |applied - proposed|^2 of training composes with all of it.
    penalty = jax.jit(jax.vmap(jax.grad(lambda u, x: jnp.sum(guard.step(guard.init(x), x, u)[0].correction ** 2))))
    assert np.all(np.isfinite(penalty(u, x)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_total_for_any_numbers(dtype):
    guard, _ = masked(2, "hyperbolic", "zonotope")
    box = guard.source.input_box
    x = jnp.asarray(np.repeat(states(2, 1), 8, axis=0), dtype)
    bad = jnp.asarray(np.array([np.nan, np.inf, 1e30, 0, 0, 0, 0, 0], dtype))
    u = jnp.stack([bad, jnp.zeros_like(bad)], axis=1)
    seen = x.at[3, 0].set(jnp.nan).at[4, 1].set(jnp.inf).at[5, 0].set(1e30).at[6, 0].set(50.0)
    answer, _ = jax.jit(jax.vmap(guard.step))(jax.vmap(guard.init)(x), seen, u)
    assert np.all(np.isfinite(answer.action)) and answer.action.dtype == dtype
    assert np.all(box.lower[None] <= answer.action) and np.all(answer.action <= box.upper[None])
    assert list(answer.status[:2]) == [Status.bad_action] * 2
    assert answer.status[2] == Status.corrected
    assert list(answer.status[3:7]) == [Status.uncertified] * 4
    slope = jax.jit(jax.vmap(jax.grad(lambda x, u: guard.step(guard.init(x), x, u)[0].action.sum(), argnums=(0, 1))))
    assert all(np.all(np.isfinite(each)) for each in slope(seen, u))


@pytest.mark.parametrize("shape, centre", [("linear", "zonotope"), ("hyperbolic", "chord")])
def test_closed_loops_through_a_mask_keep_the_set(shape, centre):
    assert violations(invariant_source(2), 2, mask=RayMask(shape, centre), steps=120) == 0


# On the implicit set of a backup policy --------------------------------------------------------------------------------


@cache
def lane_guard(shape):
    return Safeguard(lane_source(), (Ray(),), mask=RayMask(shape, "backup", evaluations=40, resolution=1e-10))


@pytest.mark.parametrize("shape", ["hyperbolic"])
def test_masks_work_on_the_implicit_set(shape):
    guard = lane_guard(shape)
    x, state = jax.tree.map(lambda leaf: leaf[:48], certified_states("lqr"))
    u = bang_bang(len(x)) * jax.random.uniform(jax.random.key(5), (len(x), 2), minval=0.2, maxval=0.9)
    answer, after = jax.jit(jax.vmap(guard.step))(state, x, u)
    assert np.all(after.certified) and np.all(answer.margin >= 0)
    assert np.all(np.abs(answer.action) <= HALF[None])
    assert set(np.asarray(answer.status)) <= {Status.accepted, Status.corrected, Status.fell_back}
    mask = jax.vmap(lambda s, x, u: guard.mask(guard._actions(s, x), u))
    check = jax.vmap(lane_source().check)
    # The set is not convex, so that a shorter way along the ray may be refused; here it hardly ever is.
    passed = np.asarray(jax.jit(lambda s, x, u: check(x, mask(s, x, u)).certified)(state, x, u))
    assert passed.mean() > 0.9
    exact, finite, smooth = differences(guard, x, u, state)
    close = np.max(np.abs(exact - finite), axis=(1, 2)) < 1e-3 * (1 + np.max(np.abs(exact), axis=(1, 2)))
    assert np.all(close[passed & smooth]) and np.mean(passed & smooth) > 0.85
    assert np.mean(np.linalg.svd(exact[passed][:, :, :2], compute_uv=False)[:, -1] > 1e-6) > 0.9


def test_a_centre_that_needs_halfspaces_is_refused_where_there_are_none():
    with pytest.raises(ValueError, match=r"centre = 'zonotope'.*BackupSource.*centre='backup'"):
        Safeguard(lane_source(), (BoundaryProjection(),), mask=RayMask("linear", "zonotope"))
    with pytest.raises(ValueError, match="shape = 'cubic'"):
        RayMask("cubic")
    with pytest.raises(ValueError, match="centre = 'mean'"):
        RayMask("linear", "mean")
    assert TASK.system.input_size == len(HALF)
