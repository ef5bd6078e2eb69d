"""Convex polytopes in half-space form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy.optimize import linprog

from holdfast.sets.base import LocallyConvex
from holdfast.sets.box import Box

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
        """Centre [n] and radius of a largest ball inside, by a linear program on the host.

        Raises:
            ValueError: if the polytope is empty or holds balls of any size.
        """
        n = self.normals.shape[1]
        rows = np.column_stack([self.normals, np.linalg.norm(self.normals, axis=1)])
        found = linprog(-np.eye(n + 1)[n], rows, self.offsets, bounds=[(None, None)] * n + [(0, None)])
        if not found.success:
            kind = "empty: no point satisfies all its rows" if found.status == 2 else "unbounded in every direction"
            raise ValueError(f"Polytope: the polytope of {len(self.offsets)} rows is {kind}")
        return found.x[:n], float(found.x[n])

    def bounding_box(self) -> Box:
        """The smallest box around it, by linear programs on the host.

        Raises:
            ValueError: if the polytope is empty or unbounded; names the direction.
        """
        n = self.normals.shape[1]
        reach = np.empty((2, n))
        for side, sign in enumerate((-1.0, 1.0)):
            for i in range(n):
                found = linprog(-sign * np.eye(n)[i], self.normals, self.offsets, bounds=(None, None))
                if not found.success:
                    words = "empty" if found.status == 2 else f"unbounded towards {'+' if sign > 0 else '-'}x[{i}]"
                    raise ValueError(f"Polytope: the polytope of {len(self.offsets)} rows is {words}")
                reach[side, i] = sign * -found.fun
        return Box(reach[0], np.maximum(*reach))

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
