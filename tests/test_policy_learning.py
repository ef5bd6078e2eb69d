"""PPO and SAC, and what they share with SHAC, at toy size."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from holdfast.cli.training import _blank
from holdfast.learn import (
    ALGORITHMS,
    NormalisedPolicy,
    PpoSettings,
    PpoTrainer,
    SacSettings,
    SacTrainer,
    initialise,
    train,
)
from holdfast.learn.advantage import generalised_advantage
from holdfast.learn.experience import tamed
from holdfast.learn.loop import compiled
from holdfast.learn.networks import Network, TanhGaussian, log_density
from holdfast.learn.replay import Replay, Transitions, transitions_of
from holdfast.sets import Box
from holdfast.tasks import reset, rollout
from holdfast.types import Safeguarded, Status
from learning_for_tests import UNGUARDED, Manoeuvre, Reach, numbers

COMMON = {"updates": 6, "environments": 4, "window": 5, "hidden": (8,), "restart": 0.2, "lost": float("inf")}
SMALL = {
    "ppo": PpoSettings(**COMMON, epochs=2, minibatches=2),
    "sac": SacSettings(**COMMON, batch=8, warm_up=25, replay=64, update_ratio=0.2),
}


class Replaces(eqx.Module):
    """A guard that applies 0.25 whatever is proposed, and is sure of it right of 0.75 m only."""

    def init(self, x):
        return ()

    def step(self, state, x, u):
        action = 0.25 + 0.0 * u
        status = jnp.where(x[0] >= 0.75, Status.corrected, Status.uncertified).astype(jnp.int32)
        return Safeguarded(action, status, jnp.zeros((), u.dtype), action - u), state


@pytest.fixture(scope="module")
def replaced():
    """PPO's trainer through a guard that replaces every action, its state, and a window with what follows it."""
    trainer = PpoTrainer(Reach(starts=Box([0.7, 0.2], [0.95, 0.8])), Replaces(), SMALL["ppo"])
    state = trainer.init(jax.random.key(0))
    return trainer, state, *trainer.fly(state, jax.random.key(1))


def test_advantages_are_the_sum_of_differences_written_out():
    rng = np.random.default_rng(0)
    steps, batch, discount, trace = 7, 5, 0.9, 0.8
    rewards, values, following = rng.normal(size=(3, steps, batch))
    terminated = rng.random((steps, batch)) < 0.2
    ended = terminated | (rng.random((steps, batch)) < 0.3)
    # Within an episode the successor is the next state.
    following[:-1] = np.where(ended[:-1], following[:-1], values[1:])
    found, targets = generalised_advantage(
        *map(jnp.asarray, (rewards, values, following, terminated, ended)), discount, trace
    )
    for b in range(batch):
        for k in range(steps):
            total, weight = 0.0, 1.0
            for j in range(k, steps):
                bootstrap = 0.0 if terminated[j, b] else discount * following[j, b]
                total += weight * (rewards[j, b] + bootstrap - values[j, b])
                weight *= discount * trace
                if ended[j, b]:
                    break
            assert found[k, b] == pytest.approx(total, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(targets, found + values, rtol=1e-12)


def test_log_densities_integrate_to_one_and_hold_far_out():
    mean, log_std = np.array([0.4]), np.array([-0.3])
    density = jax.jit(lambda raw: log_density(raw, jnp.asarray(mean), jnp.asarray(log_std)))
    total, _ = integrate.quad(lambda a: np.exp(density(jnp.arctanh(jnp.array([a])))), -1, 1, limit=200)
    assert total == pytest.approx(1.0, abs=1e-6)
    raw = np.linspace(-3, 3, 7)
    expected = stats.norm.logpdf(raw, mean, np.exp(log_std)) - np.log(1 - np.tanh(raw) ** 2)
    np.testing.assert_allclose([density(jnp.array([r])) for r in raw], expected, rtol=1e-9)
    # 1 - tanh(40)^2 rounds to zero; its logarithm is 2 log 2 - 80 all the same.
    far = density(jnp.array([40.0])) - stats.norm.logpdf(40.0, mean, np.exp(log_std))[0]
    assert far == pytest.approx(80 - 2 * np.log(2), rel=1e-9)


def test_noise_may_depend_on_the_observation():
    box = Box([-2.0, 0.0], [2.0, 4.0])
    policy = TanhGaussian.initialise(jax.random.key(0), 3, (8,), box, 0.5, std_of_state=True)
    wild = eqx.tree_at(lambda p: p.network, policy, Network.initialise(jax.random.key(1), (3, 8, 4), last_gain=3.0))
    observation, nominal = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 2.0])
    mean, log_std = wild.gaussian(observation, nominal)
    np.testing.assert_allclose(log_std, np.log(0.5) + np.asarray(wild.network(observation))[2:], rtol=1e-6)
    np.testing.assert_array_equal(wild(observation, nominal), wild.squashed(mean))
    assert np.all(box.contains(wild.squashed(jnp.array([50.0, -50.0]))))


def test_probabilities_are_of_the_proposals_whatever_is_applied(replaced):
    _, state, _, window = replaced
    np.testing.assert_array_equal(window.applied, np.full_like(window.applied, 0.25))
    _, _, found = window.extra
    observations = jax.vmap(jax.vmap(state.experience.normaliser))(window.observation)
    means = np.asarray(jax.vmap(jax.vmap(state.actor.network))(observations))
    raw = np.arctanh(np.asarray(window.proposed, np.float64))
    expected = stats.norm.logpdf(raw, means, 0.5) - np.log(1 - np.tanh(raw) ** 2)
    np.testing.assert_allclose(found, expected[..., 0], rtol=1e-3, atol=1e-4)


def test_the_shaped_reward_charges_what_the_guard_moved(replaced):
    _, state, _, window = replaced
    moved = (np.asarray(window.proposed) - 0.25)[..., 0] ** 2
    np.testing.assert_allclose(window.moved, moved, rtol=1e-5, atol=1e-9)
    scaled = np.asarray(window.reward) * float(state.experience.reward_scale)
    np.testing.assert_allclose(window.shaped, scaled - moved, rtol=1e-5, atol=1e-6)


def test_counts_of_safety_are_those_of_numpy(replaced):
    _, _, experience, window = replaced
    safety, status = experience.safety, np.asarray(window.status)
    violated = np.asarray(window.x_next)[..., 0] > 1
    promised = status != Status.uncertified
    assert safety.steps == status.size == 20 and violated.any()
    assert safety.violations == np.sum(violated & promised)
    assert safety.unpromised_violations == np.sum(violated & ~promised)
    np.testing.assert_array_equal(safety.statuses, [np.sum(status == each) for each in Status])
    np.testing.assert_allclose(safety.worst_margin, 1 - np.max(np.asarray(window.x_next)[..., 0]), rtol=1e-6)


def test_an_episode_that_ended_is_another_one_in_the_next_step(replaced):
    _, _, experience, window = replaced
    ended, x, x_next = (np.asarray(each) for each in (window.ended, window.x, window.x_next))
    assert 0 < ended[:-1].sum() < ended[:-1].size
    np.testing.assert_array_equal(x[1:][~ended[:-1]], x_next[:-1][~ended[:-1]])
    begun = x[1:][ended[:-1]]
    assert np.all(begun[:, 0] >= 0.7) and np.all(begun[:, 0] <= 0.95)
    np.testing.assert_array_equal(np.asarray(experience.episodes.x)[~ended[-1]], x_next[-1][~ended[-1]])


@pytest.mark.parametrize("finite", [True, False])
def test_truncations_bootstrap_from_the_true_successor_and_terminations_do_not(finite):
    """Both algorithms, on episodes of five steps that begin with the window."""

    class Watched(Manoeuvre):
        pass

    Watched.finite = finite
    task, settings = Watched(), PpoSettings(**COMMON | {"restart": 0.0}, epochs=1, minibatches=1)
    trainer = PpoTrainer(task, UNGUARDED, settings)
    state = trainer.init(jax.random.key(0))
    state = eqx.tree_at(lambda s: s.experience.episodes.t, state, jnp.zeros(4, jnp.int32))
    _, window = trainer.fly(state, jax.random.key(1))
    assert np.all(window.ended[-1]) and not np.any(window.ended[:-1])
    values = jax.vmap(lambda o: settings.value(state.critic, state.experience.normaliser(o)))
    expected = np.zeros(4) if finite else values(window.next_observation[-1])
    np.testing.assert_allclose(window.value[-1], expected, rtol=1e-6, atol=1e-9)
    targets = trainer._batch(state, window).target.reshape(5, 4)
    np.testing.assert_allclose(targets[-1], window.shaped[-1] + settings.discount * expected, rtol=1e-6)

    sac = SacTrainer(task, UNGUARDED, SMALL["sac"])
    of_sac = sac.init(jax.random.key(2))
    plain = eqx.tree_at(lambda w: w.value, window, jnp.zeros_like(window.value))
    batch = transitions_of(plain, sac.settings, applied=True)
    np.testing.assert_array_equal(batch.bootstrap.reshape(5, 4)[-1], np.full(4, 0.0 if finite else 1.0))
    noise = jax.random.normal(jax.random.key(3), batch.proposed.shape)
    targets = np.asarray(sac.targets(of_sac, batch, noise))
    observations = jax.vmap(of_sac.experience.normaliser)(batch.next_observation)
    mean, log_std = jax.vmap(lambda o: of_sac.actor.gaussian(o, jnp.zeros(1)))(observations)
    raw = mean + jnp.exp(log_std) * noise
    seen = np.concatenate([observations, np.tanh(raw)], axis=1)
    critics = (of_sac.target.first, of_sac.target.second)
    least = np.min([jax.vmap(lambda o, c=c: sac.settings.value(c, o))(jnp.asarray(seen)) for c in critics], axis=0)
    entropy = -0.01 * np.asarray(jax.vmap(log_density)(raw, mean, log_std))
    soft = np.asarray(batch.reward) + sac.settings.discount * np.asarray(batch.bootstrap) * (least + entropy)
    np.testing.assert_allclose(targets, soft, rtol=1e-5, atol=1e-6)


def test_a_guard_belongs_to_the_policy_or_to_the_environment(replaced):
    """What critics judge, and what derivative the actor has."""
    _, _, _, window = replaced
    x, u = window.x[0, 0], window.proposed[0, 0]
    inside = SacTrainer(Reach(), Replaces(), SMALL["sac"])
    outside = SacTrainer(Reach(), Replaces(), SacSettings(**COMMON, placement="environment"))
    np.testing.assert_array_equal(inside._taken(x, u), [0.25])
    np.testing.assert_array_equal(outside._taken(x, u), u)
    assert jax.grad(lambda u: inside._taken(x, u)[0])(u) == 0
    assert jax.grad(lambda u: outside._taken(x, u)[0])(u) == 1
    judged = transitions_of(window, inside.settings, applied=True)
    kept = transitions_of(window, outside.settings, applied=False)
    # What was moved is charged in one place only: in the actor's loss or in the reward.
    np.testing.assert_allclose(judged.reward - kept.reward, window.moved.reshape(-1), rtol=1e-5, atol=1e-6)
    assert judged.x.shape == (20, 2) and kept.x.shape == (20, 0)
    np.testing.assert_array_equal(kept.proposed, window.proposed.reshape(-1, 1))
    np.testing.assert_array_equal(judged.applied, np.full((20, 1), 0.25))


def batch_of(numbers):
    """Transitions of two observations, no state and one input that carry their number everywhere."""
    column = jnp.asarray(numbers, jnp.float64)[:, None]
    pair, none = jnp.concatenate([column, column], axis=1), column[:, :0]
    ones = jnp.ones(len(numbers))
    return Transitions(pair, pair + 0.5, none, none, column, -column, column[:, 0], ones, 0 * ones)


def test_the_ring_keeps_the_newest_and_never_a_nan():
    replay = Replay.empty(10, 2, 0, 1)
    for first in range(0, 16, 4):
        replay, broken = replay.add(batch_of(np.arange(first, first + 4.0)))
        assert broken == 0 and replay.filled == min(10, first + 4) and replay.position == (first + 4) % 10
        drawn = np.asarray(replay.sample(jax.random.key(first), 200, jnp.float64).reward)
        assert set(drawn) == set(range(max(0, first + 4 - 10), first + 4))
    assert replay.rows.dtype == jnp.float32
    batch = replay.sample(jax.random.key(0), 50, jnp.float64)
    np.testing.assert_array_equal(batch.next_observation, np.asarray(batch.observation) + 0.5)
    np.testing.assert_array_equal(batch.applied, -np.asarray(batch.proposed))
    replay, broken = replay.add(batch_of([np.nan, 1.0, np.inf]))
    assert broken == 2 and np.all(np.isfinite(replay.rows))


def test_divergence_is_a_costly_end_and_is_counted(replaced):
    trainer, _, _, window = replaced
    gone = jnp.zeros((5, 4), bool).at[2, 1].set(True)
    infinite = lambda leaf: jnp.where(gone.reshape(5, 4, *[1] * (leaf.ndim - 2)), jnp.nan, leaf)  # noqa: E731
    fields = lambda w: (w.x_next, w.next_observation, w.shaped, w.value)  # noqa: E731
    wild = eqx.tree_at(lambda w: (*fields(w), w.diverged), window, (*map(infinite, fields(window)), gone))
    batch = transitions_of(tamed(wild, trainer.settings), trainer.settings, applied=True)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(batch))
    calm = transitions_of(tamed(window, trainer.settings), trainer.settings, applied=True)
    row = 2 * 4 + 1
    assert batch.bootstrap[row] == 0 and calm.bootstrap[row] == 1
    assert batch.reward[row] < -10 * np.max(np.abs(calm.reward))
    others = np.arange(20) != row
    np.testing.assert_array_equal(np.asarray(batch.reward)[others], np.asarray(calm.reward)[others])


@pytest.fixture(scope="module", params=["ppo", "sac"])
def trained(request):
    """Two seeds in one program; and where they stood after 4 updates."""
    trainer = ALGORITHMS[request.param][0](Reach(), UNGUARDED, SMALL[request.param])
    keys, halfway, rows = jax.random.split(jax.random.key(7), 2), {}, []

    def keep(done, state, metrics):
        halfway[done] = state
        rows.append(metrics)

    state = train(trainer, initialise(trainer, keys), updates=6, chunk=2, on_chunk=keep)
    return trainer, keys, state, halfway[4], rows


def test_seeds_alone_are_the_seeds_together(trained):
    trainer, keys, together, _, _ = trained
    alone = train(trainer, initialise(trainer, keys[1:]), updates=6, chunk=2)
    assert len(numbers(together)) > 20
    for joint, single in zip(numbers(together), numbers(alone)):
        np.testing.assert_allclose(joint[1], single[0], rtol=1e-5, atol=1e-7)


def test_going_on_gives_the_same_bits_and_a_broken_reward_is_counted(trained):
    trainer, keys, whole, halfway, _ = trained
    assert jax.tree.structure(_blank(trainer, keys)) == jax.tree.structure(whole)
    advance = compiled(trainer, halfway)
    resumed, metrics = advance(halfway, 2)
    np.testing.assert_array_equal(metrics["nonfinite"], np.zeros((2, 2)))
    for expected, found in zip(numbers(whole), numbers(resumed)):
        np.testing.assert_array_equal(expected, found)
    broken = eqx.tree_at(lambda s: s.experience.reward_scale, halfway, jnp.array([1.0, jnp.nan]))
    after, metrics = advance(broken, 2)
    assert np.all(metrics["nonfinite"][0] == 0) and np.all(metrics["nonfinite"][1] > 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in numbers(after.actor))


def test_every_algorithm_reports_what_the_loop_logs(trained):
    trainer, _, state, _, rows = trained
    logged = {"return", "reward", "violations", "interventions", "fallbacks", "lost", "uncertified", "worst_margin"}
    assert logged | {"critic_loss", "gradient_norm", "nonfinite", "diverged"} <= set(rows[0])
    assert trainer.steps_per_update == 20
    np.testing.assert_array_equal(state.updates, [6, 6])
    np.testing.assert_array_equal(state.safety.steps, [120, 120])
    first = jax.tree.map(lambda leaf: leaf[0] if isinstance(leaf, jax.Array) else leaf, state.policy)
    assert np.all(Reach().system.input_box.contains(first(jnp.array([0.5, 0.1, 0.0, 0.0]))))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"minibatches = 3 does not divide the 20 steps"):
        PpoSettings(**COMMON, minibatches=3)
    with pytest.raises(ValueError, match=r"replay = 10 holds less than the 20 steps"):
        SacSettings(**COMMON, replay=10)


class Rest(Reach):
    """Bring the slider to rest in the middle of the track."""

    episode_steps: ClassVar = 40
    target: float = 0.0
    starts: Box = eqx.field(default_factory=lambda: Box([-1, -1], [1, 1]))

    def observe(self, x, t, context):
        return x


@pytest.fixture(scope="module")
def mean_return():
    """Mean return of an actor, normaliser and nominal input without noise, compiled once for all algorithms."""
    task, keys = Rest(), jax.random.split(jax.random.key(5), 64)

    @jax.jit
    def of_layers(normaliser, layers):
        actor = TanhGaussian(Network(layers), jnp.zeros(1), task.system.input_box)
        policy = NormalisedPolicy(normaliser, actor, task.nominal)

        def one(key):
            episode = reset(task, UNGUARDED, key)
            return jnp.sum(rollout(task, UNGUARDED, policy, episode, task.episode_steps)[1].reward)

        return jnp.mean(jax.vmap(one)(keys))

    return lambda state: float(
        of_layers(*jax.tree.map(lambda leaf: leaf[0], (state.experience.normaliser, state.actor.network.layers)))
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shac", {"updates": 30, "environments": 8, "window": 16}),
        ("ppo", {"updates": 30, "environments": 16, "window": 16, "epochs": 4, "minibatches": 4}),
        ("sac", {"updates": 100, "environments": 8, "window": 8, "warm_up": 250, "batch": 64}),
    ],
)
def test_every_algorithm_brings_a_double_integrator_to_rest(name, options, mean_return):
    trainer, settings = ALGORITHMS[name]
    trainer = trainer(Rest(), UNGUARDED, settings(**options, hidden=(32, 32), discount=0.9))
    state = initialise(trainer, jax.random.split(jax.random.key(0), 1))
    before = mean_return(state)
    after = mean_return(train(trainer, state, updates=options["updates"], chunk=options["updates"]))
    assert after > 0.6 * before
