"""Stable-Baselines3 behind the safeguard: PPO, SAC and TD3 train without a violation, and the docs do what they say."""

import importlib
import sys

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import stable_baselines3
import torch

from holdfast.interop import stable_baselines3 as interop
from holdfast.interop.program import task_named
from holdfast.interop.stable_baselines3 import SafetyCallback, TaskVecEnv
from holdfast.runs import Csv
from holdfast.types import Status
from systems_for_tests import safeguard

torch.set_num_threads(1)
LANE = task_named("lane-keeping")
SHORT = LANE.completed(episode_steps=10)
BATCH = 16
SMALL = {"PPO": {"n_steps": 16, "batch_size": 64}, "SAC": {"learning_starts": 32}, "TD3": {"learning_starts": 32}}


def model_of(algorithm, env):
    return getattr(stable_baselines3, algorithm)("MlpPolicy", env, seed=0, device="cpu", **SMALL[algorithm])


@pytest.mark.parametrize("algorithm, penalty", [("PPO", 0.0), ("PPO", 10.0), ("SAC", 10.0), ("TD3", 0.0)])
def test_training_behind_the_safeguard_never_violates(algorithm, penalty):
    env = TaskVecEnv(SHORT, BATCH, safeguard("ray"), penalty, seed=0)
    model_of(algorithm, env).learn(512)
    count = env.safety
    assert count.steps >= 512 and count.violations == 0 and count.uncertified_starts == 0
    assert count.starts > 2 * BATCH and sum(count.statuses.values()) == count.steps


def test_training_without_it_violates_and_is_counted(tmp_path):
    env = TaskVecEnv(LANE, BATCH, seed=0)
    model_of("PPO", env).learn(768, callback=SafetyCallback(Csv(tmp_path / "curve.csv"), every=256))
    count = env.safety
    assert count.violations == count.unpromised_violations > 0 and count.interventions == 0
    assert count.statuses[Status.unguarded.name] == count.steps == 768
    names, *rows = [line.split(",") for line in (tmp_path / "curve.csv").read_text().splitlines()]
    assert names == ["step", "episodes", "return_mean", "interventions", "violations"]
    assert [row[0] for row in rows] == ["256", "512", "768"] and int(rows[-1][-1]) == count.violations


def test_the_count_is_that_of_the_steps():
    env = TaskVecEnv(SHORT, BATCH, safeguard("ray"), seed=0)
    env.reset()
    assert all(info["safety"]["certified"] for info in env.reset_infos)
    rng, statuses, moved = np.random.default_rng(0), np.zeros(len(Status), int), 0.0
    half = LANE.system.input_box.half_widths
    for t in range(1, 31):
        actions = rng.uniform(-2, 2, (BATCH, 2)).astype(np.float32)
        actions[t % BATCH] = np.nan
        observation, reward, over, infos = env.step(actions)
        assert observation.dtype == reward.dtype == np.float32
        assert over.all() == over.any() == (t % 10 == 0)
        for i, info in enumerate(infos):
            safety = info["safety"]
            statuses[safety["status"]] += 1
            if i != t % BATCH:
                moved += np.sum(((safety["applied"] - safety["proposed"]) / half) ** 2)
            assert info["cost"] == 0.0 and ("terminal_observation" in info) == info["TimeLimit.truncated"] == over[i]
        if over.any():
            assert not np.allclose(infos[0]["terminal_observation"], observation[0])
    assert env.safety.statuses == {status.name: statuses[status] for status in Status}
    assert env.safety.correction == pytest.approx(moved, rel=1e-4)
    assert env.safety.statuses["bad_action"] == 30 and env.safety.starts == 4 * BATCH and env.safety.violations == 0


def test_actions_from_minus_one_to_one_span_the_input_box():
    env, box = TaskVecEnv(SHORT, 3), LANE.system.input_box
    lower, upper = env.envs.single_action_space.low, env.envs.single_action_space.high
    found = env.physical(np.array([[-1, -1], [1, 1], [0, 0]]))
    np.testing.assert_array_equal(found[:2], [lower, upper])
    np.testing.assert_allclose(found[2], box.centre, atol=1e-6)
    odd = env.physical(np.array([[2.0, np.nan], [0, 0], [0, 0]]))
    assert odd[0, 0] > upper[0] and np.isnan(odd[0, 1])  # the guard's to answer


def test_what_one_program_cannot_do_is_refused():
    env = TaskVecEnv(SHORT, 2)
    with pytest.raises(NotImplementedError, match="make a new TaskVecEnv"):
        env.set_attr("guard", None)
    with pytest.raises(NotImplementedError, match=r"call `TaskVecEnv\.envs` itself"):
        env.env_method("render")
    with pytest.raises(ValueError, match=r"action has shape \(2, 1\); give \(2, 2\)"):
        env.step_async(np.zeros((2, 1)))


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.callbacks", None)
    monkeypatch.delitem(sys.modules, interop.__name__)
    with pytest.raises(ImportError, match=r"pip install holdfast\[sb3\]"):
        importlib.import_module(interop.__name__)
