"""A quadrotor commanded by thrust and body rates: 10 states, attitude as a unit quaternion."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems import hover_frame, quaternion
from holdfast.systems.hover_frame import GRAVITY
from holdfast.systems.structure import Spread, Symmetry


class Quadrotor(hover_frame.HoveringSystem):
    """p' = v, v' = a R(q) e3 - g e3, q' = q (0, w) / 2: explicit Euler, then q renormalised.

    Inputs are the mass-normalised thrust a and the body rates w. The error has the 6 numbers of `hover_frame`, all but the
    height in the body frame, so error(F(x, u)) is a function of error(x) and u alone: `error_step`.

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
        """Explicit Euler, then q renormalised. A q of length zero becomes NaN: it is no attitude."""
        return hover_frame.fly(x, u[0], u[1:], self.dt, self.gravity)

    def derivative(
        self, x: Float[Array, " 10"], u: Float[Array, " 4"], w: Float[Array, " 0"] | None = None
    ) -> Float[Array, " 10"]:
        """x' before it was sampled, affine in u, shape [10]."""
        v, q = x[3:6], x[6:]
        acceleration = u[0] * quaternion.body_z(q) - self.gravity * jnp.array([0.0, 0.0, 1.0], x.dtype)
        turning = 0.5 * quaternion.multiply(q, jnp.concatenate([jnp.zeros(1, u.dtype), u[1:]]))
        return jnp.concatenate([v, acceleration, turning])

    def equilibrium(self) -> tuple[Float[Array, " 10"], Float[Array, " 4"]]:
        return hover_frame.hover(self.hover_height), jnp.array([self.gravity, 0.0, 0.0, 0.0])

    def error(self, x: Float[Array, " 10"]) -> Float[Array, " 6"]:
        """(z - z*, R'v, s), in m, m/s and (for small tilt) rad; |s| = 1e9 where it is upside down."""
        return hover_frame.error(x, self.hover_height)

    def features(self, x: Float[Array, " 10"]) -> Float[Array, " 7"]:
        """(z - z*, R'v, G): the error without a chart, smooth at every attitude."""
        return hover_frame.features(x, self.hover_height)

    def bounded_error(self, x: Float[Array, " 10"]) -> Float[Array, " 6"]:
        """The error with s shortened to 2 sin(tilt/2): |s|^2 = 2 (1 - G3) <= 4, equal to `error` to second order."""
        return hover_frame.bounded_error(x, self.hover_height)

    def lift_along(self, e: Float[Array, " 6"], fibre: Float[Array, " 1"]) -> Float[Array, " 10"]:
        """The state above the origin with that yaw."""
        return hover_frame.lift_along(e, fibre, self.hover_height)

    def error_step(self, e: Float[Array, " 6"], u: Float[Array, " 4"]) -> Float[Array, " 6"]:
        """error(F(x, u)) for every x with error(x) = e."""
        return hover_frame.error_step(e, u[0], u[1:], self.dt, self.gravity)

    @property
    def symmetry(self) -> Symmetry:
        """Body x and y are alike; rates are an axial vector, so the mirror y -> -y flips wx and wz."""
        shown = "algebra on the traced step, tests/test_quadrotor.py::test_symmetry_is_exact"
        return Symmetry(((1, 2), (4, 5)), ((1, 2),), True, (1, 3), shown)

    def manifold(self, x: Float[Array, " 10"]) -> Float[Array, " 1"]:
        """|q|^2 - 1."""
        return hover_frame.manifold(x)

    @property
    def spread(self) -> Spread:
        """That of `hover_frame`: thrust and rates are inputs, the same for both states."""
        gains = hover_frame.spread_gains(self.dt, max(abs(self.input_box.lower[0]), abs(self.input_box.upper[0])))
        shown = "tests/test_quadrotor.py::test_spread_bounds_what_it_says"
        return Spread(hover_frame.BLOCKS, gains, hover_frame.error_gains, shown)
