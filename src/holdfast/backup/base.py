"""Base controller (discrete LQR) and base set (an ellipsoid that it keeps)."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Bool, Float

from holdfast.sets import Box, Ellipsoid
from holdfast.systems import System, linearise


class BaseController(eqx.Module):
    """u = clip(u* - K e, input box), with e the error coordinates.

    Attributes:
        gain: K, shape [m, e]; float32 numbers held as float64, so that every precision runs the same controller.
        equilibrium_input: u*, shape [m].
        input_box: the clip.
    """

    gain: np.ndarray
    equilibrium_input: np.ndarray
    input_box: Box

    def unclipped(self, e: Float[Array, " e"]) -> Float[Array, " m"]:
        """u* - K e, shape [m]."""
        return jnp.asarray(self.equilibrium_input, e.dtype) - jnp.asarray(self.gain, e.dtype) @ e

    def __call__(self, e: Float[Array, " e"]) -> Float[Array, " m"]:
        return self.input_box.clip(self.unclipped(e))


class BaseSet(eqx.Module):
    """B = {x : V(error(x)) <= level}, with the controller that keeps it. Whether it does is a proof's business.

    Attributes:
        system: gives `error`.
        controller: the base controller.
        ellipsoid: {e : e'Pe <= level}.
    """

    system: System
    controller: BaseController
    ellipsoid: Ellipsoid

    def margin(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """1 - V/level at the state x, shape []; dimensionless."""
        return self.ellipsoid.margin(self.system.error(x))[0]

    def contains(self, x: Float[Array, " n"]) -> Bool[Array, ""]:
        return self.margin(x) >= 0

    def action(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The base controller's action at the state x, shape [m]."""
        return self.controller(self.system.error(x))

    def closed_loop(self, e: Float[Array, " e"]) -> Float[Array, " e"]:
        """e -> error(F(lift(e), clip(u* - K e))): the map whose invariance is proved."""
        return self.system.error_step(e, self.controller(e))

    def unsaturated_level(self) -> float:
        """The level at which an input first saturates: max over e'Pe <= c of |K_i e| is sqrt(c K_i P^-1 K_i').

        Rounded down by more than the inverse of P loses to rounding.
        """
        P = self.ellipsoid.shape_matrix
        gain, u_star, box = self.controller.gain, self.controller.equilibrium_input, self.system.input_box
        room = np.minimum(box.upper - u_star, u_star - box.lower)
        reach = np.einsum("ij,jk,ik->i", gain, np.linalg.inv(P), gain)
        lost = 16 * len(P) * np.finfo(np.float64).eps * np.linalg.cond(P)
        return float(np.min(room**2 / np.maximum(reach, 1e-12)) * (1 - min(lost, 0.5)))

    def at_level(self, level: float) -> "BaseSet":
        """The same set at another level."""
        return eqx.tree_at(lambda s: s.ellipsoid, self, Ellipsoid(self.ellipsoid.shape_matrix, float(level)))


def design_base_controller(
    system: System, state_cost: np.ndarray, input_cost: np.ndarray, level: float = 1.0
) -> BaseSet:
    """Discrete LQR about the equilibrium; P solves the discrete algebraic Riccati equation.

    Args:
        system: gives the linearisation, in error coordinates.
        state_cost: Q, diagonal as a vector [e] or a matrix [e, e].
        input_cost: R, diagonal as a vector [m] or a matrix [m, m].
        level: c of the ellipsoid {e'Pe <= c}; choose it by a proof (`holdfast.certify`).

    Raises:
        ValueError: if the weights have the wrong shape or sign, or the linearisation cannot be stabilised.
    """
    A, B = linearise(system)
    Q, R = _as_weight("state_cost", state_cost, A.shape[0]), _as_weight("input_cost", input_cost, B.shape[1])
    try:
        P = scipy.linalg.solve_discrete_are(A, B, Q, R)
        K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        radius = np.max(np.abs(np.linalg.eigvals(A - B @ K)))
    except (np.linalg.LinAlgError, ValueError):
        radius = np.inf
    if not radius < 1:
        raise ValueError(
            f"{type(system).__name__}: the linearisation at the equilibrium cannot be stabilised by LQR "
            f"(eigenvalues of A: {np.round(np.linalg.eigvals(A), 4)}). Drop coordinates that no input reaches in "
            "`error`/`lift`, choose another equilibrium, or give every unstable coordinate a positive state_cost"
        )
    u_star = np.asarray(system.equilibrium()[1], np.float64)
    box = system.input_box
    if not np.all((u_star > box.lower) & (u_star < box.upper)):
        raise ValueError(
            f"{type(system).__name__}.equilibrium: u* = {u_star} must lie strictly inside the input box "
            f"[{box.lower}, {box.upper}]; the regulator needs room on both sides"
        )
    K, P = _as_float32(K), _as_float32(0.5 * (P + P.T))
    if (symmetry := system.symmetry) is not None:
        # Once to symmetrise, once more as rounding to float32 may have parted numbers that must be equal.
        for _ in range(2):
            K, P = _as_float32(symmetry.symmetric_gain(K)), _as_float32(symmetry.symmetric_form(P))
    controller = BaseController(K, _as_float32(u_star), box)
    return BaseSet(system, controller, Ellipsoid(P, float(np.float32(level))))


def _as_weight(name: str, weight: np.ndarray, size: int) -> np.ndarray:
    weight = np.asarray(weight, np.float64)
    if weight.shape == (size,):
        weight = np.diag(weight)
    if weight.shape != (size, size):
        raise ValueError(f"{name} has shape {weight.shape}; give a diagonal [{size}] or a matrix [{size}, {size}]")
    if np.linalg.eigvalsh(0.5 * (weight + weight.T))[0] < 0:
        raise ValueError(f"{name} = {weight} is not positive semidefinite")
    return weight


def _as_float32(value: np.ndarray) -> np.ndarray:
    """Numbers that float32 holds exactly, so that the float32 program runs what the float64 proof proved."""
    return np.asarray(value, np.float32).astype(np.float64)
