"""Sources of safety, and the set of safe actions that a source yields at a state."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box

ROUNDINGS = 16
"""How many roundings of its largest numbers a corrected action stays inside a margin, so that the check does not refuse it."""


class HalfSpaces(eqx.Module):
    """{u : normals u >= offsets}.

    Attributes:
        normals: shape [R, m].
        offsets: shape [R].
    """

    normals: Float[Array, "R m"]
    offsets: Float[Array, " R"]


class Source(eqx.Module):
    """Where safe actions come from. All methods are for one state and total: they never raise on numbers.

    A *commitment* is whatever the source must remember to keep its promise (a backup plan; nothing for an explicit
    invariant set). It carries `certified` (shape [], bool) and `margin` (shape []).

    Attributes:
        exact: whether `rows` describe the safe actions exactly (half-spaces of an invariant set) or only near the
            action at which they are linearised (an implicit set). Only `check` proves, either way.
    """

    exact: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def input_box(self) -> Box:
        """Admissible inputs."""

    @property
    def state_size(self) -> int | None:
        """How many numbers a state has; None where the source takes any."""
        return None

    @abc.abstractmethod
    def init(self, x: Float[Array, " n"]) -> Any:
        """The commitment at the start of an episode; `certified` is false where nothing can be promised."""

    @abc.abstractmethod
    def check(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Any:
        """The exact test: the commitment that holds after u is applied at x; `certified` tells whether u is safe."""

    @abc.abstractmethod
    def fallback(self, x: Float[Array, " n"], commitment: Any) -> Float[Array, " m"]:
        """The action that keeps the commitment, shape [m]; admissible for any x, NaN included."""

    def standing(self, x: Float[Array, " n"], commitment: Any) -> Any:
        """The commitment as it stands at x: `certified` is revoked where it no longer covers x."""
        return commitment

    @abc.abstractmethod
    def after_fallback(self, commitment: Any) -> Any:
        """The commitment after its own action was applied."""

    @abc.abstractmethod
    def rows(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " R"]:
        """Differentiable margins of applying u at x, all >= 0 where u is safe, shape [R]."""

    def halfspaces(self, x: Float[Array, " n"]) -> HalfSpaces:
        """The safe actions at x where the source is `exact`, a little inside, so that rounding does not refuse a point on
        the boundary: at corrections, not at proofs. Differentiable by x. Elsewhere a linearisation at the box's centre."""
        at = jnp.asarray(self.input_box.centre, x.dtype)
        value, normals = columns(lambda u: self.rows(x, u), at)
        return tightened(value, normals, at, self.input_box, jnp.abs(value))


class SafeActionSet(eqx.Module):
    """The actions that a source holds safe at one state.

    Attributes:
        source: where they come from.
        x: the state, shape [n].
        known_safe: an action that keeps the present commitment, shape [m].
        known_margin: its margin as the commitment has it; NaN where nothing is promised, shape [].
        halfspaces: all of them beside the input box, where the source is `exact`; else None.
    """

    source: Source
    x: Float[Array, " n"]
    known_safe: Float[Array, " m"]
    known_margin: Float[Array, ""]
    halfspaces: HalfSpaces | None = None

    def rows(self, u: Float[Array, " m"]) -> Float[Array, " R"]:
        """All margins of one action, shape [R]."""
        return self.source.rows(self.x, u)


def columns(function: Callable, at: Float[Array, " m"]) -> tuple[Float[Array, " R"], Float[Array, "R m"]]:
    """Value and Jacobian by one vmapped forward pass: m is two to four, the number of rows in the hundreds."""
    basis = jnp.eye(at.shape[0], dtype=at.dtype)
    value, tangents = jax.vmap(lambda v: jax.jvp(function, (at,), (v,)), out_axes=(None, 1))(basis)
    return value, tangents


def tightened(
    value: Float[Array, " R"],
    normals: Float[Array, "R m"],
    at: Float[Array, " m"],
    box: Box,
    size: Float[Array, " R"],
) -> HalfSpaces:
    """{u : value + normals (u - at) >= what rounding may cost}, for actions of the box.

    Args:
        value: margins at an action, shape [R].
        normals: their derivative by the action, shape [R, m].
        at: the action, shape [m].
        box: where actions come from.
        size: of the numbers that cancel in each margin, shape [R].
    """
    reach = jnp.asarray(np.maximum(np.abs(box.lower), np.abs(box.upper)), value.dtype)
    size = size + jnp.sum(jnp.abs(normals) * reach[None], axis=1)
    backoff = ROUNDINGS * jnp.finfo(value.dtype).eps * jax.lax.stop_gradient(size)
    return HalfSpaces(normals, jnp.sum(normals * at[None], axis=1) - value + backoff)
