"""Gymnasium's spaces of a task, and what is checked of actions, guards and seeds that come from outside."""

import math
import operator
from typing import Any

import gymnasium
import jax
import numpy as np

from holdfast.safeguards import Safeguard
from holdfast.sets import Box
from holdfast.systems import System
from holdfast.tasks import Task
from holdfast.types import Guard


def action_space(task: Task) -> gymnasium.spaces.Box:
    """The input box in physical units, float32, rounded inwards."""
    return gymnasium.spaces.Box(*float32_bounds(task.system.input_box), dtype=np.float32)


def observation_space(task: Task) -> gymnasium.spaces.Box:
    """All of R^o, float32: what a policy sees has no bounds that hold whatever it does."""
    return gymnasium.spaces.Box(-np.inf, np.inf, (task.observation_size,), np.float32)


def float32_bounds(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) of a box in float32, rounded inwards."""
    lower, upper = box.bounds(np.float32)
    return np.asarray(lower), np.asarray(upper)


def read_actions(where: str, action: Any, shape: tuple[int, ...] | None, names: tuple[str, ...]) -> np.ndarray:
    """The action as float32 of that shape. Its numbers may be anything, NaN too: the guard answers for them.

    Raises:
        ValueError: for another shape, or what is no array of numbers.
    """
    try:
        found = np.array(action, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: action = {action!r}; give an array of float32 with shape {shape}") from None
    if found.shape != shape:
        raise ValueError(f"{where}: action has shape {found.shape}; give {shape}, the inputs are {', '.join(names)}")
    return found


def read_seed(where: str, seed: int) -> int:
    """A seed that gives the same episodes in every precision.

    Raises:
        ValueError: if it is not an integer from 0 to 2^32 - 1.
    """
    if isinstance(seed, bool) or not 0 <= operator.index(seed) < 2**32:
        raise ValueError(f"{where}: seed = {seed!r}; give an integer from 0 to 2^32 - 1")
    return operator.index(seed)


def read_penalty(where: str, penalty: float) -> np.float32:
    """The weight of interventions.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not (math.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"{where}: intervention_penalty = {penalty}; give a finite number >= 0, 0 for none")
    return np.float32(penalty)


def state_size(safeguard: Safeguard) -> int | None:
    """n of the system that a safeguard was built for, if it knows one."""
    nodes = jax.tree.leaves(safeguard, is_leaf=lambda node: isinstance(node, System))
    return next((node.state_size for node in nodes if isinstance(node, System)), None)


def require_guard_of(where: str, guard: Guard | None, task: Task) -> None:
    """Refuses what is no guard, and a safeguard of another system.

    Raises:
        TypeError, ValueError: with what to give.
    """
    if guard is None:
        return
    if not isinstance(guard, Guard):
        raise TypeError(f"{where}: guard is a {type(guard).__name__}; give a holdfast.safeguards.Safeguard, or None")
    if isinstance(guard, Safeguard):
        size, own = state_size(guard), task.system.state_size
        if size not in (None, own):
            raise ValueError(
                f"{where}: the guard is for a system with {size} states, {task.name or 'the task'} has {own}; give a safeguard "
                "that was built for this task's system"
            )
        theirs, ours = guard.source.input_box, task.system.input_box
        if not (np.array_equal(theirs.lower, ours.lower) and np.array_equal(theirs.upper, ours.upper)):
            raise ValueError(
                f"{where}: the guard's input box is {theirs.lower} to {theirs.upper}, that of {task.name or 'the task'} is "
                f"{ours.lower} to {ours.upper}; give a safeguard that was built for this task's system"
            )
