"""Zonotopes: affine images of cubes, and what can be done with them exactly."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy import sparse
from scipy.optimize import linprog

from holdfast.sets.box import Box
from holdfast.sets.geometry import vertices
from holdfast.sets.locally_convex import LocallyConvex
from holdfast.sets.polytope import Polytope
from holdfast.sets.tiling import Tiling

#: Most facets for which the half-space form is computed.
MOST_FACETS = 4096
_PARALLEL = 1e-9


class Zonotope(LocallyConvex):
    """{c + G beta : |beta_j| <= 1}, with the margins of its half-spaces where these are few.

    Half-spaces are found once, on the host, when the zonotope is made. One with more than `MOST_FACETS` of them (24
    generators in six dimensions have 85,008) has none: `margin`, `contains` and `piece` refuse, all else works.

    Attributes:
        centre: c, shape [n].
        generators: G, shape [n, g]; g = 0 is a point.
        facets: the half-space form, normals of length one; None if it is too large.

    Raises:
        ValueError: if the shapes of c and G do not fit or a number is not finite.
    """

    centre: np.ndarray
    generators: np.ndarray
    facets: Polytope | None

    def __init__(self, centre, generators):
        c, G = np.asarray(centre, np.float64), np.asarray(generators, np.float64)
        if c.ndim != 1 or G.ndim != 2 or G.shape[0] != c.shape[0]:
            raise ValueError(
                f"Zonotope: centre {c.shape} and generators {G.shape}; give [n] and [n, g], one generator a column"
            )
        for name, value in (("centre", c), ("generators", G)):
            if not np.isfinite(value).all():
                raise ValueError(f"Zonotope: {name} holds NaN or infinity; give finite numbers")
        self.centre, self.generators = c, G
        self.facets = _half_spaces(c, G)

    @staticmethod
    def from_box(box: Box) -> "Zonotope":
        """The box as a zonotope of n generators along the axes."""
        return Zonotope(box.centre, np.diag(box.half_widths))

    @staticmethod
    def from_polygon(polygon: Polytope, tolerance: float = 1e-6) -> "Zonotope":
        """A planar polytope with a centre of symmetry: the zonotope of half its edges, one of each opposite pair.

        Raises:
            ValueError: if the polytope is not planar, is empty, unbounded or flat, or if opposite corners differ from a
                mirror image by more than `tolerance` times its extent.
        """
        if polygon.normals.shape[1] != 2:
            raise ValueError(f"Zonotope.from_polygon: normals have shape {polygon.normals.shape}; give [p, 2]")
        corners = vertices(polygon)
        half = len(corners) // 2
        centre = corners.mean(axis=0)
        apart = np.inf if len(corners) % 2 else np.abs(corners + np.roll(corners, half, axis=0) - 2 * centre).max()
        if apart > tolerance * np.ptp(corners, axis=0).max():
            raise ValueError(f"Zonotope.from_polygon: the polygon of {len(corners)} corners has no centre of symmetry")
        edges = np.roll(corners, -1, axis=0) - corners
        return Zonotope(centre, 0.25 * (edges[:half] - edges[half:]).T)

    @property
    def dimension(self) -> int:
        return self.centre.shape[0]

    def margin(self, x: Float[Array, " n"]) -> Float[Array, " p"]:
        return self.polytope().margin(x)

    def piece(self, x: Float[Array, " n"]) -> tuple[Float[Array, "p n"], Float[Array, " p"]]:
        return self.polytope().piece(x)

    def polytope(self) -> Polytope:
        """The half-space form, exact up to rounding.

        Raises:
            ValueError: if it has too many facets.
        """
        if self.facets is None:
            n, g = self.generators.shape
            count = facet_bound(self.generators)
            raise ValueError(
                f"Zonotope: {g} generators in {n} dimensions have up to {count} facets, more than {MOST_FACETS}; "
                "ask `gauge(x) <= 1` instead, or reduce the generators first (`reduced`), which encloses the set"
            )
        return self.facets

    def support(self, direction):
        """max of y'z over the set, c'y + |G'y|_1, for a direction y [n] or a batch [..., n], of NumPy or of JAX."""
        c, G = self.centre.astype(direction.dtype), self.generators.astype(direction.dtype)
        return direction @ c + abs(direction @ G).sum(-1)

    def furthest(self, direction: np.ndarray) -> np.ndarray:
        """A point of the set furthest in a direction [n], shape [n]."""
        return self.centre + self.generators @ np.sign(direction @ self.generators)

    def gauge(self, x: np.ndarray) -> float:
        """The smallest s with x in c + s G [-1, 1]^g, by a linear program on the host: exact containment of a point is
        `gauge(x) <= 1`, whatever the number of generators. Infinite off the span of the generators and for NaN."""
        x = np.asarray(x, np.float64)
        if x.shape != self.centre.shape:
            raise ValueError(f"Zonotope.gauge: x has shape {x.shape}; give {self.centre.shape}")
        return _smallest_bound(self.generators, (x - self.centre)[:, None]) if np.isfinite(x).all() else np.inf

    def encoding(self, inner: "Zonotope") -> float:
        """The smallest s for which the linear encoding shows `inner` in c + s G [-1, 1]^g, by a linear program.

        With inner = a + H [-1, 1]^h: H = G Gamma and a - c = G beta with row sums |Gamma| 1 + |beta| <= s (Sadraddini and
        Tedrake, Linear encodings for polytope containment problems, 2019, theorem 3). Sufficient, not necessary: s <= 1
        shows containment, s > 1 shows nothing. Infinite where `inner` leaves the span of the generators.
        """
        self._of_one_space(inner)
        return _smallest_bound(self.generators, np.column_stack([inner.generators, inner.centre - self.centre]))

    def shown_to_contain(self, inner: "Zonotope", tolerance: float = 1e-9) -> bool:
        """Whether the encoding shows `inner` in this set: sufficient, so False says nothing. For an exact answer where the
        half-spaces are few: `contains_set(self.polytope(), inner)`."""
        return self.encoding(inner) <= 1 + tolerance

    def minkowski_sum(self, other: "Zonotope") -> "Zonotope":
        """{x + y : x here, y in the other}: exact, g + h generators."""
        self._of_one_space(other)
        return Zonotope(self.centre + other.centre, np.concatenate([self.generators, other.generators], axis=1))

    def linear_map(self, matrix: np.ndarray, shift: np.ndarray | float = 0.0) -> "Zonotope":
        """{M x + shift}, exact, for any M [k, n]."""
        M = np.asarray(matrix, np.float64)
        if M.ndim != 2 or M.shape[1] != self.dimension:
            raise ValueError(f"Zonotope.linear_map: matrix has shape {M.shape}; give [k, {self.dimension}]")
        return Zonotope(M @ self.centre + shift, M @ self.generators)

    def reduced(self, most: int) -> "Zonotope":
        """A zonotope of at most `most` >= n generators that contains this one: the generators that are most like an axis,
        or short, are replaced by the box around their sum (Girard, Reachability of uncertain linear systems using
        zonotopes, 2005). Extents along the axes stay as they are.

        Raises:
            ValueError: if most < n.
        """
        n, g = self.generators.shape
        if most < n:
            raise ValueError(f"Zonotope.reduced: most = {most}; a box alone takes {n} generators, so give {n} or more")
        if g <= most:
            return self
        extents = np.abs(self.generators).sum(axis=1)
        # Coordinates have units of their own: compare shares of the extents.
        shares = np.abs(self.generators) / np.where(extents > 0, extents, 1.0)[:, None]
        order = np.argsort(shares.max(axis=0) - shares.sum(axis=0), kind="stable")
        kept, boxed = self.generators[:, order[: most - n]], self.generators[:, order[most - n :]]
        return Zonotope(self.centre, np.concatenate([kept, np.diag(np.abs(boxed).sum(axis=1))], axis=1))

    def pontryagin_difference(self, other) -> Polytope:
        """{x : x + y here for all y in the other}, exact, by half-spaces; it may be empty. The other is anything with a
        support function.

        Raises:
            ValueError: if this set has too many facets.
        """
        own = self.polytope()
        return Polytope(own.normals, own.offsets - other.support(own.normals))

    def bounding_box(self) -> Box:
        """The smallest box around it."""
        reach = np.abs(self.generators).sum(axis=1)
        return Box(self.centre - reach, self.centre + reach)

    def tiling(self) -> Tiling:
        """Parallelepipeds that make up the set. Errors: too many of them."""
        return Tiling.of(self.centre, self.generators)

    def volume(self) -> float:
        """n-dimensional volume, the sum of |det| over all n generators, times 2^n; 0 if flat. Errors: too many tiles."""
        return self.tiling().volume

    def sample(self, key: Key[Array, ""], dtype=None) -> Float[Array, " n"]:
        """A point that is exactly uniform, shape [n], whatever the dimension. Sets up a tiling each time it is traced.

        Raises:
            ValueError: if the set is flat or has too many tiles.
        """
        return self.tiling().sample(key, jnp.result_type(float) if dtype is None else dtype)

    def _of_one_space(self, other: "Zonotope") -> None:
        if other.dimension != self.dimension:
            raise ValueError(f"Zonotope: one has {self.dimension} dimensions, the other {other.dimension}")


def facet_bound(generators: np.ndarray) -> int:
    """Most facets that a zonotope of these generators [n, g] has, 2 C(g, r - 1), with parallel generators taken as one and
    r the dimension that they span; and two half-spaces for each dimension in which it is flat."""
    n = generators.shape[0]
    scaled, _ = _directions(generators)
    span = np.linalg.matrix_rank(scaled) if scaled.size else 0
    return 2 * (math.comb(scaled.shape[1], span - 1) if span else 0) + 2 * (n - span)


def _directions(generators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions of the generators, no two parallel, in units of the extents [n], and these."""
    extents = np.abs(generators).sum(axis=1)
    extents = np.where(extents > 0, extents, 1.0)
    scaled = generators / extents[:, None]
    sizes = np.linalg.norm(scaled, axis=0)
    scaled = scaled[:, sizes > 0] / sizes[sizes > 0]
    return _one_of_each(scaled.T).T, extents


def _one_of_each(rows: np.ndarray) -> np.ndarray:
    """Rows of length one without those that are parallel to an earlier one."""
    leading = rows[np.arange(len(rows)), np.argmax(np.abs(rows) > 0.5 / np.sqrt(max(rows.shape[1], 1)), axis=1)]
    rows = rows * np.where(leading < 0, -1.0, 1.0)[:, None]
    _, first = np.unique(np.round(rows / _PARALLEL).astype(np.int64), axis=0, return_index=True)
    return rows[np.sort(first)]


def _half_spaces(centre: np.ndarray, generators: np.ndarray) -> Polytope | None:
    """All facets: each is spanned by r - 1 of the generators, r the dimension of their span.

    Every row is a supporting half-space whatever the rounding of its normal, as its offset is the support function.
    """
    if facet_bound(generators) > MOST_FACETS:
        return None
    n = len(centre)
    directions, extents = _directions(generators)
    basis, values, _ = np.linalg.svd(directions) if directions.size else (np.eye(n), np.zeros(0), None)
    r = int(np.linalg.matrix_rank(directions)) if directions.size else 0
    rows = [basis[:, r:].T]  # what a flat set is flat in
    if r == 1:
        rows.append(basis[:, :1].T)
    elif r > 1:
        inside = directions.T @ basis[:, :r]
        spans = inside[np.array(list(itertools.combinations(range(len(inside)), r - 1)))]
        _, values, rotations = np.linalg.svd(spans)
        rows.append(_one_of_each(rotations[values[:, -1] > _PARALLEL, -1]) @ basis[:, :r].T)
    normals = np.concatenate(rows) / extents
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(np.abs(normals) < 1e-15, 0.0, normals)
    reach, middle = np.abs(normals @ generators).sum(axis=1), normals @ centre
    return Polytope(np.concatenate([normals, -normals]), np.concatenate([middle + reach, reach - middle]))


def _smallest_bound(G: np.ndarray, X: np.ndarray) -> float:
    """min over {B : G B = X} of the largest row sum of |B|, for G [n, g] and X [n, k]; infinite if there is no B."""
    g, k = G.shape[1], X.shape[1]
    size = np.abs(G).sum(axis=1)
    if np.any(X[size == 0]) or not g:
        return np.inf if np.any(X) else 0.0
    G, X = G[size > 0] / size[size > 0, None], X[size > 0] / size[size > 0, None]
    # B = P - M with P, M >= 0, by rows; the last variable is the bound.
    columns = sparse.kron(sparse.csr_array(G), sparse.eye_array(k))
    equal = sparse.hstack([columns, -columns, sparse.csr_array((len(G) * k, 1))])
    sums = sparse.kron(sparse.eye_array(g), np.ones((1, k)))
    below = sparse.hstack([sums, sums, -np.ones((g, 1))])
    cost = np.zeros(2 * g * k + 1)
    cost[-1] = 1.0
    found = linprog(cost, A_ub=below, b_ub=np.zeros(g), A_eq=equal, b_eq=X.ravel())
    return float(found.fun) if found.status == 0 else np.inf
