"""Capsules: what lies within a distance of a segment."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets.ball import check_radius
from holdfast.sets.base import Set
from holdfast.sets.length import length


class Capsule(Set):
    """Points within `radius` of the segment from `start` to `end`, with the distance to the surface as margin.

    Attributes:
        start, end: shape [n]; equal ones make a ball.
        radius: >= 0, shape [].

    Raises:
        ValueError: if the ends differ in shape or are not finite, or the radius is not a finite number >= 0.
    """

    start: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    end: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    radius: float

    def __check_init__(self):
        check_radius("Capsule", self.radius)
        if not (isinstance(self.start, np.ndarray) and isinstance(self.end, np.ndarray)):
            return
        if self.start.shape != self.end.shape or self.start.ndim != 1:
            raise ValueError(
                f"Capsule: start {self.start.shape} and end {self.end.shape}; give two vectors of one length"
            )
        if not (np.isfinite(self.start).all() and np.isfinite(self.end).all()):
            raise ValueError("Capsule: NaN or infinity in start or end")

    @property
    def dimension(self) -> int:
        return self.start.shape[0]

    def margin(self, x: Float[Array, " n"]) -> Float[Array, " 1"]:
        start, end = jnp.asarray(self.start, x.dtype), jnp.asarray(self.end, x.dtype)
        along = end - start
        square = jnp.sum(along**2)
        share = jnp.sum((x - start) * along) / jnp.where(square > 0, square, 1.0)
        return (self.radius - length(x - start - jnp.clip(share, 0.0, 1.0) * along))[None]

    def support(self, direction):
        """max of y'z over the capsule, max(a'y, b'y) + radius |y|, for a direction y [n] or a batch [..., n], of NumPy or
        of JAX."""
        a, b = (direction @ v.astype(direction.dtype) for v in (self.start, self.end))
        return (a + b + abs(a - b)) / 2 + self.radius * (direction**2).sum(-1) ** 0.5

    def furthest(self, direction: np.ndarray) -> np.ndarray:
        """A point furthest in a direction [n], shape [n]."""
        end = self.end if direction @ (self.end - self.start) > 0 else self.start
        return end + self.radius * direction / (np.linalg.norm(direction) or 1.0)
