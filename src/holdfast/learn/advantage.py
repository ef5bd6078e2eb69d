"""Returns along windows of experience."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def td_lambda(
    rewards: Float[Array, "H B"],
    next_values: Float[Array, "H B"],
    terminated: Bool[Array, "H B"],
    ended: Bool[Array, "H B"],
    discount: float,
    trace: float,
) -> Float[Array, "H B"]:
    """TD(lambda) targets, shape [H, B], backwards through a window of H steps.

    G_k = r_k + gamma (1 - terminated_k) [(1 - lambda_k) V(x_{k+1}) + lambda_k G_{k+1}], with lambda_k = 0 at the end of
    an episode or of the window: a truncation bootstraps from the true successor, a termination does not.
    Source: Sutton and Barto, Reinforcement Learning, 2nd edition, chapter 12.
    """

    def back(following, inputs):
        reward, value, terminated, ended = inputs
        onward = jnp.where(ended, value, (1 - trace) * value + trace * following)
        target = reward + discount * jnp.where(terminated, 0.0, onward)
        return target, target

    _, targets = jax.lax.scan(back, next_values[-1], (rewards, next_values, terminated, ended), reverse=True)
    return targets


def generalised_advantage(
    rewards: Float[Array, "H B"],
    values: Float[Array, "H B"],
    next_values: Float[Array, "H B"],
    terminated: Bool[Array, "H B"],
    ended: Bool[Array, "H B"],
    discount: float,
    trace: float,
) -> tuple[Float[Array, "H B"], Float[Array, "H B"]]:
    """(advantages, targets of the values), shapes [H, B].

    A_k = sum_j (gamma lambda)^j delta_{k+j} with delta_k = r_k + gamma V(x_{k+1}) - V(x_k), cut where an episode ends:
    the same sum as that of the TD(lambda) target, less V(x_k).
    Source: Schulman et al., High-dimensional continuous control using generalized advantage estimation, ICLR 2016.
    """
    targets = td_lambda(rewards, next_values, terminated, ended, discount, trace)
    return targets - values, targets
