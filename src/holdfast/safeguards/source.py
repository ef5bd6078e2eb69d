"""Sources of safety, and the set of safe actions that a source yields at a state."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from holdfast.sets import Box


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

    def margin(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, ""]:
        """Smallest row, shape []; -inf where a row is not finite. Never differentiated."""
        return self.check(x, u).margin


class SafeActionSet(eqx.Module):
    """The actions that a source holds safe at one state.

    Attributes:
        source: where they come from.
        x: the state, shape [n].
        known_safe: an action that keeps the present commitment, shape [m].
        known_margin: its margin as the commitment has it; NaN where nothing is promised, shape [].
    """

    source: Source
    x: Float[Array, " n"]
    known_safe: Float[Array, " m"]
    known_margin: Float[Array, ""]

    def contains(self, u: Float[Array, " m"]) -> Bool[Array, ""]:
        """The exact test of one action."""
        return self.source.check(self.x, u).certified & self.source.input_box.contains(u)

    def margin(self, u: Float[Array, " m"]) -> Float[Array, ""]:
        """Smallest margin of one action, shape []; what a root search needs."""
        return self.source.margin(self.x, u)

    def rows(self, u: Float[Array, " m"]) -> Float[Array, " R"]:
        """All margins of one action, shape [R]."""
        return self.source.rows(self.x, u)

    def halfspaces(self, at: Float[Array, " m"]) -> HalfSpaces:
        """Margins linearised at an action: rows(at) + normals (u - at) >= 0. m forward-mode derivatives."""
        value, tangents = _jvp_columns(self.rows, at)
        return HalfSpaces(tangents, tangents @ at - value)


def _jvp_columns(function, at: Float[Array, " m"]) -> tuple[Float[Array, " R"], Float[Array, "R m"]]:
    """Value and Jacobian by one vmapped forward pass: m is two to four, the number of rows in the hundreds."""
    basis = jnp.eye(at.shape[0], dtype=at.dtype)
    value, columns = jax.vmap(lambda v: jax.jvp(function, (at,), (v,)), out_axes=(None, 1))(basis)
    return value, columns
