"""Zonotopes against linear programs, closed forms and brute force."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.spatial import ConvexHull

from holdfast.sets import Ball, Box, Capsule, Polytope, Zonotope
from holdfast.sets.geometry import contains_set, vertices
from holdfast.sets.zonotope import facet_bound


def random_zonotope(n, g, seed=0):
    random = np.random.default_rng([n, g, seed])
    return Zonotope(random.normal(size=n), random.normal(size=(n, g)) * 10.0 ** random.uniform(-2, 2, (n, 1)))


def corner_cloud(zonotope):
    """c + G beta for all signs: their hull is the zonotope."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=zonotope.generators.shape[1])))
    return zonotope.centre + signs @ zonotope.generators.T


def is_exhibited(zonotope, x):
    """Whether coefficients in [-1, 1] exist, by a feasibility program."""
    g = zonotope.generators.shape[1]
    found = linprog(np.zeros(g), A_eq=zonotope.generators, b_eq=x - zonotope.centre, bounds=[(-1, 1)] * g)
    return found.status == 0


SIZES = [(1, 3), (2, 5), (3, 6), (4, 7), (6, 8)]


@pytest.mark.parametrize("n, g", SIZES)
def test_half_spaces_are_those_of_the_hull_of_all_sign_combinations(n, g):
    zonotope = random_zonotope(n, g)
    cloud, own = corner_cloud(zonotope), zonotope.polytope()
    np.testing.assert_allclose(np.linalg.norm(own.normals, axis=1), 1)
    reach = (cloud @ own.normals.T).max(axis=0)
    np.testing.assert_allclose(reach, own.offsets, rtol=1e-9, atol=1e-9)
    assert len(own.offsets) == facet_bound(zonotope.generators), "in general position no two facets coincide"
    if n > 1:
        units = np.ptp(cloud, axis=0)
        hull = ConvexHull(cloud / units)
        # Of simplices that make up one facet, Qhull gives the same row.
        rows = np.round(hull.equations, 7)
        assert len(np.unique(rows, axis=0)) == len(own.offsets)
        np.testing.assert_allclose(hull.volume * np.prod(units), zonotope.volume(), rtol=1e-8)


@pytest.mark.parametrize("n, g", SIZES)
def test_containment_of_points_agrees_with_a_linear_program(n, g):
    zonotope = random_zonotope(n, g)
    random = np.random.default_rng(1)
    surface = np.array([zonotope.furthest(y) for y in random.normal(size=(20, n))])
    points = np.concatenate([surface, zonotope.centre + random.uniform(-1, 1, (20, g)) @ zonotope.generators.T])
    points = zonotope.centre + random.uniform(0.5, 1.5, (40, 1)) * (points - zonotope.centre)
    exact = [is_exhibited(zonotope, x) for x in points]
    assert 5 < sum(exact) < 35
    assert [zonotope.gauge(x) <= 1 for x in points] == exact
    margins = np.asarray(zonotope.polytope().offsets - points @ zonotope.polytope().normals.T)
    assert list((margins >= 0).all(axis=1)) == exact
    assert [bool(zonotope.contains(jnp.asarray(x))) for x in points[:3]] == exact[:3]
    # The gauge is the scale at which the point lies on the surface.
    own = zonotope.polytope()
    ratio = ((points - zonotope.centre) @ own.normals.T / (own.offsets - own.normals @ zonotope.centre)).max(axis=1)
    np.testing.assert_allclose([zonotope.gauge(x) for x in points], ratio, rtol=1e-7)


def test_margin_and_piece_are_those_of_the_half_spaces_in_the_type_of_the_state():
    zonotope = random_zonotope(2, 4)
    x = jnp.asarray(zonotope.centre, jnp.float32)
    N, d = zonotope.piece(x)
    assert N.dtype == d.dtype == zonotope.margin(x).dtype == jnp.float32
    np.testing.assert_array_equal(zonotope.margin(x), d - N @ x)
    assert not zonotope.contains(jnp.full(2, jnp.nan))
    # Also as an argument of a compiled function, where its numbers are traced.
    traced = jax.jit(lambda c, rest: jax.tree.unflatten(rest, c).margin(x), static_argnums=1)
    leaves, structure = jax.tree.flatten(zonotope)
    np.testing.assert_allclose(traced(leaves, structure), zonotope.margin(x), rtol=1e-5)


def test_support_is_reached_and_differentiable():
    zonotope = random_zonotope(3, 6)
    directions = np.random.default_rng(2).normal(size=(40, 3))
    np.testing.assert_allclose(zonotope.support(directions), (corner_cloud(zonotope) @ directions.T).max(axis=0))
    for y in directions[:5]:
        assert np.isclose(y @ zonotope.furthest(y), zonotope.support(y))
        np.testing.assert_allclose(jax.grad(zonotope.support)(jnp.asarray(y)), zonotope.furthest(y))


@pytest.mark.parametrize("n, g", [(2, 5), (3, 4)])
def test_parallel_generators_are_one_and_zeros_are_none(n, g):
    zonotope = random_zonotope(n, g)
    G = zonotope.generators
    split = np.column_stack([0.25 * G[:, :1], np.zeros((n, 2)), G[:, 1:], -0.75 * G[:, :1]])
    same = Zonotope(zonotope.centre, split)
    assert len(same.polytope().offsets) == len(zonotope.polytope().offsets)
    assert contains_set(same.polytope(), zonotope) and contains_set(zonotope.polytope(), same)
    np.testing.assert_allclose(same.volume(), zonotope.volume())


def test_flat_sets_and_points_are_closed_too():
    flat = Zonotope([1.0, 2.0, 3.0], [[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    for beta in itertools.product((-1.0, 0.3, 1.0), repeat=2):
        x = flat.centre + flat.generators @ np.array(beta)
        assert np.all(flat.polytope().offsets - flat.polytope().normals @ x >= -1e-12)
    assert not flat.contains(jnp.asarray([1.0, 2.0, 3.001])) and not flat.contains(jnp.asarray([2.5, 2.0, 3.0]))
    assert flat.gauge(np.array([1.0, 2.0, 3.001])) == np.inf and flat.volume() == 0
    with pytest.raises(ValueError, match="flat"):
        flat.sample(jax.random.key(0))
    point = Zonotope([1.0, 2.0], np.zeros((2, 0)))
    assert point.contains(jnp.asarray([1.0, 2.0])) and not point.contains(jnp.asarray([1.0, 2.1]))
    assert point.gauge(point.centre) == 0 and point.gauge(point.centre + 1) == np.inf
    assert random_zonotope(2, 4).minkowski_sum(point).generators.shape == (2, 4)


def test_what_has_too_many_facets_says_so_and_still_answers_by_linear_programs():
    random = np.random.default_rng(3)
    large = Zonotope(np.zeros(6), random.normal(size=(6, 24)))
    with pytest.raises(ValueError, match="24 generators in 6 dimensions have up to 85008 facets, more than 4096"):
        large.margin(jnp.zeros(6))
    surface = large.furthest(random.normal(size=6))
    assert large.gauge(0.999 * surface) < 1 < large.gauge(1.001 * surface)
    assert large.gauge(np.full(6, np.nan)) == np.inf
    assert large.reduced(10).shown_to_contain(large)
    with pytest.raises(ValueError, match=r"make up to 593775 tiles.*reduced"):
        Zonotope(np.zeros(6), random.normal(size=(6, 30))).sample(jax.random.key(0))


def test_linear_encoding_is_sound_and_knows_scales():
    outer = random_zonotope(3, 6)
    inside = Zonotope(outer.centre, 0.7 * outer.generators)
    assert np.isclose(outer.encoding(outer), 1) and np.isclose(outer.encoding(inside), 0.7)
    random = np.random.default_rng(4)
    shown = wrong = 0
    own = outer.polytope()
    for _ in range(60):
        mixed = outer.generators @ random.uniform(-1, 1, (6, 4)) * random.uniform(0.1, 0.6)
        inner = Zonotope(outer.centre + 0.2 * outer.generators @ random.uniform(-1, 1, 6), mixed)
        exact = np.max(
            (inner.support(own.normals) - own.normals @ outer.centre) / (own.offsets - own.normals @ outer.centre)
        )
        scale = outer.encoding(inner)
        assert scale >= exact - 1e-7, "the encoding shows what is false"
        shown, wrong = shown + (scale <= 1), wrong + (exact <= 1 < scale)
        assert outer.shown_to_contain(inner) == (scale <= 1 + 1e-9)
    assert shown > 5 and shown > 2 * wrong
    lifted = Zonotope([0.0, 0.0], [[1.0], [0.0]])
    assert lifted.encoding(Zonotope([0.0, 0.0], [[0.0], [0.1]])) == np.inf


def test_sum_map_and_difference():
    first, second = random_zonotope(2, 4), random_zonotope(2, 3, 1)
    second = second.linear_map(0.05 * np.eye(2))
    total = first.minkowski_sum(second)
    y = np.random.default_rng(5).normal(size=(50, 2))
    np.testing.assert_allclose(total.support(y), first.support(y) + second.support(y))
    M = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    shift, z = np.array([1.0, -2.0, 0.5]), np.random.default_rng(6).normal(size=(50, 3))
    np.testing.assert_allclose(first.linear_map(M, shift).support(z), first.support(z @ M) + z @ shift)
    # For zonotopes (a + b) - b gives a back.
    back = total.pontryagin_difference(second)
    assert contains_set(back, first) and contains_set(first.polytope(), back)
    # By the definition: x + y inside for all corners y of what is taken away.
    eroded = first.pontryagin_difference(second)
    corners, own = vertices(second.polytope()), first.polytope()
    x = first.centre + (np.random.default_rng(7).uniform(-2, 2, (400, 4)) @ first.generators.T) - second.centre
    fits = np.array([np.all((v + corners) @ own.normals.T <= own.offsets) for v in x])
    assert 20 < fits.sum() < 380
    np.testing.assert_array_equal(np.all(x @ eroded.normals.T <= eroded.offsets, axis=1), fits)


@pytest.mark.parametrize("n, g, most", [(2, 9, 4), (3, 8, 3), (6, 12, 9)])
def test_reduction_contains_the_original_and_keeps_extents(n, g, most):
    zonotope = random_zonotope(n, g)
    reduced = zonotope.reduced(most)
    assert reduced.generators.shape == (n, most)
    y = np.random.default_rng(8).normal(size=(200, n))
    assert np.all(reduced.support(y) >= zonotope.support(y) - 1e-9)
    np.testing.assert_allclose(reduced.bounding_box().lower, zonotope.bounding_box().lower)
    assert reduced.shown_to_contain(zonotope) and zonotope.reduced(g) is zonotope
    with pytest.raises(ValueError, match=f"give {n} or more"):
        zonotope.reduced(n - 1)


def test_bounding_box_touches():
    zonotope = random_zonotope(3, 6)
    cloud, box = corner_cloud(zonotope), zonotope.bounding_box()
    np.testing.assert_allclose(cloud.min(axis=0), box.lower)
    np.testing.assert_allclose(cloud.max(axis=0), box.upper)
    same = Zonotope.from_box(box)
    np.testing.assert_allclose(np.prod(2 * box.half_widths), same.volume())


@pytest.mark.parametrize("n, g", [(2, 6), (3, 5), (6, 7)])
def test_tiles_fill_the_set_once_and_samples_are_uniform(n, g):
    """Half-spaces through the set have the share of the volume that Monte Carlo finds; tiles do not overlap."""
    zonotope = random_zonotope(n, g)
    points = np.asarray(jax.jit(jax.vmap(zonotope.sample))(jax.random.split(jax.random.key(0), 20_000)))
    own = zonotope.polytope()
    assert np.all(points @ own.normals.T <= own.offsets + 1e-9)
    # By symmetry every half-space through the centre halves the set.
    y = np.random.default_rng(9).normal(size=(20, n)) / np.ptp(points, axis=0)
    np.testing.assert_allclose(np.mean((points - zonotope.centre) @ y.T > 0, axis=0), 0.5, atol=0.02)
    # Scaled copies hold the share s^n.
    gauge = ((points - zonotope.centre) @ own.normals.T / (own.offsets - own.normals @ zonotope.centre)).max(axis=1)
    for share in (0.2, 0.5, 0.8):
        np.testing.assert_allclose(np.mean(gauge <= share ** (1 / n)), share, atol=0.015)
    # Exactly one tile holds each point.
    tiling = zonotope.tiling()
    spans = tiling.generators[:, tiling.members].transpose(1, 0, 2)
    within = np.linalg.solve(spans[None], (points[:300, None] - tiling.middles)[..., None])[..., 0]
    assert np.all(np.sum(np.all(np.abs(within) < 1, axis=-1), axis=1) == 1)


def test_a_symmetric_polygon_is_a_zonotope_and_no_other_is():
    zonotope = random_zonotope(2, 5)
    found = Zonotope.from_polygon(zonotope.polytope())
    assert found.generators.shape == (2, 5)
    assert contains_set(found.polytope(), zonotope) and contains_set(zonotope.polytope(), found)
    for polygon, words in (
        (Polytope(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), np.ones(3)), "3 corners has no centre"),
        (Polytope(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [-1.0, 0.5]]), np.ones(4)), "no centre"),
        (Polytope(np.eye(3), np.ones(3)), r"give \[p, 2\]"),
        (Polytope(np.eye(2), np.ones(2)), "unbounded"),
    ):
        with pytest.raises(ValueError, match=words):
            Zonotope.from_polygon(polygon)


@pytest.mark.parametrize(
    "centre, generators, words",
    [
        (np.zeros(2), np.eye(3), r"centre \(2,\) and generators \(3, 3\)"),
        (np.zeros((2, 1)), np.eye(2), r"give \[n\] and \[n, g\]"),
        (np.zeros(2), np.zeros(2), "one generator a column"),
        (np.zeros(2), np.array([[1.0, np.nan], [0.0, 1.0]]), "generators holds NaN"),
        (np.array([np.inf, 0.0]), np.eye(2), "centre holds NaN or infinity"),
    ],
)
def test_bad_numbers_are_refused(centre, generators, words):
    with pytest.raises(ValueError, match=words):
        Zonotope(centre, generators)


def test_questions_across_dimensions_are_refused():
    zonotope = random_zonotope(2, 4)
    for ask in (zonotope.encoding, zonotope.minkowski_sum):
        with pytest.raises(ValueError, match="2 dimensions, the other 3"):
            ask(random_zonotope(3, 4))
    with pytest.raises(ValueError, match=r"give \[k, 2\]"):
        zonotope.linear_map(np.eye(3))
    with pytest.raises(ValueError, match="x has shape"):
        zonotope.gauge(np.zeros(3))


@eqx.filter_jit
def _margins_and_slopes(shape, x):
    return jax.vmap(jax.value_and_grad(lambda v: shape.margin(v)[0]))(x)


@pytest.mark.parametrize(
    "shape, segment",
    [
        (Ball([1.0, -2.0], 0.5), ([1.0, -2.0], [1.0, -2.0])),
        (Capsule([0.0, 1.0], [2.0, 0.0], 0.5), ([0.0, 1.0], [2.0, 0.0])),
        (Capsule([1.0, 1.0], [1.0, 1.0], 0.5), ([1.0, 1.0], [1.0, 1.0])),
    ],
)
def test_balls_and_capsules_against_points_of_their_segment(shape, segment):
    a, b = map(np.array, segment)
    line = a + np.linspace(0, 1, 2001)[:, None] * (b - a)
    x = np.random.default_rng(10).uniform(-2, 3, (200, 2))
    away = np.linalg.norm(x[:, None] - line, axis=2).min(axis=1)
    margins, slopes = _margins_and_slopes(shape, jnp.asarray(np.concatenate([a[None], x])))
    margins = margins[1:]
    np.testing.assert_allclose(margins, 0.5 - away, atol=1e-5)
    y = np.random.default_rng(11).normal(size=(20, 2))
    reach = (line @ y.T).max(axis=0) + 0.5 * np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(shape.support(y), reach)
    np.testing.assert_allclose([v @ shape.furthest(v) for v in y], reach)
    assert np.all(np.isfinite(slopes)), "the root's slope at zero"
    assert not shape.contains(jnp.full(2, jnp.nan)) and shape.contains(jnp.asarray(a))


def test_balls_and_capsules_refuse_what_is_no_size():
    for radius in (-1.0, np.nan, np.inf):
        for make in (lambda r: Ball([0.0], r), lambda r: Capsule([0.0], [1.0], r)):
            with pytest.raises(ValueError, match="radius"):
                make(radius)
    with pytest.raises(ValueError, match="centre"):
        Ball([0.0, np.nan], 1.0)
    with pytest.raises(ValueError, match="NaN"):
        Capsule([0.0], [np.nan], 1.0)
    with pytest.raises(ValueError, match="two vectors of one length"):
        Capsule([0.0], [1.0, 2.0], 1.0)
    box = Box([-1.0, 0.0], [3.0, 1.0])
    np.testing.assert_allclose(box.support(np.array([[1.0, -1.0], [-1.0, 2.0]])), [3.0, 3.0])
