"""Safe actions that are given themselves, as a zonotope that moves with the state."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.safeguards.boundary_projection import closest
from holdfast.safeguards.explicit import ExplicitSource, Promise
from holdfast.safeguards.search import inside
from holdfast.safeguards.source import HalfSpaces, tightened
from holdfast.sets import Box


class ActionZonotope(ExplicitSource):
    """u is safe at x if it lies in the box and in {c(x) + G(x) beta, |beta| <= 1}, for one to three inputs.

    That these actions are safe, and that there are some wherever they lead, is the word of whoever gives them; here is
    only checked that u is one of them. Where c or G is not finite, or the zonotope misses the box, there is none.

    Attributes:
        actions: x [n] -> (c [m], G [m, g]), with a fixed number of generators; lengths may be zero.
        box: admissible inputs.
        rounding: what margins have to show, in half-widths of the box: covers the rounding of `actions` and of the check.
    """

    actions: Callable[[Float[Array, " n"]], tuple[Float[Array, " m"], Float[Array, "m g"]]]
    box: Box
    rounding: float = eqx.field(static=True, default=0.0)

    exact = True

    def __check_init__(self):
        if not 1 <= self.box.dimension <= 3:
            raise ValueError(
                f"ActionZonotope: box has {self.box.dimension} inputs; half-spaces of a zonotope are few for one to three"
            )

    @property
    def input_box(self) -> Box:
        return self.box

    def init(self, x: Float[Array, " n"]) -> Promise:
        return self.check(x, self._middle(x))

    def check(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Promise:
        return Promise.of(self.rows(x, u))

    def fallback(self, x: Float[Array, " n"], commitment: Promise) -> Float[Array, " m"]:
        middle = self._middle(x)
        rest = jnp.asarray(self.box.centre, middle.dtype)
        return self.box.clip(jnp.where(jnp.all(jnp.isfinite(middle)), middle, rest))

    def rows(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " R"]:
        normals, offsets, _ = self._facets(x)
        half = jnp.asarray(self.box.half_widths, u.dtype)
        return jnp.sum(normals * (u / half)[None], axis=1) - offsets - self.rounding

    def halfspaces(self, x: Float[Array, " n"]) -> HalfSpaces:
        normals, offsets, size = self._facets(x)
        half = jnp.asarray(self.box.half_widths, normals.dtype)
        normals, at = normals / half[None], jnp.asarray(self.box.centre, normals.dtype)
        value = jnp.sum(normals * at[None], axis=1) - offsets - self.rounding
        return tightened(value, normals, at, self.box, size)

    def _middle(self, x) -> Float[Array, " m"]:
        """The safe action nearest to the zonotope's centre, shape [m]; that is the centre, unless it is outside the box."""
        return inside(self.box, closest(self.halfspaces(x), self.box, self.box.clip(self.actions(x)[0])))

    def _facets(self, x):
        """normals [R, m] and offsets [R] of the zonotope in half-widths, N v >= b, and the size of what cancels in them."""
        centre, generators = self.actions(x)
        half = jnp.asarray(self.box.half_widths, centre.dtype)
        centre, generators = centre / half, generators / half[:, None]
        normals = facet_normals(generators)
        reach = jnp.sum(jnp.abs(normals @ generators), axis=1)
        middle = normals @ centre
        normals = jnp.concatenate([normals, -normals])
        size = jnp.abs(middle) + reach
        offsets = jnp.concatenate([middle - reach, -middle - reach])
        return normals, offsets, jnp.concatenate([size, size])


def facet_normals(generators: Float[Array, "m g"]) -> Float[Array, "k m"]:
    """Normals among which are those of all facets of a zonotope in one to three dimensions, one of each pair.

    A facet is spanned by m - 1 generators. The axes are taken along as if they were generators, so that a flat zonotope is
    closed too: across it, and, with what holds there, along its rim. More rows than facets do no harm, as each is a
    supporting half-space. Normals have length one, or zero where what should span a facet is parallel.
    """
    m, _ = generators.shape
    if m == 1:
        return jnp.ones((1, 1), generators.dtype)
    vectors = jnp.concatenate([generators, jnp.eye(m, dtype=generators.dtype)], axis=1).T
    if m == 2:
        normals = jnp.stack([-vectors[:, 1], vectors[:, 0]], axis=1)
    else:
        first, second = jnp.triu_indices(len(vectors), 1)
        normals = jnp.cross(vectors[first], vectors[second])
    square = jnp.sum(normals**2, axis=1, keepdims=True)
    # Double where: the root has no derivative at zero.
    return jnp.where(square > 0, normals / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
