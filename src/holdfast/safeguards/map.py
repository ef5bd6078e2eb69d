"""Maps: from a proposed action to the actions that a source may find safe."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from holdfast.safeguards.source import SafeActionSet, columns


class Segments(eqx.Module):
    """Where to search: K straight lines of actions, each from one that is hoped safe to one that is wanted.

    Attributes:
        base: where each line starts, shape [K, m].
        target: where each line ends, shape [K, m].
        target_margin: margin at the target where it is known to be unsafe, NaN where it is to be evaluated, shape [K].
        base_margin: margin at the base where a commitment vouches for it, NaN where it is to be evaluated, shape [K].
    """

    base: Float[Array, "K m"]
    target: Float[Array, "K m"]
    target_margin: Float[Array, " K"]
    base_margin: Float[Array, " K"]


class LocalRows(eqx.Module):
    """The margins of a source near one action.

    Attributes:
        value: shape [R].
        normals: derivative by the action, shape [R, m].
        curvature: second derivative by the action, shape [R, m, m]; None unless a map of the safeguard is `curved`.
    """

    value: Float[Array, " R"]
    normals: Float[Array, "R m"]
    curvature: Float[Array, "R m m"] | None = None


class Adjoint(eqx.Module):
    """Reverse-mode derivative of a corrected action, with the source's margins r(x, a) not yet differentiated by x.

    x gets the gradient of `rows' r + slopes' (r_a direction)`, taken once for all maps by the safeguard.

    Attributes:
        u: cotangent of the proposed action, shape [m].
        known_safe: cotangent of the known safe action, shape [m].
        rows: weights of the margins, shape [R].
        slopes: weights of the margins' derivatives along `direction`, shape [R]; zero unless the map is `curved`.
        direction: shape [m].
        held: whether the length was held constant because the active margin jumps there, shape [].
    """

    u: Float[Array, " m"]
    known_safe: Float[Array, " m"]
    rows: Float[Array, " R"]
    slopes: Float[Array, " R"]
    direction: Float[Array, " m"]
    held: Bool[Array, ""]


class Map(eqx.Module):
    """Proposes segments for an action that was not accepted; the safeguard searches all maps' segments together.

    The search returns the furthest action of each segment that passes the source's exact check. What a map is in exact
    arithmetic is declared here, and the law tests check what is declared:

    Attributes:
        preserves_safe: safe actions come back unchanged.
        idempotent: mapping twice is mapping once.
        non_expansive: in the metric of the input box's half-widths, on convex safe action sets.
        bijective: no two actions of the feasible set are mapped to one.
        from_known_safe: some segment starts at the known safe action.
        curved: its derivative needs the curvature of the margins.
    """

    preserves_safe: ClassVar[bool] = True
    idempotent: ClassVar[bool] = True
    non_expansive: ClassVar[bool] = False
    bijective: ClassVar[bool] = False
    from_known_safe: ClassVar[bool] = False
    curved: ClassVar[bool] = False

    @abc.abstractmethod
    def count(self, m: int) -> int:
        """How many segments it proposes for m inputs."""

    @abc.abstractmethod
    def segments(self, actions: SafeActionSet, u: Float[Array, " m"], margin: Float[Array, ""]) -> Segments:
        """Segments to search, K = count(m).

        Args:
            actions: the safe actions at the state. Where they come with half-spaces, the safeguard finds the furthest
                action of each segment in closed form and differentiates this method by plain JAX; `adjoint` is not asked.
            u: the proposed action, inside the input box, shape [m].
            margin: its margin, already known and negative or -inf, shape [].
        """

    @abc.abstractmethod
    def adjoint(
        self,
        actions: SafeActionSet,
        local: LocalRows,
        u: Float[Array, " m"],
        action: Float[Array, " m"],
        index: Int[Array, ""],
        length: Float[Array, ""],
        cotangent: Float[Array, " m"],
    ) -> Adjoint:
        """Derivative, by the implicit function theorem, of `action`, found at `length` of segment `index`.

        Args:
            actions: the safe actions at the state.
            local: margins about `action`.
            u: the proposed action, inside the input box, shape [m].
            action: the corrected action, shape [m].
            index: which segment of this map, shape [].
            length: where on it, in [0, 1], shape [].
            cotangent: of the corrected action, shape [m].
        """


def segment_adjoint(
    local: LocalRows,
    direction: Float[Array, " m"],
    moves_u: Float[Array, " m"],
    moves_known_safe: Float[Array, " m"],
    cotangent: Float[Array, " m"],
) -> Adjoint:
    """Derivative of an action that sits at the first root of the active margin M along a direction.

    With action = a(l, u, b), da/dl = direction d, and at fixed l the derivatives D = diag(moves_u) by u and
    E = diag(moves_known_safe) by the known safe action b, the root M(x, a) = 0 gives
    dl = -(M_x dx + n'(D du + E db)) / (n'd) with n = M_a. So for a cotangent c and s = (c'd) / (n'd): u gets
    D (c - s n), b gets E (c - s n), and x gets -s M_x.

    Where the margin is not near zero on the scale of the segment, it jumped (hand-off between network and base
    controller): no root moves smoothly there, and the length is held constant.
    """
    active = jnp.argmin(local.value)
    value, normal = local.value[active], local.normals[active]
    along = normal @ direction
    rooted = is_root(value, along) & jnp.all(jnp.isfinite(normal))
    s = jnp.where(rooted, cotangent @ direction / jnp.where(rooted, along, 1.0), 0.0)
    # Double where: a held row may hold inf or NaN slopes, and 0 * inf is NaN.
    reduced = cotangent - s * jnp.where(rooted, normal, 0.0)
    zero = jnp.zeros_like(local.value)
    rows = zero.at[active].set(-s)
    return Adjoint(moves_u * reduced, moves_known_safe * reduced, rows, zero, jnp.zeros_like(cotangent), ~rooted)


def is_root(value: Float[Array, ""], along: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a margin near zero is so on the scale of its segment, where it has the slope `along`; if not, it jumped."""
    return (jnp.abs(value) <= 0.05 * jnp.abs(along)) & (along != 0) & jnp.isfinite(along)


def look_around(rows, action: Float[Array, " m"], curved: bool) -> LocalRows:
    """Margins about an action: m forward-mode passes, and with `curved` as many again over each of them."""

    def first(at):
        return columns(rows, at)

    if not curved:
        return LocalRows(*first(action))
    basis = jnp.eye(action.shape[0], dtype=action.dtype)
    (value, normals), (_, curvature) = jax.vmap(
        lambda v: jax.jvp(first, (action,), (v,)), out_axes=((None, None), (1, 2))
    )(basis)
    return LocalRows(value, normals, curvature)
