"""Robust control invariant sets: proofs, sabotage, refutations, sets of the user's own, and loops that try to break them."""

import importlib.resources
import json
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import InvariantSet
from holdfast.certify import (
    Interval,
    certify_invariant_set,
    duality,
    no_action_keeps,
    prove_robust_invariance,
    robust_invariance,
    verify_zonotope,
    zonotope_polytope,
)
from holdfast.sets import Box, Polytope
from holdfast.systems import ClippedFeedback, Pendulum
from holdfast.systems.cart_pole import CartPole
from holdfast.systems.household import Household
from holdfast.systems.longitudinal_quadrotor import LongitudinalQuadrotor
from systems_for_tests import NoisyCart

CART_FEASIBLE = Box([-1.0, -1.0], [1.0, 1.0])
CART_CENTRE, CART_GENERATORS = np.zeros(2), np.array([[0.2, 0.25], [0.0, -0.35]])
_WHOLE = {
    "balance-pendulum": (Pendulum(disturbance=Box([-0.1], [0.1])), [np.pi, 8]),
    "balance-cartpole": (CartPole(disturbance=Box([-0.1], [0.1])), [10, np.pi, 10, 10]),
    "balance-quadrotor": (LongitudinalQuadrotor(), [8, 8, np.pi / 12, 0.8, 1, np.pi / 2]),
}


@cache
def shipped(name) -> tuple[InvariantSet, Box]:
    if name == "household":
        system, feasible = Household(), Box([0, 18, 10], [10, 24, 100])
    else:
        system, half = _WHOLE[name]
        feasible = Box(-np.array(half), np.array(half))
    file = importlib.resources.files("holdfast.tasks") / "data" / f"{name}.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    control = ClippedFeedback(data["gain"], data["centre"], data["centre_input"], system.input_box)
    return InvariantSet(system, Polytope(data["normals"], data["offsets"]), control), feasible


@cache
def certified(name):
    return certify_invariant_set(*shipped(name), physics="test")


def boundary(name, count):
    """States next to the boundary, [count, n]."""
    invariant, feasible = shipped(name)
    region, inner = invariant.region, robust_invariance.inner_point(invariant.region)
    rays = np.random.default_rng(0).normal(size=(count, inner.size)) * feasible.half_widths
    reach = np.max(rays @ region.normals.T / (region.offsets - region.normals @ inner), axis=1)
    return inner + rays / reach[:, None] * (1 - 1e-5)


SHIPPED = ("balance-pendulum", "balance-cartpole", "balance-quadrotor", "household")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sets_are_proved(name):
    found = certified(name)
    assert found.certificate.holds, [(o.name, o.discharge, o.method) for o in found.certificate.obligations]
    for what in ("inside the feasible set", "invariant under its controller", "affine in the disturbance"):
        assert found.certificate[what].discharge == "proved"
    assert len(found.invariant.region.offsets) <= 200
    assert not np.any(found.acceptance.remainder) and np.all(found.acceptance.successor > found.acceptance.inside)
    for value in (found.invariant.region.normals, found.invariant.region.offsets, found.invariant.controller.gain):
        np.testing.assert_array_equal(value, np.asarray(value, np.float32))


@pytest.mark.parametrize("name", SHIPPED)
def test_long_adversarial_loops_in_float32(name):
    """Starts on the boundary; the disturbance is the corner that drives the tightest facet of the next state."""
    found = certified(name)
    system, region = found.invariant.system, found.invariant.region
    box = system.disturbance_box
    low, high = (np.asarray(v, np.float32) for v in box.bounds(np.float32))
    corners = jnp.asarray(np.array(np.meshgrid(*zip(low, high))).reshape(box.dimension, -1).T)

    def advance(carry, key):
        x, worst = carry
        u = found.invariant.controller(x)
        after = jax.vmap(lambda w: system.step(x, u, w))(corners)
        margins = jax.vmap(region.margin)(after).min(axis=1)
        chosen = jnp.where(
            jax.random.bernoulli(key, 0.8), jnp.argmin(margins), jax.random.randint(key, (), 0, len(corners))
        )
        short = jnp.min(region.margin(after[chosen]) - found.acceptance.inside.astype(np.float32))
        return (after[chosen], jnp.minimum(worst, short)), None

    def run(x, key):
        (_, worst), _ = jax.lax.scan(advance, (x, jnp.float32(jnp.inf)), jax.random.split(key, 500))
        return worst

    starts = jnp.asarray(boundary(name, 64), jnp.float32)
    worst = jax.jit(jax.vmap(run))(starts, jax.random.split(jax.random.key(1), 64))
    assert worst.dtype == jnp.float32 and np.all(np.asarray(worst) >= 0), worst.min()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_controller_passes_its_own_check_in_float32(name):
    """The computed robust margin of the controller's action clears `successor` at every sampled state of the boundary."""
    found = certified(name)
    system, region = found.invariant.system, found.invariant.region
    box = system.disturbance_box
    half, centre = np.float32(box.half_widths), np.float32(box.centre)

    def rows(x):
        u, w = found.invariant.controller(x), jnp.asarray(centre)
        spread = region.piece(x)[0] @ jax.jacfwd(lambda w: system.step(x, u, w))(w)
        moved = system.step(x, u, w)
        return region.margin(moved) - jnp.abs(spread) @ half - found.acceptance.successor.astype(np.float32)

    states = jnp.asarray(boundary(name, 2000), jnp.float32)
    assert np.asarray(jax.jit(jax.vmap(rows))(states)).min() >= 0


# --- sabotage ------------------------------------------------------------------------------------------------------


def sabotage(name, *, offsets=None, gain=None, noise=None):
    invariant, feasible = shipped(name)
    region, control = invariant.region, invariant.controller
    if offsets is not None:
        invariant = eqx.tree_at(lambda s: s.region, invariant, Polytope(region.normals, region.offsets * offsets))
    if gain is not None:
        changed = ClippedFeedback(control.gain * gain, control.centre, control.centre_input, control.input_box)
        invariant = eqx.tree_at(lambda s: s.controller, invariant, changed)
    if noise is not None:
        invariant = eqx.tree_at(lambda s: s.system, invariant, Pendulum(disturbance=Box([-noise], [noise])))
    return certify_invariant_set(invariant, feasible, physics="", max_seconds=10.0)


@pytest.mark.parametrize(
    "broken", [{"gain": -1.0}, {"gain": 0.0}, {"noise": 60.0}, {"offsets": np.array([1] * 4 + [1.2] * 4)}]
)
def test_sabotage_is_seen(broken):
    found = sabotage("balance-pendulum", **broken)
    assert not found.certificate.holds
    assert found.certificate["invariant under its controller"].discharge in ("refuted", "not proved")
    assert np.all(np.isinf(found.acceptance.successor))


def test_a_set_larger_than_its_feasible_box_is_refuted_with_the_state_outside():
    found = sabotage("balance-pendulum", offsets=np.array([1.03] + [1.0] * 7))
    outside = found.certificate["inside the feasible set"]
    assert outside.discharge == "refuted" and outside.numbers["coordinate"] == "theta"
    region = shipped("balance-pendulum")[0].region
    state = np.array(outside.numbers["state"])
    assert state[0] > np.pi and np.all(region.normals @ state <= region.offsets * np.array([1.03] + [1.0] * 7))


def test_wrong_multipliers_prove_nothing(monkeypatch):
    """Sabotage: a linear program that claims too small multipliers, or drops its rows, must not prove a false set."""
    honest = duality.maximise

    def liar(*args, **kwargs):
        found = honest(*args, **kwargs)
        return duality.Multipliers(found.rows, 0.5 * found.values, found.x, np.zeros_like(found.optimal), found.empty)

    invariant, _ = shipped("balance-pendulum")
    bigger = Polytope(invariant.region.normals, invariant.region.offsets * np.array([1, 1, 1, 1, 1.2, 1.2, 1.2, 1.2]))
    monkeypatch.setattr(robust_invariance, "maximise", liar)
    proof = prove_robust_invariance(invariant.system, bigger, invariant.controller, max_cells=500)
    assert proof.result == "not_proved"


def test_bounds_hold_whatever_the_multipliers():
    rng = np.random.default_rng(0)
    G = np.concatenate([rng.normal(size=(20, 3)), np.eye(3), -np.eye(3)])
    h = np.repeat(np.concatenate([rng.uniform(0.5, 2, 20), 3 * np.ones(6)])[None], 200, 0)
    c = rng.normal(size=(200, 3))
    found = duality.maximise(c, G, h, duality.corner_basis(c, 20))
    assert found.optimal.all()
    box = Interval(np.full((3, 200), -3.0), np.full((3, 200), 3.0))
    exact = np.einsum("bn,bn->b", c, found.x)
    for noise in (0.0, 1e-8, 0.3):
        values = found.values + noise * rng.normal(size=found.values.shape)
        wrong = duality.Multipliers(found.rows, values, found.x, found.optimal, found.empty)
        bound = duality.upper_bound(Interval(c.T, c.T), G, h, wrong, box)
        assert np.all(bound >= exact - 1e-12)
        if noise == 0.0:
            np.testing.assert_allclose(bound, exact, atol=1e-12)


def test_empty_and_unbounded_polytopes_are_refused():
    control = ClippedFeedback([[-1.0, -1.0]], [0.0, 0.0], [0.0], Box([-1.0], [1.0]))
    for normals, offsets, word in (([[1.0, 0.0], [-1.0, 0.0]], [1.0, 1.0], "unbounded"), (None, None, "empty")):
        region = Polytope(normals, offsets) if normals else Polytope(np.array([[1.0, 0], [-1, 0]]), [-1.0, -1.0])
        with pytest.raises(ValueError, match=word):
            prove_robust_invariance(NoisyCart(), region, control)


# --- refutation ----------------------------------------------------------------------------------------------------


def test_no_action_keeps_a_box_of_a_double_integrator():
    """At full speed at the wall no braking helps: refuted with a state, what actions break which facet, and a disturbance,
    all checked here with plain arithmetic."""
    system = NoisyCart()
    box = Polytope(np.concatenate([np.eye(2), -np.eye(2)]), np.ones(4))
    found = no_action_keeps(system, box)
    assert found is not None and np.all(box.normals @ found.state <= box.offsets)
    step = jax.jit(lambda x, u, w: system.step(x, u, w))
    for u in np.linspace(-1, 1, 201):
        broken = [
            box.normals[i] @ np.asarray(step(found.state, np.array([u]), w)) > box.offsets[i]
            for i, w in zip(found.facets, found.disturbances)
        ]
        assert any(broken)
    assert found.excess > 0 and "keeps the successor in" in found.reason


def test_nothing_refutes_a_proved_set():
    invariant, _ = shipped("balance-pendulum")
    assert no_action_keeps(invariant.system, invariant.region) is None


def test_a_controller_that_fails_is_told_from_a_set_that_fails():
    found = sabotage("balance-pendulum", gain=0.0)
    assert found.certificate["invariant under its controller"].discharge == "refuted"
    assert all(o.name != "some action keeps the set" for o in found.certificate.obligations)


# --- sets of the user's own ----------------------------------------------------------------------------------------


def test_a_zonotope_of_ones_own_is_verified_with_a_controller_that_is_found():
    found = verify_zonotope(NoisyCart(), CART_CENTRE, CART_GENERATORS, CART_FEASIBLE)
    assert found.certificate.holds, [(o.name, o.discharge, o.method) for o in found.certificate.obligations]


def test_a_zonotope_of_ones_own_is_refuted():
    found = verify_zonotope(NoisyCart(), np.zeros(2), np.diag([0.9, 0.9]), CART_FEASIBLE)
    refuted = found.certificate["some action keeps the set"]
    assert refuted.discharge == "refuted" and {"state", "actions", "disturbances"} <= set(refuted.numbers)


def test_noise_that_no_set_absorbs_is_named():
    found = verify_zonotope(NoisyCart(noise=1.5), CART_CENTRE, CART_GENERATORS, CART_FEASIBLE)
    refuted = found.certificate["some action keeps the set"]
    assert "+-[1.5]" in refuted.method and refuted.numbers["absorbed"] < 1


def test_half_spaces_of_a_zonotope():
    rng = np.random.default_rng(0)
    centre, generators = rng.normal(size=3), rng.normal(size=(3, 5))
    region = zonotope_polytope(centre, generators)
    corners = centre + rng.choice([-1.0, 1.0], (500, 5)) @ generators.T
    assert len(region.offsets) == 20 and (corners @ region.normals.T - region.offsets).max() < 1e-5
    for normal, offset in zip(region.normals, region.offsets):
        assert abs((centre + generators @ np.sign(normal @ generators)) @ normal - offset) < 1e-5


@pytest.mark.parametrize(
    "generators, word",
    [
        (np.ones((3, 4)), r"\[n, g\]"),
        (np.array([[1.0, 2.0], [1.0, 2.0]]), "flat"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "finite"),
    ],
)
def test_wrong_generators_are_refused(generators, word):
    with pytest.raises(ValueError, match=word):
        verify_zonotope(NoisyCart(), np.zeros(2), generators, CART_FEASIBLE)


def test_too_many_half_spaces_are_refused():
    with pytest.raises(ValueError, match="85008"):
        zonotope_polytope(np.zeros(6), np.random.default_rng(0).normal(size=(6, 24)))
