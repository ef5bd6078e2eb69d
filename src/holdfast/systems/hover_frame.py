"""Position, velocity and attitude about hover: what all multirotors share, whatever turns them.

A state begins with p (3), v (3) and a unit quaternion q (4); where the robot is in the plane and where it looks (yaw) do
not matter for staying in the air. Its error begins with 6 numbers, all but the height in the body frame:

    e = (z - z*, R'v, s),   s = 2 (G1, G2) / (1 + G3),   G = R' e3,

with s the stereographic projection of the gravity direction G: no square root, no sign ambiguity, and it covers every
attitude but upside down, where `error` gives numbers far outside of any ellipsoid. Euler's step with renormalisation is
the Cayley rotation R+ = R Cay(dt w), so the next error is a function of e, the thrust and the body rates alone.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems import quaternion
from holdfast.systems.base import System

GRAVITY = 9.81

#: Closer to upside down than this (in (1 + G3) / 2) the chart s has no direction, and no base set reaches.
_CHART_EDGE = 1e-3
#: What the chart says there: far outside every ellipsoid, and finite in float32 even when squared.
_FAR = 1e9
#: Pays for quaternions of length 1 +- 1e-5: 1/|q| in the renormalisation, |q| + |r| in R(q)e3.
_SLACK = 1 + 1e-4

#: Yaw in rad, two turns: every attitude, by both of its quaternions.
YAW_BOX = Box([-2 * np.pi], [2 * np.pi])


class HoveringSystem(System):
    """A system whose state and error begin as above, and whose error drops the place in the plane and the yaw."""

    @property
    def fibre_box(self) -> Box:
        """Yaw in rad."""
        return YAW_BOX

    def lift(self, e: Float[Array, " e"]) -> Float[Array, " n"]:
        """The state above the origin, without yaw."""
        return self.lift_along(e, jnp.zeros(1, e.dtype))


def fly(
    x: Float[Array, " 10"], thrust: Float[Array, ""], rates: Float[Array, " 3"], dt: float, gravity: float
) -> Float[Array, " 10"]:
    """p' = v, v' = a R(q) e3 - g e3, q' = q (0, w) / 2: explicit Euler, then q renormalised, shape [10].

    q + dt q (0, w) / 2 is the product q (1, dt w / 2), so its norm is a product of norms. Dividing by those instead of
    the norm of the sum gives the same number with a far tighter bound on its rounding. A q of length zero becomes NaN: it
    is no attitude.
    """
    p, v, q = x[:3], x[3:6], x[6:10]
    acceleration = thrust * quaternion.body_z(q) - gravity * jnp.array([0.0, 0.0, 1.0], x.dtype)
    half = 0.5 * dt * rates
    turned = quaternion.multiply(q, jnp.concatenate([jnp.ones(1, rates.dtype), half]))
    square = q @ q * (1 + half @ half)
    return jnp.concatenate([p + dt * v, v + dt * acceleration, turned / jnp.sqrt(square)])


def hover(height: float) -> Float[Array, " 10"]:
    """The state at rest, upright, at that height above the origin."""
    return jnp.zeros(10).at[2].set(height).at[6].set(1.0)


def in_body(x: Float[Array, " 10"]) -> tuple[Float[Array, " 3"], Float[Array, " 3"]]:
    """Velocity and world z axis, in body axes."""
    q = x[6:10]
    return quaternion.rotation_matrix(q).T @ x[3:6], quaternion.world_z(q)


def error(x: Float[Array, " 10"], height: float) -> Float[Array, " 6"]:
    """(z - z*, R'v, s), in m, m/s and (for small tilt) rad; |s| = 1e9 where it is upside down."""
    body_velocity, up = in_body(x)
    # (|q|^2 + up3) / 2, a sum of squares: nothing cancels, and s does not depend on the length of q.
    upright = x[6] * x[6] + x[9] * x[9]
    # Upside down is 0/0. `~(<=)` lets NaN through to be seen; the inner `where` keeps derivatives finite.
    usable = ~(upright <= _CHART_EDGE)
    tilt = up[:2] / jnp.where(usable, upright, 1.0)
    far = jnp.array([_FAR, 0.0], x.dtype)
    return jnp.concatenate([_above(x, height), body_velocity, jnp.where(usable, tilt, far)])


def features(x: Float[Array, " 10"], height: float) -> Float[Array, " 7"]:
    """(z - z*, R'v, G): the error without a chart, smooth at every attitude."""
    body_velocity, up = in_body(x)
    return jnp.concatenate([_above(x, height), body_velocity, up])


def bounded_error(x: Float[Array, " 10"], height: float) -> Float[Array, " 6"]:
    """The error with s shortened to 2 sin(tilt/2): |s|^2 = 2 (1 - G3) <= 4, equal to `error` to second order."""
    body_velocity, up = in_body(x)
    length = jnp.sqrt(jnp.maximum(2 * (1 + up[2]), _CHART_EDGE))
    return jnp.concatenate([_above(x, height), body_velocity, 2 * up[:2] / length])


def _above(x: Float[Array, " 10"], height: float) -> Float[Array, " 1"]:
    return x[2:3] - jnp.asarray(height, x.dtype)


def lift_along(e: Float[Array, " 6"], yaw: Float[Array, " 1"], height: float) -> Float[Array, " 10"]:
    """The state above the origin with that error and yaw."""
    sigma = (e[4] * e[4] + e[5] * e[5]) / 4
    half = 1 / jnp.sqrt(1 + sigma)
    tilt = jnp.stack([half, e[5] / 2 * half, -e[4] / 2 * half, 0 * half])
    turn = jnp.stack([jnp.cos(yaw[0] / 2), 0 * half, 0 * half, jnp.sin(yaw[0] / 2)])
    q = quaternion.multiply(turn, tilt)
    velocity = quaternion.rotation_matrix(q) @ e[1:4]
    return jnp.concatenate([jnp.zeros(2, e.dtype), e[:1] + jnp.asarray(height, e.dtype), velocity, q])


def error_step(
    e: Float[Array, " 6"], thrust: Float[Array, ""], rates: Float[Array, " 3"], dt: float, gravity: float
) -> Float[Array, " 6"]:
    """error(fly(x, thrust, rates)) for every x with error(x) = e, written in e alone: interval proofs need it short.

    With G from s, and C = Cay(dt w): z+ = z + dt G.v, v+ = C'(v + dt (a e3 - g G)), G+ = C'G. For a known tilt and known
    rates this is linear in z and v; products are written with tilt and rates first, as `holdfast.certify.anchored` asks.
    """
    z, v, s = e[0], e[1:4], e[4:]
    sigma = (s @ s) / 4
    up = jnp.stack([s[0] / (1 + sigma), s[1] / (1 + sigma), (1 - sigma) / (1 + sigma)])
    half = 0.5 * dt * rates
    scale = 2 / (1 + half @ half)

    def turned_back(vector):
        across = jnp.cross(half, vector)
        return vector + scale * (jnp.cross(half, across) - across)

    push = thrust * jnp.array([0.0, 0.0, 1.0], e.dtype)
    velocity = turned_back(v + dt * (push - gravity * up))
    up_next = turned_back(up)
    return jnp.concatenate([jnp.stack([z + dt * (up @ v)]), velocity, 2 * up_next[:2] / (1 + up_next[2])])


def manifold(x: Float[Array, " 10"]) -> Float[Array, " 1"]:
    """|q|^2 - 1."""
    q = x[6:10]
    return (q @ q - 1)[None]


#: Blocks of the state whose distances `spread_gains` and `error_gains` bound.
BLOCKS = ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9))


def spread_gains(dt: float, most_thrust: float) -> np.ndarray:
    """How one step at the same thrust and rates spreads the distances of the three blocks, shape [3, 3].

    A product with one quaternion keeps distances; |R(q)e3 - R(r)e3| <= 2 |q - r| for unit q and r.
    """
    return _SLACK * np.array([[1, dt, 0], [0, 1, 2 * dt * most_thrust], [0, 0, 1]])


def error_gains(radii: np.ndarray) -> np.ndarray:
    """How the error spreads them where both errors are within radii [6], shape [6, 3].

    For |v| <= V: |R(q)'v - R(r)'v'| <= |v - v'| + 2 V |q - r|; and the stereographic projection stretches chords by
    sqrt((1 + |s|^2/4) (1 + |s'|^2/4)).
    """
    speed, tilt = np.linalg.norm(radii[1:4]), 1 + (radii[4:] @ radii[4:]) / 4
    return _SLACK * np.array([[1, 0, 0]] + [[0, 1, 2 * speed]] * 3 + [[0, 0, 2 * tilt]] * 2)
