"""A committed plan: the promise that a safeguard keeps."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from holdfast.sets import Box


class AcceptanceMargins(eqx.Module):
    """How far inside a plan must lie to be accepted, so that rounding along its replay cannot lead outside.

    Rounding adds up along a plan, so later nodes need more; one number for all nodes is allowed too.

    Attributes:
        path: eps_h, for each node and constraint, in its units, shape [N+1, p] or [p].
        base: eps_B, for each node, on the dimensionless base-set margin 1 - V/c, shape [N+1] or a number.
        region: the states for which these margins were derived; a plan that leaves it is not accepted. None: all states.
    """

    path: np.ndarray
    base: np.ndarray | float
    region: Box | None = None


class Plan(eqx.Module):
    """An action sequence that arrives in the base set at step `length`; the base controller goes on from there.

    Attributes:
        actions: v_0..v_{N-1}, shape [N, m]; only the first `length` count.
        length: steps to the first arrival in the base set, shape [].
        age: steps replayed so far, shape [].
        margin: smallest margin beyond the acceptance margins along the plan, shape [] (dimension mixed: the safe set's
            units on the path, dimensionless at the end).
        certified: whether the plan was accepted, shape [].
        expected: where the model says the plant is at the present age, shape [n]; it goes on inside the base set, where
            the base controller needs a state even if none can be read.
    """

    actions: Float[Array, "N m"]
    length: Int[Array, ""]
    age: Int[Array, ""]
    margin: Float[Array, ""]
    certified: Bool[Array, ""]
    expected: Float[Array, " n"]

    def next_action(self) -> Float[Array, " m"]:
        """The planned action at the present age, shape [m]; meaningful only while `age < length`."""
        return self.actions[jnp.clip(self.age, 0, self.actions.shape[0] - 1)]

    def replayed(self, expected: Float[Array, " n"]) -> "Plan":
        """The plan after its present action was applied and the model went on to `expected`, shape [n]."""
        # Not beyond the end of the plan: an integer that counts for ever wraps around one day.
        age = jnp.minimum(self.age + 1, self.actions.shape[0])
        return eqx.tree_at(lambda plan: (plan.age, plan.expected), self, (age, expected))
