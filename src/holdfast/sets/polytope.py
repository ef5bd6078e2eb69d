"""Convex polytopes in half-space form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy.optimize import linprog

from holdfast.sets.box import Box
from holdfast.sets.locally_convex import LocallyConvex

#: Accuracy of the linear programs, and half-width of the box in which a polytope without any bound is searched.
_TOLERANCE, _LARGEST = 1e-9, 1e9
#: Steps of the hit-and-run walk that draws a point, for each dimension.
_WALK = 12
#: A walk keeps this share of a chord away from its ends, so that rounding does not lead out.
_RIM = 1e-4


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

    def chebyshev_ball(self) -> tuple[np.ndarray, float]:
        """Centre [n] and radius of a largest ball inside, by a linear program on the host; the radius is 0 for a flat
        polytope, infinite where none is largest.

        Raises:
            ValueError: if the polytope is empty.
        """
        n = self.normals.shape[1]
        rows = np.column_stack([self.normals, np.linalg.norm(self.normals, axis=1)])
        # A ball of negative radius always exists, unless a row says 0 <= b with b < 0.
        bounds = [(None, None)] * n + [(None, _LARGEST)]
        found = linprog(np.r_[np.zeros(n), -1.0], rows, self.offsets, bounds=bounds)
        size = _TOLERANCE * max(1.0, np.abs(self.offsets[np.isfinite(self.offsets)]).max(initial=0.0))
        if found.status != 0 or found.x[n] < -size:
            raise ValueError(
                f"Polytope: empty, no x satisfies all {len(self.offsets)} half-spaces; check the signs, A x <= b"
            )
        return found.x[:n], np.inf if found.x[n] >= 0.99 * _LARGEST else max(float(found.x[n]), 0.0)

    def furthest(self, direction: np.ndarray) -> np.ndarray:
        """A point furthest in a direction [n], shape [n], by a linear program on the host.

        Raises:
            ValueError: if the polytope is empty, or unbounded in that direction.
        """
        direction = np.asarray(direction, np.float64)
        if direction.shape != self.normals.shape[1:]:
            raise ValueError(f"Polytope: direction has shape {direction.shape}; give {self.normals.shape[1:]}")
        scale = np.linalg.norm(direction) or 1.0
        found = linprog(-direction / scale, self.normals, self.offsets, bounds=(None, None))
        if found.status != 0:
            self.chebyshev_ball()  # tells if it is empty
            raise ValueError(
                f"Polytope: unbounded in the direction {in_words(direction)}; add half-spaces that bound it"
            )
        return found.x

    def bounding_box(self) -> Box:
        """The smallest box around it, by linear programs on the host.

        Raises:
            ValueError: as `furthest`.
        """
        eye = np.eye(self.normals.shape[1])
        upper, lower = ([e @ self.furthest(sign * e) for e in eye] for sign in (1.0, -1.0))
        return Box(lower, np.maximum(lower, upper))

    def sample(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """A point that is very nearly uniform, shape [n]: hit-and-run from the Chebyshev centre, directions scaled by the
        bounding box, a fixed number of steps. Its law converges to the uniform one geometrically (Smith 1984).

        Raises:
            ValueError: while tracing, if the polytope is empty or unbounded.
        """
        start, scale = self.chebyshev_ball()[0], self.bounding_box().half_widths
        A, b = jnp.asarray(self.normals * scale), jnp.asarray(self.offsets - self.normals @ start)
        n = len(scale)

        def walk(y, key):
            heading, where = jax.random.split(key)
            # In units of the box about the start; only the line's direction matters.
            d = jax.random.normal(heading, (n,), b.dtype)
            rate, room = A @ d, b - A @ y
            ahead = jnp.min(jnp.where(rate > 0, room / jnp.where(rate > 0, rate, 1.0), jnp.inf))
            behind = jnp.max(jnp.where(rate < 0, room / jnp.where(rate < 0, rate, 1.0), -jnp.inf))
            share = jax.random.uniform(where, (), b.dtype, _RIM, 1 - _RIM)
            return y + (behind + share * (ahead - behind)) * d, None

        y, _ = jax.lax.scan(walk, jnp.zeros(n, b.dtype), jax.random.split(key, _WALK * n))
        return jnp.asarray(start, b.dtype) + jnp.asarray(scale, b.dtype) * y


def in_words(direction: np.ndarray) -> str:
    """A direction [n] for a message: "+x[1]" for an axis, the numbers for others."""
    at = np.flatnonzero(np.abs(direction) > _TOLERANCE)
    if len(at) == 1:
        return f"{'+' if direction[at[0]] > 0 else '-'}x[{at[0]}]"
    return str(np.round(direction, 6).tolist())
