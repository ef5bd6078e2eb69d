"""The free space of a point among round obstacles between walls."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from holdfast.sets.box import Box
from holdfast.sets.length import length
from holdfast.sets.locally_convex import LocallyConvex

#: Draws from the walls' box until one is free; the last one is taken if none is.
_TRIES = 32


class FreeSpace(LocallyConvex):
    """{p : p inside the walls, |p - o_i| >= r_i for every obstacle i}. Margins: distances to the 2n walls, then to obstacles.

    Attributes:
        walls: the box around everything.
        centres: o, shape [k, n].
        radii: r > 0, shape [k].

    Raises:
        ValueError: if the shapes do not fit or a radius is not positive.
    """

    walls: Box
    centres: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    radii: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))

    def __check_init__(self):
        if not (isinstance(self.centres, np.ndarray) and isinstance(self.radii, np.ndarray)):
            return
        if self.centres.shape != (len(self.radii), self.walls.dimension):
            raise ValueError(
                f"FreeSpace: centres {self.centres.shape} and radii {self.radii.shape} between walls of "
                f"{self.walls.dimension} dimensions; give [k, {self.walls.dimension}] and [k]"
            )
        if not np.all((self.radii > 0) & np.isfinite(self.radii)):
            raise ValueError(f"FreeSpace: radii = {self.radii}; give finite numbers > 0")

    def margin(self, x: Float[Array, " n"]) -> Float[Array, " p"]:
        away = x[None] - jnp.asarray(self.centres, x.dtype)
        return jnp.concatenate([self.walls.margin(x), jax.vmap(length)(away) - jnp.asarray(self.radii, x.dtype)])

    def piece(self, x: Float[Array, " n"]) -> tuple[Float[Array, "p n"], Float[Array, " p"]]:
        """The walls, and for each obstacle the tangent on the side of x: with e the unit vector from o to x, the half-space
        e'(z - o) >= r. As |z - o| >= e'(z - o) (Cauchy-Schwarz), no point of it is inside the obstacle; and x itself has
        e'(x - o) = |x - o|. e is taken as computed, its length divided out once more by its own largest possible excess,
        so that rounding makes it no longer than one.
        """
        n, dtype = self.walls.dimension, x.dtype
        lower, upper = self.walls.bounds(dtype)
        eye = jnp.eye(n, dtype=dtype)
        away = x[None] - jnp.asarray(self.centres, dtype)
        # At an obstacle's very centre there is no direction: any unit vector tells that x is inside.
        distance = jax.vmap(length)(away)
        unit = jnp.where((distance > 0)[:, None], away / jnp.where(distance > 0, distance, 1.0)[:, None], eye[:1])
        unit = unit * (1 - 8 * jnp.finfo(dtype).eps)
        reach = jnp.sum(unit * jnp.asarray(self.centres, dtype), axis=1) + jnp.asarray(self.radii, dtype)
        return jnp.concatenate([-eye, eye, -unit]), jnp.concatenate([-lower, upper, -reach])

    def bounding_box(self) -> Box:
        return self.walls

    def sample(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """A uniform free point, shape [n]: the first free one of 32 draws. (Not free with probability share^32.)"""
        draws = jax.vmap(self.walls.sample)(jax.random.split(key, _TRIES))
        free = jax.vmap(self.contains)(draws)
        return draws[jnp.argmax(free)]
