"""Zonotopes cut into parallelepipeds: their volume, and points that are exactly uniform."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

#: Most tiles of a tiling; 24 generators in six dimensions have 134,596.
MOST_TILES = 200_000
_FLAT = 1e-12


class Tiling(eqx.Module):
    """A zonotope as a union of parallelepipeds that share no inner point, one for each n independent generators.

    Lift every generator g_j by a generic height h_j. The faces of the lifted zonotope that are seen from above project to
    tiles; where n generators B span one, the others stand at sign(h_j - y'g_j) with y'g_i = h_i on B (Ziegler, Lectures on
    Polytopes, section 7.5).

    Attributes:
        middles: centres of the tiles, shape [t, n].
        members: which generators span each, shape [t, n].
        volumes: shape [t].
        generators: shape [n, g].
    """

    middles: np.ndarray
    members: np.ndarray
    volumes: np.ndarray
    generators: np.ndarray

    @staticmethod
    def of(centre: np.ndarray, generators: np.ndarray) -> "Tiling":
        """Tiles c + G [-1, 1]^g, on the host.

        Raises:
            ValueError: if there are more than `MOST_TILES` tiles.
        """
        n, g = generators.shape
        count = math.comb(g, n)
        if count > MOST_TILES:
            raise ValueError(
                f"Zonotope: {g} generators in {n} dimensions make up to {count} tiles, more than {MOST_TILES}; "
                "reduce them first (`reduced`), which encloses the set"
            )
        members = np.array(list(itertools.combinations(range(g), n)), np.int32).reshape(-1, n)
        # In units of the extents: coordinates of different size must not make a tile look flat.
        extents = np.abs(generators).sum(axis=1)
        spans = (generators / np.where(extents > 0, extents, 1.0)[:, None]).T[members]  # [t, n, n], one generator a row
        volumes = np.abs(np.linalg.det(spans))
        keep = volumes > _FLAT * np.prod(np.linalg.norm(spans, axis=2), axis=1)
        members, volumes = members[keep], 2.0**n * volumes[keep] * np.prod(extents)
        heights = np.random.default_rng(0).normal(size=g)
        slopes = np.linalg.solve(generators.T[members], heights[members][..., None])[..., 0]
        signs = np.sign(heights - slopes @ generators)
        np.put_along_axis(signs, members, 0.0, axis=1)
        return Tiling(centre + signs @ generators.T, members, volumes, generators)

    @property
    def volume(self) -> float:
        """Of all tiles; 0 for a flat zonotope, which has none."""
        return float(self.volumes.sum())

    def sample(self, key: Key[Array, ""], dtype=None) -> Float[Array, " n"]:
        """A uniform point of the zonotope, shape [n]: a tile in proportion to its volume, then a point of the tile.

        Raises:
            ValueError: if there are no tiles.
        """
        if not len(self.volumes):
            raise ValueError(
                "Zonotope: it is flat, so no uniform density is defined; give generators that span the space"
            )
        which, where = jax.random.split(key)
        upto = np.cumsum(self.volumes) / self.volume
        draw = jax.random.uniform(which, (), dtype)
        tile = jnp.minimum(jnp.searchsorted(jnp.asarray(upto, draw.dtype), draw, side="right"), len(upto) - 1)
        share = jax.random.uniform(where, (self.members.shape[1],), draw.dtype, -1.0, 1.0)
        spans = jnp.asarray(self.generators, draw.dtype)[:, jnp.asarray(self.members)[tile]]
        return jnp.asarray(self.middles, draw.dtype)[tile] + spans @ share
