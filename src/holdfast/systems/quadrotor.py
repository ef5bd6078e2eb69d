"""A quadrotor commanded by thrust and body rates: 10 states, attitude as a unit quaternion."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems import quaternion
from holdfast.systems.base import System
from holdfast.systems.structure import Spread, Symmetry

GRAVITY = 9.81

#: Closer to upside down than this (in (1 + G3) / 2) the chart s has no direction, and no base set reaches.
_CHART_EDGE = 1e-3
#: What the chart says there: far outside every ellipsoid, and finite in float32 even when squared.
_FAR = 1e9


class Quadrotor(System):
    """p' = v, v' = a R(q) e3 - g e3, q' = q (0, w) / 2: explicit Euler, then q renormalised.

    Inputs are the mass-normalised thrust a and the body rates w. Where the robot is in the plane and where it looks (yaw)
    do not matter for staying in the air, so the error has 6 numbers, all but the height in the body frame:

        e = (z - z*, R'v, s),   s = 2 (G1, G2) / (1 + G3),   G = R' e3,

    with s the stereographic projection of the gravity direction G: no square root, no sign ambiguity, and it covers every
    attitude but upside down, where `error` gives numbers far outside of any ellipsoid. Euler's step with renormalisation
    is the Cayley rotation R+ = R Cay(dt w), so error(F(x, u)) is a function of error(x) and u alone: `error_step`.

    Sources: PS2-RL (arXiv 2606.14536), power loop; tests/test_quadrotor.py shows the reduction by algebra.
    """

    state_names: ClassVar = ("x", "y", "z", "vx", "vy", "vz", "qw", "qx", "qy", "qz")
    state_units: ClassVar = ("m", "m", "m", "m/s", "m/s", "m/s", "", "", "", "")
    input_names: ClassVar = ("a", "wx", "wy", "wz")
    input_units: ClassVar = ("m/s²", "rad/s", "rad/s", "rad/s")
    reduction_shown_by: ClassVar = "algebra on the traced step, tests/test_quadrotor.py::test_reduction_is_exact"

    dt: float = 0.02
    gravity: float = GRAVITY
    hover_height: float = 2.0
    input_box: Box = eqx.field(default_factory=lambda: Box([0.0, -18.0, -18.0, -18.0], [4 * GRAVITY, 18.0, 18.0, 18.0]))

    def step(
        self, x: Float[Array, " 10"], u: Float[Array, " 4"], w: Float[Array, " 0"] | None = None
    ) -> Float[Array, " 10"]:
        """Explicit Euler, then q renormalised. A q of length zero becomes NaN: it is no attitude.

        q + dt q (0, w) / 2 is the product q (1, dt w / 2), so its norm is a product of norms. Dividing by those instead of
        the norm of the sum gives the same number with a far tighter bound on its rounding.
        """
        p, v, q = x[:3], x[3:6], x[6:]
        acceleration = u[0] * quaternion.body_z(q) - self.gravity * jnp.array([0.0, 0.0, 1.0], x.dtype)
        half = 0.5 * self.dt * u[1:]
        turned = quaternion.multiply(q, jnp.concatenate([jnp.ones(1, u.dtype), half]))
        square = q @ q * (1 + half @ half)
        turned = turned / jnp.sqrt(square)
        return jnp.concatenate([p + self.dt * v, v + self.dt * acceleration, turned])

    def equilibrium(self) -> tuple[Float[Array, " 10"], Float[Array, " 4"]]:
        hover = jnp.zeros(10).at[2].set(self.hover_height).at[6].set(1.0)
        return hover, jnp.array([self.gravity, 0.0, 0.0, 0.0])

    def error(self, x: Float[Array, " 10"]) -> Float[Array, " 6"]:
        """(z - z*, R'v, s), in m, m/s and (for small tilt) rad; |s| = 1e9 where it is upside down."""
        body_velocity, up = self._in_body(x)
        height = x[2:3] - jnp.asarray(self.hover_height, x.dtype)
        # (|q|^2 + up3) / 2, a sum of squares: nothing cancels, and s does not depend on the length of q.
        upright = x[6] * x[6] + x[9] * x[9]
        # Upside down is 0/0. `~(<=)` lets NaN through to be seen; the inner `where` keeps derivatives finite.
        usable = ~(upright <= _CHART_EDGE)
        tilt = up[:2] / jnp.where(usable, upright, 1.0)
        return jnp.concatenate([height, body_velocity, jnp.where(usable, tilt, jnp.array([_FAR, 0.0], x.dtype))])

    def features(self, x: Float[Array, " 10"]) -> Float[Array, " 7"]:
        """(z - z*, R'v, G): the error without a chart, smooth at every attitude."""
        body_velocity, up = self._in_body(x)
        return jnp.concatenate([x[2:3] - jnp.asarray(self.hover_height, x.dtype), body_velocity, up])

    def bounded_error(self, x: Float[Array, " 10"]) -> Float[Array, " 6"]:
        """The error with s shortened to 2 sin(tilt/2): |s|^2 = 2 (1 - G3) <= 4, equal to `error` to second order."""
        body_velocity, up = self._in_body(x)
        length = jnp.sqrt(jnp.maximum(2 * (1 + up[2]), _CHART_EDGE))
        height = x[2:3] - jnp.asarray(self.hover_height, x.dtype)
        return jnp.concatenate([height, body_velocity, 2 * up[:2] / length])

    def lift(self, e: Float[Array, " 6"]) -> Float[Array, " 10"]:
        """The state above the origin, without yaw."""
        return self.lift_along(e, jnp.zeros(1, e.dtype))

    @property
    def fibre_box(self) -> Box:
        """Yaw in rad, two turns: every attitude, by both of its quaternions."""
        return Box([-2 * np.pi], [2 * np.pi])

    def lift_along(self, e: Float[Array, " 6"], fibre: Float[Array, " 1"]) -> Float[Array, " 10"]:
        """The state above the origin with that yaw."""
        sigma = (e[4] * e[4] + e[5] * e[5]) / 4
        half = 1 / jnp.sqrt(1 + sigma)
        tilt = jnp.stack([half, e[5] / 2 * half, -e[4] / 2 * half, 0 * half])
        yaw = jnp.stack([jnp.cos(fibre[0] / 2), 0 * half, 0 * half, jnp.sin(fibre[0] / 2)])
        q = quaternion.multiply(yaw, tilt)
        velocity = quaternion.rotation_matrix(q) @ e[1:4]
        height = e[:1] + jnp.asarray(self.hover_height, e.dtype)
        return jnp.concatenate([jnp.zeros(2, e.dtype), height, velocity, q])

    def error_step(self, e: Float[Array, " 6"], u: Float[Array, " 4"]) -> Float[Array, " 6"]:
        """error(F(x, u)) for every x with error(x) = e, written in e alone: interval proofs need it short.

        With G from s, and C = Cay(dt w): z+ = z + dt v.G, v+ = C'(v + dt (a e3 - g G)), G+ = C'G.
        """
        z, v, s = e[0], e[1:4], e[4:]
        sigma = (s @ s) / 4
        up = jnp.stack([s[0] / (1 + sigma), s[1] / (1 + sigma), (1 - sigma) / (1 + sigma)])
        half = 0.5 * self.dt * u[1:]
        scale = 2 / (1 + half @ half)

        def turned_back(vector):
            across = jnp.cross(half, vector)
            return vector + scale * (jnp.cross(half, across) - across)

        thrust = u[0] * jnp.array([0.0, 0.0, 1.0], e.dtype)
        velocity = turned_back(v + self.dt * (thrust - self.gravity * up))
        up_next = turned_back(up)
        return jnp.concatenate([jnp.stack([z + self.dt * (v @ up)]), velocity, 2 * up_next[:2] / (1 + up_next[2])])

    @property
    def symmetry(self) -> Symmetry:
        """Body x and y are alike; rates are an axial vector, so the mirror y -> -y flips wx and wz."""
        shown = "algebra on the traced step, tests/test_quadrotor.py::test_symmetry_is_exact"
        return Symmetry(((1, 2), (4, 5)), ((1, 2),), True, (1, 3), shown)

    def manifold(self, x: Float[Array, " 10"]) -> Float[Array, " 1"]:
        """|q|^2 - 1."""
        q = x[6:]
        return (q @ q - 1)[None]

    @property
    def spread(self) -> Spread:
        """A product with one quaternion keeps distances; |R(q)e3 - R(r)e3| <= 2 |q - r| for unit q and r.

        So for |v| <= V: |R(q)'v - R(r)'v'| <= |v - v'| + 2 V |q - r|; and the stereographic projection stretches chords
        by sqrt((1 + |s|^2/4) (1 + |s'|^2/4)). The slack pays for quaternions of length 1 +- 1e-5: 1/|q| in the
        renormalisation, |q| + |r| in R(q)e3.
        """
        slack, dt, thrust = 1 + 1e-4, self.dt, self.input_box.upper[0]
        gains = slack * np.array([[1, dt, 0], [0, 1, 2 * dt * thrust], [0, 0, 1]])

        def error_gains(radii):
            speed, tilt = np.linalg.norm(radii[1:4]), 1 + (radii[4:] @ radii[4:]) / 4
            rows = [[1, 0, 0]] + [[0, 1, 2 * speed]] * 3 + [[0, 0, 2 * tilt]] * 2
            return slack * np.array(rows)

        shown = "tests/test_quadrotor.py::test_spread_bounds_what_it_says"
        return Spread(((0, 1, 2), (3, 4, 5), (6, 7, 8, 9)), gains, error_gains, shown)

    def _in_body(self, x: Float[Array, " 10"]) -> tuple[Float[Array, " 3"], Float[Array, " 3"]]:
        """Velocity and world z axis, in body axes."""
        q = x[6:]
        return quaternion.rotation_matrix(q).T @ x[3:6], quaternion.world_z(q)
