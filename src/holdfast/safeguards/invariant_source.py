"""Safe actions from a robust control invariant set: those that keep the state in it, whatever the disturbance."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.safeguards.explicit import ExplicitSource, Promise, controlled, disturbances
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

    def init(self, x: Float[Array, " n"]) -> Promise:
        self.acceptance.require(x.dtype)
        normals, offsets = self.invariant.region.piece(x)
        return Promise.of(offsets - _times(normals, x) - jnp.asarray(self.acceptance.inside, x.dtype))

    def check(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Promise:
        safe = Promise.of(self.rows(x, u))
        return Promise(safe.certified & self.init(x).certified, safe.margin)

    def fallback(self, x: Float[Array, " n"], commitment: Promise) -> Float[Array, " m"]:
        return controlled(self.invariant.system, self.invariant.controller, x)

    def rows(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " p"]:
        normals, offsets = self.invariant.region.piece(x)
        w, half = self._disturbances(x.dtype)
        return self._margins(x, u, w, half, normals, offsets, self._moved(x, u, w))

    def halfspaces(self, x: Float[Array, " n"]) -> HalfSpaces:
        box = self.input_box
        at = jnp.asarray(box.centre, x.dtype)
        normals, offsets = self.invariant.region.piece(x)
        w, half = self._disturbances(x.dtype)
        moved, inputs = columns(lambda u: self._moved(x, u, w), at)
        value = self._margins(x, at, w, half, normals, offsets, moved)
        # What cancels in a row decides its rounding.
        size = _times(jnp.abs(normals), jnp.abs(moved)) + jnp.abs(offsets)
        return tightened(value, -_times(normals, inputs), at, box, size)

    def _moved(self, x, u, w) -> Float[Array, " n"]:
        system = self.invariant.system
        return system.unwrapped_step(x, u, w) if w.shape[0] else system.unwrapped_step(x, u)

    def _margins(self, x, u, w, half, normals, offsets, moved) -> Float[Array, " p"]:
        rows = offsets - _times(normals, moved)
        if w.shape[0]:
            _, spread = columns(lambda w: self._moved(x, u, w), w)
            rows = rows - _times(jnp.abs(_times(normals, spread)), half)
        remainder, successor = (jnp.asarray(v, x.dtype) for v in (self.acceptance.remainder, self.acceptance.successor))
        return rows - remainder - successor

    def _disturbances(self, dtype) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        return disturbances(self.invariant.system.disturbance_box, dtype)


def _times(matrix, right):
    """A product in full precision: accelerators round float32 products by default."""
    return jnp.matmul(matrix, right, precision=jax.lax.Precision.HIGHEST)
