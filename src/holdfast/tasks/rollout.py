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
    """Where an episode stands: state x [n], time step t, context, the guard's own state, and the key of its disturbances."""

    x: Float[Array, " n"]
    t: Int[Array, ""]
    context: Any
    guard: Any
    key: Key[Array, ""]


Disturb = Callable[[Key[Array, ""], Float[Array, " n"], Float[Array, " m"], Int[Array, ""], Any], Float[Array, " d"]]
"""(key, x, applied action, t, context) -> w: an adversary in place of `Task.disturbance`. Its key is the episode's, the same
at every step, so that it can hold what it chose: fold t into it for what should be drawn anew."""


def reset(task: Task, guard: Guard, key: Key[Array, ""], dtype=None) -> Episode:
    """A new episode. Its key decides start and context; use fold_in(seed, episode), so that batches do not matter."""
    x = task.sample_start(jax.random.split(key)[0])
    x = x if dtype is None else x.astype(dtype)
    context = episode_context(task, key, x)
    return Episode(x, jnp.zeros((), jnp.int32), context, guard.init(x), jax.random.fold_in(key, 2))


def episode_context(task: Task, key: Key[Array, ""], x: Float[Array, " n"]) -> Any:
    """The context of the episode that `reset` begins with this key, at its start x [n]."""
    return task.context_at(x, task.sample_context(jax.random.split(key)[1]))


def step(
    task: Task, guard: Guard, episode: Episode, u: Float[Array, " m"], disturb: Disturb | None = None
) -> tuple[Episode, Transition]:
    """One step with the proposed action u [m]. The transition is true to the plant; nothing is reset here.

    `disturb` chooses the disturbance in place of the task; what it chooses is clipped to the system's box.
    """
    answer, guard_state = guard.step(episode.guard, episode.x, u)
    x, t, context = episode.x, episode.t, episode.context
    w = _disturbance(task, episode, answer.action, disturb)
    x_next = task.system.disturbed_step(x, answer.action, w)
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
        disturbance=w,
    )
    return Episode(x_next, t + 1, context, guard_state, episode.key), transition


def _disturbance(task: Task, episode: Episode, u: Float[Array, " m"], disturb: Disturb | None) -> Float[Array, " d"]:
    if disturb is None or task.system.noise_box.dimension == 0:
        key = jax.random.fold_in(episode.key, episode.t)
        return task.disturbance(key, episode.t, episode.context).astype(episode.x.dtype)
    w = disturb(episode.key, episode.x, u, episode.t, episode.context)
    return task.system.noise_box.clip(w.astype(episode.x.dtype))


def rollout(
    task: Task,
    guard: Guard,
    policy: Callable[[Float[Array, " o"]], Float[Array, " m"]],
    episode: Episode,
    steps: int,
    disturb: Disturb | None = None,
) -> tuple[Episode, Transition]:
    """`steps` steps of a deterministic policy; transitions stacked along a leading axis [steps]."""

    def advance(episode, _):
        return step(task, guard, episode, policy(task.observe(episode.x, episode.t, episode.context)), disturb)

    return jax.lax.scan(advance, episode, None, length=steps)
