"""Safe actions from a robust control invariant set: those that keep the state in it, whatever the disturbance."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.backup import InvariantSet, RobustMargins, noise_reach, product
from holdfast.safeguards.explicit import ExplicitSource, Promise, controlled
from holdfast.safeguards.source import HalfSpaces, columns, tightened
from holdfast.sets import Box


class InvariantSource(ExplicitSource):
    """u is safe at x in S if F(x, u, w) lies in S for every disturbance w.

    With (N, d) = `region.piece(x)` and w = w_c + v, |v| <= h, every row of

        d - N F(x, u, w_c) - |N dF/dw| h - remainder - successor

    must be >= 0: `remainder` bounds what dF/dw leaves out (nothing, where F is affine in w), `successor` the rounding of
    check and plant. u goes through F itself, never through a linearisation.

    What is promised does not outlive a state that cannot be read: against a disturbance nothing can be replayed blindly.

    Attributes:
        invariant: S with the controller that keeps it.
        acceptance: margins, as `certify.certify_invariant_set` derives them.
        affine: whether F is affine in (u, w) jointly, so that the rows are half-spaces
            in u: then the source is exact. The proof does not need it:
            said wrongly, corrections are poor, and the check refuses them.
    """

    invariant: InvariantSet
    acceptance: RobustMargins
    affine: bool = eqx.field(static=True, default=True)

    @property
    def exact(self) -> bool:
        return self.affine

    @property
    def input_box(self) -> Box:
        return self.invariant.system.input_box

    @property
    def state_size(self) -> int:
        return self.invariant.system.state_size

    def init(self, x: Float[Array, " n"]) -> Promise:
        self.acceptance.require(x.dtype)
        return Promise.of(self.invariant.margins(x) - jnp.asarray(self.acceptance.inside, x.dtype))

    def check(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Promise:
        safe = Promise.of(self.rows(x, u))
        return Promise(safe.certified & self.init(x).certified, safe.margin)

    def fallback(self, x: Float[Array, " n"], commitment: Promise) -> Float[Array, " m"]:
        return controlled(self.invariant.system, self.invariant.controller, x)

    def rows(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " p"]:
        return self._accepted(self.invariant.robust_margins(x, u))

    def halfspaces(self, x: Float[Array, " n"]) -> HalfSpaces:
        box, invariant = self.input_box, self.invariant
        at = jnp.asarray(box.centre, x.dtype)
        w, _ = noise_reach(invariant.system.noise_box, x.dtype)
        moved, inputs = columns(lambda u: invariant.successor(x, u, w), at)
        value = self._accepted(invariant.margins_of(x, at, moved))
        normals, offsets = invariant.region.piece(x)
        # What cancels in a row decides its rounding.
        size = product(jnp.abs(normals), jnp.abs(moved)) + jnp.abs(offsets)
        return tightened(value, -product(normals, inputs), at, box, size)

    def _accepted(self, margins: Float[Array, " p"]) -> Float[Array, " p"]:
        remainder, successor = (
            jnp.asarray(v, margins.dtype) for v in (self.acceptance.remainder, self.acceptance.successor)
        )
        return margins - remainder - successor
