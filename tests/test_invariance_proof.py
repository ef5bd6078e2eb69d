"""Proofs of invariant and contained ellipsoids: known answers, reference systems, refutations, spent budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from holdfast.certify import coordinates
from holdfast.certify.containment import inside, largest_inside_level
from holdfast.certify.coordinates import RotationSymmetry
from holdfast.certify.invariance import largest_invariant_level, prove_invariance
from holdfast.certify.proof import deviation_norm, invariance_robustness
from holdfast.certify.rounding import rounding_error

DT = 0.05
INPUT_LIMITS = np.array([5.0, 1.0])


def unicycle_step(x, u):
    y, v, psi = x
    psi_next = psi + DT * u[1]
    wrapped = psi_next - 2 * jnp.pi * jnp.round(psi_next / (2 * jnp.pi))
    return jnp.stack([y + DT * v * jnp.sin(psi), jnp.clip(v + DT * u[0], 0.0, 12.0), wrapped])


def closed_loop(step, equilibrium, limits, Q, R):
    """Clipped LQR around an equilibrium with zero input: e -> e_next, P (the Riccati solution) and K."""
    m = len(limits)
    A, B = (np.asarray(J) for J in jax.jacfwd(step, (0, 1))(jnp.asarray(equilibrium), jnp.zeros(m)))
    P = scipy.linalg.solve_discrete_are(A, B, Q, R)
    P = 0.5 * (P + P.T)
    K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)

    def loop(e):
        return step(equilibrium + e, jnp.clip(-(K @ e), -limits, limits)) - equilibrium

    return loop, P, K


def unsaturated_level(P, K, limits):
    """The largest c with |K e| <= limits on e'Pe <= c, in closed form."""
    return float(np.min(limits**2 / np.einsum("ij,jk,ik->i", K, np.linalg.inv(P), K)))


@pytest.fixture(scope="module")
def lane():
    return closed_loop(unicycle_step, np.array([0.0, 5.0, 0.0]), INPUT_LIMITS, np.eye(3), np.diag([0.01, 0.5]))


def pendulum_step(x, u):
    rate = x[1] + DT * (9.81 * jnp.sin(x[0]) + u[0])
    return jnp.stack([x[0] + DT * rate, rate])


def cartpole_step(x, u):
    """Cart 1 kg, pole 0.1 kg, half length 0.5 m, semi-implicit Euler at 0.02 s."""
    p, v, a, w = x
    s, c = jnp.sin(a), jnp.cos(a)
    push = (u[0] + 0.05 * w**2 * s) / 1.1
    spin = (9.81 * s - c * push) / (0.5 * (4.0 / 3.0 - 0.1 * c**2 / 1.1))
    v, w = v + 0.02 * (push - 0.05 * spin * c / 1.1), w + 0.02 * spin
    return jnp.stack([p + 0.02 * v, v, a + 0.02 * w, w])


# --- known answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a, result", [(0.9, "proved"), (-0.99, "proved"), (1.1, "refuted"), (-1.01, "refuted")])
def test_scalar_linear(a, result):
    proof = prove_invariance(lambda e: a * e, np.array([[2.0]]), 3.0)
    assert proof.result == result
    if result == "refuted":
        e = proof.counterexample["state"]
        assert 2 * e[0] ** 2 <= 3.0 < 2 * (a * e[0]) ** 2


def test_scalar_cubic_finds_the_basin():
    """x+ = x/2 + x^3 leaves [-r, r] exactly beyond r^2 = 1/2."""
    step, P = lambda e: 0.5 * e + e**3, np.eye(1)
    best = largest_invariant_level(step, P, 2.0, rtol=1e-4, delta=1e-6)
    assert best.result == "proved" and 0.499 < best.level < 0.5
    assert prove_invariance(step, P, 0.5001).result == "refuted"


def test_marginal_map_is_neither_proved_nor_refuted():
    """A rotation is invariant but does not contract: the margin fails, and that is said."""
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    proof = prove_invariance(lambda e: rotation @ e, np.eye(2), 1.0)
    assert proof.result == "not_proved" and "delta" in proof.reason and proof.counterexample is None


def test_discontinuous_map_is_not_fooled_by_a_zero_derivative():
    """round has derivative zero in JAX; beyond |x| = 0.5 this map throws the state out."""
    step, P = lambda e: 0.5 * e + 2.0 * jnp.round(e), np.eye(1)
    assert prove_invariance(step, P, 0.2).result == "proved"
    assert prove_invariance(step, P, 0.3, falsify=False).result == "refuted"


def test_undefined_step_is_never_proved():
    step = lambda e: 0.1 * jnp.clip(jnp.sqrt(0.5 - e), 0.0, 0.1)  # noqa: E731
    assert prove_invariance(step, np.eye(1), 0.2).result == "proved"
    assert prove_invariance(step, np.eye(1), 1.0, max_boxes=20_000).result == "not_proved"


# --- reference systems ---------------------------------------------------------------------------------------------


def test_lane_keeping_at_the_unsaturated_level(lane):
    step, P, K = lane
    cap = unsaturated_level(P, K, INPUT_LIMITS)
    assert cap > 1.05
    proof = prove_invariance(step, P, cap)
    assert proof.result == "proved" and proof.boxes < 200


def test_lane_keeping_with_the_clip_active(lane):
    step, P, _ = lane
    proof = prove_invariance(step, P, 13.78, delta=1e-6)
    assert proof.result == "proved" and proof.boxes < 100_000
    assert 13.7 < largest_invariant_level(step, P, 20.0).level < 13.81


@pytest.mark.parametrize("level, falsify", [(13.81, True), (14.0, True), (14.0, False)])
def test_lane_keeping_refuted(lane, level, falsify):
    step, P, _ = lane
    proof = prove_invariance(step, P, level, falsify=falsify)
    assert proof.result == "refuted" and "V rises" in proof.reason
    e = proof.counterexample["state"]
    after = np.asarray(step(e))
    assert e @ P @ e <= level < after @ P @ after


def test_proof_is_never_contradicted_by_samples(lane):
    step, P, _ = lane
    proof = prove_invariance(step, P, 13.0)
    assert proof.result == "proved"
    e = np.random.default_rng(0).normal(size=(20_000, 3))
    e *= np.sqrt(proof.level / np.einsum("bi,ij,bj->b", e, P, e))[:, None]
    after = np.asarray(jax.jit(jax.vmap(step))(e))
    assert np.einsum("bi,ij,bj->b", after, P, after).max() <= (1 - proof.delta) * proof.level


def test_float32_rounding_of_the_plant_is_absorbed(lane):
    step, P, K = lane
    proof = prove_invariance(step, P, unsaturated_level(P, K, INPUT_LIMITS))
    radius = np.sqrt(proof.level * np.diag(np.linalg.inv(P)))
    error = rounding_error(step, (-radius, radius))
    assert 0 < deviation_norm(P, error) < invariance_robustness(proof, P)
    refuted = prove_invariance(step, P, 14.0)
    assert invariance_robustness(refuted, P) == 0


def test_pendulum():
    limits = np.array([15.0])
    step, P, K = closed_loop(pendulum_step, np.zeros(2), limits, np.eye(2), 0.1 * np.eye(1))
    proof = prove_invariance(step, P, unsaturated_level(P, K, limits))
    assert proof.result == "proved" and proof.boxes < 500


def test_cartpole():
    limits = np.array([10.0])
    step, P, K = closed_loop(cartpole_step, np.zeros(4), limits, np.eye(4), 0.1 * np.eye(1))
    best = largest_invariant_level(step, P, unsaturated_level(P, K, limits), rtol=0.05, max_boxes=40_000)
    assert best.result == "proved" and best.level > 0


# --- containment ---------------------------------------------------------------------------------------------------


def test_linear_margins_are_exact(lane):
    _, P, K = lane
    cap = unsaturated_level(P, K, INPUT_LIMITS)
    margin = lambda e: jnp.concatenate([INPUT_LIMITS - K @ e, INPUT_LIMITS + K @ e])  # noqa: E731
    best = largest_inside_level(margin, P, 20.0)
    assert best.result == "proved" and best.boxes == 1
    assert (1 - 1e-5) * cap < best.level <= cap
    above = inside(margin, P, 1.001 * cap)
    assert above.result == "refuted"
    assert np.min(margin(above.counterexample["state"])) < 0


def test_nonlinear_margin():
    """The unit disc around 0 keeps clear of a disc of radius 1 at distance d exactly when d >= 2."""
    margin = lambda distance: lambda e: jnp.hypot(e[0] - distance, e[1]) - 1.0  # noqa: E731
    assert inside(margin(2.001), np.eye(2), 1.0).result == "proved"
    refuted = inside(margin(1.99), np.eye(2), 1.0)
    assert refuted.result == "refuted" and refuted.counterexample["margin"] < 0


# --- honesty -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"max_boxes": 100}, {"max_seconds": 0.0}])
def test_spent_budget_is_not_proved(lane, budget):
    step, P, _ = lane
    proof = prove_invariance(step, P, 13.78, delta=1e-6, **budget)
    assert proof.result == "not_proved" and proof.counterexample is None
    assert "nothing is known" in proof.reason
    assert inside(lambda e: 1.0 - e[0] ** 2, np.eye(2), 1.0, max_boxes=0).result == "not_proved"


def test_a_proof_is_not_a_boolean(lane):
    step, P, _ = lane
    with pytest.raises(TypeError, match="three outcomes"):
        bool(prove_invariance(step, P, 0.5))


@pytest.mark.parametrize("level, delta, P", [(0.0, 0.1, np.eye(1)), (1.0, 1.0, np.eye(1)), (1.0, 0.0, -np.eye(1))])
def test_bad_arguments(level, delta, P):
    with pytest.raises(ValueError):
        prove_invariance(lambda e: 0.5 * e, P, level, delta=delta)


def test_sloppy_coordinates_cannot_make_a_false_proof(monkeypatch):
    """Sabotage: normal coordinates off by 1e-4 must be paid for, not believed."""
    honest = coordinates._diagonalise

    def sloppy(A, P):
        S = honest(A, P)
        return S * (1 - 1e-4)

    monkeypatch.setattr(coordinates, "_diagonalise", sloppy)
    step, P = lambda e: 0.999 * e, np.eye(2)
    assert prove_invariance(step, P, 1.0, delta=1.9e-3, max_boxes=2000, falsify=False).result == "not_proved"
    assert prove_invariance(step, P, 1.0, delta=1e-3, falsify=False).result == "proved"


# --- symmetry ------------------------------------------------------------------------------------------------------


def spherical_pendulum(e):
    """Planar pair (position) and pair (velocity), a nonlinear radial spring and a swirl-free damper."""
    p, v = e[:2], e[2:]
    v = 0.9 * v - 0.1 * jnp.sin(p @ p) * p - 0.2 * p
    return jnp.concatenate([p + 0.1 * v, v])


def test_declared_symmetry_saves_boxes_and_proves_the_same():
    A = np.asarray(jax.jacfwd(spherical_pendulum)(jnp.zeros(4)))
    symmetry = RotationSymmetry(pairs=((0, 1), (2, 3)), mirror=True)
    P = symmetry.symmetrise(scipy.linalg.solve_discrete_lyapunov(A.T, np.eye(4)))
    plain = prove_invariance(spherical_pendulum, P, 3.0)
    reduced = prove_invariance(spherical_pendulum, P, 3.0, symmetry=symmetry)
    assert plain.result == reduced.result == "proved"
    assert reduced.boxes * 3 < plain.boxes
    assert "symmetry" in reduced.reason


def test_false_symmetry_is_rejected():
    symmetry = RotationSymmetry(pairs=((0, 1),))
    with pytest.raises(ValueError, match="declared symmetry"):
        prove_invariance(lambda e: jnp.array([0.5, 0.4]) * e, np.eye(2), 1.0, symmetry=symmetry)
    with pytest.raises(ValueError, match="symmetrise"):
        prove_invariance(lambda e: 0.5 * e, np.diag([1.0, 2.0]), 1.0, symmetry=symmetry)
