"""Maps: from a proposed action to candidates that a source may find safe."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from holdfast.safeguards.source import SafeActionSet


class Map(eqx.Module):
    """Proposes candidates for an action that was not accepted. A candidate is only a proposal: `check` decides.

    What a map is in exact arithmetic is declared here, and the law tests check what is declared:

    Attributes:
        preserves_safe: safe actions come back unchanged.
        idempotent: mapping twice is mapping once.
        non_expansive: in the metric of the input box's half-widths, on convex safe action sets.
        bijective: no two actions of the feasible set are mapped to one.
    """

    preserves_safe: ClassVar[bool] = True
    idempotent: ClassVar[bool] = True
    non_expansive: ClassVar[bool] = False
    bijective: ClassVar[bool] = False

    @abc.abstractmethod
    def count(self, m: int) -> int:
        """How many candidates it proposes for m inputs."""

    @abc.abstractmethod
    def propose(
        self, actions: SafeActionSet, u: Float[Array, " m"], margin: Float[Array, ""]
    ) -> Float[Array, "K m"]:
        """Candidates, shape [K, m].

        Args:
            actions: the safe actions at the state.
            u: the proposed action, inside the input box, shape [m].
            margin: its margin, already known and negative or -inf, shape [].
        """

    @abc.abstractmethod
    def pullback(
        self,
        actions: SafeActionSet,
        u: Float[Array, " m"],
        action: Float[Array, " m"],
        index: Int[Array, ""],
        cotangent: Float[Array, " m"],
    ) -> tuple[Float[Array, " n"], Float[Array, " m"], Int[Array, ""]]:
        """Reverse-mode derivative of candidate `index`, which became `action`, by the implicit function theorem.

        Returns:
            Cotangents of x [n] and u [m], and 1 where the length was held constant because the active margin jumps
            there (the hand-off to the base controller), else 0.
        """


def furthest_safe(
    actions: SafeActionSet,
    base: Float[Array, " m"],
    target: Float[Array, " m"],
    base_margin: Float[Array, ""],
    target_margin: Float[Array, ""],
    evaluations: int,
) -> Float[Array, ""]:
    """Largest length l in [0, 1] found with base + l (target - base) safe, shape []; 0 if not even the base is.

    Regula falsi with the Illinois rule on the margin along the segment, bisection where a margin is -inf. The length
    returned is always the safe end of the bracket, which `base_margin >= 0` starts.
    """
    width_tolerance = 1e-3

    def undecided(carry):
        low, high, _, _, _, i = carry
        return (i < evaluations) & (high - low > width_tolerance)

    def halve(carry):
        low, high, f_low, f_high, side, i = carry
        usable = jnp.isfinite(f_high) & jnp.isfinite(f_low)
        secant = low + (high - low) * jnp.where(usable, f_low / jnp.where(usable, f_low - f_high, 1.0), 0.5)
        # Aim a little short of the root: the safe end of the bracket is the result, and it should come close.
        trial = jnp.clip(secant - 1e-3 * (high - low), low + 0.02 * (high - low), high - 0.02 * (high - low))
        f = actions.margin(base + trial * (target - base))
        safe = f >= 0
        # Illinois: an end that stays twice has its value halved, or regula falsi creeps.
        f_high_next = jnp.where(safe, jnp.where(side == 1, 0.5 * f_high, f_high), f)
        f_low_next = jnp.where(safe, f, jnp.where(side == -1, 0.5 * f_low, f_low))
        side = jnp.where(safe, 1, -1).astype(side.dtype)
        return jnp.where(safe, trial, low), jnp.where(safe, high, trial), f_low_next, f_high_next, side, i + 1

    one = jnp.ones((), base.dtype)
    # Nothing to search: the target is safe (length 1), or the base is not (length 0).
    start_low = jnp.where(target_margin >= 0, one, 0 * one)
    start_high = jnp.where(base_margin >= 0, one, 0 * one)
    start_low = jnp.minimum(start_low, start_high)
    zero = jnp.zeros((), jnp.int32)
    low, *_ = jax.lax.while_loop(undecided, halve, (start_low, start_high, base_margin, target_margin, zero, zero))
    return low


def segment_pullback(
    actions: SafeActionSet,
    action: Float[Array, " m"],
    direction: Float[Array, " m"],
    carried: Float[Array, " m"],
    cotangent: Float[Array, " m"],
) -> tuple[Float[Array, " n"], Float[Array, " m"], Int[Array, ""]]:
    """Derivative of an action that sits at the first root of the active margin M along a direction.

    With action = a(l, u), da/dl = direction d and da/du at fixed l = diag(carried) D, the root M(x, a) = 0 gives
    dl = -(M_x dx + n' D du) / (n'd) with n = M_u. So for a cotangent c and s = (c'd) / (n'd): u gets D (c - s n), and
    x gets -s M_x. One reverse pass of the active row gives n and M_x.

    Where the margin is not near zero on the scale of the segment, it jumped (hand-off between network and base
    controller): no root moves smoothly there, and the length is held constant.
    """

    def active_row(x, u):
        rows = actions.source.rows(x, u)
        return rows[jax.lax.stop_gradient(jnp.argmin(rows))]

    value, (slope_x, slope_u) = jax.value_and_grad(active_row, argnums=(0, 1))(actions.x, action)
    along = slope_u @ direction
    rooted = (jnp.abs(value) <= 0.05 * jnp.abs(along)) & jnp.all(jnp.isfinite(slope_x)) & (along != 0)
    s = jnp.where(rooted, cotangent @ direction / jnp.where(rooted, along, 1.0), 0.0)
    # Double where: a held row may hold inf or NaN slopes, and 0 * inf is NaN.
    slope_x, slope_u = jnp.where(rooted, slope_x, 0.0), jnp.where(rooted, slope_u, 0.0)
    return -s * slope_x, carried * (cotangent - s * slope_u), (~rooted).astype(jnp.int32)
