"""Linearisation about the equilibrium, in error coordinates."""

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.systems.base import System


def linearise(system: System) -> tuple[np.ndarray, np.ndarray]:
    """A [e, e] and B [e, m] of e+ = A e + B (u - u*), by automatic differentiation in float64.

    Raises:
        ValueError: if the equilibrium is not one, or a derivative there is not finite.
    """
    with jax.enable_x64(True):
        x_star, u_star = (jnp.asarray(v, jnp.float64) for v in system.equilibrium())

        # One program instead of an operation at a time: most of the time here is compiling.
        def all_at(x, u):
            e = system.error(x)
            return e, system.error_step(e, u), jax.jacfwd(system.error_step, argnums=(0, 1))(e, u)

        e_star, rest, (A, B) = jax.tree.map(np.asarray, jax.jit(all_at)(x_star, u_star))
        if not np.all(np.isfinite(rest)):
            raise ValueError(
                f"{type(system).__name__}.equilibrium: the step from x* = {np.asarray(x_star)}, u* = "
                f"{np.asarray(u_star)} is not finite ({rest}); check `derivative` for a division by zero there"
            )
        if np.max(np.abs(rest)) > 1e-6 or np.max(np.abs(e_star)) > 1e-9:
            raise ValueError(
                f"{type(system).__name__}.equilibrium is not one: error(x*) = {e_star} and after one step "
                f"{rest}; both must be zero. Correct x* or u*, or drop coordinates that may move in `error` and `lift`"
            )
    if not (np.all(np.isfinite(A)) and np.all(np.isfinite(B))):
        raise ValueError(
            f"{type(system).__name__}: the linearisation at the equilibrium is not finite; a kink or a square root of "
            "zero there has no derivative"
        )
    return A, B
