"""Transitions kept for learning off the policy, on the device, in a ring of fixed size."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from holdfast.learn.experience import PolicySettings, Window


class Transitions(eqx.Module):
    """Steps as a critic learns from them; every shape begins with [B].

    Attributes:
        observation, next_observation: raw, [o].
        x, x_next: states, [n], for guards that are asked again; n = 0 where none is.
        proposed, applied: actions before and after the guard, [m].
        reward: shaped.
        bootstrap: 1 where the successor's value counts, 0 where the episode is over by the task's own rule.
        cost: 1 where the successor violates the safe set. What that costs may change (a multiplier), so it is not yet in
            the reward.
    """

    observation: Float[Array, "B o"]
    next_observation: Float[Array, "B o"]
    x: Float[Array, "B n"]
    x_next: Float[Array, "B n"]
    proposed: Float[Array, "B m"]
    applied: Float[Array, "B m"]
    reward: Float[Array, " B"]
    bootstrap: Float[Array, " B"]
    cost: Float[Array, " B"]

    def charged(self, violation_cost: Float[Array, ""]) -> "Transitions":
        """The same with what violations cost now taken from the rewards."""
        reward = self.reward - violation_cost.astype(self.reward.dtype) * self.cost
        return eqx.tree_at(lambda t: t.reward, self, reward)


class Replay(eqx.Module):
    """A ring of transitions: the newest take the place of the oldest.

    Attributes:
        rows: one transition a row, its numbers side by side, shape [C, w], float32: one gather draws a batch.
        filled: rows that hold a transition, shape [].
        position: the row that is written next, shape [].
        widths: of the fields of `Transitions`, in order; 0: a number without an axis.
    """

    rows: Float[Array, "C w"]
    filled: Int[Array, ""]
    position: Int[Array, ""]
    widths: tuple[int | None, ...] = eqx.field(static=True)

    @staticmethod
    def empty(capacity: int, observations: int, states: int, inputs: int) -> "Replay":
        widths = (observations, observations, states, states, inputs, inputs, None, None, None)
        rows = jnp.zeros((capacity, sum(1 if width is None else width for width in widths)), jnp.float32)
        return Replay(rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), widths)

    def add(self, batch: Transitions) -> tuple["Replay", Int[Array, ""]]:
        """The ring with a batch of B <= C transitions written, and how many of them were not finite.

        Those are stored as zeros that nothing bootstraps from, never as NaN; whoever adds them has to stop for them.
        """
        leaves = [leaf[:, None] if leaf.ndim == 1 else leaf for leaf in jax.tree.leaves(batch)]
        rows = jnp.concatenate([leaf.astype(jnp.float32) for leaf in leaves], axis=1)
        broken = ~jnp.all(jnp.isfinite(rows), axis=1)
        capacity, size = self.rows.shape[0], rows.shape[0]
        where = (self.position + jnp.arange(size, dtype=jnp.int32)) % capacity
        kept = self.rows.at[where].set(jnp.where(broken[:, None], 0.0, rows), unique_indices=True)
        filled = jnp.minimum(self.filled + size, capacity)
        return Replay(kept, filled, (self.position + size) % capacity, self.widths), jnp.sum(broken, dtype=jnp.int32)

    def sample(self, key: Key[Array, ""], size: int, dtype) -> Transitions:
        """A batch drawn uniformly, with replacement, from what is filled."""
        drawn = self.rows[jax.random.randint(key, (size,), 0, self.filled)].astype(dtype)
        fields, start = [], 0
        for width in self.widths:
            stop = start + (1 if width is None else width)
            fields.append(drawn[:, start] if width is None else drawn[:, start:stop])
            start = stop
        return Transitions(*fields)


def transitions_of(window: Window, settings: PolicySettings, applied: bool) -> Transitions:
    """A window's steps for replay.

    Args:
        window: without divergence, see `tamed`.
        applied: whether critics judge applied actions, with guards asked again at the states. What a guard moved is then
            no matter of the reward, because the critics do not see from where it moved it.
    """
    # What violations cost is charged when it is replayed; the value is the charge where an episode is lost.
    reward = window.shaped + window.charged + settings.discount * window.value
    if applied:
        reward = reward + settings.intervention_penalty * window.moved
    states = (window.x, window.x_next) if applied else (window.x[..., :0], window.x_next[..., :0])
    transitions = Transitions(
        window.observation,
        window.next_observation,
        *states,
        window.proposed,
        window.applied,
        reward,
        1.0 - (window.terminated | window.lost).astype(reward.dtype),
        window.cost.astype(reward.dtype),
    )
    size = reward.size  # not -1: states may have no numbers
    return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), transitions)
