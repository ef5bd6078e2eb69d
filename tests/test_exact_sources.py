"""Exact sources and the projection onto them: agreement, laws, derivatives, totality, closed loops, sabotage."""

import dataclasses
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.safeguards import (
    ActionZonotope,
    BoundaryProjection,
    HalfSpaces,
    InvariantSource,
    PerInput,
    Ray,
    Safeguard,
    ZonotopeSource,
)
from holdfast.safeguards.action_zonotope import facet_normals
from holdfast.safeguards.boundary_projection import closest
from holdfast.sets import Box, Polytope
from holdfast.solvers import bounded_coefficients
from holdfast.types import Status
from invariant_sets_for_tests import NOISE, SUCCESSOR, invariant_set, invariant_source, states
from test_solvers import clarabel_projection, random_problems

EVERY = (BoundaryProjection(), PerInput(), Ray())
COUNT = 192


def proposals(axes, count=COUNT, seed=3, largest=1.2):
    box = invariant_set(axes).system.input_box
    u = np.random.default_rng(seed).uniform(-largest, largest, (count, axes))
    return jnp.asarray(box.centre + box.half_widths * u)


def compiled_with(source, maps):
    guard = Safeguard(source, maps)
    # A bound method of a module that holds NumPy leaves has no hash, which `jit` asks for.
    return guard, jax.jit(jax.vmap(lambda x: guard.init(x))), jax.jit(jax.vmap(lambda s, x, u: guard.step(s, x, u)))


@cache
def compiled(axes, maps):
    return compiled_with(invariant_source(axes), maps)


@pytest.mark.parametrize("m, count", [(1, 250), (2, 250)])
def test_the_projection_is_clarabels(m, count):
    """In float64, on random half-spaces; `python -m benchmarks.projection_speed` does ten thousand."""
    problems = random_problems(m, p=100 if m == 2 else 16, seed=7, batch=count)
    box = Box(-np.ones(m), np.ones(m))
    project = jax.jit(jax.vmap(lambda u, A, b: closest(HalfSpaces(A, b), box, u)))
    ours = np.clip(project(*problems[:3]), -1, 1)
    theirs = np.stack([clarabel_projection(*(array[i] for array in problems))[0] for i in range(count)])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("axes", [1, 2])
def test_halfspaces_are_the_check(axes):
    """A point of the tightened half-spaces passes the check in both precisions; one beyond a row does not."""
    source = invariant_source(axes)
    for dtype, gap in ((jnp.float64, 1e-9), (jnp.float32, 1e-3)):
        x, u = states(axes, COUNT).astype(dtype), proposals(axes, largest=1.0).astype(dtype)
        found, passed = jax.jit(jax.vmap(lambda x, u: (source.halfspaces(x), source.check(x, u).certified)))(x, u)
        rows = np.einsum("brm,bm->br", found.normals, u) - found.offsets
        assert np.all(np.asarray(passed)[np.all(rows >= 0, axis=1)])
        assert not np.any(np.asarray(passed)[np.any(rows < -gap, axis=1)])
        assert 20 < passed.sum() < COUNT - 20


@pytest.mark.parametrize("axes, maps", [(1, (BoundaryProjection(),)), (2, EVERY)])
def test_laws_of_every_map_on_an_exact_source(axes, maps):
    box = invariant_set(axes).system.input_box
    _, init, step = compiled(axes, maps)
    x, u = states(axes, COUNT), proposals(axes)
    answer, after = step(init(x), x, u)
    status = np.asarray(answer.status)
    assert np.all(after.certified) and np.all(answer.margin >= 0)
    assert np.all(box.lower[None] <= answer.action) and np.all(answer.action <= box.upper[None])
    assert np.sum(status == Status.accepted) > 20 and np.sum(status == Status.corrected) > 20
    assert set(status) == {Status.accepted, Status.corrected}
    accepted = status == Status.accepted
    np.testing.assert_array_equal(np.asarray(answer.action)[accepted], np.asarray(u)[accepted])
    again, _ = step(init(x), x, answer.action)
    assert np.all(again.status == Status.accepted)
    # Vertices of the disturbance box, in float64 by NumPy's own matrices.
    system = invariant_set(axes).system
    for corner in np.stack(np.meshgrid(*[[-1, 1]] * axes), -1).reshape(-1, axes):
        w = jnp.asarray(corner * system.disturbance_box.half_widths)
        ahead = jax.vmap(lambda x, u, w=w: system.step(x, u, w))(x, answer.action)
        assert np.all(jax.vmap(invariant_set(axes).region.margin)(ahead) >= 0)


def test_the_projection_is_the_nearest_and_does_not_expand():
    _, init, step = compiled(2, (BoundaryProjection(),))
    x = states(2, COUNT)
    half = invariant_set(2).system.input_box.half_widths
    distance = lambda a, b: np.linalg.norm(np.asarray(a - b) / half, axis=1)  # noqa: E731
    u, v = proposals(2, largest=1.0), proposals(2, seed=4, largest=1.0)
    a, b = step(init(x), x, u)[0].action, step(init(x), x, v)[0].action
    assert np.all(distance(a, b) <= distance(u, v) + 1e-9)
    _, _, each = compiled(2, EVERY)
    others = each(init(x), x, u)[0].action
    assert np.all(distance(a, u) <= distance(others, u) + 1e-9)


def differences(guard, x, u, state):
    """Derivatives of the action by (u, x): by JAX and by central differences, shape [B, m, m + n] each; and where the two
    one-sided differences agree, shape [B]: elsewhere a kink lies between, and there is no derivative to compare with."""
    take = lambda s, x, u: guard.step(s, x, u)[0].action  # noqa: E731
    gu, gx = jax.jit(jax.vmap(jax.jacrev(take, argnums=(2, 1))))(state, x, u)
    step, h = jax.jit(jax.vmap(take)), 1e-6
    here, ahead, behind = step(state, x, u), [], []
    for e in np.eye(u.shape[1] + x.shape[1]):
        du, dx = h * e[None, : u.shape[1]], h * e[None, u.shape[1] :]
        ahead.append((step(state, x + dx, u + du) - here) / h)
        behind.append((here - step(state, x - dx, u - du)) / h)
    ahead, behind = np.stack(ahead, axis=2), np.stack(behind, axis=2)
    apart, size = np.abs(ahead - behind), 1 + np.abs(ahead) + np.abs(behind)
    return np.concatenate([gu, gx], axis=2), (ahead + behind) / 2, np.all(apart < 1e-4 * size, axis=(1, 2))


@pytest.mark.parametrize("axes, maps", [(1, (BoundaryProjection(),)), (2, (BoundaryProjection(),)), (2, (Ray(),))])
def test_derivatives_and_their_rank_in_every_region(axes, maps):
    guard, init, step = compiled(axes, maps)
    count = 512
    x, u = states(axes, count, seed=5), proposals(axes, count, seed=6)
    state = init(x)
    exact, finite, smooth = differences(guard, x, u, state)
    good = np.max(np.abs(exact - finite), axis=(1, 2)) < 1e-4 * (1 + np.max(np.abs(exact), axis=(1, 2)))
    assert np.all(good[smooth]) and smooth.mean() > 0.95
    answer, _ = step(state, x, u)
    action, status = np.asarray(answer.action), np.asarray(answer.status)
    box = guard.source.input_box
    inside = np.all((u > box.lower[None]) & (u < box.upper[None]), axis=1)
    if maps != (BoundaryProjection(),):
        return
    spaces = jax.vmap(guard.source.halfspaces)(x)
    half = box.half_widths
    slack = np.einsum("brm,bm->br", spaces.normals, action) - spaces.offsets
    held = (action <= box.lower[None]) | (action >= box.upper[None])
    active = np.sum(slack < 1e-9, axis=1) + np.sum(held, axis=1)
    singular = np.linalg.svd(exact[:, :, :axes] * half[None, None] / half[None, :, None], compute_uv=False)
    rank = np.sum(singular > 1e-6, axis=1)
    corrected = inside & (status == Status.corrected)
    seen = set()
    for i in np.flatnonzero(corrected):
        assert rank[i] == max(axes - active[i], 0)
        seen.add(int(active[i]))
        # What is left is a projector, and the normals of active rows are in its kernel.
        for row in np.flatnonzero(slack[i] < 1e-9):
            normal = spaces.normals[i, row] * half**2
            np.testing.assert_allclose(exact[i, :, :axes] @ normal, 0, atol=1e-6 * np.linalg.norm(normal))
    assert seen == set(range(1, axes + 1)), f"numbers of active rows: {seen}"
    kept = exact[status == Status.accepted][:, :, :axes]
    np.testing.assert_array_equal(kept, np.eye(axes)[None].repeat(len(kept), 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_total_for_any_numbers(dtype):
    _, init, step = compiled(2, EVERY)
    box = invariant_set(2).system.input_box
    x = jnp.asarray(np.repeat(states(2, 1), 10, axis=0), dtype)
    bad = jnp.asarray(np.array([np.nan, np.inf, -np.inf, 1e30, 0, 0, 0, 0, 0, 0], dtype))
    u = jnp.stack([bad, jnp.zeros_like(bad)], axis=1)
    seen = x.at[4, 0].set(jnp.nan).at[5, 1].set(jnp.inf).at[6, 2].set(-jnp.inf).at[7, 0].set(1e30).at[8, 0].set(50.0)
    answer, after = step(init(x), seen, u)
    assert np.all(np.isfinite(answer.action)) and answer.action.dtype == dtype
    assert np.all(box.lower[None] <= answer.action) and np.all(answer.action <= box.upper[None])
    assert list(answer.status[:3]) == [Status.bad_action] * 3
    assert answer.status[3] == Status.corrected
    # A set without memory promises nothing of a state that it cannot read, nor of one outside.
    assert list(answer.status[4:9]) == [Status.uncertified] * 5
    assert not np.any(after.certified[4:9]) and np.all(after.certified[:4])
    assert np.all(answer.margin[4:9] == -np.inf)
    # The promise is back with the first state that can be read.
    again, renewed = step(after, x, u)
    assert np.all(renewed.certified) and not np.any(again.status == Status.uncertified)
    gradient = jax.jit(jax.vmap(jax.grad(lambda s, x, u: compiled(2, EVERY)[0].step(s, x, u)[0].action.sum(), (1, 2))))
    by_x, by_u = gradient(init(x), seen, u)
    assert np.all(np.isfinite(by_x)) and np.all(np.isfinite(by_u))


def test_an_empty_set_of_safe_actions_is_a_status():
    """Noise that no action can answer: the controller's action, nothing promised, a finite gradient."""
    invariant = invariant_set(2)
    impossible = InvariantSource(invariant, RobustMargins(0.0, 5.0, 0.0))
    _, init, step = compiled_with(impossible, (BoundaryProjection(),))
    x, u = states(2, 16), proposals(2, 16)
    answer, _ = step(init(x), x, u)
    # The set itself promises: it is the certificate that is wrong here, and the controller is all there is.
    assert np.all(answer.status == Status.fell_back)
    np.testing.assert_allclose(answer.action, jax.vmap(invariant.controller)(x))
    nothing = InvariantSource(invariant, RobustMargins(np.inf, np.inf, np.inf))
    answer, _ = compiled_with(nothing, (BoundaryProjection(),))[2](init(x), x, u)
    assert np.all(answer.status == Status.uncertified)
    assert np.all(np.isfinite(answer.action))


# Closed loops --------------------------------------------------------------------------------------------------------


def violations(source, axes, steps=250, plants=96, mask=None):
    """Steps outside the true set in float32 loops that are pushed against its boundary by vertex noise."""
    real = invariant_set(axes)
    guard = Safeguard(source, (BoundaryProjection(),), mask=mask)
    system = real.system
    x = states(axes, plants, seed=8).astype(jnp.float32)
    state = jax.vmap(guard.init)(x)
    box, noise = system.input_box, system.disturbance_box
    normals, offsets = (jnp.asarray(v, jnp.float32) for v in (real.region.normals, real.region.offsets))

    def push(x, key, mine):
        """Corners of both boxes: towards the nearest facet, or towards one of its own."""
        facet = normals[jnp.where(mine % 2 == 0, mine // 2 % len(offsets), jnp.argmin(offsets - normals @ x))]
        zero = jnp.zeros(axes, x.dtype)
        by_u, by_w = jax.jacfwd(lambda u, w: facet @ system.step(x, u, w), (0, 1))(zero, zero)
        corner = jax.random.choice(key, jnp.array([-1.0, 1.0]), (axes,))
        u = jnp.where(jax.random.bernoulli(key, 0.8), jnp.sign(by_u), corner)
        w = jnp.where(by_w >= 0, *(v for v in noise.bounds(jnp.float32)[::-1]))
        u = jnp.asarray(box.centre, x.dtype) + u * jnp.asarray(box.half_widths, x.dtype)
        return jnp.where(jax.random.bernoulli(key, 0.02), jnp.nan, u).astype(x.dtype), w

    @jax.jit
    def control(state, x, keys):
        u, w = jax.vmap(push)(x, keys, jnp.arange(plants))
        answer, state = jax.vmap(guard.step)(state, x, u)
        return answer, state, w

    plant = jax.jit(lambda x, u, w: jax.lax.map(lambda v: system.step(*v), (x, u, w)))
    region = jax.jit(jax.vmap(real.region.margin))
    count = 0
    for k in range(steps):
        answer, state, w = control(state, x, jax.random.split(jax.random.key(k), plants))
        x = plant(x, answer.action, w)
        # In float64, so that the judge does not round.
        count += int(np.sum(~np.all(region(x.astype(jnp.float64)) >= 0, axis=1)))
        count += int(np.sum(~np.isfinite(answer.action))) + int(np.sum(answer.status == Status.uncertified))
    return count


class ForgetsTheNoise(InvariantSet):
    """The disturbance term is dropped."""

    def margins_of(self, x, u, successor):
        return self.margins(successor)


def _forgetful():
    real = invariant_set(2)
    return InvariantSource(ForgetsTheNoise(real.system, real.region, real.controller), invariant_source(2).acceptance)


def _with_region(normals, offsets, axes=2):
    real = invariant_set(axes)
    broken = InvariantSet(real.system, Polytope(normals, offsets), real.controller)
    return InvariantSource(broken, RobustMargins(0.0, SUCCESSOR, 0.0))


PUSHED = 9
"""A facet that the loops push against and that no other facet implies."""


def _dropped():
    region = invariant_set(2).region
    return _with_region(np.delete(region.normals, PUSHED, 0), np.delete(region.offsets, PUSHED))


def _flipped():
    region = invariant_set(2).region
    return _with_region(
        region.normals * np.where(np.arange(len(region.offsets)) == PUSHED, -1, 1)[:, None], region.offsets
    )


def _larger():
    region = invariant_set(2).region
    return _with_region(region.normals, 1.1 * region.offsets)


SABOTAGED = {
    "noise term dropped": _forgetful,
    "row dropped": _dropped,
    "sign flipped": _flipped,
    "set a tenth too large": _larger,
}


@pytest.mark.parametrize("axes", [1, 2])
def test_closed_loops_with_vertex_noise_keep_the_set(axes):
    assert violations(invariant_source(axes), axes) == 0


@pytest.mark.parametrize("name", list(SABOTAGED))
def test_the_loops_see_a_broken_source(name):
    assert violations(SABOTAGED[name](), 2, steps=60) > 0, f"{name}: the loops saw nothing"


# Safe actions given as a zonotope ------------------------------------------------------------------------------------


@pytest.mark.parametrize("m, g, flat", [(1, 3, False), (2, 5, False), (2, 1, True), (3, 5, False), (3, 2, True)])
def test_facets_of_a_zonotope_are_all_there(m, g, flat):
    """Points of the half-spaces are combinations of the generators: against a linear program."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(m + 10 * g)
    G = rng.normal(size=(m, g))
    N = np.asarray(facet_normals(jnp.asarray(G)))
    N, reach = np.concatenate([N, -N]), np.tile(np.abs(N @ G).sum(axis=1), 2)
    for _ in range(25):
        direction = rng.normal(size=m)
        far = linprog(-direction, N, reach + 1e-12, bounds=[(None, None)] * m)
        assert far.status == 0
        assert -far.fun == pytest.approx(np.abs(direction @ G).sum(), rel=1e-6, abs=1e-6)


def test_the_zonotope_of_safe_actions_is_a_source():
    box = Box([-1.0, -1.0], [1.0, 1.0])

    def actions(x):
        return 0.4 * x, jnp.array([[0.3, 0.2, 0.1], [0.0, 0.2, -0.1]]).astype(x.dtype)

    source = ActionZonotope(actions, box, rounding=1e-6)
    _, init, step = compiled_with(source, (BoundaryProjection(),))
    rng = np.random.default_rng(0)
    x, u = jnp.asarray(rng.uniform(-2, 2, (COUNT, 2))), jnp.asarray(rng.uniform(-1.5, 1.5, (COUNT, 2)))
    answer, after = step(init(x), x, u)
    assert np.all(after.certified)
    assert set(np.asarray(answer.status)) == {Status.accepted, Status.corrected}
    # Beyond the box there is nothing safe: a status, and an admissible action.
    answer, after = step(init(x), x + 9.0, u)
    assert np.all(answer.status == Status.uncertified) and not np.any(after.certified)
    assert np.all(np.abs(answer.action) <= 1)
    answer, _ = step(init(x), jnp.full_like(x, jnp.nan), u)
    assert np.all(answer.status == Status.uncertified) and np.all(np.abs(answer.action) <= 1)


# A zonotope with too many facets -------------------------------------------------------------------------------------------


@cache
def exhibited():
    """A zonotope inside which the platform's own set of two axes is turned: its vertices' hull, many generators."""
    invariant = invariant_set(1)
    # Of one axis: the set of the velocity-like directions in which the regulator contracts, by iterating the minimal set.
    A, B, E = (
        np.asarray(j) for j in jax.jacfwd(invariant.system.step, argnums=(0, 1, 2))(*(np.zeros(k) for k in (2, 1, 1)))
    )
    closed = A + B @ invariant.controller.gain
    # sum_k closed^k E w for k < K, scaled up by what is left over: Rakovic et al., 2005.
    parts = [np.linalg.matrix_power(closed, k) @ E * 1.05 * NOISE for k in range(16)]
    G = np.concatenate(parts, axis=1)
    left = np.max(np.abs(np.linalg.pinv(G) @ np.linalg.matrix_power(closed, 16) @ E * 1.05 * NOISE))
    G = 4.0 * G / (1 - 16 * left)
    return ZonotopeSource(invariant.system, np.zeros(2), G, invariant.controller, inside=1e-5, successor=3e-5)


def test_coefficients_are_exhibited_and_checked():
    G = exhibited().generators
    rng = np.random.default_rng(0)
    beta = rng.uniform(-1, 1, (COUNT, G.shape[1]))
    beta = beta / np.max(np.abs(beta), axis=1, keepdims=True)
    points = np.concatenate([0.98 * beta @ G.T, 1.02 * np.sign(rng.normal(size=(COUNT, 2)) @ G) @ G.T])
    find = jax.jit(jax.vmap(lambda p: bounded_coefficients(jnp.asarray(G), p, jnp.ones(G.shape[1]), iterations=300)))
    found = np.asarray(find(points))
    np.testing.assert_allclose(found @ G.T, points, atol=1e-12)
    inside = np.all(np.abs(found) <= 1, axis=1)
    assert inside[:COUNT].mean() > 0.99, "points inside are missed"
    assert not inside[COUNT:].any(), "points outside are taken for inside"


def test_the_zonotope_with_many_facets_is_a_source():
    source = exhibited()
    _, init, step = compiled_with(source, (Ray(),))
    beta = np.random.default_rng(1).uniform(-0.9, 0.9, (48, source.generators.shape[1]))
    x = jnp.asarray(np.sign(beta) * 0.5 @ source.generators.T)
    state = init(x)
    assert np.mean(state.certified) > 0.9
    keep = np.flatnonzero(state.certified)
    x, state = x[keep], jax.tree.map(lambda leaf: leaf[keep], state)
    assert np.mean(step(state, x, jax.vmap(source.controller)(x))[0].status == Status.accepted) == 1.0
    G, system = source.generators, source.system
    facets = np.stack([-G[1], G[0]], axis=1) / np.linalg.norm(G, axis=0)[:, None]
    reach = np.abs(facets @ G).sum(axis=1)
    for k in range(40):
        u = jnp.sign(jax.random.normal(jax.random.key(k), (len(x), 1))) * 2.0
        w = jnp.sign(jax.random.normal(jax.random.key(k + 999), (len(x), 1))) * NOISE
        answer, state = step(state, x, u)
        assert np.all(answer.status != Status.uncertified)
        x = jax.vmap(system.step)(x, answer.action, w)
        assert np.all(np.abs(x @ facets.T) <= reach[None] + 1e-9)
    bad, _ = step(state, jnp.full_like(x, jnp.nan), u)
    assert np.all(np.isfinite(bad.action)) and np.all(bad.status == Status.uncertified)
    # A promise is about states near the set: not about where something else has put the plant.
    _, own = step(state, x, jnp.full_like(u, jnp.nan))
    assert np.all(own.own[own.certified]) and np.any(own.certified)
    assert np.all(step(own, jnp.full_like(x, 100.0), u)[0].status == Status.uncertified)
    with pytest.raises(ValueError, match="do not span"):
        dataclasses.replace(source, generators=np.ones((2, 3)))


def test_the_source_must_fit():
    with pytest.raises(ValueError, match="box has 4 inputs"):
        ActionZonotope(lambda x: (x, x[:, None]), Box(-np.ones(4), np.ones(4)))


def test_a_source_that_is_not_affine_is_searched():
    """The local way gives verified actions as well: the same source, told not to be exact."""
    source = dataclasses.replace(invariant_source(1), affine=False)
    _, init, step = compiled_with(source, (BoundaryProjection(),))
    x, u = states(1, 32), proposals(1, 32)
    local, after = step(init(x), x, u)
    exact, _ = compiled(1, (BoundaryProjection(),))[2](init(x), x, u)
    assert np.all(after.certified)
    np.testing.assert_allclose(local.action, exact.action, atol=1e-3)
    assert eqx.tree_equal(jax.tree.map(jnp.shape, local), jax.tree.map(jnp.shape, exact))
