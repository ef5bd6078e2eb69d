"""Rolling a task out, with a guard between the proposed action and the plant."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from holdfast.tasks.base import Task
from holdfast.types import Guard, Transition


class Episode(eqx.Module):
    """Where an episode stands: state x [n], time step t, context, and the guard's own state."""

    x: Float[Array, " n"]
    t: Int[Array, ""]
    context: Any
    guard: Any


def reset(task: Task, guard: Guard, key: Key[Array, ""], dtype=None) -> Episode:
    """A new episode. Its key decides start and context; use fold_in(seed, episode), so that batches do not matter."""
    start, context = jax.random.split(key)
    x = task.sample_start(start)
    x = x if dtype is None else x.astype(dtype)
    return Episode(x, jnp.zeros((), jnp.int32), task.sample_context(context), guard.init(x))


def step(task: Task, guard: Guard, episode: Episode, u: Float[Array, " m"]) -> tuple[Episode, Transition]:
    """One step with the proposed action u [m]. The transition is true to the plant; nothing is reset here."""
    answer, guard_state = guard.step(episode.guard, episode.x, u)
    x, t, context = episode.x, episode.t, episode.context
    x_next = task.system.step(x, answer.action)
    margin = task.safe_set.margin(x_next)
    over = t + 1 >= task.episode_steps
    transition = Transition(
        x=x,
        x_next=x_next,
        observation=task.observe(x, t, context),
        next_observation=task.observe(x_next, t + 1, context),
        proposed=u,
        applied=answer.action,
        reward=task.reward(x, answer.action, x_next, t, context),
        cost=1.0 - jnp.all(margin >= 0).astype(x.dtype),
        margin=margin,
        guard=answer,
        terminated=over & task.finite,
        truncated=over & (not task.finite),
        diverged=~jnp.all(jnp.isfinite(x_next)),
    )
    return Episode(x_next, t + 1, context, guard_state), transition


def rollout(
    task: Task,
    guard: Guard,
    policy: Callable[[Float[Array, " o"]], Float[Array, " m"]],
    episode: Episode,
    steps: int,
) -> tuple[Episode, Transition]:
    """`steps` steps of a deterministic policy; transitions stacked along a leading axis [steps]."""

    def advance(episode, _):
        return step(task, guard, episode, policy(task.observe(episode.x, episode.t, episode.context)))

    return jax.lax.scan(advance, episode, None, length=steps)
