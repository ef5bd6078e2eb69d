"""The ray map: as far towards the proposed action as safety allows."""

import jax.numpy as jnp

from holdfast.safeguards.map import Map, Segments, segment_adjoint


class Ray(Map):
    """From the known safe action towards u, up to the first root found of the active margin.

    Scales all inputs together, so a steering input is taken away along with a brake; `PerInput` does not.
    """

    from_known_safe = True

    def count(self, m):
        return 1

    def segments(self, actions, u, margin):
        return Segments(actions.known_safe[None], u[None], margin[None], actions.known_margin[None])

    def adjoint(self, actions, local, u, action, index, length, cotangent):
        ones = jnp.ones_like(u)
        return segment_adjoint(local, u - actions.known_safe, length * ones, (1 - length) * ones, cotangent)
