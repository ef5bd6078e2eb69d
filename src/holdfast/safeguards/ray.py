"""The ray map: as far towards the proposed action as safety allows."""

import equinox as eqx
import jax.numpy as jnp

from holdfast.safeguards.map import Map, furthest_safe, segment_pullback


class Ray(Map):
    """From the known safe action towards u, up to the first root found of the active margin.

    Scales all inputs together, so a steering input is taken away along with a brake; `PerInput` does not.

    Attributes:
        evaluations: most margins evaluated in the root search.
    """

    evaluations: int = eqx.field(static=True, default=6)

    def count(self, m):
        return 1

    def propose(self, actions, u, margin):
        base = actions.known_safe
        length = furthest_safe(actions, base, u, actions.margin(base), margin, self.evaluations)
        return (base + length * (u - base))[None]

    def pullback(self, actions, u, action, index, cotangent):
        direction = u - actions.known_safe
        # The length, read back from the action: the longest component is the best conditioned.
        widest = jnp.argmax(jnp.abs(direction))
        span = direction[widest]
        length = jnp.where(span != 0, (action - actions.known_safe)[widest] / jnp.where(span != 0, span, 1.0), 1.0)
        return segment_pullback(actions, action, direction, length * jnp.ones_like(u), cotangent)
