"""Slopes from zero, and the vertex test built on them, against closed forms and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.certify import Interval, largest_contractive_level, prove_contraction
from holdfast.certify.anchored import run_anchored
from holdfast.certify.coordinates import RotationSymmetry
from holdfast.certify.interpreter import Program
from holdfast.certify.invariance import traced_loop
from holdfast.certify.vertex_test import _excess, _VertexTest


def tangled(e):
    """Products, quotients, kinks, a jump, a loop and transcendental functions."""
    x, y, z = e
    a = jnp.sin(x) * y - jnp.cos(z) * x / (2 + y * y)
    b = jnp.clip(x + y, -0.5, 1.0) ** 3 + jnp.abs(z) * jnp.exp(-x)
    c = jnp.where(y > 0.3, x * z, 2 * x * z) + jnp.round(z) * 0.1
    d = jax.lax.fori_loop(0, 3, lambda _, v: 0.5 * v * y + jnp.tanh(z), x)
    return jnp.stack([a, b, c, d, jnp.sqrt(1 + e @ e), e @ jnp.roll(e, 1), x**5 - z**2])


def test_slopes_from_zero_enclose_every_change():
    rng = np.random.default_rng(0)
    centre, half = rng.uniform(-1, 1, (3, 40)), rng.uniform(0, 0.4, (3, 40)) * (rng.random((1, 40)) < 0.8)
    boxes = Interval(centre - half, centre + half)
    start, slopes, jump = run_anchored(Program(tangled, jax.ShapeDtypeStruct((3,), np.float64)), boxes)
    function = jax.jit(jax.vmap(tangled))
    at_zero = np.asarray(function(np.zeros((1, 3))))[0]
    assert (start.lo[..., 0] <= at_zero).all() and (at_zero <= start.hi[..., 0]).all()
    for _ in range(20):
        e = centre + half * rng.uniform(-1, 1, centre.shape)
        change = np.asarray(function(e.T)).T - at_zero[:, None]
        products = np.stack([slopes.lo * e, slopes.hi * e])
        low, high = products.min(0).sum(1) - jump, products.max(0).sum(1) + jump
        assert (low - 1e-12 <= change).all() and (change <= high + 1e-12).all()


def test_the_first_factor_is_known():
    """x y with x in a box: linear in y, whatever y is, and the slope in x is zero."""
    program = Program(lambda e: (e[0] * e[1])[None], jax.ShapeDtypeStruct((2,), np.float64))
    _, slopes, jump = run_anchored(program, Interval.box([1.0, -50.0], [1.1, 50.0]))
    np.testing.assert_allclose([slopes.lo[0, :, 0], slopes.hi[0, :, 0]], [[0, 1.0], [0, 1.1]], atol=1e-12)
    assert not jump.any()


def test_matrix_inequality_against_eigenvalues():
    rng = np.random.default_rng(0)
    centre, radii = (
        rng.normal(size=(200, 4, 4)) * 0.3,
        10.0 ** rng.uniform(-5, -1, (200, 1, 1)) * rng.random((200, 4, 4)),
    )
    theta = np.full(200, 1.0)
    excess, _ = _excess(centre, radii, theta)
    corners = centre + radii * rng.choice([-1.0, 1.0], (300, 200, 4, 4))
    worst = np.linalg.norm(corners, 2, axis=(-2, -1)).max(0)
    assert (worst[excess <= 1] <= 1 + 1e-12).all()
    assert 20 < (excess <= 1).sum() < 180
    # Without radii the test is sharp.
    norm = np.linalg.norm(centre, 2, axis=(-2, -1))
    sharp = [_excess(centre, 0 * radii, (factor * norm) ** 2)[0] <= 1 for factor in (1 + 1e-9, 1 - 1e-9)]
    assert sharp[0].all() and not sharp[1].any()


def test_level_of_a_quadratic_map():
    """e+ = e/2 + e^2 shrinks exactly where |1/2 + e| < 1: up to c = 1/4."""
    step, P = lambda e: 0.5 * e + e * e, np.eye(1)
    assert prove_contraction(step, P, 0.249).result == "proved"
    found = prove_contraction(step, P, 0.2501)
    assert found.result == "not_proved" and "does not contract" in found.reason
    best = largest_contractive_level(step, P, 1.0, rtol=1e-3)
    assert best.result == "proved" and 0.247 < best.level < 0.25


@pytest.mark.parametrize("gain", [0.98, 1.001])
def test_a_known_rotation_needs_cuts_in_its_angle_only(gain):
    """(v, r)+ = (gain Rot(r) v, r / 2) keeps |v| up to the gain, however fast it turns."""

    def step(e):
        cos, sin = jnp.cos(e[2]), jnp.sin(e[2])
        turned = jnp.stack([cos * e[0] - sin * e[1], sin * e[0] + cos * e[1]])
        return jnp.concatenate([gain * turned, 0.5 * e[2:]])

    found = prove_contraction(step, np.eye(3), 1.0, delta=1e-3)
    assert found.result == ("proved" if gain < 1 else "not_proved")
    assert found.boxes < 600
    if gain < 1:
        turned = prove_contraction(step, np.eye(3), 1.0, delta=1e-3, symmetry=RotationSymmetry(((0, 1),)))
        assert turned.result == "proved"


def test_an_offset_counts():
    """e+ = 0.9 e + 0.05 leaves every ball of radius below 0.5."""
    step = lambda e: 0.9 * e + 0.05  # noqa: E731
    assert prove_contraction(step, np.eye(1), 0.52**2).result == "proved"
    assert prove_contraction(step, np.eye(1), 0.48**2, max_boxes=500).result == "not_proved"


def _jumpy(e):
    """Nonlinear in all numbers, with an offset and a kink that jumps."""
    x, y, z = e
    return 0.3 * jnp.stack([x + jnp.sin(y) * z, y - x * z, z * jnp.cos(x) + jnp.where(y > 0.2, 0.05, 0.0)]) + 0.01


def test_matrices_of_a_box_enclose_every_step_from_it():
    """T (g(e) - g(0)) = N y for a matrix N within centre +- radii, up to the jump: the radii and the offset are needed."""
    P = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]])
    test = _VertexTest(traced_loop(_jumpy, P, None, 1.0), 1.0, 1e-4)
    rng, c = np.random.default_rng(0), test.loop.coordinates
    centre, half = rng.uniform(-0.5, 0.5, (3, 60)), rng.uniform(0.05, 0.3, (3, 60))
    N, radii, theta = test.matrix(Interval(centre - half, centre + half))
    step = jax.jit(jax.vmap(_jumpy))
    at_zero, needed = np.asarray(step(np.zeros((1, 3))))[0], 0.0
    for _ in range(50):
        e = centre + half * rng.uniform(-1, 1, centre.shape)
        y = np.linalg.solve(c.S, e).T
        moved = (np.asarray(step(e.T)) - at_zero) @ c.T.T
        far = np.abs(moved - np.einsum("bij,bj->bi", N, y))
        within = np.einsum("bij,bj->bi", radii, np.abs(y))
        jump = np.abs(c.T) @ np.array([0.0, 0.0, 0.015])
        assert (far <= within + jump + 1e-12).all()
        needed = max(needed, (far / (within + jump)).max())
    assert needed > 0.3
    # What is left of the set's radius after offset and jump is what the matrix may use.
    offset = np.linalg.norm(np.abs(c.T) @ np.abs(at_zero))
    assert (np.sqrt(theta) * test.radius <= test.allowed - offset + 1e-12).all()
    crossing = (centre[1] - half[1] < 0.2) & (centre[1] + half[1] > 0.2)
    assert crossing.any() and np.sqrt(theta[crossing]).max() < np.sqrt(theta[~crossing]).max()


def test_a_small_spot_that_does_not_contract_is_found_by_its_radii():
    """Sampled border points and midpoints of boxes all contract; a narrow bump between them does not."""
    bump = lambda e: 0.5 * e * (1 + 3 * jnp.exp(-(((e - 0.7123) / 0.004) ** 2)))  # noqa: E731
    assert prove_contraction(bump, np.eye(1), 1.0, max_boxes=3000).result == "not_proved"
    assert prove_contraction(lambda e: 0.5 * e, np.eye(1), 1.0).result == "proved"


def test_a_mirror_asks_its_form_of_the_matrix():
    """P that couples what the mirror flips with what it leaves has no mirror symmetry."""
    P = np.eye(6)
    P[4, 5] = P[5, 4] = -0.9
    symmetry = RotationSymmetry(((0, 1), (2, 3)), True, (5,))
    with pytest.raises(ValueError, match="P does not have the declared symmetry"):
        symmetry.check(lambda e: 0.1 * e, P, 1.0)
    assert symmetry.symmetrise(P)[4, 5] == 0.0
