"""Sets: margins, containment, rounding, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.sets import Box, Ellipsoid, Polytope, SuperlevelSet, length

BOX = Box([-1.0, 0.0], [2.0, 0.3])
P = np.array([[2.0, 0.5], [0.5, 1.0]])
SETS = {
    "box": (BOX, [0.5, 0.1], [2.1, 0.1]),
    "ellipsoid": (Ellipsoid(P, 2.0), [0.5, -0.5], [2.0, 0.0]),
    "polytope": (Polytope(np.array([[1.0, 1.0], [-1.0, 0.0]]), np.array([1.0, 0.0])), [0.2, 0.3], [0.9, 0.3]),
    "superlevel": (SuperlevelSet(lambda x: 1 - x @ x, ("disc",), ("m²",)), [0.2, 0.3], [0.9, 0.9]),
}


@pytest.mark.parametrize("name", list(SETS))
def test_margin_says_inside_and_outside_and_nan_is_in_no_set(name):
    s, inside, outside = SETS[name]
    assert s.contains(jnp.asarray(inside)) and not s.contains(jnp.asarray(outside))
    assert np.all(s.margin(jnp.asarray(inside)) >= 0) and np.any(s.margin(jnp.asarray(outside)) < 0)
    for bad in (np.nan, np.inf, -np.inf):
        assert not s.contains(jnp.asarray([bad, bad]))
    assert not s.contains(jnp.asarray([np.nan, inside[1]]))
    points = jax.random.uniform(jax.random.key(0), (64, 2), minval=-2, maxval=2)
    batch = jax.jit(jax.vmap(s.contains))(points)
    assert list(batch) == [bool(s.contains(p)) for p in points]
    assert s.margin(points[0].astype(jnp.float32)).dtype == jnp.float32


def test_box_rounds_inwards_and_clips_to_the_bit():
    box = Box([-0.1, -0.3], [0.1, 0.7])
    lower, upper = box.bounds(np.float32)
    assert np.all(np.asarray(lower, np.float64) >= box.lower) and np.all(np.asarray(upper, np.float64) <= box.upper)
    assert np.all(np.asarray(upper - lower, np.float64) > 0.9999 * 2 * box.half_widths)
    far = jnp.asarray([1e30, -jnp.inf], jnp.float32)
    assert box.contains(box.clip(far))
    inside = jnp.asarray([0.05, -0.2999999], jnp.float32)
    np.testing.assert_array_equal(box.clip(inside), inside)
    np.testing.assert_allclose(BOX.margin(jnp.asarray([0.0, 0.1])), [1.0, 0.1, 2.0, 0.2])
    samples = jax.vmap(BOX.sample)(jax.random.split(jax.random.key(1), 500))
    assert np.all(jax.vmap(BOX.contains)(samples))
    np.testing.assert_allclose(samples.mean(axis=0), BOX.centre, atol=0.1)


def test_ellipsoid_radii_are_its_support_along_the_axes():
    ellipsoid = Ellipsoid(P, 2.0)
    angle = np.linspace(0, 2 * np.pi, 20_001)
    L = np.linalg.cholesky(np.linalg.inv(P) * 2.0)
    boundary = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ L.T
    np.testing.assert_allclose(np.max(boundary, axis=0), ellipsoid.bounding_radii(), rtol=1e-6)
    margins = jax.vmap(ellipsoid.margin)(jnp.asarray(boundary))
    np.testing.assert_allclose(margins, 0, atol=1e-12)
    assert ellipsoid.margin(jnp.zeros(2))[0] == 1


def test_polytope_equals_the_box_it_describes():
    normals = np.concatenate([-np.eye(2), np.eye(2)])
    polytope = Polytope(normals, np.concatenate([-BOX.lower, BOX.upper]))
    for x in jax.random.uniform(jax.random.key(2), (20, 2), minval=-2, maxval=2):
        np.testing.assert_allclose(polytope.margin(x), BOX.margin(x), atol=1e-15)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Box([0.0], [1.0, 2.0]), ["Box", "(1,)", "(2,)"]),
        (lambda: Box([0.0, 3.0], [1.0, 2.0]), ["lower[1] = 3.0", "upper[1] = 2.0"]),
        (lambda: Box([np.nan], [1.0]), ["lower[0] = nan"]),
        (lambda: Ellipsoid(np.ones((2, 3)), 1.0), ["Ellipsoid", "(2, 3)", "square"]),
        (lambda: Ellipsoid(np.diag([1.0, -1.0]), 1.0), ["positive definite"]),
        (lambda: Ellipsoid(np.eye(2), 0.0), ["level = 0.0", "positive"]),
        (lambda: Polytope(np.ones((2, 3)), np.ones(3)), ["(2, 3)", "(3,)"]),
        (lambda: Polytope(np.full((1, 1), np.nan), np.ones(1)), ["NaN"]),
    ],
)
def test_wrong_sets_are_refused(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def test_a_length_keeps_what_is_not_a_number_and_has_a_derivative_at_zero():
    assert jnp.isnan(length(jnp.array([jnp.nan, 1.0])))
    np.testing.assert_array_equal(jax.grad(length)(jnp.zeros(2)), [0, 0])
    np.testing.assert_allclose(jax.grad(length)(jnp.array([3.0, 4.0])), [0.6, 0.8])
