"""Safe actions from a robust control invariant set: those that keep the state in it, whatever the disturbance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.safeguards.source import HalfSpaces, Source, columns, tightened
from holdfast.sets import Box


class Promise(eqx.Module):
    """What an explicit set promises: no plan, only that the state is inside and that the set's own action keeps it there.

    Attributes:
        certified: whether it is so, shape [].
        margin: smallest margin that was seen, shape []; -inf where one was not finite.
    """

    certified: Bool[Array, ""]
    margin: Float[Array, ""]

    @staticmethod
    def of(rows: Float[Array, " R"]) -> "Promise":
        """The promise that margins [R] make. Decided by `all`, never by `min`, which drops NaN."""
        finite = jnp.all(jnp.isfinite(rows))
        return Promise(jnp.all(rows >= 0) & finite, jnp.where(finite, jnp.min(rows), -jnp.inf))

    def kept(self) -> "Promise":
        """The same after the set's own action: that it holds is known, by how much is not looked at."""
        return Promise(self.certified, jnp.zeros_like(self.margin))


class InvariantSource(Source):
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
        normals, offsets = self.invariant.region.piece(x)
        return Promise.of(offsets - _times(normals, x) - jnp.asarray(self.acceptance.inside, x.dtype))

    def standing(self, x: Float[Array, " n"], commitment: Promise) -> Promise:
        """What holds at x as it is seen now: the set needs no memory, and a state outside it is promised nothing."""
        return self.init(x)

    def check(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Promise:
        safe = Promise.of(self.rows(x, u))
        return Promise(safe.certified & self.init(x).certified, safe.margin)

    def fallback(self, x: Float[Array, " n"], commitment: Promise) -> Float[Array, " m"]:
        # Of a state that cannot be read the controller sees the equilibrium; nothing is promised then.
        rest, resting = (jnp.asarray(v, x.dtype) for v in self.invariant.system.equilibrium())
        action = self.invariant.controller(jnp.where(jnp.all(jnp.isfinite(x)), x, rest))
        return self.input_box.clip(jnp.where(jnp.all(jnp.isfinite(action)), action, resting))

    def after_fallback(self, commitment: Promise) -> Promise:
        return commitment.kept()

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
        """Centre and half-widths of the disturbances in `dtype`, the latter rounded upwards about the former."""
        box = self.invariant.system.disturbance_box
        if box is None:
            return jnp.zeros(0, dtype), jnp.zeros(0, dtype)
        if not isinstance(box.lower, np.ndarray):  # traced, as by `equinox.filter_jit`
            centre = jnp.asarray(box.centre, dtype)
            reach = jnp.maximum(box.upper - centre, centre - box.lower)
            return centre, jnp.nextafter(jnp.asarray(reach, dtype) * (1 + 4 * jnp.finfo(dtype).eps), jnp.inf)
        centre = box.centre.astype(dtype)
        reach = np.maximum(box.upper - centre, centre - box.lower)
        return jnp.asarray(centre), jnp.asarray(np.nextafter(reach.astype(dtype), np.asarray(np.inf, dtype)))


def _times(matrix, right):
    """A product in full precision: accelerators round float32 products by default."""
    return jnp.matmul(matrix, right, precision=jax.lax.Precision.HIGHEST)
