"""Robust control invariant sets: a set, and the controller that keeps it whatever the disturbance."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Bool, Float

from holdfast.sets import LocallyConvex
from holdfast.systems import System


class InvariantSet(eqx.Module):
    """S with F(x, k(x), w) in S for every x in S and every w of the disturbance box. Whether it is so is a proof's business.

    Attributes:
        system: what moves.
        region: S, in coordinates of the state.
        controller: k, x [n] -> u [m], admissible for any x.
    """

    system: System
    region: LocallyConvex
    controller: Callable[[Float[Array, " n"]], Float[Array, " m"]]

    def contains(self, x: Float[Array, " n"]) -> Bool[Array, ""]:
        return self.region.contains(x)
