"""The per-input map: one input yields, the others stay."""

import jax.numpy as jnp

from holdfast.safeguards.map import Map, Segments, segment_adjoint


class PerInput(Map):
    """Segment i moves input i alone from u towards the known safe action, as little as the margin allows.

    Scaling all inputs towards the backup takes steering away with the brake; in crowds that deadlocks. Here a brake
    may come without a turn. Segments whose other inputs cannot be kept at all hold no safe action and are dropped.
    """

    def count(self, m):
        return m

    def segments(self, actions, u, margin):
        m = u.shape[0]
        target = jnp.broadcast_to(u, (m, m))
        base = jnp.where(jnp.eye(m, dtype=bool), actions.known_safe[None], u[None])
        return Segments(base, target, jnp.broadcast_to(margin, (m,)), jnp.full((m,), jnp.nan, margin.dtype))

    def adjoint(self, actions, local, u, action, index, length, cotangent):
        moved = jnp.arange(u.shape[0]) == index
        direction = jnp.where(moved, u - actions.known_safe, 0.0)
        return segment_adjoint(
            local, direction, jnp.where(moved, length, 1.0), jnp.where(moved, 1 - length, 0.0), cotangent
        )
