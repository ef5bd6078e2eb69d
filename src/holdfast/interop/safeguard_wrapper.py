"""A safeguard around an environment that somebody else wrote."""

from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.error import ResetNeeded

from holdfast.interop.program import guard_program
from holdfast.interop.spaces import float32_bounds, read_actions, read_penalty, state_size
from holdfast.interop.task_env import TaskEnv
from holdfast.safeguards import Safeguard


class SafeguardWrapper(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """*Safeguard in the environment*, for any environment whose state can be read: only verified actions reach it.

    `info["safety"]` tells of every step what `TaskEnv` tells; `reset` tells whether the start is certified. What is promised
    is promised of the system that the safeguard was built for: that the environment moves like it is an assumption.

    Args:
        env: one whose actions are those of the safeguard's system, in its units.
        safeguard: for that system.
        state_fn: env -> the system's state x [n], as the environment has it now. Not needed for `TaskEnv`.
        intervention_penalty: weight of |applied - proposed|^2, in half-widths of the input box, in the reward.

    Raises:
        TypeError, ValueError: for an environment whose state cannot be read or whose action space is not the input box.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        safeguard: Safeguard,
        state_fn: Callable[[gymnasium.Env], Any] | None = None,
        intervention_penalty: float = 0.0,
    ):
        gymnasium.utils.RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            safeguard=safeguard,
            state_fn=state_fn,
            intervention_penalty=intervention_penalty,
        )
        gymnasium.Wrapper.__init__(self, env)
        if not isinstance(safeguard, Safeguard):
            raise TypeError(
                f"SafeguardWrapper: safeguard is a {type(safeguard).__name__}; give a holdfast.safeguards.Safeguard"
            )
        self.safeguard, self.state_fn = safeguard, _state_of_task if state_fn is None else state_fn
        _require_state(env, state_fn)
        _require_actions(env, safeguard)
        self._penalty = read_penalty("SafeguardWrapper", intervention_penalty)
        self._half = np.asarray(safeguard.source.input_box.half_widths)
        self._init, self._step = guard_program(safeguard)
        self._commitment: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._commitment = self._init(self._read_state())
        return observation, info | {"safety": {"certified": bool(self._commitment.certified)}}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._commitment is None:
            raise ResetNeeded("SafeguardWrapper.step before the first reset: call reset()")
        space = self.env.action_space
        proposed = read_actions("SafeguardWrapper.step", action, space.shape, ("those of the input box",))
        u = proposed.astype(space.dtype)
        answer, self._commitment = self._step(self._commitment, self._read_state(), u)
        answer = jax.device_get(answer)
        observation, reward, terminated, truncated, info = self.env.step(np.array(answer.action))
        safety = {
            "proposed": proposed,
            "applied": np.array(answer.action),
            "status": int(answer.status),
            "margin": float(answer.margin),
        }
        moved = float(np.sum((answer.correction / self._half) ** 2))
        told = {"safety": safety, "task_reward": info.get("task_reward", float(reward))}
        return observation, float(reward) - float(self._penalty) * moved, terminated, truncated, info | told

    def _read_state(self) -> np.ndarray:
        # In the action's precision: an action verified in float64 and applied in float32 is not the one verified.
        given, size = self.state_fn(self.env), state_size(self.safeguard)
        try:
            x = np.asarray(given, self.env.action_space.dtype)
        except (TypeError, ValueError):
            raise ValueError(
                f"SafeguardWrapper: state_fn gives {given!r}; give an array of numbers, the state of one plant"
            ) from None
        if x.ndim != 1 or (size is not None and x.shape != (size,)):
            wanted = "a vector" if size is None else f"({size},)"
            raise ValueError(f"SafeguardWrapper: state_fn gives shape {x.shape}; give {wanted}, the state of one plant")
        return x


def _state_of_task(env: gymnasium.Env) -> np.ndarray:
    inner: Any = env.unwrapped
    return np.asarray(inner.state)


def _require_state(env: gymnasium.Env, state_fn: Callable | None) -> None:
    inner = env.unwrapped
    if state_fn is not None and not callable(state_fn):
        raise TypeError(
            f"SafeguardWrapper: state_fn is a {type(state_fn).__name__}; give a function of the environment that returns the "
            "state x, for example state_fn=lambda env: env.unwrapped.state"
        )
    if state_fn is None and not isinstance(inner, TaskEnv):
        raise ValueError(
            f"SafeguardWrapper: {type(inner).__name__} does not tell its state to holdfast; give state_fn, a function of "
            "the environment that returns the state x of the safeguard's system, for example "
            "state_fn=lambda env: env.unwrapped.state"
        )
    if isinstance(inner, TaskEnv) and inner.guard is not None:
        raise ValueError(
            "SafeguardWrapper: the environment has a guard already; make it with guard=None, or leave the wrapper out"
        )


def _require_actions(env: gymnasium.Env, safeguard: Safeguard) -> None:
    space, box = env.action_space, safeguard.source.input_box
    wanted = f"the system's input box, {box.lower.tolist()} to {box.upper.tolist()}"
    if not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(f"SafeguardWrapper: the action space is {space}; it must be a Box equal to {wanted}")
    lower, upper = float32_bounds(box)
    same = space.shape == lower.shape and np.allclose(space.low, lower, rtol=1e-6, atol=0)
    if not (same and np.allclose(space.high, upper, rtol=1e-6, atol=0)):
        raise ValueError(
            f"SafeguardWrapper: the action space is {space.low.tolist()} to {space.high.tolist()}; it must equal {wanted}. "
            "Rescale outside, RescaleAction(SafeguardWrapper(env, ...), -1, 1), or make the environment's units the system's"
        )
