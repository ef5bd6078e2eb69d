"""A task behind a guard as compiled programs, shared by all environments that ask for the same."""

import dataclasses
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from holdfast.tasks import Episode, Task, make_task, reset, step
from holdfast.types import Guard, Unguarded


class Seen(eqx.Module):
    """What an environment tells of one step, in float32.

    Attributes:
        observation: of the true successor, before any reset, shape [o].
        reward: of the task, less the penalty on interventions, shape [].
        task_reward: of the task alone, shape [].
        cost: 1.0 where the successor violates the safe set, else 0.0, shape [].
        terminated, truncated, diverged: the three ends, shape [].
        proposed, applied: actions, shape [m].
        status: a `holdfast.types.Status` as an integer, shape [].
        margin: smallest margin along the committed plan, -inf without one, shape [].
    """

    observation: Float[Array, " o"]
    reward: Float[Array, ""]
    task_reward: Float[Array, ""]
    cost: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    diverged: Bool[Array, ""]
    proposed: Float[Array, " m"]
    applied: Float[Array, " m"]
    status: Int[Array, ""]
    margin: Float[Array, ""]


class Beginning(eqx.Module):
    """What an environment tells of a reset.

    Attributes:
        observation: shape [o].
        certified: whether the guard promises anything from here on, shape [].
    """

    observation: Float[Array, " o"]
    certified: Bool[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class TaskProgram:
    """Compiled when first called, once for every batch size. An episode depends on its seed and number alone.

    Attributes:
        task, guard: what runs.
        begin: (seed, number) -> (episode, `Beginning`).
        step: (episode, u [m], intervention penalty) -> (episode, `Seen`).
        begin_many, step_many: the same for B episodes; the penalty is one number.
        renew: (episodes, seeds [B], numbers [B], which [B]) -> (episodes, `Beginning` [B]): begins those of `which` anew.
    """

    task: Task
    guard: Guard
    begin: Callable[..., tuple[Episode, Beginning]]
    step: Callable[..., tuple[Episode, Seen]]
    begin_many: Callable[..., tuple[Episode, Beginning]]
    step_many: Callable[..., tuple[Episode, Seen]]
    renew: Callable[..., tuple[Episode, Beginning]]


@cache
def task_named(name: str) -> Task:
    """One task for each name, so that environments share what is compiled for it."""
    return make_task(name)


def task_program(task: Task, guard: Guard | None) -> TaskProgram:
    """The programs of a task behind a guard, `Unguarded` where it is None. Equal tasks and guards share them."""
    box = task.system.input_box
    return _program(_ByValue((task, Unguarded(box.lower, box.upper) if guard is None else guard)))


def guard_program(guard: Guard) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(init, step) of a guard, compiled; equal guards share them."""
    return _guard_program(_ByValue(guard))


class _ByValue:
    """A tree that is equal to another one if structure and numbers are: a key of caches."""

    def __init__(self, tree: Any):
        self.tree = tree
        leaves, structure = jax.tree.flatten(tree)
        self.key = (structure, tuple(_frozen(leaf) for leaf in leaves))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByValue) and self.key == other.key


def _frozen(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray | jax.Array):
        return leaf
    # A NumPy array is a constant of the problem, a JAX array is learned: they round differently (`Box.bounds`).
    return type(leaf), str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


@lru_cache(maxsize=64)
def _guard_program(key: _ByValue) -> tuple[Callable[..., Any], Callable[..., Any]]:
    guard = key.tree
    return jax.jit(lambda x: guard.init(x)), jax.jit(lambda state, x, u: guard.step(state, x, u))


@lru_cache(maxsize=64)
def _program(key: _ByValue) -> TaskProgram:
    task, guard = key.tree
    half = np.asarray(task.system.input_box.half_widths, np.float32)

    def begin(seed: UInt[Array, ""], number: UInt[Array, ""]):
        key = jax.random.fold_in(jax.random.key(seed), number)  # `holdfast.runs.episode_key`
        episode = reset(task, guard, key, jnp.float32)
        observation = task.observe(episode.x, episode.t, episode.context).astype(jnp.float32)
        certified = getattr(episode.guard, "certified", False)
        return episode, Beginning(observation, jnp.asarray(certified, bool))

    def advance(episode: Episode, u: Float[Array, " m"], penalty: Float[Array, ""]):
        episode, seen = step(task, guard, episode, u)
        reward = seen.reward.astype(jnp.float32)
        # The guard's correction is zero where the proposal was not finite: the penalty stays finite.
        moved = jnp.sum((seen.guard.correction / half) ** 2)
        return episode, Seen(
            observation=seen.next_observation.astype(jnp.float32),
            reward=jnp.where(moved > 0, reward - penalty * moved, reward),
            task_reward=reward,
            cost=seen.cost.astype(jnp.float32),
            terminated=seen.terminated,
            truncated=seen.truncated,
            diverged=seen.diverged,
            proposed=seen.proposed,
            applied=seen.applied,
            status=seen.guard.status,
            margin=seen.guard.margin,
        )

    begin_many, choose = jax.vmap(begin), jax.vmap(jnp.where)

    def renew(episodes: Episode, seeds: UInt[Array, " B"], numbers: UInt[Array, " B"], which: Bool[Array, " B"]):
        fresh, beginning = begin_many(seeds, numbers)
        return jax.tree.map(lambda new, old: choose(which, new, old), fresh, episodes), beginning

    step_many = jax.vmap(advance, in_axes=(0, 0, None))
    return TaskProgram(task, guard, *(jax.jit(each) for each in (begin, advance, begin_many, step_many, renew)))
