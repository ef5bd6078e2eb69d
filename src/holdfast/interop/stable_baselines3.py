"""A task as a vector environment of Stable-Baselines3: one compiled program steps the whole batch.

from stable_baselines3 import PPO
from holdfast.interop.stable_baselines3 import TaskVecEnv

env = TaskVecEnv("lane-keeping", num_envs=64, guard=safeguard)
PPO("MlpPolicy", env).learn(100_000)
env.safety.violations  # 0
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from holdfast.interop.spaces import float32_bounds, read_actions
from holdfast.interop.task_vector_env import TaskVectorEnv
from holdfast.runs import Sink
from holdfast.tasks import Task
from holdfast.types import Guard, Status

try:
    from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.vec_env import VecEnv  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        "holdfast.interop.stable_baselines3 needs Stable-Baselines3, which is not installed: pip install holdfast[sb3]"
    ) from error


@dataclasses.dataclass
class SafetyCount:
    """What the guard did with every step that was made, training included. Nothing is left out or resampled.

    Attributes:
        steps: all of them.
        violations: steps whose successor violates the safe set, with no tolerance.
        unpromised_violations: those of them at which the guard said `uncertified` or `unguarded`.
        statuses: steps by `holdfast.types.Status`.
        starts, uncertified_starts: episodes begun, and those from whose start nothing was promised.
        correction: sum of |applied - proposed|^2, in half-widths of the input box.
    """

    steps: int = 0
    violations: int = 0
    unpromised_violations: int = 0
    statuses: dict[str, int] = dataclasses.field(default_factory=lambda: {status.name: 0 for status in Status})
    starts: int = 0
    uncertified_starts: int = 0
    correction: float = 0.0

    @property
    def interventions(self) -> int:
        """Steps at which another action than the proposed one was applied by a guard."""
        return self.steps - self.statuses[Status.accepted.name] - self.statuses[Status.unguarded.name]

    def add(self, status: np.ndarray, cost: np.ndarray) -> None:
        """One step of a batch: statuses and costs, shape [B]."""
        violated, unpromised = cost > 0, np.isin(status, (Status.uncertified, Status.unguarded))
        self.steps += len(status)
        self.violations += int(violated.sum())
        self.unpromised_violations += int((violated & unpromised).sum())
        for each, count in zip(*np.unique(status, return_counts=True)):
            self.statuses[Status(int(each)).name] += int(count)


class TaskVecEnv(VecEnv):
    """B episodes of a task behind a guard: *safeguard in the environment*. Actions are scaled: [-1, 1] spans the input box.

    `infos` hold `cost`, `safety`, `task_reward` and `diverged` of each step, `terminal_observation` and
    `TimeLimit.truncated` at its end, as Stable-Baselines3 expects; the next episode begins in the same step.

    Args:
        task: the task or its name.
        num_envs: B.
        guard, intervention_penalty, render_mode: as in `holdfast.interop.gymnasium.TaskEnv`.
        seed: environment i runs the episodes of seed + i.

    Attributes:
        safety: a `SafetyCount` of every step since the environment was made.
    """

    def __init__(
        self,
        task: Task | str,
        num_envs: int = 16,
        guard: Guard | None = None,
        intervention_penalty: float = 0.0,
        seed: int | None = None,
        render_mode: str | None = None,
    ):
        self.envs = TaskVectorEnv(num_envs, task, guard, intervention_penalty, render_mode, AutoresetMode.SAME_STEP)
        box = self.envs.task.system.input_box
        self._lower, self._upper = float32_bounds(box)
        self._centre, self._half = box.centre.astype(np.float32), box.half_widths.astype(np.float32)
        self.safety = SafetyCount()
        self._actions: np.ndarray | None = None
        space = gymnasium.spaces.Box(-1.0, 1.0, self._lower.shape, np.float32)
        super().__init__(num_envs, self.envs.single_observation_space, space)
        if seed is not None:
            self.seed(seed)

    def reset(self) -> np.ndarray:
        seeds = [None if seed is None else seed % 2**32 for seed in self._seeds]
        observation, info = self.envs.reset(seed=None if None in seeds else seeds)
        self._reset_seeds()
        self._reset_options()
        self._count_starts(info["safety"]["certified"])
        self.reset_infos = [{"safety": {"certified": bool(each)}} for each in info["safety"]["certified"]]
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = self.physical(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, reward, terminated, truncated, told = self.envs.step(self._actions)
        over, safety = terminated | truncated, told["safety"]
        self.safety.add(safety["status"], told["cost"])
        moved = np.where(np.isfinite(safety["proposed"]), safety["applied"] - safety["proposed"], 0.0) / self._half
        self.safety.correction += float(np.sum(moved.astype(np.float64) ** 2))
        if over.any():
            self._count_starts(self.envs.certified[over])
        infos: list[dict[str, Any]] = [
            {
                "cost": float(told["cost"][i]),
                "diverged": bool(told["diverged"][i]),
                "task_reward": float(told["task_reward"][i]),
                "safety": {
                    "proposed": safety["proposed"][i],
                    "applied": safety["applied"][i],
                    "status": int(safety["status"][i]),
                    "margin": float(safety["margin"][i]),
                },
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
            }
            for i in range(self.num_envs)
        ]
        for i in np.flatnonzero(over):
            infos[i]["terminal_observation"] = told["final_obs"][i]
        return observation, reward.astype(np.float32), over, infos

    def physical(self, actions: np.ndarray) -> np.ndarray:
        """Actions [B, m] in physical units. What lies in [-1, 1] lies in the input box, whatever rounding does."""
        shape = (self.num_envs, self._centre.shape[-1])
        actions = read_actions("TaskVecEnv.step", actions, shape, self.envs.task.system.input_names)
        scaled = self._centre + self._half * actions
        inside = np.abs(actions) <= 1  # what lies outside, or is NaN, is the guard's to answer
        return np.where(inside, np.clip(scaled, self._lower, self._upper), scaled)

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.envs.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError(
            f"TaskVecEnv.set_attr({attr_name!r}): all environments are one program; make a new TaskVecEnv instead"
        )

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise NotImplementedError(
            f"TaskVecEnv.env_method({method_name!r}): all environments are one program; call `TaskVecEnv.envs` itself"
        )

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _count_starts(self, certified: np.ndarray) -> None:
        self.safety.starts += len(certified)
        self.safety.uncertified_starts += int(np.sum(~certified))


class SafetyCallback(BaseCallback):
    """Writes what a training behind a guard has come to into a sink, now and then.

    A row holds `step`, `episodes` (that ended since the last row), `return_mean` (their mean task return, without the penalty
    on interventions; NaN without any), `interventions` (share of the steps since the last row) and `violations` (all so far).

    Args:
        sink: as `holdfast.runs.Csv("curve.csv")`.
        every: least steps between two rows.
    """

    def __init__(self, sink: Sink, every: int = 2000):
        super().__init__()
        self.sink, self.every = sink, every
        self._told, self._seen = 0, (0, 0)
        self._returns: list[float] = []
        self._running = np.zeros(0)

    def _on_step(self) -> bool:
        infos, over = self.locals["infos"], np.asarray(self.locals["dones"])
        if not len(self._running):
            self._running = np.zeros(len(infos))
        self._running = self._running + np.array([info["task_reward"] for info in infos])
        self._returns += self._running[over].tolist()
        self._running[over] = 0.0
        if self.num_timesteps - self._told >= self.every:
            self.tell()
        return True

    def tell(self) -> None:
        """Writes a row now."""
        environments: Any = self.training_env.unwrapped
        safety: SafetyCount = environments.safety
        steps, interventions = safety.steps - self._seen[0], safety.interventions - self._seen[1]
        self.sink.write(
            {
                "step": self.num_timesteps,
                "episodes": len(self._returns),
                "return_mean": float(np.mean(self._returns)) if self._returns else math.nan,
                "interventions": interventions / max(steps, 1),
                "violations": safety.violations,
            }
        )
        self._told, self._seen, self._returns = self.num_timesteps, (safety.steps, safety.interventions), []
