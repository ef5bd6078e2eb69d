"""Polytopes on the host: linear programs and Qhull against closed forms, brute force and each other."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from holdfast.sets import Ball, Box, Capsule, Polytope, Zonotope
from holdfast.sets.geometry import (
    box_polytope,
    contains_set,
    furthest,
    intersection,
    irredundant,
    is_empty,
    linear_map,
    pontryagin_difference,
    product,
    projection,
    require_body,
    room_for,
    support,
    unbounded_direction,
    vertices,
)

SQUARE = Polytope(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]), np.array([1.0, 1.0, 2.0, 2.0]))
EMPTY = Polytope(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0.0, -1.0]))
STRIP = Polytope(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), np.ones(3))
FLAT = Polytope(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), np.array([1.0, -1.0, 1.0, 1.0]))


def random_polytope(n, p, seed=0):
    """Bounded, around a point that is not the origin, in units that differ."""
    random = np.random.default_rng([n, p, seed])
    rows = np.concatenate([random.normal(size=(p, n)), np.eye(n), -np.eye(n)])
    ends = np.concatenate([random.uniform(0.3, 1.0, p), np.ones(2 * n)])
    units, centre = 10.0 ** random.uniform(-2, 2, n), random.normal(size=n)
    return Polytope(rows / units, ends + rows / units @ centre)


def brute_vertices(polytope):
    """Solves every n rows and keeps what satisfies all."""
    A, b = polytope.normals, polytope.offsets
    found = []
    for rows in map(list, itertools.combinations(range(len(b)), A.shape[1])):
        if np.linalg.matrix_rank(A[rows]) == A.shape[1]:
            x = np.linalg.solve(A[rows], b[rows])
            if np.all(A @ x <= b + 1e-9 * np.maximum(1, np.abs(b))):
                found.append(x)
    return np.unique(np.round(found, 9), axis=0)


CASES = [(1, 3), (2, 6), (3, 8), (4, 5)]


@pytest.mark.parametrize("n, p", CASES)
def test_corners_are_those_of_brute_force(n, p):
    polytope = random_polytope(n, p)
    own, brute = vertices(polytope), brute_vertices(polytope)
    assert len(own) == len(brute)
    units = np.ptp(brute, axis=0)
    apart = np.abs((own[:, None] - brute[None]) / units).max(axis=2).min(axis=1)
    assert apart.max() < 1e-7
    y = np.random.default_rng(1).normal(size=(10, n)) / units
    np.testing.assert_allclose(support(polytope, y), (brute @ y.T).max(axis=0), rtol=1e-7, atol=1e-9)
    if n == 2:
        around = own - own.mean(axis=0)
        assert np.all(np.diff(np.unwrap(np.arctan2(around[:, 1], around[:, 0]))) > 0), "counterclockwise"


@pytest.mark.parametrize("n, p", CASES)
def test_redundant_rows_go_and_the_set_stays(n, p):
    polytope = random_polytope(n, p)
    needed = irredundant(polytope)
    random = np.random.default_rng(2)
    # Implied rows, a touching one, a copy, a multiple, no constraint at all, and a row of zeros.
    weights = random.uniform(0, 1, (4, len(polytope.offsets)))
    loose = np.concatenate([weights @ polytope.normals, polytope.normals[:1], 3 * polytope.normals[1:2]])
    ends = np.concatenate(
        [weights @ polytope.offsets + [0.0, 0.1, 1.0, 9.0], polytope.offsets[:1], 3 * polytope.offsets[1:2]]
    )
    more = Polytope(np.concatenate([needed.normals, loose, np.zeros((1, n))]), np.r_[needed.offsets, ends, 0.0])
    again = irredundant(more)
    assert len(again.offsets) == len(needed.offsets) <= len(polytope.offsets)
    assert contains_set(again, polytope) and contains_set(polytope, again)
    # Every row that stays touches at a facet: n corners at least.
    on = np.abs(brute_vertices(polytope) @ needed.normals.T - needed.offsets) < 1e-6 * np.maximum(
        1, np.abs(needed.offsets)
    )
    assert np.all(on.sum(axis=0) >= n)


def test_chebyshev_ball_is_the_closed_form_and_the_largest():
    triangle = Polytope(np.array([[-1.0, 0.0], [0.0, -1.0], [3.0, 4.0]]), np.array([0.0, 0.0, 12.0]))
    centre, radius = triangle.chebyshev_ball()
    np.testing.assert_allclose([*centre, radius], [1, 1, 1])  # the triangle of sides 3, 4, 5
    polytope = random_polytope(3, 8)
    centre, radius = polytope.chebyshev_ball()
    assert contains_set(polytope, Ball(centre, radius)) and not contains_set(polytope, Ball(centre, 1.001 * radius))
    assert np.isinf(Polytope(np.array([[1.0, 0.0]]), np.zeros(1)).chebyshev_ball()[1])
    assert np.isclose(STRIP.chebyshev_ball()[1], 1)


@pytest.mark.parametrize(
    "polytope, words",
    [
        (EMPTY, "Polytope: empty, no x satisfies all 2 half-spaces"),
        (Polytope(np.zeros((1, 2)), -np.ones(1)), "empty"),
        (STRIP, r"unbounded in the direction -x\[1\]"),
        (FLAT, "flat"),
    ],
)
def test_a_set_that_is_no_body_says_which_way(polytope, words):
    for ask in (require_body, vertices):
        with pytest.raises(ValueError, match=words):
            ask(polytope)


def test_emptiness_and_boundedness():
    assert is_empty(EMPTY) and not any(map(is_empty, (SQUARE, STRIP, FLAT)))
    for seed in range(20):
        random = np.random.default_rng([3, seed])
        A, b = random.normal(size=(5, 2)), random.normal(size=5)
        found = linprog(np.zeros(2), A, b, bounds=(None, None))
        assert is_empty(Polytope(A, b)) == (found.status == 2)
        # In the plane: bounded if and only if the normals leave no gap of half a turn.
        angles = np.sort(np.arctan2(A[:, 1], A[:, 0]))
        gap = np.diff(np.r_[angles, angles[0] + 2 * np.pi]).max()
        ray = unbounded_direction(Polytope(A, np.ones(5)))
        assert (ray is None) == (gap < np.pi)
        assert ray is None or np.all(A @ ray <= 1e-9)
    with pytest.raises(ValueError, match=r"unbounded in the direction -x\[1\]"):
        furthest(STRIP, np.array([0.0, -1.0]))
    with pytest.raises(ValueError, match="empty"):
        support(EMPTY, np.eye(2))
    with pytest.raises(ValueError, match="empty"):
        irredundant(EMPTY)
    with pytest.raises(ValueError, match=r"direction has shape \(3,\)"):
        furthest(SQUARE, np.ones(3))


def test_map_intersection_and_product():
    polytope = random_polytope(2, 6)
    random = np.random.default_rng(4)
    x = vertices(polytope)
    M, shift = random.normal(size=(2, 2)), random.normal(size=2)
    mapped = linear_map(polytope, M, shift)
    np.testing.assert_allclose(
        mapped.offsets - (x @ M.T + shift) @ mapped.normals.T, polytope.offsets - x @ polytope.normals.T, atol=1e-9
    )
    for wrong in (np.ones((2, 2)), np.eye(3), np.ones((1, 2))):
        with pytest.raises(ValueError, match=r"give an invertible one of \[2, 2\]"):
            linear_map(polytope, wrong)
    both = intersection(SQUARE, linear_map(SQUARE, np.eye(2), np.array([1.0, 0.5])))
    np.testing.assert_allclose(np.sort(vertices(both), axis=0), [[0, -0.5], [0, -0.5], [1, 1], [1, 1]], atol=1e-12)
    assert is_empty(intersection(SQUARE, linear_map(SQUARE, np.eye(2), np.array([3.0, 0.0]))))
    with pytest.raises(ValueError, match="equal dimension"):
        intersection(SQUARE, random_polytope(3, 4))
    pair = product(polytope, SQUARE)
    corners = {tuple(np.round(np.r_[v, w], 6)) for v in x for w in vertices(SQUARE)}
    assert {tuple(np.round(v, 6)) for v in vertices(pair)} == corners


BOX, BALL = Box([-0.1, 0.0], [0.3, 0.2]), Ball([0.1, 0.0], 0.2)
SMALL = [
    BOX,
    Zonotope([0.1, -0.1], [[0.1, 0.1], [0.0, 0.2]]),
    BALL,
    Capsule([0.0, 0.0], [0.2, 0.1], 0.1),
    box_polytope(BOX),
]


@pytest.mark.parametrize("other", SMALL, ids=lambda s: type(s).__name__)
def test_difference_and_containment_follow_from_the_definition(other):
    angle = np.linspace(0, 2 * np.pi, 721)
    rim = np.array([furthest(other, y) for y in np.stack([np.cos(angle), np.sin(angle)], axis=1)])
    shrunk = pontryagin_difference(SQUARE, other)
    x = np.random.default_rng(5).uniform(-1.5, 1.5, (2000, 2))
    fits = np.all((x[:, None] + rim) @ SQUARE.normals.T <= SQUARE.offsets, axis=(1, 2))
    assert 200 < fits.sum() < 1800
    assert np.mean(np.all(x @ shrunk.normals.T <= shrunk.offsets, axis=1) != fits) < 0.002
    assert contains_set(SQUARE, other) and not contains_set(shrunk, SQUARE)
    np.testing.assert_allclose(
        room_for(SQUARE, other), (SQUARE.offsets - rim @ SQUARE.normals.T).min(axis=0), atol=1e-4
    )
    assert is_empty(pontryagin_difference(SQUARE, Box([-2.0, 0.0], [2.0, 0.0])))


def hull_support(corners, directions):
    return (corners @ directions.T).max(axis=0)


def test_projections_are_exact():
    zonotope = Zonotope(np.arange(5.0), np.random.default_rng(6).normal(size=(5, 7)) * [[1], [100], [0.01], [1], [1]])
    angle = np.linspace(0, 2 * np.pi, 100)
    y = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    flat = zonotope.linear_map(np.eye(5)[[1, 2]])
    for shape in (zonotope, zonotope.polytope()):
        corners = projection(shape, (1, 2))
        assert len(corners) == 14
        for units in (np.ones(2), np.array([0.01, 100.0])):
            np.testing.assert_allclose(hull_support(corners, y * units), flat.support(y * units), rtol=1e-6)
    np.testing.assert_allclose(
        np.sort(projection(Box([0.0, 1.0, 2.0], [1.0, 3.0, 4.0]), (2, 0)), axis=0), [[2, 0]] * 2 + [[4, 1]] * 2
    )
    assert projection(Box([0.0, 1.0], [1.0, 1.0]), (0, 1)).shape == (2, 2)
    np.testing.assert_allclose(hull_support(projection(BALL, (0, 1)), y), BALL.support(y), atol=1e-5)
    with pytest.raises(ValueError, match="two different coordinates"):
        projection(BOX, (1, 1))
    with pytest.raises(ValueError, match="unbounded"):
        projection(STRIP, (0, 1))
