"""Learning at toy size: a slider on a track, two states and one input."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.certify import certify_base_set
from holdfast.cli.config import TrainConfig
from holdfast.cli.training import _blank, run_keys
from holdfast.learn import (
    RunningNormaliser,
    SafeArrivalSettings,
    SafeArrivalTrainer,
    ShacSettings,
    ShacTrainer,
    TrainingDiverged,
    initialise,
    train,
)
from holdfast.learn.advantage import td_lambda
from holdfast.learn.networks import Network, TanhGaussian
from holdfast.learn.optimise import descend, limit_cotangent, start, value_and_gradient
from holdfast.safeguards import BackupSource, Ray, Safeguard
from holdfast.sets import Box
from holdfast.types import Status
from learning_for_tests import UNGUARDED, Manoeuvre, Reach, learn, numbers

TASK = Reach()
SMALL = {"updates": 6, "environments": 4, "window": 4, "hidden": (8,), "critic_steps": 2, "initial_std": 2.0}


@pytest.fixture(scope="module")
def certified():
    safety = TASK.safety
    return certify_base_set(
        TASK.system,
        TASK.safe_set,
        TASK.state_box,
        state_cost=np.asarray(safety.state_cost),
        input_cost=np.asarray(safety.input_cost),
        horizon=safety.horizon,
        level=safety.level,
    )


def test_td_lambda_is_the_recursion_written_out():
    rng = np.random.default_rng(0)
    steps, batch, discount, trace = 7, 5, 0.9, 0.8
    rewards, values = rng.normal(size=(2, steps, batch))
    terminated = rng.random((steps, batch)) < 0.2
    ended = terminated | (rng.random((steps, batch)) < 0.3)
    targets = td_lambda(*map(jnp.asarray, (rewards, values, terminated, ended)), discount, trace)
    for b in range(batch):
        for k in range(steps):
            # Mixture of n-step returns, cut at the end of the episode or of the window.
            total, weight, gain, factor = 0.0, 1.0, 0.0, 1.0
            for j in range(k, steps):
                gain += factor * rewards[j, b]
                factor *= discount
                bootstrap = 0.0 if terminated[j, b] else factor * values[j, b]
                if ended[j, b] or j == steps - 1:
                    total += weight * (gain + bootstrap)
                    break
                total += weight * (1 - trace) * (gain + bootstrap)
                weight *= trace
            assert targets[k, b] == pytest.approx(total, rel=1e-12)


def test_a_truncation_bootstraps_and_a_termination_does_not():
    one, value = jnp.ones((1, 1)), jnp.full((1, 1), 10.0)
    yes, no = jnp.ones((1, 1), bool), jnp.zeros((1, 1), bool)
    assert td_lambda(one, value, no, yes, 0.5, 0.9) == 6.0
    assert td_lambda(one, value, yes, yes, 0.5, 0.9) == 1.0


def test_the_normaliser_keeps_mean_and_variance_of_all_it_saw():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, [1.0, 20.0, 0.1], (size, 3)) for size in (5, 40, 7)]
    normaliser = RunningNormaliser.initialise(3)
    for batch in batches:
        normaliser = normaliser.update(jnp.asarray(batch))
    seen = np.concatenate(batches)
    # The start counts as a hundredth of an observation.
    np.testing.assert_allclose(normaliser.mean, seen.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(normaliser.variance, seen.var(axis=0), rtol=1e-2, atol=3e-3)
    far = jnp.full(3, 1e9)
    np.testing.assert_array_equal(normaliser(far), np.full(3, 10.0))


class Scaled(eqx.Module):
    weight: jax.Array
    physics: np.ndarray
    bias: float = 2.0


def test_physics_never_moves_and_a_broken_gradient_moves_nothing():
    model = Scaled(jnp.array([1.0, -1.0]), np.array([3.0, 4.0]))
    optimiser = optax.adam(0.1)

    def loss(model, factor):
        return jnp.sum(model.weight**2 * model.physics) * factor + model.bias, None

    state = start(optimiser, model)
    (_, _), gradient = value_and_gradient(loss, model, 1.0)
    assert [leaf.shape for leaf in jax.tree.leaves(gradient)] == [(2,)]
    moved, moved_state, bad = descend(optimiser, gradient, state, model)
    assert bad == 0 and np.all(np.abs(moved.weight) < 1)
    np.testing.assert_array_equal(moved.physics, model.physics)
    assert isinstance(moved.physics, np.ndarray) and moved.bias == 2.0

    (_, _), gradient = value_and_gradient(loss, moved, jnp.nan)
    stopped, stopped_state, bad = descend(optimiser, gradient, moved_state, moved)
    assert bad == 1
    for before, after in zip(numbers((moved, moved_state)), numbers((stopped, stopped_state))):
        np.testing.assert_array_equal(before, after)


class Climber(eqx.Module):
    """Climbs a reward that is NaN from a given update on."""

    nan_from: int

    def init(self, key):
        weight = jax.random.normal(key, (3,))
        return {"weight": weight, "optimiser": start(optax.adam(0.1), weight), "updates": jnp.zeros((), jnp.int32)}

    def update(self, state):
        reward = jnp.where(state["updates"] >= self.nan_from, jnp.nan, 1.0)
        loss = lambda weight: (jnp.sum(weight**2) * reward, None)  # noqa: E731
        (_, _), gradient = value_and_gradient(loss, state["weight"])
        weight, optimiser, bad = descend(optax.adam(0.1), gradient, state["optimiser"], state["weight"])
        return {"weight": weight, "optimiser": optimiser, "updates": state["updates"] + 1}, {"nonfinite": bad}


def test_a_nan_reward_ends_training_and_reaches_no_checkpoint():
    kept = []
    trainer = Climber(nan_from=5)
    state = initialise(trainer, jax.random.split(jax.random.key(0), 2))
    message = r"not finite between updates 4 and 6 \(seed positions \[0, 1\]\): lower the learning rate"
    with pytest.raises(TrainingDiverged, match=message):
        train(trainer, state, updates=8, chunk=2, on_chunk=lambda done, *_: kept.append(done))
    assert kept == [2, 4]


def test_a_backup_learns_to_arrive_safely(certified):
    settings = SafeArrivalSettings(updates=60, batch=64, hidden=(16,), learning_rate=1e-2)
    base = certified.base_set.at_level(1.0)
    trainer = SafeArrivalTrainer(base, TASK.safe_set, TASK.sample_state, 12, settings)
    state, metrics = learn(trainer, jax.random.split(jax.random.key(0), 1), updates=60)
    loss, share = metrics["loss"][0], metrics["certified"][0]
    assert loss[-10:].mean() < 0.8 * loss[:5].mean()
    assert share[-10:].mean() > share[:5].mean() + 0.05
    network = jax.tree.map(lambda leaf: leaf[0] if isinstance(leaf, jax.Array) else leaf, state.network)
    # The system and the box travel inside the network as NumPy numbers, and are what they were.
    np.testing.assert_array_equal(network.input_box.upper, TASK.system.input_box.upper)
    assert isinstance(network.system.input_box.upper, np.ndarray)

    def certifies(outside):
        implicit = ImplicitInvariantSet(BackupPolicy(base, outside), TASK.safe_set, 12)
        states = jax.vmap(TASK.state_box.sample)(jax.random.split(jax.random.key(1), 2000))
        return np.mean(jax.jit(jax.vmap(implicit.contains))(states))

    assert certifies(network) > certifies(None)  # better than the regulator everywhere


@pytest.mark.parametrize(
    ("gradient", "placement"),
    [("exact", "policy"), ("exact", "environment"), ("straight_through", "policy"), ("stopped", "policy")],
)
def test_training_through_the_safeguard_never_violates(certified, gradient, placement):
    implicit = ImplicitInvariantSet(BackupPolicy(certified.base_set), TASK.safe_set, TASK.safety.horizon)
    guard = Safeguard(BackupSource(implicit, certified.acceptance), (Ray(),), gradient)
    trainer = ShacTrainer(TASK, guard, ShacSettings(**SMALL, placement=placement))
    state, metrics = learn(trainer, jax.random.split(jax.random.key(0), 2))
    steps = SMALL["updates"] * SMALL["environments"] * SMALL["window"]
    safety = state.safety
    np.testing.assert_array_equal(safety.steps, [steps, steps])
    np.testing.assert_array_equal(safety.violations, [0, 0])
    np.testing.assert_array_equal(metrics["violations"], 0)
    assert np.all(safety.worst_margin >= 0)
    counts = np.asarray(safety.statuses)
    np.testing.assert_array_equal(counts.sum(axis=1), steps)
    assert np.all(counts[:, [Status.uncertified, Status.bad_action, Status.bad_state, Status.unguarded]] == 0)
    assert np.all(counts[:, Status.corrected] > 0)  # the track's end was pushed against
    interventions = metrics["interventions"].sum(axis=1) * steps / SMALL["updates"]
    np.testing.assert_allclose(interventions, steps - counts[:, Status.accepted])
    assert np.all(np.isfinite(metrics["gradient_norm"])) and np.all(metrics["gradient_norm"] > 0)


@pytest.fixture(scope="module")
def unguarded():
    """Two seeds in one program, no safeguard, far beyond the end of the track; and where they stood after 4 updates."""
    trainer = ShacTrainer(Reach(starts=Box([50.0, 0.0], [51.0, 0.0])), UNGUARDED, ShacSettings(**SMALL))
    keys = jax.random.split(jax.random.key(7), 2)
    halfway = {}
    state = train(
        trainer,
        initialise(trainer, keys),
        updates=6,
        chunk=2,
        on_chunk=lambda done, state, _: halfway.update({done: state}),
    )
    return trainer, keys, state, halfway[4]


def test_seeds_side_by_side_are_the_seeds_alone(unguarded):
    trainer, keys, together, _ = unguarded
    alone = train(trainer, initialise(trainer, keys[1:]), updates=6, chunk=2)
    assert len(numbers(together)) > 20
    for joint, single in zip(numbers(together), numbers(alone)):
        np.testing.assert_allclose(joint[1], single[0], rtol=1e-6, atol=1e-8)


def test_going_on_from_a_chunk_changes_nothing(unguarded):
    trainer, _, whole, halfway = unguarded
    np.testing.assert_array_equal(halfway.updates, [4, 4])
    resumed = train(trainer, halfway, updates=6, start=4, chunk=2)
    for expected, found in zip(numbers(whole), numbers(resumed)):
        np.testing.assert_array_equal(expected, found)


def test_a_blank_state_fits_a_checkpoint_of_the_trained_one(unguarded):
    trainer, keys, state, _ = unguarded
    blank = _blank(trainer, keys)
    kinds = [
        [(type(leaf), getattr(leaf, "dtype", None), np.shape(leaf)) for leaf in jax.tree.leaves(tree)]
        for tree in (blank, state)
    ]
    assert jax.tree.structure(blank) == jax.tree.structure(state)
    assert kinds[0] == kinds[1]


def test_without_a_safeguard_violations_are_counted_as_they_are(unguarded):
    _, _, state, _ = unguarded
    safety, steps = state.safety, SMALL["updates"] * SMALL["environments"] * SMALL["window"]
    np.testing.assert_array_equal(safety.steps, [steps, steps])
    np.testing.assert_array_equal(safety.violations, [steps, steps])  # no step was on the track
    np.testing.assert_array_equal(np.asarray(safety.statuses)[:, Status.unguarded], [steps, steps])
    np.testing.assert_array_equal(safety.uncertified_starts, [0, 0])
    assert np.all(safety.worst_margin < -45)


def test_a_seed_has_the_same_key_alone_and_among_others():
    among = run_keys(TrainConfig("reach", seed=3, seeds=3))
    for i in range(3):
        alone = run_keys(TrainConfig("reach", seed=3 + i))
        np.testing.assert_array_equal(jax.random.key_data(among[i]), jax.random.key_data(alone[0]))


def test_a_cotangent_is_shortened_and_never_turned():
    def gradient(scale, limit):
        return jax.grad(lambda x: scale * jnp.array([3.0, 4.0]) @ limit_cotangent(x, limit))(jnp.zeros(2))

    np.testing.assert_allclose(gradient(1.0, 10.0), [3.0, 4.0])
    np.testing.assert_allclose(gradient(1.0, 1.0), [0.6, 0.8])
    np.testing.assert_allclose(gradient(1e200, 1.0), [0.6, 0.8])  # its square would overflow
    np.testing.assert_array_equal(gradient(0.0, 1.0), [0.0, 0.0])
    assert np.all(np.isnan(gradient(jnp.nan, 1.0)))  # a broken gradient is still seen


def test_a_policy_starts_at_the_nominal_input():
    network = Network.initialise(jax.random.key(0), (3, 8, 2), last_gain=0.0)
    box = Box([0.0, -2.0], [4.0, 2.0])
    policy = TanhGaussian(network, jnp.zeros(2), box)
    np.testing.assert_allclose(policy(jnp.ones(3), jnp.array([1.0, 0.5])), [1.0, 0.5], rtol=1e-6)
    at_edge = policy(jnp.ones(3), jnp.array([4.0, -7.0]))
    assert np.all(box.contains(at_edge)) and np.all(np.abs(at_edge - jnp.array([4.0, -2.0])) < 0.2)


def test_whole_episodes_are_differentiated_without_the_critic():
    """The objective of a window as long as the task is the return, whatever the critic says."""
    task = Manoeuvre(starts=Box([0.0, 0.0], [0.1, 0.1]))
    settings = ShacSettings(**SMALL | {"window": 5, "initial_std": 1e-6}, discount=0.9, restart=0.0)
    trainer = ShacTrainer(task, UNGUARDED, settings)
    state = trainer.init(jax.random.key(0))
    noise = jnp.zeros((5, SMALL["environments"], 1))
    objective = lambda state: trainer._actor_loss(state.actor, state, noise, jax.random.key(1))  # noqa: E731
    loss, (experience, window) = objective(state)
    assert np.all(window.terminated[-1]) and not np.any(window.ended[:-1])
    discounts = 0.9 ** np.arange(5)[:, None]
    shaped = np.asarray(window.reward) * float(state.experience.reward_scale)
    np.testing.assert_allclose(loss, -np.mean(discounts * shaped), rtol=1e-5)
    other = eqx.tree_at(lambda s: s.target, state, jax.tree.map(lambda leaf: 1e3 + leaf, state.target))
    np.testing.assert_array_equal(loss, objective(other)[0])
    np.testing.assert_allclose(experience.last_returns, np.sum(window.reward, axis=0), rtol=1e-5)


def test_a_lost_episode_ends_and_is_charged_its_last_reward_for_the_rest():
    task = Manoeuvre(starts=Box([50.0, 0.0], [50.1, 0.0]))
    settings = ShacSettings(**SMALL | {"window": 5}, discount=0.9, restart=0.0, lost=0.5)
    trainer = ShacTrainer(task, UNGUARDED, settings)
    state = trainer.init(jax.random.key(0))
    noise = jnp.zeros((5, SMALL["environments"], 1))
    loss, (_, window) = trainer._actor_loss(state.actor, state, noise, jax.random.key(1))
    assert np.all(window.lost[0]) and np.all(window.ended[0])
    first = np.asarray(window.reward[0]) * float(state.experience.reward_scale)
    np.testing.assert_allclose(window.value[0], 4 * first, rtol=1e-5)
    # Only the first episode of each counts: its one step, and the charge.
    np.testing.assert_allclose(loss, -np.sum(first + 0.9 * 4 * first) / window.reward.size, rtol=1e-5)


def test_practice_begins_in_the_middle_only_where_the_guard_answers_for_it(certified):
    class Practised(Reach):
        def sample_practice(self, key):
            where, when = jax.random.split(key)
            return jax.random.uniform(where, (2,), minval=-1.5, maxval=1.5), jax.random.randint(when, (), 1, 20)

    implicit = ImplicitInvariantSet(BackupPolicy(certified.base_set), TASK.safe_set, TASK.safety.horizon)
    guard = Safeguard(BackupSource(implicit, certified.acceptance), (Ray(),))
    trainer = ShacTrainer(Practised(), guard, ShacSettings(**SMALL))
    episodes = jax.vmap(lambda key: trainer.collector.begin(key, 0.8))(jax.random.split(jax.random.key(0), 64))
    practised = np.asarray(episodes.t) > 0
    assert 5 < practised.sum() < 60
    assert np.all(episodes.guard.certified)
    assert np.all(np.abs(episodes.x[practised, 0]) <= 1)
    assert np.all(episodes.x[~practised, 0] >= 0.7)  # the task's own starts


def test_settings_are_the_given_ones_then_the_tasks_then_the_librarys():
    class Tuned(Reach):
        training: ClassVar = {"updates": 7, "window": 5}

    settled = TrainConfig("reach", window=9).for_task(Tuned())
    assert (settled.updates, settled.window, settled.environments) == (7, 9, 48)
    assert settled.seeds == 1 and settled.task == "reach"

    class Mistyped(Reach):
        training: ClassVar = {"update": 7}

    with pytest.raises(ValueError, match=r"Mistyped.training has 'update'; the settings are: .*updates"):
        TrainConfig("reach").for_task(Mistyped())

    class Wrong(Reach):
        training: ClassVar = {"updates": 0}

    with pytest.raises(ValueError, match="updates = 0; give a whole number >= 1"):
        TrainConfig("reach").for_task(Wrong())
