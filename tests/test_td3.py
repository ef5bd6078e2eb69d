"""Phase 1 by TD3, at toy size: a slider between two walls; two seeds, one compiled program for nearly all of it."""

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from holdfast.backup import BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.cli.build import of_seed
from holdfast.cli.config import TrainConfig
from holdfast.cli.training import Interrupt, _blank, train_run
from holdfast.learn import Td3Settings, Td3Trainer, initialise
from holdfast.learn.loop import compiled
from holdfast.learn.replay import Transitions
from holdfast.runs import RunDirectory, read_header
from holdfast.tasks import make_task
from learning_for_tests import Reach, numbers

TASK, HORIZON, HALF = Reach(), 20, 200
RATES = {"actor_rate": 3e-3, "critic_rate": 3e-3, "target_smoothing": 0.02, "update_ratio": 0.25}
SIZES = {"updates": 2 * HALF, "environments": 8, "window": 8, "batch": 64, "hidden": (32,), "replay": 26_000}
SETTINGS = Td3Settings(**SIZES, **RATES, warm_up=200)
BASE = design_base_controller(TASK.system, (1.0, 1.0), (1.0,), 1.0)
GOAL, FAILED, BETWEEN = jnp.array([0.1, 0.0]), jnp.array([1.2, 0.0]), jnp.array([-0.9, 0.3])


def trainer_of(settings):
    return Td3Trainer(BASE, TASK.safe_set, TASK.sample_state, HORIZON, settings)


class Course(NamedTuple):
    trainer: Td3Trainer
    keys: jax.Array
    advance: object
    begun: object
    halfway: object
    done: object
    metrics: list


@pytest.fixture(scope="module")
def course():
    """A whole training of two seeds in two chunks."""
    trainer, keys = trainer_of(SETTINGS), jax.random.split(jax.random.key(3), 2)
    begun = initialise(trainer, keys)
    advance = compiled(trainer, begun)
    halfway, first = advance(begun, HALF)
    done, second = advance(halfway, HALF)
    return Course(trainer, keys, advance, begun, halfway, done, [first, second])


@pytest.fixture(scope="module")
def learned(course):
    """Networks of the first seed."""
    return of_seed(course.done.learned, 0)


def test_critics_are_exact_where_the_value_is_known(course, learned):
    trainer, u = course.trainer, jnp.array([0.4])
    values = lambda x: trainer.values(learned.critic, learned.network.scale, x, u)  # noqa: E731
    np.testing.assert_array_equal(values(GOAL), [1.0, 1.0])
    np.testing.assert_array_equal(values(FAILED), [0.0, 0.0])
    seen = jnp.concatenate([BETWEEN / learned.network.scale, u])
    raw = np.array([float(critic(seen)[0]) for critic in (learned.critic.first, learned.critic.second)])
    np.testing.assert_allclose(values(BETWEEN), 1 / (1 + np.exp(-raw)), rtol=1e-6)


@pytest.fixture(scope="module")
def flight(course):
    """(state, one step of eight episodes): every second one is at its last step, and one of them flies into the wall."""
    state = of_seed(course.done, 0)
    x = jnp.tile(BETWEEN, (8, 1)).at[2].set(jnp.array([0.95, 1.0]))
    age = jnp.where(jnp.arange(8) % 2 == 0, HORIZON - 1, 0).astype(jnp.int32)
    state = eqx.tree_at(lambda s: (s.x, s.age), state, (x.astype(state.x.dtype), age))
    return state, trainer_of(replace(SETTINGS, window=1)).fly(state, jax.random.key(0))


def check_flight(trainer, state, flown):
    """What is replayed, and what critics are to learn from it."""
    x, age, seen, counts = flown
    np.testing.assert_array_equal(seen.x, state.x)
    np.testing.assert_allclose(seen.x_next, jax.vmap(TASK.system.step)(seen.x, seen.applied), rtol=1e-12)
    # Who is over begins anew; the successor in the replay is the old episode's.
    ended = np.arange(8) % 2 == 0
    assert np.all(age[ended] == 0) and np.all(age[~ended] == 1)
    np.testing.assert_array_equal(np.any(np.asarray(x) != np.asarray(seen.x_next), axis=1), ended)
    assert counts == {"time_outs": 3 / 8, "violations": 1 / 8, "arrivals": 0}
    # A time-out says nothing about the value: it bootstraps.
    targets, learned = trainer.targets(state.learned, seen, jnp.zeros((8, 1))), state.learned
    actions = jax.vmap(learned.target_network)(seen.x_next)
    values = jax.vmap(lambda x, u: trainer.values(learned.target_critic, learned.network.scale, x, u))
    wanted = trainer.discount * np.min(values(seen.x_next, actions), axis=1)
    np.testing.assert_allclose(targets, wanted, rtol=1e-9)
    np.testing.assert_array_equal(wanted > 0, np.arange(8) != 2)


def test_a_flight_keeps_true_successors_and_time_outs_bootstrap(course, flight):
    check_flight(course.trainer, *flight)


def time_outs_end(x, age, seen, counts):
    return x, age, eqx.tree_at(lambda s: s.bootstrap, seen, jnp.where(age == 0, 0.0, seen.bootstrap)), counts


def successors_are_new_starts(x, age, seen, counts):
    return x, age, eqx.tree_at(lambda s: s.x_next, seen, x), counts


@pytest.mark.parametrize("sabotage", [time_outs_end, successors_are_new_starts])
def test_sabotage_of_what_is_replayed_is_seen(sabotage, course, flight):
    state, flown = flight
    with pytest.raises(AssertionError):
        check_flight(course.trainer, state, sabotage(*flown))


def test_targets_are_exact_where_the_value_is_known(course, learned):
    states = jnp.stack([GOAL, FAILED, BETWEEN])
    nothing, u = jnp.zeros((3, 0)), jnp.zeros((3, 1))
    batch = Transitions(nothing, nothing, states, states, u, u, jnp.zeros(3), jnp.ones(3), jnp.zeros(3))
    targets = course.trainer.targets(learned, batch, u)
    beta = 0.25 ** (1 / HORIZON)
    np.testing.assert_allclose(targets[:2], [beta, 0.0])
    assert 0 < targets[2] < beta


def test_starts_widen_to_the_whole_region(course):
    trainer = course.trainer
    widths = []
    for updates, reach in ((0, 0.3), (60, 0.65), (120, 1.0), (400, 1.0)):
        assert float(trainer.reach(jnp.asarray(updates))) == pytest.approx(reach)
        starts = np.abs(np.asarray(trainer.starts(jax.random.key(5), jnp.asarray(updates))))
        assert np.all(starts <= reach + 1e-6)
        widths.append(starts.max())
    assert widths[0] < widths[1] < widths[2] == widths[3]


def test_two_seeds_learn_to_arrive(course):
    certified = [np.asarray(each["certified"]) for each in course.metrics]
    assert np.all(certified[1][:, -50:].mean(axis=1) > certified[0][:, :20].mean(axis=1) + 0.2)
    loss = np.asarray(course.metrics[0]["loss"])
    assert np.all(np.isnan(loss[:, :3])) and np.all(np.isfinite(loss[:, 3:]))  # warm-up, 64 steps an update
    assert not any(np.any(each["nonfinite"]) for each in course.metrics)
    states = jax.vmap(TASK.state_box.sample)(jax.random.split(jax.random.key(1), 2000))

    @jax.jit
    def certifies(network):
        implicit = ImplicitInvariantSet(BackupPolicy(BASE, network), TASK.safe_set, HORIZON)
        return jnp.mean(jax.vmap(implicit.contains)(states))

    regulator = certifies(None)
    assert all(certifies(of_seed(course.done.network, seed)) > regulator + 0.05 for seed in range(2))
    np.testing.assert_array_equal(course.done.network.scale, course.begun.network.scale)
    np.testing.assert_array_equal(course.done.learned.target_network.scale, course.begun.network.scale)


def test_going_on_with_phase_1_gives_the_same_bits(course):
    again, _ = course.advance(course.halfway, HALF)
    assert jax.tree.structure(_blank(course.trainer, course.keys)) == jax.tree.structure(course.done)
    assert len(numbers(again)) > 20
    for expected, found in zip(numbers(course.done), numbers(again)):
        np.testing.assert_array_equal(expected, found)


def test_the_policy_pays_for_actions_and_is_paid_by_the_first_critic(course, learned):
    states = jax.vmap(TASK.state_box.sample)(jax.random.split(jax.random.key(1), 50))
    free, value = course.trainer.regret(learned.network, learned.critic, states)
    paid, _ = trainer_of(replace(SETTINGS, action_penalty=0.5)).regret(learned.network, learned.critic, states)
    actions = jax.vmap(learned.network)(states)  # u* = 0, half-width 1
    assert float(paid - free) == pytest.approx(0.5 * float(jnp.mean(jnp.sum(actions**2, axis=1))), rel=1e-9)
    other = eqx.tree_at(lambda c: c.second, learned.critic, learned.critic.first)
    assert free == -value == course.trainer.regret(learned.network, other, states)[0]


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"replay = 10 holds less than the 512 steps of an update"):
        Td3Settings(replay=10)
    with pytest.raises(ValueError, match=r"discount = 1\.5; give a number between 0 and 1"):
        Td3Settings(discount=1.5)


def test_the_config_knows_both_ways():
    task = make_task("power-loop")
    through, td3 = (TrainConfig("power-loop", backup_training=way).for_task(task) for way in ("simulator", "td3"))
    assert (through.backup_updates, td3.backup_updates) == (600, 4000)
    assert through.updates == td3.updates
    asked = TrainConfig("power-loop", backup_training="td3", backup_updates=7).for_task(task)
    assert asked.backup_updates == 7
    with pytest.raises(ValueError, match=r"backup_training = 'td3'; seeker is kept by a robust control invariant set"):
        TrainConfig("seeker", backup_training="td3").for_task(make_task("seeker"))


def test_phase_1_by_td3_goes_on_where_it_was_stopped(tmp_path):
    """A run that was stopped in the middle of phase 1 ends it with the same bits as one that was not, replay and all."""
    task = make_task("lane-keeping")
    asked = TrainConfig(task.name, safeguard="none", backup_training="td3", backup_updates=50, level=5.0).for_task(task)

    def run(name, at, resume=False):
        """The directory of a run that is interrupted after so many updates of phase 1."""
        directory = RunDirectory.open(tmp_path / name) if resume else RunDirectory.create(tmp_path / name, asked)
        with Interrupt() as interrupt:

            def progress(phase, done, updates, row):
                interrupt.requested |= phase == "backup" and done == at

            assert train_run(asked, directory, resume=resume, progress=progress, interrupt=interrupt) is None
        assert read_header(directory.path / "checkpoint")["updates"] == at
        return directory

    with jax.enable_x64(False):
        whole = run("whole", 50)
        run("stopped", 25)
        resumed = run("stopped", 50, resume=True)
    assert resumed.read_config(TrainConfig).backup_training == "td3"
    rows = resumed.read_metrics()
    assert [row["iteration"] for row in rows] == [25, 50] and {"certified", "violations", "loss"} <= set(rows[0])
    expected, found = (load_file(each.path / "checkpoint" / "state.safetensors") for each in (whole, resumed))
    assert expected.keys() == found.keys() and len(found) > 30
    for name in expected:
        np.testing.assert_array_equal(expected[name], found[name])
