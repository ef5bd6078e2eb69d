"""Explicit one-step integrators for x' = f(x, u, w), input and disturbance held over the step."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float

Derivative = Callable[[Float[Array, " n"], Float[Array, " m"], Float[Array, " d"]], Float[Array, " n"]]


def euler(f: Derivative, dt: float, x, u, w, velocities: tuple[int, ...]):
    """x + dt f(x, u, w): explicit Euler, first order."""
    return x + dt * f(x, u, w)


def semi_implicit_euler(f: Derivative, dt: float, x, u, w, velocities: tuple[int, ...]):
    """Symplectic Euler: the entries `velocities` move first, the others see the new velocities."""
    is_velocity = np.zeros(x.shape[0], bool)
    is_velocity[list(velocities)] = True
    mask = is_velocity.astype(x.dtype)
    moved = x + dt * mask * f(x, u, w)
    return moved + dt * (1 - mask) * f(moved, u, w)


def runge_kutta_4(f: Derivative, dt: float, x, u, w, velocities: tuple[int, ...]):
    """The classical fourth-order Runge-Kutta step."""
    k1 = f(x, u, w)
    k2 = f(x + 0.5 * dt * k1, u, w)
    k3 = f(x + 0.5 * dt * k2, u, w)
    k4 = f(x + dt * k3, u, w)
    return x + (dt / 6) * (k1 + 2 * k2 + 2 * k3 + k4)


INTEGRATORS = {"euler": euler, "semi_implicit_euler": semi_implicit_euler, "runge_kutta_4": runge_kutta_4}
