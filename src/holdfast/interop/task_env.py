"""A task as a Gymnasium environment."""

from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.error import ResetNeeded

from holdfast.interop.program import Seen, task_named, task_program
from holdfast.interop.spaces import (
    action_space,
    observation_space,
    read_actions,
    read_penalty,
    read_seed,
    require_guard_of,
)
from holdfast.plots import Snapshot
from holdfast.tasks import Task
from holdfast.types import Guard


class TaskEnv(gymnasium.Env):
    """A task behind a guard: *safeguard in the environment*. Actions are in physical units; all numbers are float32.

    `reset(seed=s)` begins episode 0 of seed s, each `reset()` after it the next one; an episode depends on its seed and
    number alone, whatever was done before. `step` returns the true successor's observation, `terminated` where the task is
    over or the state is no longer finite, `truncated` where only the time is over; and in `info`

    - `cost`: 1.0 where the successor violates the safe set, else 0.0;
    - `safety`: `proposed`, `applied` (actions), `status` (a `holdfast.types.Status` as an integer; `Status(n).cause` says
      what it means) and `margin` (the least along the plan that is committed now, -inf without a guard);
    - `task_reward`: the reward before the penalty on interventions;
    - `diverged`: whether the state is no longer finite.

    `reset` tells in `info["safety"]["certified"]` whether the guard promises anything from this start on.

    Args:
        task: the task or its name.
        guard: a `holdfast.safeguards.Safeguard`, or None: then actions are clipped to the input box.
        intervention_penalty: weight of |applied - proposed|^2, in half-widths of the input box, in the reward.
        render_mode: "rgb_array" or None. No display is needed.

    Raises:
        ValueError, TypeError: for a guard of another system, a penalty below 0, an unknown mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        task: Task | str = "lane-keeping",
        guard: Guard | None = None,
        intervention_penalty: float = 0.0,
        render_mode: str | None = None,
    ):
        self.task = task_named(task) if isinstance(task, str) else task
        require_guard_of("TaskEnv", guard, self.task)
        self._penalty = read_penalty("TaskEnv", intervention_penalty)
        self.render_mode = checked_render_mode("TaskEnv", render_mode)
        self.metadata = metadata_of(self.task)
        self.guard = guard
        self.action_space, self.observation_space = action_space(self.task), observation_space(self.task)
        self._program = task_program(self.task, guard)
        self._seed: int | None = None
        self._number = 0
        self._episode: Any = None
        self._states: list[np.ndarray] = []
        self._snapshot = Snapshot(self.task) if render_mode else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None and self._seed is not None:
            self._number += 1
        else:
            drawn = self.np_random.integers(2**32) if seed is None else seed
            self._seed, self._number = read_seed("TaskEnv.reset", int(drawn)), 0
        self._episode, begun = self._program.begin(np.uint32(self._seed), np.uint32(self._number))
        self._states = [self.state]
        begun = jax.device_get(begun)
        return np.array(begun.observation), {"safety": {"certified": bool(begun.certified)}}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._episode is None:
            raise ResetNeeded("TaskEnv.step before the first reset: call reset(), with a seed to repeat the episode")
        u = read_actions("TaskEnv.step", action, self.action_space.shape, self.task.system.input_names)
        self._episode, seen = self._program.step(self._episode, u, self._penalty)
        seen: Seen = jax.device_get(seen)
        if self._snapshot is not None:
            self._states.append(self.state)
        info = {
            "cost": float(seen.cost),
            "diverged": bool(seen.diverged),
            "task_reward": float(seen.task_reward),
            "safety": {
                "proposed": np.array(seen.proposed),
                "applied": np.array(seen.applied),
                "status": int(seen.status),
                "margin": float(seen.margin),
            },
        }
        ended = bool(seen.terminated | seen.diverged)
        return np.array(seen.observation), float(seen.reward), ended, bool(seen.truncated), info

    @property
    def state(self) -> np.ndarray:
        """The state x, shape [n], float32."""
        if self._episode is None:
            raise ResetNeeded("TaskEnv.state before the first reset: call reset()")
        return np.array(self._episode.x)

    def render(self) -> np.ndarray | None:
        """The task's picture now, shape [height, width, 3], uint8; None without a render mode."""
        if self._snapshot is None:
            return None
        return self._snapshot.frame(np.stack(self._states), self._episode.context)


def metadata_of(task: Task) -> dict[str, Any]:
    """What a task's environments declare: how they render, and the frames a second that are real time."""
    return {"render_modes": ["rgb_array"], "render_fps": max(1, round(1 / task.system.dt))}


def checked_render_mode(where: str, mode: str | None) -> str | None:
    """The mode, refused where it is unknown."""
    if mode not in (None, "rgb_array"):
        raise ValueError(f"{where}: render_mode = {mode!r}; give 'rgb_array' or None (RecordVideo makes films of it)")
    return mode
