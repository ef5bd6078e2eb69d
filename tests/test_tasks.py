"""Lane keeping against plain numpy, the rollout, and the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.tasks import UnknownTask, make_task, reset, rollout, step, task_names
from holdfast.types import Status, Unguarded

TASK = make_task("lane-keeping")
BOX = TASK.system.input_box
UNGUARDED = Unguarded(BOX.lower, BOX.upper)


def numpy_step(x, u):
    """Explicit Euler with the old v and psi in y, then the clip and the wrap."""
    y, v, psi = x
    y, v, psi = y + 0.05 * v * np.sin(psi), v + 0.05 * u[0], psi + 0.05 * u[1]
    return np.array([y, np.clip(v, 0.0, 12.0), (psi + np.pi) % (2 * np.pi) - np.pi])


def numpy_reference(k):
    t = 0.05 * k
    slope = 2.5 * 2 * np.pi / 10 * np.cos(2 * np.pi * t / 10) / 5
    return np.array([2.5 * np.sin(2 * np.pi * t / 10), 5.0, np.arcsin(np.clip(slope, -1, 1))])


def numpy_reward(x_next, u, k):
    y, v, psi = x_next
    y_ref, _, psi_ref = numpy_reference(k + 1)
    turned = (psi - psi_ref + np.pi) % (2 * np.pi) - np.pi
    cost = 20 * ((v - 5) / 5) ** 2 + 50 * ((y - y_ref) / 1.8) ** 2 + 10 * (turned / (np.pi / 3)) ** 2
    return -cost - 0.05 * ((u[0] / 5) ** 2 + u[1] ** 2)


def samples(count=300):
    rng = np.random.default_rng(0)
    x = rng.uniform([-2.5, 0, -3.1], [2.5, 12, 3.1], (count, 3))
    u = rng.uniform(BOX.lower, BOX.upper, (count, 2))
    return x, u, rng.integers(0, 400, count)


@pytest.fixture(scope="module")
def driven():
    """One episode under a fixed policy, with its actions kept."""
    policy = lambda o: jnp.stack([jnp.sin(3 * o[0]), 0.4 * jnp.cos(2 * o[7])])  # noqa: E731
    episode = reset(TASK, UNGUARDED, jax.random.key(3))
    last, seen = jax.jit(lambda e: rollout(TASK, UNGUARDED, policy, e, TASK.episode_steps))(episode)
    return episode, last, seen


def test_the_step_is_the_published_one():
    x, u, _ = samples()
    stepped = jax.jit(jax.vmap(TASK.system.step))(x, u)
    np.testing.assert_allclose(stepped, [numpy_step(*each) for each in zip(x, u)], atol=1e-12)


def test_the_reference_leaves_the_lane_on_purpose():
    times = np.arange(401)
    reference = jax.vmap(lambda t: TASK.reference(t, ()))(times)
    np.testing.assert_allclose(reference, [numpy_reference(k) for k in times], atol=1e-12)
    assert np.max(np.abs(reference[:, 0])) > 1.8


def test_the_reward_is_the_published_one():
    x, u, times = samples()
    successors = np.array([numpy_step(*each) for each in zip(x, u)])
    rewards = jax.jit(jax.vmap(lambda x, u, n, t: TASK.reward(x, u, n, t, ())))(x, u, successors, times)
    np.testing.assert_allclose(rewards, [numpy_reward(*each) for each in zip(successors, u, times)], rtol=1e-10)


def test_margins_starts_and_observation():
    x = jnp.array([0.3, 4.0, -0.2])
    np.testing.assert_allclose(TASK.safe_set.margin(x), [1.5, 2.1, np.pi / 3 + 0.2, np.pi / 3 - 0.2])
    starts = np.asarray(jax.vmap(TASK.sample_start)(jax.random.split(jax.random.key(0), 2000)))
    centre, spread = np.array([0, 5, 0]), np.array([0.5, 1.5, 0.2])
    assert np.all(np.abs(starts - centre) <= spread)
    np.testing.assert_allclose(np.std(starts, axis=0), spread / np.sqrt(3), rtol=0.05)
    phase = 2 * np.pi * 0.05 * 7 / 10
    expected = np.concatenate([x, numpy_reference(7), [np.sin(phase), np.cos(phase)]])
    np.testing.assert_allclose(TASK.observe(x, jnp.asarray(7), ()), expected, atol=1e-12)
    assert TASK.observation_size == 8


def test_metrics_are_rms_errors_against_the_unsafe_reference(driven):
    _, last, seen = driven
    states = np.concatenate([seen.x, last.x[None]])
    error = states[1:] - np.array([numpy_reference(k) for k in range(1, 401)])
    error[:, 2] = (error[:, 2] + np.pi) % (2 * np.pi) - np.pi
    rmse = np.sqrt(np.mean(error**2, axis=0))
    metrics = TASK.metrics(jnp.asarray(states), ())
    np.testing.assert_allclose([metrics[name] for name in ("y_rmse", "v_rmse", "psi_rmse")], rmse, rtol=1e-10)
    assert set(metrics) == set(TASK.metric_units) == set(TASK.published)


def test_perfect_tracking_of_the_clipped_reference_is_the_floor():
    states = np.array([numpy_reference(k) for k in range(401)])
    states[:, 0] = np.clip(states[:, 0], -1.8, 1.8)
    assert TASK.metrics(jnp.asarray(states), ())["y_rmse"] == pytest.approx(0.355, abs=0.002)


def test_the_viability_kernel_has_its_known_share():
    safe = jax.vmap(TASK.state_box.sample)(jax.random.split(jax.random.key(1), 200_000))
    viable = jax.jit(jax.vmap(TASK.viable))(safe)
    assert np.mean(viable) == pytest.approx(0.755, abs=0.003)


def test_viable_states_are_those_that_braking_and_turning_save():
    x = np.array(jax.vmap(TASK.state_box.sample)(jax.random.split(jax.random.key(2), 200)))
    found = []
    for state in x:
        safe = True
        for _ in range(40):
            safe &= bool(abs(state[0]) <= 1.8 and abs(state[2]) <= np.pi / 3)
            state = numpy_step(state, (-5.0, np.clip(-state[2] / 0.05, -1, 1)))
        found.append(safe)
    np.testing.assert_array_equal(jax.vmap(TASK.viable)(x), found)


def test_a_rollout_is_true_to_the_plant(driven):
    episode, last, seen = driven
    x = np.asarray(episode.x)
    for k in range(60):
        np.testing.assert_allclose(seen.x[k], x, atol=1e-9)
        x = numpy_step(x, np.asarray(seen.applied[k]))
        assert seen.reward[k] == pytest.approx(numpy_reward(x, np.asarray(seen.applied[k]), k), rel=1e-8)
        assert seen.cost[k] == float(abs(x[0]) > 1.8 or abs(x[2]) > np.pi / 3)
    assert last.t == TASK.episode_steps
    np.testing.assert_array_equal(seen.truncated, np.arange(400) == 399)
    assert not np.any(seen.terminated) and not np.any(seen.diverged)
    assert np.all(seen.guard.status == Status.unguarded)


def test_a_violation_is_counted_and_a_diverged_state_is_reported():
    episode = reset(TASK, UNGUARDED, jax.random.key(0))
    outside = type(episode)(jnp.array([1.79, 12.0, 1.0]), episode.t, (), (), episode.key)
    _, seen = step(TASK, UNGUARDED, outside, jnp.zeros(2))
    assert seen.cost == 1.0 and jnp.min(seen.margin) < 0
    _, seen = step(TASK, UNGUARDED, outside, jnp.full(2, jnp.nan))
    assert seen.diverged and seen.cost == 1.0
    assert jnp.any(jnp.isnan(seen.x_next))  # nothing is replaced


def test_a_reset_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(5), 6)
    together = jax.vmap(lambda key: reset(TASK, UNGUARDED, key).x)(keys)
    alone = jnp.stack([reset(TASK, UNGUARDED, key).x for key in keys])
    np.testing.assert_array_equal(together, alone)
    assert len(np.unique(np.asarray(together), axis=0)) == 6
    assert reset(TASK, UNGUARDED, keys[0], jnp.float32).x.dtype == jnp.float32


def test_unknown_tasks_are_refused_with_the_names_there_are():
    assert "lane-keeping" in task_names()
    with pytest.raises(UnknownTask, match=r"task = 'lane' is unknown; the tasks are: .*lane-keeping"):
        make_task("lane")


def test_a_scene_keeps_its_shapes_during_an_episode(driven):
    _, last, seen = driven
    states = np.concatenate([seen.x, last.x[None]])
    futures = {"backup": states[100:141], "proposed": states[100:120]}
    scenes = [TASK.scene(states, t, (), futures) for t in (0, 100, 400)]
    for scene in scenes:
        assert [type(s) for s in scene.shapes] == [type(s) for s in scenes[0].shapes]
        assert [s.role for s in scene.shapes] == [s.role for s in scenes[0].shapes]
        assert scene.window == scenes[0].window
    body = next(s for s in scenes[1].shapes if s.role == "body")
    assert body.centre[1] == pytest.approx(states[100, 0]) and body.angle == pytest.approx(states[100, 2])
    assert {"body", "trail", "reference", "unsafe", "limit", "backup", "proposed"} <= {s.role for s in scenes[1].shapes}
