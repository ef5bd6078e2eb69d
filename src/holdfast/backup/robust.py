"""Robust control invariant sets: a set, and the controller that keeps it whatever the disturbance."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from holdfast.sets import Box, LocallyConvex, Polytope
from holdfast.systems import ClippedFeedback, System


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

    @property
    def polytope(self) -> Polytope:
        """The region, where it is a polytope.

        Raises:
            TypeError: if it is not.
        """
        if not isinstance(self.region, Polytope):
            raise TypeError(f"InvariantSet: region is a {type(self.region).__name__}; a Polytope is asked for")
        return self.region

    @property
    def feedback(self) -> ClippedFeedback:
        """The controller, where it is a clipped feedback.

        Raises:
            TypeError: if it is not.
        """
        if not isinstance(self.controller, ClippedFeedback):
            raise TypeError(f"InvariantSet: controller is {self.controller!r}; a ClippedFeedback is asked for")
        return self.controller

    def margins(self, x: Float[Array, " n"]) -> Float[Array, " p"]:
        """d - N x in the piece of the region at x, shape [p]: all >= 0 where x is in S."""
        normals, offsets = self.region.piece(x)
        return offsets - product(normals, x)

    def robust_margins(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " p"]:
        """d - N F(x, u, w_c) - |N dF/dw| h in the piece (N, d) at x, shape [p], with w_c the centre of the disturbance box and
        h its half-widths: the least margins of any successor, where F is affine in w. What a certificate bounds the rounding
        of is what a safeguard checks, so both call this."""
        w, _ = noise_reach(self.system.noise_box, x.dtype)
        return self.margins_of(x, u, self.successor(x, u, w))

    def margins_of(
        self, x: Float[Array, " n"], u: Float[Array, " m"], successor: Float[Array, " n"]
    ) -> Float[Array, " p"]:
        """`robust_margins`, [p], where F(x, u, w_c) is known already, [n]."""
        normals, offsets = self.region.piece(x)
        rows = offsets - product(normals, successor)
        w, reach = noise_reach(self.system.noise_box, x.dtype)
        if w.shape[0]:
            spread = jax.jacfwd(lambda w: self.successor(x, u, w))(w)
            rows = rows - product(jnp.abs(product(normals, spread)), reach)
        return rows

    def successor(self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"]) -> Float[Array, " n"]:
        """F(x, u, w) before angles are wrapped, shape [n]: beyond half a turn is outside, not at the other end."""
        step = self.system.unwrapped_step
        return step(x, u, w) if w.shape[0] else step(x, u)


def product(matrix: Float[Array, "i j"], right: Float[Array, "j ..."]) -> Float[Array, "i ..."]:
    """A product in full precision: accelerators round float32 products by default."""
    return jnp.matmul(matrix, right, precision=jax.lax.Precision.HIGHEST)


def noise_reach(box: Box, dtype) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Centre and half-widths of a disturbance box in `dtype`, shape [d] each, the latter rounded upwards about the former."""
    if not isinstance(box.lower, np.ndarray):  # traced, as by `equinox.filter_jit`
        centre = jnp.asarray(box.centre, dtype)
        reach = jnp.maximum(box.upper - centre, centre - box.lower)
        return centre, jnp.nextafter(jnp.asarray(reach, dtype) * (1 + 4 * jnp.finfo(dtype).eps), jnp.inf)
    centre = box.centre.astype(dtype)
    reach = np.maximum(box.upper - centre, centre - box.lower)
    return jnp.asarray(centre), jnp.asarray(np.nextafter(reach.astype(dtype), np.asarray(np.inf, dtype)))


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
