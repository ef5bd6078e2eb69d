"""Unit quaternions (w, x, y, z), scalar first: attitude as a rotation from the body to the world frame.

Source: Kuipers, *Quaternions and Rotation Sequences*, 1999; Hamilton's product convention.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

#: Squared norms up to this have no direction.
_TINY = 1e-12


def multiply(q: Float[Array, " 4"], r: Float[Array, " 4"]) -> Float[Array, " 4"]:
    """Hamilton product q r, shape [4]: the rotation r, then q. |q r| = |q| |r|."""
    a, b, c, d = q
    w, x, y, z = r
    return jnp.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ]
    )


def conjugate(q: Float[Array, " 4"]) -> Float[Array, " 4"]:
    """(w, -x, -y, -z), shape [4]: the inverse rotation of a unit quaternion."""
    return jnp.concatenate([q[:1], -q[1:]])


def rotation_matrix(q: Float[Array, " 4"]) -> Float[Array, "3 3"]:
    """R(q), shape [3, 3]: body vectors to world vectors. Quadratic in q, so R(q)'R(q) = |q|^4 I."""
    w, x, y, z = q
    return jnp.stack(
        [
            jnp.stack([w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)]),
            jnp.stack([2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)]),
            jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z]),
        ]
    )


def body_z(q: Float[Array, " 4"]) -> Float[Array, " 3"]:
    """R(q) e3, shape [3]: the body's z axis in the world frame, where a multirotor's thrust points."""
    w, x, y, z = q
    return jnp.stack([2 * (x * z + w * y), 2 * (y * z - w * x), w * w - x * x - y * y + z * z])


def world_z(q: Float[Array, " 4"]) -> Float[Array, " 3"]:
    """R(q)' e3, shape [3]: the world's z axis in the body frame (the "gravity direction"); yaw does not change it."""
    w, x, y, z = q
    return jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z])


def normalise(q: Float[Array, " 4"]) -> Float[Array, " 4"]:
    """q / |q|, shape [4]; the identity for a (numerically) zero q, with zero derivative there. NaN stays NaN."""
    square = q @ q
    # `~(<=)` rather than `>`: NaN must go through and be seen. The inner `where` keeps the derivative finite at zero.
    usable = ~(square <= _TINY)
    unit = q / jnp.sqrt(jnp.where(usable, square, 1.0))
    return jnp.where(usable, unit, jnp.array([1.0, 0.0, 0.0, 0.0], q.dtype))
