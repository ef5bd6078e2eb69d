"""Safe centres: the point of the safe actions that a ray mask pulls towards. All in half-widths of the input box."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.safeguards.compaction import where_needed
from holdfast.safeguards.source import HalfSpaces
from holdfast.solvers import chebyshev_centre, inscribed_zonotope, project, stretch


def chebyshev(polytope: HalfSpaces, u: Float[Array, " m"]) -> Float[Array, " m"]:
    """Centre of a largest ball inside."""
    ones = jnp.ones_like(u)
    return chebyshev_centre(polytope.normals, polytope.offsets, -ones, ones).centre


def zonotope(polytope: HalfSpaces, u: Float[Array, " m"]) -> Float[Array, " m"]:
    """Centre of the inscribed zonotope with the 2m generators of `directions` whose lengths have the largest geometric mean.

    Where there is none, as in a flat polytope, that of a largest ball, held constant. Source: arXiv 2506.01665.
    """
    found = inscribed_zonotope(polytope.normals, polytope.offsets, directions(u.shape[0]))
    ball = where_needed(
        ~found.solved,
        lambda operands: chebyshev(*operands),
        jnp.zeros_like(u),
        jax.lax.stop_gradient((polytope, u)),
    )
    return jnp.where(found.solved, found.centre, ball)


def directions(m: int) -> Float[np.ndarray, "m 2m"]:
    """2m unit vectors: the axes, and the orthonormal basis of the discrete cosine transform, for two inputs the diagonals."""
    k, i = np.meshgrid(np.arange(m), np.arange(m) + 0.5)
    cosines = np.cos(np.pi / m * k * i) * np.where(k == 0, np.sqrt(1 / m), np.sqrt(2 / m))
    return np.concatenate([np.eye(m), cosines], axis=1)


def chord(polytope: HalfSpaces, u: Float[Array, " m"]) -> Float[Array, " m"]:
    """Middle of the chord along the line through u and its orthogonal projection; for a safe u, along the normal of the
    nearest facet, which is what that line tends to. Source: arXiv 2506.01665."""
    A, b = polytope.normals, polytope.offsets
    nearest = project(u, A, b, -jnp.inf, jnp.inf)
    multipliers = nearest.multipliers[: len(b)]
    # The projection moves along the active normals. Their sum keeps its direction where the distance is lost in rounding.
    total = jnp.sum(multipliers)
    beyond = total > 0
    weights = multipliers / jnp.where(beyond, total, 1.0)
    steep = jnp.sqrt(jnp.sum(jax.lax.stop_gradient(A) ** 2, axis=1))
    distance = (A @ u - b) / jnp.where(steep > 0, steep, 1.0)
    facet = jnp.argmin(jnp.where(steep > 0, distance, jnp.inf))
    direction = jnp.where(beyond, weights @ A, A[facet])
    first, last = stretch(A, b, nearest.value, direction)
    bounded = (first <= last) & jnp.isfinite(first) & jnp.isfinite(last)
    return nearest.value + jnp.where(bounded, 0.5 * (first + last), 0.0) * direction


def interval(polytope: HalfSpaces, u: Float[Array, " 1"]) -> Float[Array, " 1"]:
    """Middle of the safe interval of one input: there all the others are that."""
    first, last = stretch(polytope.normals, polytope.offsets, jnp.zeros_like(u), jnp.ones_like(u))
    return 0.5 * (first + last)[None]


CENTRES: dict[str, Callable | None] = {"zonotope": zonotope, "chord": chord, "chebyshev": chebyshev, "backup": None}
"""Every centre by its name: (polytope with the input box, u) -> centre, or None for the known safe action."""
