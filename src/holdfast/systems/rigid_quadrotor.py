"""A quadrotor as a rigid body: 13 states, four rotor thrusts, the body's own inertia."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems import hover_frame
from holdfast.systems.hover_frame import GRAVITY
from holdfast.systems.structure import Spread, Symmetry

_MASS = 0.5


class RigidQuadrotor(hover_frame.HoveringSystem):
    """p' = v, v' = (sum f / m) R(q) e3 - g e3, q' = q (0, w) / 2, J w' = tau(f) - w x J w: explicit Euler, q renormalised.

    Rotors stand on the body's axes ("plus"): f1 in front (+x), f2 left (+y), f3 behind, f4 right, all pushing along body
    z; 1 and 3 turn against 2 and 4. So tau = (l (f2 - f4), l (f3 - f1), k (f1 - f2 + f3 - f4)).

    The error has 9 numbers: the 6 of `hover_frame` and the body rates, ordered as the tilt moves, ds/dt = (-wy, wx) when
    upright:

        e = (z - z*, R'v, s, -wy, wx, wz).

    Attributes:
        mass: kg. inertia: principal moments (Ixx, Iyy, Izz), kg m^2. arm: l, from the centre to a rotor, m.
        drag_torque: k, torque about body z for each newton of thrust, m.

    Sources: equations of motion as in Mellinger and Kumar, "Minimum snap trajectory generation and control for
    quadrotors" (2011). Mass, inertia and arm are those published for the AscTec Hummingbird (RotorPy, arXiv 2306.04485),
    with Iyy = 3.68e-3 set equal to Ixx; thrust limit (twice its weight in all), drag torque and sampling are ours.
    """

    state_names: ClassVar = ("x", "y", "z", "vx", "vy", "vz", "qw", "qx", "qy", "qz", "wx", "wy", "wz")
    state_units: ClassVar = ("m", "m", "m", "m/s", "m/s", "m/s", "", "", "", "", "rad/s", "rad/s", "rad/s")
    input_names: ClassVar = ("front", "left", "back", "right")
    input_units: ClassVar = ("N", "N", "N", "N")
    reduction_shown_by: ClassVar = "algebra on the traced step, tests/test_rigid_quadrotor.py::test_reduction_is_exact"

    dt: float = 0.02
    gravity: float = GRAVITY
    hover_height: float = 2.0
    mass: float = _MASS
    inertia: tuple[float, float, float] = (3.65e-3, 3.65e-3, 7.03e-3)
    arm: float = 0.17
    drag_torque: float = 0.024
    input_box: Box = eqx.field(default_factory=lambda: Box([0.0] * 4, [_MASS * GRAVITY / 2] * 4))

    def step(
        self, x: Float[Array, " 13"], u: Float[Array, " 4"], w: Float[Array, " 0"] | None = None
    ) -> Float[Array, " 13"]:
        """Explicit Euler, then q renormalised. A q of length zero becomes NaN: it is no attitude."""
        moved = hover_frame.fly(x[:10], self._acceleration(u), x[10:], self.dt, self.gravity)
        return jnp.concatenate([moved, self._spun(x[10:], u)])

    def equilibrium(self) -> tuple[Float[Array, " 13"], Float[Array, " 4"]]:
        rest = jnp.concatenate([hover_frame.hover(self.hover_height), jnp.zeros(3)])
        return rest, jnp.full(4, self.mass * self.gravity / 4)

    def error(self, x: Float[Array, " 13"]) -> Float[Array, " 9"]:
        """(z - z*, R'v, s, -wy, wx, wz), in m, m/s, (for small tilt) rad, and rad/s; |s| = 1e9 where it is upside down."""
        return jnp.concatenate([hover_frame.error(x[:10], self.hover_height), _tilting(x[10:])])

    def features(self, x: Float[Array, " 13"]) -> Float[Array, " 10"]:
        """(z - z*, R'v, G, -wy, wx, wz): the error without a chart, smooth at every attitude."""
        return jnp.concatenate([hover_frame.features(x[:10], self.hover_height), _tilting(x[10:])])

    def bounded_error(self, x: Float[Array, " 13"]) -> Float[Array, " 9"]:
        """The error with s shortened to 2 sin(tilt/2), equal to `error` to second order."""
        return jnp.concatenate([hover_frame.bounded_error(x[:10], self.hover_height), _tilting(x[10:])])

    def lift_along(self, e: Float[Array, " 9"], fibre: Float[Array, " 1"]) -> Float[Array, " 13"]:
        """The state above the origin with that yaw."""
        return jnp.concatenate([hover_frame.lift_along(e[:6], fibre, self.hover_height), _rates(e[6:])])

    def error_step(self, e: Float[Array, " 9"], u: Float[Array, " 4"]) -> Float[Array, " 9"]:
        """error(F(x, u)) for every x with error(x) = e, written in e alone."""
        rates = _rates(e[6:])
        moved = hover_frame.error_step(e[:6], self._acceleration(u), rates, self.dt, self.gravity)
        return jnp.concatenate([moved, _tilting(self._spun(rates, u))])

    @property
    def symmetry(self) -> Symmetry | None:
        """Turns about body z if Ixx = Iyy: the torques (-tau_y, tau_x) turn as (-wy, wx) do; the mirror flips wz."""
        if self.inertia[0] != self.inertia[1]:
            return None
        shown = "algebra on the traced step, tests/test_rigid_quadrotor.py::test_symmetry_is_exact"
        # What turns: (sum, -tau_y / l, tau_x / l, tau_z / k).
        mixing = np.array([[1.0, 1, 1, 1], [1, 0, -1, 0], [0, 1, 0, -1], [1, -1, 1, -1]])
        return Symmetry(((4, 5), (6, 7), (1, 2)), ((1, 2),), True, (2, 3), shown, mirrored_errors=(8,), mixing=mixing)

    def manifold(self, x: Float[Array, " 13"]) -> Float[Array, " 1"]:
        """|q|^2 - 1."""
        return hover_frame.manifold(x[:10])

    @property
    def spread(self) -> Spread | None:
        """That of `hover_frame`, with rates that are states: |q c - r d| <= |q - r| + |c - d| for unit quaternions, and c(w)
        = (1, dt w/2) / |...| moves by at most dt/2 |w - w'|.

        If Ixx = Iyy the rate wz has no gyroscopic torque, and (wx, wy) turns: by I + dt k wz [[0, -1], [1, 0]], with k =
        (Izz - Ixx) / Ixx, which stretches by sqrt(1 + (dt k wz)^2).
        """
        if self.inertia[0] != self.inertia[1]:
            return None
        dt, slack = self.dt, 1 + 1e-4
        coupling = abs(self.inertia[2] - self.inertia[0]) / self.inertia[0]

        def gains(region: Box) -> np.ndarray:
            rates = np.maximum(np.abs(region.lower), np.abs(region.upper))[10:]
            found = np.eye(5)
            thrust = np.maximum(np.abs(self.input_box.lower), np.abs(self.input_box.upper)).sum() / self.mass
            found[:3, :3] = hover_frame.spread_gains(dt, thrust)
            found[2, 3:] = slack * dt / 2
            found[3, 3] = np.hypot(1, dt * coupling * rates[2])
            found[3, 4] = dt * coupling * np.hypot(*rates[:2])
            return slack * found

        def error_gains(radii: np.ndarray) -> np.ndarray:
            found = np.zeros((9, 5))
            found[:6, :3] = hover_frame.error_gains(radii[:6])
            found[6:8, 3] = found[8, 4] = 1.0
            return found

        blocks = (*hover_frame.BLOCKS, (10, 11), (12,))
        return Spread(blocks, gains, error_gains, "tests/test_rigid_quadrotor.py::test_spread_bounds_what_it_says")

    def _acceleration(self, u: Float[Array, " 4"]) -> Float[Array, ""]:
        """Thrust over mass, m/s^2, shape []."""
        return ((u[0] + u[2]) + (u[1] + u[3])) * (1 / self.mass)

    def _spun(self, rates: Float[Array, " 3"], u: Float[Array, " 4"]) -> Float[Array, " 3"]:
        """Body rates one step later, rad/s, shape [3]: Euler's equations."""
        (ix, iy, iz), (wx, wy, wz), dt = self.inertia, rates, self.dt
        roll, pitch = self.arm * (u[1] - u[3]), self.arm * (u[2] - u[0])
        yaw = self.drag_torque * ((u[0] + u[2]) - (u[1] + u[3]))
        ahead = [
            wx + dt * (roll / ix - ((iz - iy) / ix) * (wz * wy)),
            wy + dt * (pitch / iy - ((ix - iz) / iy) * (wz * wx)),
            wz + dt * (yaw / iz - ((iy - ix) / iz) * (wx * wy)),
        ]
        return jnp.stack(ahead)


def _tilting(rates: Float[Array, " 3"]) -> Float[Array, " 3"]:
    """(-wy, wx, wz): a vector in the body's plane, as R'v and s are, and wz."""
    return jnp.stack([-rates[1], rates[0], rates[2]])


def _rates(tilting: Float[Array, " 3"]) -> Float[Array, " 3"]:
    """The inverse of `_tilting`."""
    return jnp.stack([tilting[1], -tilting[0], tilting[2]])
