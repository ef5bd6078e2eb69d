"""Axis-aligned boxes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from holdfast.sets.base import Set


class Box(Set):
    """{x : lower <= x <= upper}. Margins are distances to the 2n faces, lower faces first.

    Raises:
        ValueError: if the bounds differ in shape, are NaN, or lower > upper somewhere.
    """

    lower: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    upper: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))

    def __check_init__(self):
        # Boxes are also rebuilt by tree transformations with placeholders in their leaves: check only real numbers.
        if not (isinstance(self.lower, np.ndarray) and isinstance(self.upper, np.ndarray)):
            return
        if self.lower.shape != self.upper.shape or self.lower.ndim != 1:
            raise ValueError(
                f"Box: lower has shape {self.lower.shape}, upper {self.upper.shape}; give two vectors of one length"
            )
        if not np.all(self.lower <= self.upper):
            bad = int(np.argmin(self.lower <= self.upper))
            raise ValueError(f"Box: lower[{bad}] = {self.lower[bad]} is not <= upper[{bad}] = {self.upper[bad]}")

    @property
    def dimension(self) -> int:
        return self.lower.shape[0]

    @property
    def centre(self) -> np.ndarray:
        """Midpoint, shape [n]."""
        return 0.5 * (self.lower + self.upper)

    @property
    def half_widths(self) -> np.ndarray:
        """Half the side lengths, shape [n]."""
        return 0.5 * (self.upper - self.lower)

    def margin(self, x: Float[Array, " n"]) -> Float[Array, " 2n"]:
        lower, upper = self.bounds(x.dtype)
        return jnp.concatenate([x - lower, upper - x])

    def clip(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Closest point of the box, shape [n]; x itself, bit for bit, where x is inside."""
        lower, upper = self.bounds(x.dtype)
        return jnp.clip(x, lower, upper)

    def support(self, direction):
        """max of y'z over the box, c'y + h'|y|, for a direction y [n] or a batch [..., n], of NumPy or of JAX."""
        return direction @ self.centre.astype(direction.dtype) + abs(direction) @ self.half_widths.astype(
            direction.dtype
        )

    def bounds(self, dtype) -> tuple[Array, Array]:
        """The bounds in `dtype`, rounded inwards, so that no rounding leaves the box."""
        return _inward(self.lower, dtype, up=True), _inward(self.upper, dtype, up=False)

    def sample(self, key: Key[Array, ""], dtype=None) -> Float[Array, " n"]:
        """A uniform point of the box, shape [n]; all bounds must be finite."""
        lower, upper = jnp.asarray(self.lower, dtype), jnp.asarray(self.upper, dtype)
        return jax.random.uniform(key, lower.shape, lower.dtype, lower, upper)


def _inward(bound: np.ndarray, dtype, *, up: bool) -> Array:
    if not isinstance(bound, np.ndarray):
        # Traced (as by `equinox.filter_jit`), so perhaps rounded to the nearest number already: one step further in.
        return jnp.nextafter(jnp.asarray(bound, dtype), jnp.asarray(jnp.inf if up else -jnp.inf, dtype))
    rounded = bound.astype(dtype)
    wrong = rounded < bound if up else rounded > bound
    moved = np.nextafter(rounded, np.asarray(np.inf if up else -np.inf, rounded.dtype))
    return jnp.asarray(np.where(wrong, moved, rounded))
