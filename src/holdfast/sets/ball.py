"""Euclidean balls."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets.base import Set
from holdfast.sets.length import length


def check_radius(name: str, radius) -> None:
    """Refuses a radius that is not a finite number >= 0; placeholders pass."""
    if isinstance(radius, int | float | np.floating) and not (np.isfinite(radius) and radius >= 0):
        raise ValueError(f"{name}: radius = {radius}; give a finite number >= 0")


class Ball(Set):
    """{x : |x - c| <= radius}, with the distance to the sphere as margin, in the unit of x.

    Attributes:
        centre: c, shape [n].
        radius: >= 0, shape [].

    Raises:
        ValueError: if the centre is not a finite vector or the radius is not a finite number >= 0.
    """

    centre: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    radius: float

    def __check_init__(self):
        check_radius("Ball", self.radius)
        if isinstance(self.centre, np.ndarray) and not (self.centre.ndim == 1 and np.isfinite(self.centre).all()):
            raise ValueError(f"Ball: centre = {self.centre}; give a vector of finite numbers")

    @property
    def dimension(self) -> int:
        return self.centre.shape[0]

    def margin(self, x: Float[Array, " n"]) -> Float[Array, " 1"]:
        return (self.radius - length(x - jnp.asarray(self.centre, x.dtype)))[None]

    def support(self, direction):
        """max of y'z over the ball, c'y + radius |y|, for a direction y [n] or a batch [..., n], of NumPy or of JAX."""
        return direction @ self.centre.astype(direction.dtype) + self.radius * (direction**2).sum(-1) ** 0.5

    def furthest(self, direction: np.ndarray) -> np.ndarray:
        """The point furthest in a direction [n], shape [n]."""
        return self.centre + self.radius * direction / (np.linalg.norm(direction) or 1.0)
