"""Robust control invariant sets: a set, and the controller that keeps it whatever the disturbance."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
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


class RobustMargins(eqx.Module):
    """What a state and an action have to show, in the running precision, so that rounding cannot lead out of the set.

    Each is a vector [p], one number a facet of the region, or a scalar for all of them, in the units of the facets.
    Infinite where nothing is proved, so that nothing is ever accepted.

    Attributes:
        inside: the computed margin d - N x that a state has to show, so that it lies in S.
        successor: the computed margin that an action has to show for its worst successor, d - N F(x, u, w) over all w,
            so that the successor that the plant computes shows `inside`.
        remainder: bound on what is left of N F(x, u, w) after its linearisation in w about the centre of the disturbance
            box; zero where F is affine in w.
        dtype: the running precision for which they hold, and any finer one.
    """

    inside: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    successor: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    remainder: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    dtype: str = eqx.field(static=True, default="float32")

    def require(self, dtype) -> None:
        """Refuses a precision coarser than the one for which the margins hold.

        Raises:
            ValueError: naming both; while tracing.
        """
        if jnp.finfo(dtype).eps > jnp.finfo(self.dtype).eps:
            raise ValueError(
                f"x is {jnp.dtype(dtype).name}, but the margins for rounding hold for {self.dtype}: give the state in that "
                f"precision, or certify the set with dtype={jnp.dtype(dtype).name!r}"
            )
