"""Convex polytopes in half-space form."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets.base import LocallyConvex


class Polytope(LocallyConvex):
    """{x : A x <= b}, with margins b - A x, one a row.

    Attributes:
        normals: A, shape [p, n].
        offsets: b, shape [p].

    Raises:
        ValueError: if the shapes of A and b do not fit or a number is NaN.
    """

    normals: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    offsets: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))

    def __check_init__(self):
        A, b = self.normals, self.offsets
        if not (isinstance(A, np.ndarray) and isinstance(b, np.ndarray)):
            return
        if A.ndim != 2 or b.shape != A.shape[:1]:
            raise ValueError(f"Polytope: normals {A.shape} and offsets {b.shape}; give [p, n] and [p]")
        if np.isnan(A).any() or np.isnan(b).any():
            raise ValueError("Polytope: NaN in normals or offsets")

    def margin(self, x: Float[Array, " n"]) -> Float[Array, " p"]:
        return jnp.asarray(self.offsets, x.dtype) - jnp.asarray(self.normals, x.dtype) @ x

    def piece(self, x: Float[Array, " n"]) -> tuple[Float[Array, "p n"], Float[Array, " p"]]:
        return jnp.asarray(self.normals, x.dtype), jnp.asarray(self.offsets, x.dtype)
