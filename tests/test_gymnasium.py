"""Tasks as Gymnasium environments and a safeguard around a foreign one: the checkers pass, seeds decide, nothing violates."""

import copy
import importlib
import importlib.util
import sys

import equinox as eqx
import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from holdfast.interop import gymnasium as interop
from holdfast.interop.analytic import analytic_safeguard
from holdfast.interop.gymnasium import SafeguardWrapper, TaskEnv, TaskVectorEnv, environment_id, register
from holdfast.interop.program import task_named, task_program
from holdfast.runs import episode_key
from holdfast.sets import Box
from holdfast.tasks import make_task, reset, task_names
from holdfast.types import Status
from systems_for_tests import safeguard

LANE = task_named("lane-keeping")
BOX = LANE.system.input_box
SHORT = LANE.completed(episode_steps=3)
SLOWER = Box([-2.5, -1.0], [2.5, 1.0])
BATCH = 4
# Observations have no bounds, and actions are in physical units: both checkers would rather have it otherwise.
KNOWN = ("ignore:.*A Box observation space m", "ignore:.*symmetric and normalized")


def quiet(test):
    for words in KNOWN:
        test = pytest.mark.filterwarnings(words)(test)
    return test


def pushes(steps, batch, seed=0):
    """Held corners of the input box that change now and then, [steps, batch, 2]; some NaN, some far outside."""
    rng = np.random.default_rng(seed)
    corner = np.sign(rng.normal(size=(steps // 20 + 1, batch, 2))).repeat(20, axis=0)[:steps]
    u = (BOX.centre + corner * BOX.half_widths).astype(np.float32)
    u[rng.random((steps, batch)) < 0.02] = np.nan
    u[rng.random((steps, batch)) < 0.02] *= 1e6
    return u


def test_every_task_is_registered_when_asked_and_not_before():
    for name in [each for each in gymnasium.registry if each.startswith("holdfast/")]:
        del gymnasium.registry[name]
    importlib.reload(interop)
    assert not [each for each in gymnasium.registry if each.startswith("holdfast/")]
    ids = register()
    assert register() == ids and len(set(ids)) == len(task_names())
    assert environment_id("lane-keeping") == "holdfast/LaneKeeping-v0" and set(ids) <= set(gymnasium.registry)


@pytest.mark.parametrize("name", task_names())
def test_spaces_are_float32_boxes_inside_the_input_box(name):
    env, task = TaskEnv(name), make_task(name)
    lower, upper = task.system.input_box.lower, task.system.input_box.upper
    assert env.action_space.dtype == env.observation_space.dtype == np.float32
    assert np.all(env.action_space.low >= lower) and np.all(env.action_space.high <= upper)
    np.testing.assert_allclose(env.action_space.high, upper, rtol=1e-6)
    assert env.observation_space.shape == (task.observation_size,)
    many = TaskVectorEnv(5, name)
    assert many.action_space.shape == (5, *env.action_space.shape) and many.single_action_space == env.action_space


@quiet
@pytest.mark.parametrize("name", task_names())
def test_the_checkers_of_gymnasium_and_stable_baselines3_pass(name):
    register()
    env = gymnasium.make(environment_id(name)).unwrapped
    check_env(env)  # renders, too
    if importlib.util.find_spec("stable_baselines3"):
        from stable_baselines3.common.env_checker import check_env as check_for_sb3

        check_for_sb3(env)


def test_an_episode_depends_on_its_seed_and_number_alone():
    one, many = TaskEnv(LANE), TaskVectorEnv(BATCH, LANE)
    program = task_program(LANE, None)
    first = many.reset(seed=7)[0]
    second = many.reset()[0]
    for i in range(BATCH):
        seen, _ = one.reset(seed=7 + i)
        one.step(one.action_space.sample())  # whatever is done in between
        np.testing.assert_allclose(seen, first[i], rtol=1e-6)
        np.testing.assert_allclose(one.reset()[0], second[i], rtol=1e-6)
    episode, _ = program.begin(np.uint32(9), np.uint32(4))
    expected = reset(LANE, program.guard, episode_key(9, 4), np.float32)
    assert np.array_equal(jax.random.key_data(episode.key), jax.random.key_data(expected.key))
    np.testing.assert_allclose(episode.x, expected.x, rtol=1e-6)
    assert not np.allclose(one.reset(seed=8)[0], one.reset(seed=9)[0])
    # One seed each, and none where an episode goes on to its next one.
    mixed = many.reset(seed=[None, 7, None, None])[0]
    np.testing.assert_array_equal(mixed[1], first[0])
    assert not np.allclose(mixed[0], first[0]) and not np.allclose(mixed[0], second[0])


def test_single_and_vector_environments_tell_the_same():
    guard = safeguard("ray")
    one, many = TaskEnv(LANE, guard, 2.0), TaskVectorEnv(BATCH, LANE, guard, 2.0)
    _, info = many.reset(seed=0)
    assert info["safety"]["certified"].all() and info["_safety"].all() and info["safety"]["_certified"].all()
    u = pushes(30, BATCH)
    assert one.reset(seed=2)[1] == {"safety": {"certified": True}}
    for t in range(30):
        batch, alone = many.step(u[t]), one.step(u[t, 2])
        np.testing.assert_allclose(batch[0][2], alone[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(batch[1][2], alone[1], rtol=1e-3)
        assert batch[4]["safety"]["status"][2] == alone[4]["safety"]["status"]
        np.testing.assert_array_equal(alone[4]["safety"]["proposed"], u[t, 2])
        assert alone[4]["cost"] == 0.0 and alone[4]["safety"]["margin"] > 0
        assert alone[2:4] == (False, False)
        moved = alone[4]["safety"]["applied"] - u[t, 2]
        expected = 2.0 * np.sum((np.where(np.isfinite(u[t, 2]), moved, 0.0) / BOX.half_widths) ** 2)
        assert alone[4]["task_reward"] - alone[1] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_time_over_is_a_truncation_and_a_finished_task_a_termination():
    class Finite(type(SHORT)):
        finite = True

    for task, ends in ((SHORT, (False, True)), (Finite(), (True, False))):
        env = TaskEnv(task)
        env.reset(seed=0)
        found = [env.step(env.action_space.sample())[2:4] for _ in range(3)]
        assert found == [(False, False), (False, False), ends]


def test_a_vector_environment_resets_in_each_of_the_three_ways():
    u = np.zeros((BATCH, 2), np.float32)
    runs = {}
    for mode in AutoresetMode:
        env = TaskVectorEnv(BATCH, SHORT, autoreset_mode=mode)
        assert env.metadata["autoreset_mode"] is mode
        env.reset(seed=3)
        runs[mode] = env, [env.step(u) for _ in range(3)]
    last = {mode: steps[-1] for mode, (_, steps) in runs.items()}
    assert all(each[3].all() and not each[2].any() for each in last.values())
    fresh = TaskVectorEnv(BATCH, SHORT)
    fresh.reset(seed=3)
    second = fresh.reset()[0]  # where the next episodes begin
    final = last[AutoresetMode.NEXT_STEP][0]

    same = last[AutoresetMode.SAME_STEP]
    np.testing.assert_array_equal(same[0], second)
    np.testing.assert_array_equal(np.stack(same[4]["final_obs"]), final)
    assert same[4]["_final_obs"].all() and same[4]["final_info"]["_cost"].all()

    env, _ = runs[AutoresetMode.NEXT_STEP]
    observation, reward, terminated, truncated, info = env.step(u)
    np.testing.assert_array_equal(observation, second)
    assert not (reward.any() or terminated.any() or truncated.any() or info["_cost"].any())
    assert not np.allclose(env.step(u)[0], observation)

    env, _ = runs[AutoresetMode.DISABLED]
    mask = np.array([True, False, False, True])
    observation, info = env.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(observation, np.where(mask[:, None], second, final))
    assert np.array_equal(info["_safety"], mask)


def test_no_action_violates_a_constraint_behind_the_safeguard():
    env = TaskVectorEnv(64, LANE, safeguard("ray"))
    _, info = env.reset(seed=0)
    assert info["safety"]["certified"].all()
    costs, statuses, episodes = 0.0, np.zeros(len(Status), int), 0
    for u in pushes(600, 64):
        _, reward, terminated, truncated, info = env.step(u)
        costs += info["cost"].sum()
        statuses += np.bincount(info["safety"]["status"], minlength=len(Status))
        episodes += int((terminated | truncated).sum())
        assert np.isfinite(reward).all() and np.isfinite(info["safety"]["applied"]).all()
        assert not terminated.any()
    assert costs == 0 and episodes == 64
    assert statuses[Status.corrected] > 100 and statuses[Status.bad_action] > 100 and statuses[Status.uncertified] == 0


def test_without_a_safeguard_the_same_actions_violate_and_nan_is_reported():
    env = TaskVectorEnv(64, LANE)
    env.reset(seed=0)
    infos = [env.step(np.nan_to_num(u))[4] for u in pushes(100, 64)]
    assert sum(info["cost"].sum() for info in infos) > 100
    alone = TaskEnv(LANE)
    alone.reset(seed=0)
    observation, _, terminated, truncated, info = alone.step([0.0, np.nan])
    assert terminated and not truncated and info["diverged"] and info["cost"] == 1.0 and np.isnan(observation).any()
    assert info["safety"]["status"] == Status.unguarded and info["safety"]["margin"] == -np.inf


def test_equal_guards_share_one_program():
    guard = safeguard("ray")
    assert task_program(LANE, guard) is task_program(make_task("lane-keeping"), copy.deepcopy(guard))
    assert task_program(LANE, guard) is not task_program(LANE, None)
    assert task_program(LANE, guard) is not task_program(LANE, safeguard("per_input"))


class Foreign(gymnasium.Env):
    """Somebody else's car, in float64 and plain numpy, that knows nothing of holdfast."""

    action_space = gymnasium.spaces.Box(BOX.lower, BOX.upper, dtype=np.float64)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, action_space=None):
        self.action_space = self.action_space if action_space is None else action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.car = np.array([0.0, 5.0, 0.0]) + self.np_random.uniform(-0.2, 0.2, 3)
        return self.car.copy(), {"worst": 1.8}

    def step(self, action):
        y, v, psi = self.car
        v_next = np.clip(v + 0.05 * action[0], 0.0, 12.0)
        self.car = np.array([y + 0.05 * v * np.sin(psi), v_next, psi + 0.05 * action[1]])
        return self.car.copy(), -abs(y), False, False, {"worst": 1.8 - abs(self.car[0])}


def read(env):
    return env.unwrapped.car


def test_a_foreign_environment_is_kept_safe():
    env = SafeguardWrapper(Foreign(), safeguard("ray"), read, intervention_penalty=1.0)
    assert env.reset(seed=0)[1] == {"worst": 1.8, "safety": {"certified": True}}
    seen = []
    for u in pushes(300, 1)[:, 0]:
        _, reward, _, _, info = env.step(u)
        assert info["worst"] >= 0 and abs(env.unwrapped.car[2]) <= np.pi / 3
        assert reward <= info["task_reward"]
        seen.append(info["safety"]["status"])
    assert {Status.accepted, Status.corrected, Status.bad_action} <= set(seen) and Status.uncertified not in seen
    bare = Foreign()
    bare.reset(seed=0)
    assert min(bare.step(np.nan_to_num(u))[4]["worst"] for u in pushes(300, 1)[:, 0]) < 0


def test_around_a_task_the_wrapper_does_what_a_guard_inside_does():
    guard = safeguard("ray")
    inside, around = TaskEnv(LANE, guard), SafeguardWrapper(TaskEnv(LANE), guard)
    rescaled = gymnasium.wrappers.RescaleAction(around, np.float32(-1), np.float32(1))
    inside.reset(seed=1)
    rescaled.reset(seed=1)
    assert rescaled.action_space.high.tolist() == [1, 1]
    for u in pushes(40, 1, seed=5)[:, 0]:
        a, b = inside.step(u), around.step(u)
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-4)
        assert a[4]["safety"]["status"] == b[4]["safety"]["status"]


WRONG_SPACES = [
    (gymnasium.spaces.Discrete(3), "must be a Box equal to the system's input box"),
    (gymnasium.spaces.Box(-1.0, 1.0, (2,)), r"RescaleAction\(SafeguardWrapper"),
    (gymnasium.spaces.Box(-1.0, 1.0, (3,)), r"it must equal the system's input box, \[-5"),
]


@pytest.mark.parametrize("space, words", WRONG_SPACES)
def test_an_action_space_that_is_not_the_input_box_is_refused(space, words):
    with pytest.raises(ValueError, match=words):
        SafeguardWrapper(Foreign(space), safeguard("ray"), read)


def test_a_foreign_environment_that_hides_its_state_is_refused():
    with pytest.raises(ValueError, match=r"Foreign does not tell its state.*state_fn=lambda env: env.unwrapped.state"):
        SafeguardWrapper(Foreign(), safeguard("ray"))
    with pytest.raises(ValueError, match=r"state_fn gives shape \(2,\); give \(3,\)"):
        SafeguardWrapper(Foreign(), safeguard("ray"), lambda env: env.unwrapped.car[:2]).reset()
    with pytest.raises(ValueError, match="state_fn gives 'here'; give an array of numbers"):
        SafeguardWrapper(Foreign(), safeguard("ray"), lambda env: "here").reset()
    with pytest.raises(TypeError, match="state_fn is a tuple; give a function of the environment"):
        SafeguardWrapper(Foreign(), safeguard("ray"), (0.0, 5.0, 0.0))
    with pytest.raises(ValueError, match="has a guard already"):
        SafeguardWrapper(TaskEnv(LANE, safeguard("ray")), safeguard("ray"))
    with pytest.raises(TypeError, match="safeguard is a str; give a holdfast"):
        SafeguardWrapper(Foreign(), "ray", read)


BAD = {
    "another system's guard": (
        lambda: TaskEnv("pendulum", safeguard("ray")),
        "guard is for a system with 3 states, pendulum has 2; .* built for this task",
    ),
    "another plant's guard": (
        lambda: TaskEnv(
            LANE.completed(system=eqx.tree_at(lambda car: car.input_box, LANE.system, SLOWER)), safeguard("ray")
        ),
        "guard's input box .* built for this task",
    ),
    "no guard": (
        lambda: TaskVectorEnv(2, LANE, "ray"),
        "guard is a str; give a holdfast.safeguards.Safeguard, or None",
    ),
    "penalty": (lambda: TaskEnv(LANE, None, -1.0), "intervention_penalty = -1.0; give a finite number >= 0"),
    "mode": (lambda: TaskEnv(LANE, render_mode="human"), "render_mode = 'human'; give 'rgb_array' or None"),
    "no environments": (lambda: TaskVectorEnv(0, LANE), "num_envs = 0; give at least 1"),
    "task": (lambda: TaskEnv("lane"), "task = 'lane' is unknown; the tasks are: "),
    "seed": (lambda: TaskEnv(LANE).reset(seed=2**32), r"seed = 4294967296; give an integer from 0 to 2\^32 - 1"),
    "seeds": (lambda: TaskVectorEnv(2, LANE).reset(seed=[1]), "1 seeds for 2 environments; give one each"),
    "mask": (lambda: TaskVectorEnv(2, LANE).reset(options={"reset_mask": [1, 0]}), "reset_mask is int64 .* give bool"),
    "shape": (lambda: begun().step([0.0]), r"action has shape \(1,\); give \(2,\), the inputs are"),
    "words": (lambda: begun().step("left"), "action = 'left'; give an array of float32"),
    "no settings": (lambda: analytic_safeguard(LANE.completed(safety=None)), "has no settings for its safety"),
    "map": (lambda: analytic_safeguard("lane-keeping", maps=("rays",)), "maps holds 'rays'; the maps are ray"),
}


def begun():
    env = TaskEnv(LANE)
    env.reset()
    return env


@pytest.mark.parametrize("what", BAD)
def test_bad_input_says_what_to_give(what):
    call, words = BAD[what]
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_nothing_works_before_the_first_reset():
    for use in (
        lambda: TaskEnv(LANE).step(np.zeros(2)),
        lambda: TaskEnv(LANE).state,
        lambda: TaskVectorEnv(2, LANE).step(np.zeros((2, 2))),
        lambda: SafeguardWrapper(TaskEnv(LANE), safeguard("ray")).step(np.zeros(2)),
    ):
        with pytest.raises(ResetNeeded, match="before the first reset"):
            use()


def test_pictures_need_no_display():
    env = TaskEnv(LANE, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    for _ in range(5):
        env.step(np.float32([0.0, 1.0]))
    later = env.render()
    assert first.dtype == np.uint8 and first.shape == later.shape and first.shape[2] == 3
    assert np.mean(first != later) > 1e-3 and TaskEnv(LANE).render() is None
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []

    class Plain(type(SHORT)):  # without a scene its states are drawn over time
        def scene(self, states, t, context, futures):
            return None

    many = TaskVectorEnv(2, Plain(), render_mode="rgb_array")
    many.reset(seed=0)
    many.step(np.zeros((2, 2)))
    frames = many.render()
    assert len(frames) == 2 and all(frame.shape[2] == 3 and frame.std() > 0 for frame in frames)
