"""How closely a task's reference was followed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.tasks.base import Task


def tracking_rmse(task: Task, states: Float[Array, "T1 n"], context: Any, indices: Sequence[int]) -> Float[Array, ""]:
    """Root mean square over x_1..x_T of the Euclidean distance to the reference in some states of one unit, shape []."""
    times = jnp.arange(states.shape[0])
    wanted = jax.vmap(task.reference, in_axes=(0, None))(times, context).astype(states.dtype)
    error = (states - wanted)[1:, jnp.asarray(indices)]
    return jnp.sqrt(jnp.mean(jnp.sum(error**2, axis=1)))
