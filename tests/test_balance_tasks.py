"""Balancing pendulum, cart-pole and quadrotor under disturbances: steps and rewards against plain numpy, starts, shipped sets.

That each task conforms (`check_task`) is in test_testing.py, with all other tasks.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.sets import Box
from holdfast.tasks import DamagedSet, RobustSafety, make_task, reset, rollout, shipped_safety, step
from holdfast.tasks.shipped import read_safety
from holdfast.types import Unguarded

NAMES = ("balance-pendulum", "balance-cartpole", "balance-quadrotor")
TASKS = {name: make_task(name) for name in NAMES}
HALF_WIDTHS = {
    "balance-pendulum": [np.pi, 8],
    "balance-cartpole": [10, np.pi, 10, 10],
    "balance-quadrotor": [8, 8, np.pi / 12, 0.8, 1, np.pi / 2],
}


def accelerations(name, x, a, w):
    """As published, for an action a in [-1, 1]."""
    if name == "balance-pendulum":
        return np.array([1.5 * 9.81 * np.sin(x[0]) + 3 * 30 * a[0] + w[0]])
    if name == "balance-cartpole":
        _, theta, _, turning = x
        pushed = (10 * a[0] + 0.1 * 0.5 * turning**2 * np.sin(theta)) / 1.1
        swung = (9.8 * np.sin(theta) - pushed * np.cos(theta)) / (0.5 * (4 / 3 - 0.1 * np.cos(theta) ** 2 / 1.1)) + w[0]
        return np.array([pushed - 0.1 * 0.5 * swung * np.cos(theta) / 1.1, swung])
    thrust, command, phi = 6 / 7 * a[0] + 9.81, np.pi / 12 * a[1], x[2]
    tilting = 55 * command - 70 * phi - 17 * x[5]
    return np.array([thrust * np.sin(phi) + w[0], thrust * np.cos(phi) - 9.81 + w[1], tilting])


def numpy_step(name, x, a, w):
    """Semi-implicit Euler: velocities first."""
    dt, half = {"balance-cartpole": 0.02}.get(name, 0.05), len(x) // 2
    velocity = x[half:] + dt * accelerations(name, x, a, w)
    return np.concatenate([x[:half] + dt * velocity, velocity])


def numpy_reward(name, x, a, goal):
    """As published, at the successor x."""
    if name == "balance-pendulum":
        return -(x[0] ** 2) - 0.1 * x[1] ** 2 - 0.001 * a[0] ** 2
    if name == "balance-cartpole":
        return -0.05 * x[0] ** 2 - 0.1 * x[2] ** 2 - x[1] ** 2 - 0.1 * x[3] ** 2
    thrust, command = 6 / 7 * a[0] + 9.81, np.pi / 12 * a[1]
    moving = x[2] ** 2 + x[3] ** 2 + x[4] ** 2 + x[5] ** 2
    away = np.sqrt((x[0] - goal[0]) ** 2 + (x[1] - goal[1]) ** 2)
    return -2.5 * away - 0.1 * moving - 0.002 * thrust**2 - 0.001 * command**2


def actions(task, u):
    """Inputs as actions in [-1, 1]."""
    return (np.asarray(u) - task.system.input_box.centre) / task.system.input_box.half_widths


@pytest.fixture(scope="module", params=NAMES)
def driven(request):
    """(name, task, first episode, last episode, transitions) under a policy that pushes hard, with the task's own noise."""
    task = TASKS[request.param]
    box = task.system.input_box
    guard = Unguarded(box.lower, box.upper)

    def policy(observation):
        return box.clip(box.centre + box.half_widths * jnp.sin(3 * jnp.sum(observation) + jnp.arange(box.dimension)))

    def drive(key):
        episode = reset(task, guard, key)
        return episode, *rollout(task, guard, policy, episode, 60)

    return request.param, task, *jax.jit(jax.vmap(drive))(jax.random.split(jax.random.key(0), 64))


def test_steps_and_rewards_are_the_published_ones(driven):
    name, task, first, _, seen = driven
    context = np.asarray(first.context) if name == "balance-quadrotor" else np.zeros((64, 2))
    for episode in range(3):
        for t in range(60):
            x, w, a = (np.asarray(v[episode, t]) for v in (seen.x, seen.disturbance, seen.applied))
            a = actions(task, a)
            np.testing.assert_allclose(seen.x_next[episode, t], numpy_step(name, x, a, w), rtol=1e-9, atol=1e-9)
            wanted = numpy_reward(name, np.asarray(seen.x_next[episode, t]), a, context[episode])
            assert seen.reward[episode, t] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_the_disturbance_fills_its_box(driven):
    _, task, _, _, seen = driven
    box, w = task.system.disturbance_box, np.asarray(seen.disturbance).reshape(64 * 60, -1)
    np.testing.assert_array_equal(box.half_widths, 0.1)
    assert np.all(np.abs(w) <= 0.1)
    np.testing.assert_allclose(np.std(w, axis=0), 0.1 / np.sqrt(3), rtol=0.05)
    assert np.all(np.max(np.abs(w), axis=0) > 0.099)


def test_starts_lie_in_the_invariant_set_and_that_in_the_feasible_box(driven):
    name, task, first, _, _ = driven
    assert isinstance(task.safety, RobustSafety)
    assert np.all(np.asarray(jax.vmap(task.safety.region.contains)(first.x)))
    np.testing.assert_allclose(task.state_box.upper, HALF_WIDTHS[name])
    np.testing.assert_allclose(task.safe_set.margin(jnp.zeros(len(HALF_WIDTHS[name]))), np.repeat(HALF_WIDTHS[name], 2))
    assert np.all(np.asarray(jax.vmap(task.safe_set.contains)(first.x)))
    assert len(np.unique(np.asarray(first.x), axis=0)) == 64


def test_a_step_is_affine_in_input_and_disturbance_together(driven):
    _, task, first, _, _ = driven
    system, (m, d) = task.system, (task.system.input_size, task.system.disturbance_box.dimension)
    rng = np.random.default_rng(1)
    v, far = rng.normal(size=(2, 64, m + d)) * 5

    def bend(x, v, far):
        """Second difference along a line in (u, w)."""
        ahead, here, behind = (system.step(x, (v + s * far)[:m], (v + s * far)[m:]) for s in (1.0, 0.0, -1.0))
        return ahead - 2 * here + behind

    assert np.max(np.abs(jax.jit(jax.vmap(bend))(first.x, v, far))) < 1e-12


def test_the_quadrotor_is_to_come_back_to_where_it_started():
    task = TASKS["balance-quadrotor"]
    guard = Unguarded(task.system.input_box.lower, task.system.input_box.upper)
    episode = reset(task, guard, jax.random.key(4), jnp.float32)
    np.testing.assert_array_equal(episode.context, episode.x[:2])
    moved, seen = step(task, guard, episode, jnp.asarray([10.0, 0.1], jnp.float32))
    np.testing.assert_array_equal(moved.context, episode.x[:2])
    np.testing.assert_array_equal(seen.observation[6:], 0.0)
    np.testing.assert_allclose(seen.next_observation[6:], moved.x[:2] - episode.x[:2])
    # At the goal itself the distance has no derivative; what is passed on must be a number all the same.
    slope = jax.grad(lambda x: task.reward(x, jnp.zeros(2), x, episode.t, episode.context))(episode.x)
    assert np.all(np.isfinite(slope))


def test_the_attitude_loop_is_stable_as_sampled():
    system = TASKS["balance-quadrotor"].system
    x, u = system.equilibrium()
    inner = np.asarray(jax.jacfwd(system.step)(x, u))[np.ix_([2, 5], [2, 5])]
    np.testing.assert_allclose(sorted(np.linalg.eigvals(inner)), [0.1914, 0.7836], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_scenes_keep_their_shapes(name):
    task = TASKS[name]
    states = 0.3 * np.random.default_rng(0).normal(size=(task.episode_steps + 1, task.system.state_size))
    context = task.context_at(states[0], ())
    futures = {"backup": states[:20], "proposed": states[:30]}
    scenes = [task.scene(states, t, context, futures) for t in (0, 7, task.episode_steps)]
    kinds = [[(type(shape), shape.role) for shape in scene.shapes] for scene in scenes]
    assert kinds[0] == kinds[1] == kinds[2]
    assert {"body", "reference", "limit", "backup", "proposed"} <= {role for _, role in kinds[0]}
    assert len({(window[1] - window[0], window[3] - window[2]) for window in (s.window for s in scenes)}) == 1


# Files of sets.


def document(**changed):
    normals = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    good = {"normals": normals, "offsets": [1.0] * 4, "generators": None, "centre": [0.0, 0.0]}
    return good | {"gain": [[-1.0, -1.0]], "centre_input": [0.0], "made_by": "a test"} | changed


def test_a_set_is_read_from_its_document():
    safety = read_safety(json.loads(json.dumps(document())), "square", Box([-1.0], [1.0]))
    assert safety.region.contains(jnp.array([0.9, -0.9])) and not safety.region.contains(jnp.array([1.1, 0.0]))
    np.testing.assert_allclose(safety.controller(jnp.array([0.25, 0.5])), [-0.75])
    np.testing.assert_allclose(safety.controller(jnp.array([3.0, 0.5])), [-1.0])


@pytest.mark.parametrize(
    "broken, says",
    [
        ([1, 2], "lacks centre, centre_input, gain, made_by, normals, offsets"),
        ({k: v for k, v in document().items() if k != "gain"}, "lacks gain"),
        (document(offsets=[1.0, 1.0, 1.0]), r"normals has shape \(4, 2\); it must be \(3, 2\)"),
        (document(offsets=[1.0, 1.0, 1.0, "a"]), "offsets is no array of numbers"),
        (document(offsets=[1.0, 1.0, 1.0, float("nan")]), "offsets has an entry that is not finite"),
        (document(normals=[1.0, 2.0, 3.0, 4.0]), r"normals has shape \(4,\); give finite numbers in 2"),
        (document(normals=[[1.0], [1.0, 2.0], [1.0], [1.0]]), "normals is no array of numbers"),
        (document(gain=[[1.0]]), r"gain has shape \(1, 1\); it must be \(1, 2\)"),
        (document(centre_input=[0.0, 0.0]), r"centre_input has shape \(2,\); it must be \(1,\)"),
        (document(centre=[2.0, 0.0]), "centre lies outside"),
    ],
)
def test_a_damaged_set_is_named(broken, says):
    with pytest.raises(DamagedSet, match=f"set 'square': {says}"):
        read_safety(broken, "square", Box([-1.0], [1.0]))


def test_a_missing_file_is_named():
    with pytest.raises(DamagedSet, match=r"set 'circle': circle.json is not there"):
        shipped_safety("circle", Box([-1.0], [1.0]))
