"""A task as a Gymnasium vector environment: one compiled program steps the whole batch."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from holdfast.interop.program import task_named, task_program
from holdfast.interop.spaces import (
    action_space,
    observation_space,
    read_actions,
    read_penalty,
    read_seed,
    require_guard_of,
)
from holdfast.interop.task_env import checked_render_mode, metadata_of
from holdfast.plots import Snapshot
from holdfast.tasks import Task
from holdfast.types import Guard


class TaskVectorEnv(VectorEnv):
    """B episodes of a task behind a guard, as `TaskEnv` runs one: `reset(seed=s)` begins episode 0 of seeds s .. s + B - 1.

    Every entry of `info` is an array over the batch, with its mask `_NAME`. `cost`, `safety`, `task_reward` and `diverged`
    always tell of the step that was made, also where an episode ended with it.

    Args:
        num_envs: B.
        task, guard, intervention_penalty, render_mode: as in `TaskEnv`; `render` gives B pictures.
        autoreset_mode: "NextStep" (Gymnasium's default: the step after an end resets, its action is ignored and its reward
            is 0), "SameStep" (the observation is the new episode's, the last one is in `info["final_obs"]`), or "Disabled"
            (`reset(options={"reset_mask": mask})` resets).

    Attributes:
        certified: whether the guard promised anything from the start of each episode that runs now, bool [B].

    Raises:
        ValueError, TypeError: as `TaskEnv`, and for fewer than one environment.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        task: Task | str = "lane-keeping",
        guard: Guard | None = None,
        intervention_penalty: float = 0.0,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ):
        if num_envs < 1:
            raise ValueError(f"TaskVectorEnv: num_envs = {num_envs}; give at least 1")
        self.task = task_named(task) if isinstance(task, str) else task
        require_guard_of("TaskVectorEnv", guard, self.task)
        self._penalty = read_penalty("TaskVectorEnv", intervention_penalty)
        self.render_mode = checked_render_mode("TaskVectorEnv", render_mode)
        self.num_envs, self.guard, self._mode = num_envs, guard, AutoresetMode(autoreset_mode)
        self.metadata = metadata_of(self.task) | {"autoreset_mode": self._mode}
        self.single_action_space, self.single_observation_space = action_space(self.task), observation_space(self.task)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._program = task_program(self.task, guard)
        self._seeds: np.ndarray | None = None
        self._numbers = np.zeros(num_envs, np.uint32)
        self._episodes: Any = None
        self._over = self.certified = np.zeros(num_envs, bool)
        self._films = [_Film(self.task) for _ in range(num_envs)] if render_mode else []

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed if isinstance(seed, int | np.integer) else None)
        which = self._asked(options)
        self._renumber(seed, which)
        if self._episodes is None:
            self._episodes, begun = self._program.begin_many(self._seeds, self._numbers)
        else:
            self._episodes, begun = self._program.renew(self._episodes, self._seeds, self._numbers, which)
        begun: Any = jax.device_get(begun)
        self.certified = np.where(which, begun.certified, self.certified)
        self._over = self._over & ~which
        self._film(which)
        observation = np.array(begun.observation)
        if not which.all():
            observation = np.where(which[:, None], observation, self._last)
        self._last = observation
        return observation.copy(), masked({"safety": {"certified": np.array(begun.certified)}}, which)

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._episodes is None:
            raise ResetNeeded("TaskVectorEnv.step before the first reset: call reset(), with a seed to repeat episodes")
        u = read_actions("TaskVectorEnv.step", actions, self.action_space.shape, self.task.system.input_names)
        self._episodes, seen = self._program.step_many(self._episodes, u, self._penalty)
        seen: Any = jax.device_get(seen)  # as `Seen`, in NumPy
        terminated, truncated = seen.terminated | seen.diverged, np.array(seen.truncated)
        observation, reward = np.array(seen.observation), np.array(seen.reward, np.float64)
        stepped = np.ones(self.num_envs, bool)
        if self._mode is AutoresetMode.NEXT_STEP and self._over.any():
            stepped = ~self._over
            observation[self._over] = self._begin_next(self._over)[self._over]
            reward, terminated, truncated = reward * stepped, terminated & stepped, truncated & stepped
        self._film(~stepped)
        over = terminated | truncated
        told = {
            "cost": np.array(seen.cost, np.float64),
            "diverged": np.array(seen.diverged),
            "task_reward": np.array(seen.task_reward, np.float64),
            "safety": {name: np.array(getattr(seen, name)) for name in ("proposed", "applied", "status", "margin")},
        }
        info = masked(told, stepped)
        if self._mode is AutoresetMode.SAME_STEP and over.any():
            final = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(over):
                final[i] = observation[i].copy()
            info |= {"final_obs": final, "_final_obs": over.copy()}
            info |= {"final_info": masked(jax.tree.map(np.copy, told), over), "_final_info": over.copy()}
            observation[over] = self._begin_next(over)[over]
            self._film(over)
        self._over, self._last = over, observation
        return observation.copy(), reward, terminated, truncated, info

    @property
    def state(self) -> np.ndarray:
        """The states x, shape [B, n], float32."""
        if self._episodes is None:
            raise ResetNeeded("TaskVectorEnv.state before the first reset: call reset()")
        return np.array(self._episodes.x)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture an episode, each [height, width, 3], uint8; None without a render mode."""
        if not self._films:
            return None
        context = lambda i: jax.tree.map(lambda leaf: leaf[i], self._episodes.context)  # noqa: E731
        return tuple(film.frame(context(i)) for i, film in enumerate(self._films))

    def _begin_next(self, which: np.ndarray) -> np.ndarray:
        """Begins the next episodes where `which` [B]; the observations of their starts, [B, o]."""
        self._numbers = self._numbers + which.astype(np.uint32)
        self._episodes, begun = self._program.renew(self._episodes, self._seeds, self._numbers, which)
        self.certified = np.where(which, begun.certified, self.certified)
        return np.asarray(begun.observation)

    def _asked(self, options: dict[str, Any] | None) -> np.ndarray:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (self.num_envs,) or self._episodes is None:
            raise ValueError(
                f"TaskVectorEnv.reset: reset_mask is {mask.dtype} with shape {mask.shape}; give bool with shape "
                f"({self.num_envs},), and reset all environments once before"
            )
        return mask

    def _renumber(self, seed: int | Sequence[int | None] | None, which: np.ndarray) -> None:
        """Seeds and numbers of the episodes that begin now where `which` [B]."""
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + i for i in range(self.num_envs)]
        if seed is not None and len(seed) != self.num_envs:
            raise ValueError(f"TaskVectorEnv.reset: {len(seed)} seeds for {self.num_envs} environments; give one each")
        if self._seeds is None:
            self._seeds = self.np_random.integers(2**32, size=self.num_envs, dtype=np.uint32)
            fresh = which
        else:
            fresh = np.zeros(self.num_envs, bool)
        seeds, numbers = self._seeds.copy(), self._numbers + (which & ~fresh).astype(np.uint32)
        for i, each in enumerate(seed or ()):
            if each is not None and which[i]:
                seeds[i], numbers[i] = read_seed("TaskVectorEnv.reset", each), 0
        self._seeds, self._numbers = seeds, numbers

    def _film(self, begun: np.ndarray) -> None:
        if self._films:
            for film, new, x in zip(self._films, begun, self.state):
                film.add(x, bool(new))


class _Film:
    """The states of one episode so far, and its pictures."""

    def __init__(self, task: Task):
        self.snapshot, self.states = Snapshot(task), []

    def add(self, x: np.ndarray, new: bool) -> None:
        self.states = [x] if new else [*self.states, x]

    def frame(self, context: Any) -> np.ndarray:
        return self.snapshot.frame(np.stack(self.states), context)


def masked(info: dict[str, Any], which: np.ndarray) -> dict[str, Any]:
    """Gymnasium's form of a batch's info: beside every entry `_NAME`, the environments for which it holds, bool [B]."""
    found: dict[str, Any] = {}
    for name, value in info.items():
        found[name] = masked(value, which) if isinstance(value, dict) else value
        found[f"_{name}"] = which.copy()
    return found
