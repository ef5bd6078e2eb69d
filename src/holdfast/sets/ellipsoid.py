"""Ellipsoids around the origin: the base sets of linear-quadratic regulators."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets.base import Set


class Ellipsoid(Set):
    """{e : e'Pe <= level}, with the dimensionless margin 1 - e'Pe / level.

    Attributes:
        shape_matrix: P, symmetric positive definite, shape [e, e].
        level: c > 0, shape [].

    Raises:
        ValueError: if P is not symmetric positive definite or the level is not positive and finite.
    """

    shape_matrix: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    level: float

    def __check_init__(self):
        P = self.shape_matrix
        if not isinstance(P, np.ndarray) or not isinstance(self.level, float | np.floating):
            return
        if P.ndim != 2 or P.shape[0] != P.shape[1]:
            raise ValueError(f"Ellipsoid: shape_matrix has shape {P.shape}; give a square matrix")
        if not np.allclose(P, P.T) or np.linalg.eigvalsh(P)[0] <= 0:
            raise ValueError("Ellipsoid: shape_matrix is not symmetric positive definite")
        if not (np.isfinite(self.level) and self.level > 0):
            raise ValueError(f"Ellipsoid: level = {self.level}; give a positive finite number")

    def value(self, e: Float[Array, " e"]) -> Float[Array, ""]:
        """V(e) = e'Pe, shape []."""
        return e @ jnp.asarray(self.shape_matrix, e.dtype) @ e

    def margin(self, e: Float[Array, " e"]) -> Float[Array, " 1"]:
        return (1 - self.value(e) / self.level)[None]

    def bounding_radii(self) -> np.ndarray:
        """Half-widths of the tightest axis-aligned box, sqrt(c (P^-1)_ii), shape [e]."""
        return np.sqrt(self.level * np.diag(np.linalg.inv(self.shape_matrix)))
