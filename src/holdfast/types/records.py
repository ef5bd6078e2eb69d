"""Records that cross room boundaries."""

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree


class Safeguarded(eqx.Module):
    """What a safeguard returns for one proposed action.

    Attributes:
        action: the admissible action to apply, in the caller's units, shape [m].
        status: a `Status` as an integer, shape [].
        margin: smallest margin along the plan that is committed now, shape [] (>= 0 inside; -inf without a plan).
        correction: action minus proposed action, shape [m]; zero where the proposed action was not finite.
    """

    action: Float[Array, " m"]
    status: Int[Array, ""]
    margin: Float[Array, ""]
    correction: Float[Array, " m"]


class Transition(eqx.Module):
    """One step of a task, with both the proposed and the applied action and three separate ends.

    Attributes:
        x, x_next: states, shape [n]. `x_next` is the true successor, before any reset.
        observation, next_observation: shape [o].
        proposed, applied: actions, shape [m].
        reward: shape []; of the applied action.
        cost: 1.0 where the successor violates the safe set, else 0.0, shape [].
        margin: the task's safe-set margins at the successor, shape [p].
        guard: the safeguard's answer.
        terminated: the task ended by its own rule.
        truncated: the time limit was reached; the value of the successor still counts.
        diverged: the successor is not finite. Reported, never replaced.
        disturbance: what disturbed the step, shape [d]; d = 0 where the model is undisturbed.
    """

    x: Float[Array, " n"]
    x_next: Float[Array, " n"]
    observation: Float[Array, " o"]
    next_observation: Float[Array, " o"]
    proposed: Float[Array, " m"]
    applied: Float[Array, " m"]
    reward: Float[Array, ""]
    cost: Float[Array, ""]
    margin: Float[Array, " p"]
    guard: PyTree
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    diverged: Bool[Array, ""]
    disturbance: Float[Array, " d"]
