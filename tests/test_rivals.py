"""What ours is compared with: shields that keep what they promise under attack, and penalties that enter the reward only."""

import dataclasses
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.cli.build import _barrier, load_task
from holdfast.learn import PpoSettings, PpoTrainer, SacSettings, SacTrainer, initialise, train
from holdfast.learn.experience import PolicySettings, multiplier_after
from holdfast.learn.replay import transitions_of
from holdfast.safeguards import BackupSource, GatekeeperSource, ModelPredictiveShield, Safeguard
from holdfast.sets import Box
from holdfast.tasks.lane_keeping import LaneKeeping
from holdfast.types import Status
from learning_for_tests import UNGUARDED, Reach
from systems_for_tests import HALF, MARGINS, TASK, lane_source
from test_sabotage import safety_suite

LANE = LaneKeeping()
COMMON = {"updates": 4, "environments": 4, "window": 5, "hidden": (8,), "restart": 0.2}


@cache
def window_of(penalty):
    """A window of a system that is driven over its edge, with a penalty on that."""
    settings = PpoSettings(**COMMON, epochs=1, minibatches=1, violation_penalty=penalty)
    trainer = PpoTrainer(Reach(starts=Box([0.9, 0.2], [0.99, 0.8])), UNGUARDED, settings)
    state = trainer.init(jax.random.key(0))
    return trainer.fly(state, jax.random.key(3))


def test_a_penalty_on_violations_enters_the_reward_and_nothing_else():
    (free, unpunished), (charged, punished) = window_of(0.0), window_of(2.5)
    cost = np.asarray(unpunished.cost)
    assert 0 < cost.sum() < cost.size
    np.testing.assert_allclose(unpunished.shaped - punished.shaped, 2.5 * cost, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(punished.charged, 2.5 * cost)
    for name in ("x", "proposed", "applied", "reward", "moved", "cost", "margin", "status", "ended", "value"):
        np.testing.assert_array_equal(getattr(unpunished, name), getattr(punished, name))
    assert free.violation_cost == 0 and charged.violation_cost == 2.5


def test_a_multiplier_rises_under_violation_and_never_falls_below_nought():
    settings = PolicySettings(violation_limit=0.1, multiplier_rate=0.5)
    all_violate, none_does = jnp.ones((2, 5)), jnp.zeros((2, 5))
    risen = multiplier_after(jnp.asarray(0.2), all_violate, settings)
    assert risen == pytest.approx(0.2 + 0.5 * 10 * 0.9)
    assert multiplier_after(risen, none_does, settings) == pytest.approx(float(risen) - 0.5)
    for _ in range(20):
        risen = multiplier_after(risen, none_does, settings)
    assert risen == 0
    assert multiplier_after(jnp.asarray(0.2), all_violate, PolicySettings()) == pytest.approx(0.2)


def test_replayed_violations_cost_what_they_cost_now():
    _, window = window_of(2.5)
    settings = SacSettings(**COMMON, violation_penalty=2.5)
    stored = transitions_of(window, settings, applied=False)
    plain = transitions_of(window_of(0.0)[1], settings, applied=False)
    np.testing.assert_allclose(stored.reward, plain.reward, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(stored.cost, window.cost.reshape(-1))
    dearer = stored.charged(jnp.asarray(7.0))
    np.testing.assert_allclose(dearer.reward, stored.reward - 7 * stored.cost, rtol=1e-5, atol=1e-5)


def test_sac_learns_with_a_multiplier_that_rises():
    settings = SacSettings(**COMMON, batch=8, warm_up=0, replay=64, violation_limit=0.0, multiplier_rate=0.1)
    trainer = SacTrainer(Reach(starts=Box([0.9, 0.2], [0.99, 0.8])), UNGUARDED, settings)
    state, seen = initialise(trainer, jax.random.split(jax.random.key(0), 1)), []
    state = train(trainer, state, updates=4, chunk=4, on_chunk=lambda _, s, m: seen.extend(m["violation_cost"][0]))
    assert seen == sorted(seen) and seen[-1] > 0
    assert seen[-1] == pytest.approx(0.1 * float(state.safety.violations[0]), rel=1e-5)


def gatekeeper(kind=GatekeeperSource, prefix=5):
    implicit = dataclasses.replace(lane_source().implicit_set, horizon=20 - prefix)
    return Safeguard(kind(implicit, MARGINS, prefix), ())


class NeverLooksAtTheBackup(GatekeeperSource):
    """The nominal part is verified, what follows it is not."""

    def check(self, x, u):
        plan = GatekeeperSource.check(self, x, u)
        inside = jnp.all(self.implicit_set.safe_set.margin(plan.expected) >= 0)
        return eqx.tree_at(lambda p: p.certified, plan, inside)


class ForgetsTheFirstSteps(GatekeeperSource):
    """Plans are right, but replayed from their backup on: the held part is skipped."""

    def check(self, x, u):
        plan = GatekeeperSource.check(self, x, u)
        away = jnp.asarray(self.input_box.upper, plan.actions.dtype)
        return eqx.tree_at(lambda p: p.actions, plan, jnp.broadcast_to(away, plan.actions.shape))


SHIELDS = {
    # As published: without acceptance margins.
    "shield": lambda: ModelPredictiveShield(BackupSource(lane_source().implicit_set, None)),
    "committed shield": lambda: Safeguard(lane_source(), ()),
    "gatekeeper": gatekeeper,
}


@pytest.mark.parametrize("name", SHIELDS)
def test_shields_hold_under_attack(name):
    """Corners, random actions, NaN and infinity, a plant of another program with one ulp of noise on every step."""
    seen = safety_suite(SHIELDS[name]())
    # Looking again at every step promises nothing; what it then does is the backup's action all the same.
    assert seen["inadmissible"] == 0 and seen["violations"] == 0
    assert name == "shield" or seen["uncertified"] == 0


@pytest.mark.parametrize("kind", [NeverLooksAtTheBackup, ForgetsTheFirstSteps])
def test_a_broken_gatekeeper_is_found_out(kind):
    seen = safety_suite(gatekeeper(kind))
    assert seen["violations"] + seen["uncertified"] > 0


def test_a_gatekeeper_accepts_more_and_plans_longer_than_a_shield():
    source, longer = lane_source(), gatekeeper().source
    x = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(4), 600))
    u = HALF[None] * jax.random.uniform(jax.random.key(5), (600, 2), minval=-1.0, maxval=1.0)
    short = dataclasses.replace(longer, prefix=1)
    plans = jax.jit(jax.vmap(longer.check))(x, u)
    once = jax.jit(jax.vmap(short.check))(x, u)
    assert not np.any(np.asarray(once.certified) & ~np.asarray(plans.certified))
    assert np.sum(np.asarray(plans.certified)) > np.sum(np.asarray(once.certified))
    # What is committed is safe as it is replayed, and arrives.
    keep = np.flatnonzero(plans.certified)[:64]
    states, actions = jnp.asarray(plans.expected)[keep], plans.actions[keep]
    length = np.asarray(plans.length)[keep]
    assert length.max() > source.implicit_set.horizon - 5
    for k in range(int(length.max())):
        running = (k < length)[:, None]
        states = jnp.where(running, jax.vmap(TASK.system.step)(states, actions[:, k]), states)
        assert np.all(np.asarray(jax.vmap(TASK.safe_set.margin)(states)) >= 0)
    assert np.all(np.asarray(jax.vmap(source.implicit_set.policy.base.margin)(states)) >= 0)


def test_a_gatekeeper_asks_for_margins_of_all_its_nodes():
    acceptance = dataclasses.replace(MARGINS, path=np.full((20, 4), 1e-4), base=np.full(20, 1e-3))
    with pytest.raises(ValueError, match=r"margins for 20 nodes; plans of prefix = 5 and horizon = 20 have 25"):
        GatekeeperSource(lane_source().implicit_set, acceptance, 5)


def test_barrier_rows_by_hand_are_the_derivatives_of_the_barrier():
    """psi' + rate psi of the second-order barrier, by forward mode along the continuous dynamics."""
    rate, x, u = 2.0, jnp.array([0.7, 6.0, 0.3]), jnp.array([-1.5, 0.4])
    normals, offsets = LANE.barrier_rows(x, rate)
    flow = lambda x: LANE.system.derivative(x, u, jnp.zeros(0))  # noqa: E731
    for row, sign in ((0, -1.0), (2, 1.0)):
        h = lambda x, sign=sign: 1.8 + sign * x[0]  # noqa: E731
        first = lambda x, h=h: jax.jvp(h, (x,), (flow(x),))[1] + rate * h(x)  # noqa: E731
        second = jax.jvp(first, (x,), (flow(x),))[1] + rate * first(x)
        assert normals[row] @ u - offsets[row] == pytest.approx(float(second), rel=1e-12)
        assert normals[row + 1] @ u - offsets[row + 1] == pytest.approx(
            float(sign * u[1] + rate * (np.pi / 3 + sign * x[2])), rel=1e-12
        )


def test_a_barrier_filter_is_total_and_says_when_its_rows_cannot_be_met():
    guard = _barrier(TASK)
    step = jax.jit(lambda x, u: guard.step(guard.init(x), x, u)[0])
    calm = step(jnp.array([0.0, 5.0, 0.0]), jnp.array([0.5, -0.2]))
    assert calm.status == Status.accepted
    np.testing.assert_array_equal(calm.action, [0.5, -0.2])
    turned = step(jnp.array([1.5, 5.0, 0.2]), jnp.array([5.0, 1.0]))
    normals, offsets = LANE.barrier_rows(jnp.array([1.5, 5.0, 0.2]))
    assert turned.status == Status.corrected and np.all(normals @ turned.action >= offsets - 1e-9)
    lost = step(jnp.array([1.79, 12.0, 1.0]), jnp.array([5.0, 1.0]))
    assert lost.status == Status.uncertified
    for x in ([0.0, 5.0, 0.0], [np.nan, 5.0, 0.0], [1.79, 12.0, 1.0]):
        for u in ([np.nan, 0.0], [np.inf, -np.inf], [1e30, -1e30]):
            assert np.all(np.abs(step(jnp.array(x), jnp.array(u)).action) <= HALF)


def test_safeguards_that_a_task_cannot_have_are_refused():
    with pytest.raises(ValueError, match="nobody has derived control barrier rows for power-loop"):
        _barrier(load_task("power-loop"))
