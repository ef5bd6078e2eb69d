"""What rooms may expect of objects that are handed to them."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from holdfast.types.records import Safeguarded
from holdfast.types.status import Status


@runtime_checkable
class Policy(Protocol):
    """A deterministic policy: observation [o] -> action [m]."""

    def __call__(self, observation: Float[Array, " o"]) -> Float[Array, " m"]: ...


@runtime_checkable
class Guard(Protocol):
    """Anything that may stand between a proposed action and the plant; see `holdfast.safeguards.Safeguard`."""

    def init(self, x: Float[Array, " n"]) -> Any:
        """State of the guard for an episode that starts at x."""
        ...

    def step(self, state: Any, x: Float[Array, " n"], u: Float[Array, " m"]) -> tuple[Safeguarded, Any]:
        """Admissible action for the proposed action u at x, and the guard's next state."""
        ...


class Unguarded(eqx.Module):
    """The absence of a safeguard, in the shape of one: clips to the input box and says `Status.unguarded`.

    Attributes:
        lower, upper: the input box, shape [m].
    """

    lower: ArrayLike
    upper: ArrayLike

    def init(self, x: Float[Array, " n"]) -> tuple[()]:
        return ()

    def step(self, state: tuple[()], x: Float[Array, " n"], u: Float[Array, " m"]) -> tuple[Safeguarded, tuple[()]]:
        action = jnp.clip(u, jnp.asarray(self.lower, u.dtype), jnp.asarray(self.upper, u.dtype))
        status = jnp.asarray(Status.unguarded, jnp.int32)
        return Safeguarded(action, status, jnp.asarray(-jnp.inf, u.dtype), action - u), state
