"""The per-input map: one input yields, the others stay."""

import equinox as eqx
import jax
import jax.numpy as jnp

from holdfast.safeguards.map import Map, furthest_safe, segment_pullback


class PerInput(Map):
    """Candidate i moves input i alone from u towards the known safe action, as little as the margin allows.

    Scaling all inputs towards the backup takes steering away with the brake; in crowds that deadlocks. Here a brake
    may come without a turn. Candidates whose other inputs cannot be kept at all are not safe and are dropped by `check`.

    Attributes:
        evaluations: most margins evaluated in each root search.
    """

    evaluations: int = eqx.field(static=True, default=6)

    def count(self, m):
        return m

    def propose(self, actions, u, margin):
        def yielding(i):
            base = jnp.where(jnp.arange(u.shape[0]) == i, actions.known_safe, u)
            length = furthest_safe(actions, base, u, actions.margin(base), margin, self.evaluations)
            return base + length * (u - base)

        return jax.vmap(yielding)(jnp.arange(u.shape[0]))

    def pullback(self, actions, u, action, index, cotangent):
        moved = jnp.arange(u.shape[0]) == index
        direction = jnp.where(moved, u - actions.known_safe, 0.0)
        span = jnp.where(moved, direction, 1.0)
        length = jnp.where(span != 0, (action - actions.known_safe) / jnp.where(span != 0, span, 1.0), 1.0)
        return segment_pullback(actions, action, direction, jnp.where(moved, length, 1.0), cotangent)
