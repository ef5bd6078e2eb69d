"""Sabotage: the closed-loop safety suite passes with the real safeguard and goes red with every broken one."""

import dataclasses
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.safeguards import BackupSource, Ray, Safeguard
from holdfast.sets import SuperlevelSet
from holdfast.systems import System
from holdfast.types import Status, Unguarded
from systems_for_tests import HALF, MARGINS, TASK, certified_states, lane_base, lane_source

EPISODES, STEPS = 48, 60
LEVEL = 9.0  # in the safe set and invariant, with little to spare; 26 is neither


@cache
def _proposals():
    """[STEPS, EPISODES, 2]: constant corners, switching corners, random actions, and NaN or infinity now and then."""
    rng = np.random.default_rng(0)
    corners = HALF * rng.choice([-1.0, 1.0], (1, EPISODES, 2)) * np.ones((STEPS, 1, 1))
    switching = HALF * np.repeat(rng.choice([-1.0, 1.0], (STEPS // 10, EPISODES, 2)), 10, axis=0)
    u = np.where((np.arange(EPISODES) % 3 == 0)[None, :, None], switching, corners)
    u = np.where((np.arange(EPISODES) % 3 == 1)[None, :, None], HALF * rng.uniform(-1.5, 1.5, u.shape), u)
    u[rng.uniform(size=(STEPS, EPISODES)) < 0.02] = np.nan
    u[rng.uniform(size=(STEPS, EPISODES)) < 0.02] = np.inf
    return jnp.asarray(u)


@jax.jit
def _plant(x, u, noise):
    """Another program than the safeguard's, moving one state of the batch at a time, with one ulp of noise."""
    x = jax.lax.map(lambda xu: TASK.system.step(*xu), (x, u))
    return jnp.nextafter(x, jnp.where(noise > 0, jnp.inf, -jnp.inf).astype(x.dtype))


def _starts(guard):
    """States in the state box that the guard itself calls certified; if it calls none so, those that the real one does."""
    real = certified_states("lqr", EPISODES)[0].astype(jnp.float32)
    if isinstance(guard, Unguarded):
        return real, ()
    x = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(1), 40 * EPISODES)).astype(jnp.float32)
    state = jax.jit(jax.vmap(guard.init))(x)
    # Safe now, and promised to stay so: whatever follows is the guard's doing.
    safe = jax.vmap(TASK.safe_set.contains)(x)
    keep = np.flatnonzero(state.certified & safe)[:EPISODES]
    if len(keep) < EPISODES:
        return real, jax.jit(jax.vmap(guard.init))(real)
    return x[keep], jax.tree.map(lambda leaf: leaf[keep], state)


def safety_suite(guard: Any) -> dict[str, int]:
    """A few thousand adversarial steps: violations, uncertified steps, and actions outside the box or not finite."""
    x, state = _starts(guard)
    step = jax.jit(jax.vmap(guard.step))
    margin = jax.jit(jax.vmap(lane_source().implicit_set.safe_set.margin))
    rng = np.random.default_rng(1)
    seen = {"violations": 0, "uncertified": 0, "inadmissible": 0}
    for u in _proposals().astype(jnp.float32):
        answer, state = step(state, x, u)
        seen["inadmissible"] += int(np.sum(~np.all(np.abs(answer.action) <= HALF[None], axis=1)))
        seen["uncertified"] += int(np.sum(answer.status == Status.uncertified))
        x = _plant(x, answer.action, jnp.asarray(rng.choice([-1, 1], x.shape)))
        seen["violations"] += int(np.sum(~np.all(margin(x) >= 0, axis=1)))
    return seen


class AcceptsAll(BackupSource):
    """The accept test is always true."""

    def check(self, x, u):
        return eqx.tree_at(lambda plan: plan.certified, BackupSource.check(self, x, u), jnp.asarray(True))


class ForgetsToVerify(BackupSource):
    """Corrections come back unverified: whatever is searched is called safe, the proposal alone is checked."""

    proposed: Any = None

    def check(self, x, u):
        plan = BackupSource.check(self, x, u)
        corner = jnp.any(jnp.abs(u) >= jnp.asarray(self.input_box.half_widths, u.dtype))
        return eqx.tree_at(lambda plan: plan.certified, plan, plan.certified | ~corner)


def _with_margin(function, rows=4) -> Safeguard:
    implicit = lane_source().implicit_set
    broken = dataclasses.replace(implicit, safe_set=SuperlevelSet(function))
    acceptance = dataclasses.replace(MARGINS, path=MARGINS.path[:rows])
    return Safeguard(BackupSource(broken, acceptance), (Ray(),))


def _flipped():
    return _with_margin(lambda x: TASK.safe_set.margin(x) * jnp.array([-1, 1, 1, 1], x.dtype))


def _dropped():
    return _with_margin(lambda x: TASK.safe_set.margin(x)[1:], 3)


def _three_times():
    """Level x 9 of one that is nearly the largest: axes three times as long, past the lane's edge."""
    policy = BackupPolicy(lane_base(9 * LEVEL))
    return Safeguard(BackupSource(ImplicitInvariantSet(policy, TASK.safe_set, 20), MARGINS), (Ray(),))


SABOTAGED = {
    "no safeguard": lambda: Unguarded(*(jnp.asarray(v) for v in TASK.system.input_box.bounds(np.float32))),
    "accepts everything": lambda: Safeguard(AcceptsAll(lane_source().implicit_set, MARGINS), (Ray(),)),
    "sign of a margin flipped": _flipped,
    "constraint dropped": _dropped,
    "base set three times too large": _three_times,
    "correction not verified": lambda: Safeguard(ForgetsToVerify(lane_source().implicit_set, MARGINS), (Ray(),)),
}


def test_the_suite_is_green_with_the_real_safeguard():
    assert safety_suite(Safeguard(lane_source(), (Ray(),))) == {"violations": 0, "uncertified": 0, "inadmissible": 0}


@pytest.mark.parametrize("name", list(SABOTAGED))
def test_the_suite_is_red_with_a_sabotaged_one(name):
    seen = safety_suite(SABOTAGED[name]())
    assert sum(seen.values()) > 0, f"{name}: the safety suite saw nothing"


@pytest.mark.parametrize("level, red", [(LEVEL, False), (9 * LEVEL, True)])
def test_a_base_set_three_times_too_large_is_neither_safe_nor_invariant(level, red):
    """What turns red before any closed loop: the base set's own points violate constraints, and its flow leaves it."""
    base = lane_base(level)
    L = np.linalg.cholesky(np.linalg.inv(base.ellipsoid.shape_matrix) * level)
    directions = np.random.default_rng(0).normal(size=(4000, 3))
    e = jnp.asarray(0.999 * directions / np.linalg.norm(directions, axis=1, keepdims=True) @ L.T)
    margin = jax.vmap(lambda e: jnp.min(TASK.safe_set.margin(TASK.system.lift(e))))(e)
    after = jax.jit(jax.vmap(lambda e: base.ellipsoid.value(base.closed_loop(e))))(e)
    assert bool(np.any(margin < 0)) == red
    assert bool(np.any(after > level)) == red


class BreaksAt(System):
    """The unicycle that returns NaN in one coordinate at its k-th step, counted in an extra state."""

    state_names = (*TASK.system.state_names, "count")
    input_names = TASK.system.input_names
    dt: float = 0.05
    input_box: Any = TASK.system.input_box
    node: Any = 0
    coordinate: Any = 0

    def step(self, x, u, w=None):
        moved = TASK.system.step(x[:3], u)
        broken = (x[3] + 1 == self.node) & (jnp.arange(3) == self.coordinate)
        return jnp.append(jnp.where(broken, jnp.nan, moved), x[3] + 1)

    def equilibrium(self):
        x, u = TASK.system.equilibrium()
        return jnp.append(x, 0.0), u

    def error(self, x):
        return TASK.system.error(x[:3])

    def lift(self, e):
        return jnp.append(TASK.system.lift(e), 0.0)


def test_nan_at_any_node_of_a_batched_flow_is_rejected():
    """The largest of the traps: min(h) >= 0 is true of a flow with NaN, because XLA's min drops NaN."""
    horizon = 12
    # Tight enough that the flow from here arrives at its last nodes only: all nodes count.
    base = lane_base(0.05)
    x = jnp.array([0.15, 5.1, 0.0])

    @jax.jit
    @jax.vmap
    def plan(node, coordinate):
        system = BreaksAt(node=node, coordinate=coordinate)
        broken = dataclasses.replace(base, system=system)
        safe = SuperlevelSet(lambda x: TASK.safe_set.margin(x[:3]))
        implicit = ImplicitInvariantSet(BackupPolicy(broken), safe, horizon)
        return implicit.plan(jnp.append(x, 0.0), None)

    nodes, coordinates = (v.ravel() for v in np.meshgrid(np.arange(1, horizon + 2), np.arange(3)))
    whole = plan(np.full(3, 99), np.arange(3))
    length = int(whole.length[0])
    assert np.all(whole.certified) and length >= 6
    plans = plan(nodes, coordinates)
    counted = nodes <= length
    assert counted.sum() == 3 * length
    assert not np.any(np.asarray(plans.certified)[counted]), "a flow with NaN was certified"
    assert np.all(np.asarray(plans.margin)[counted] <= 0)
    # After the arrival the base set's invariance keeps the promise; the flow is not looked at.
    assert np.all(np.asarray(plans.certified)[~counted])
