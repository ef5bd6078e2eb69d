"""Sources that need no memory: what is promised follows from where the state is seen."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from holdfast.safeguards.source import Source
from holdfast.systems import System


class Promise(eqx.Module):
    """What an explicit set promises: no plan, only that the state is inside and that the set's own action keeps it there.

    Attributes:
        certified: whether it is so, shape [].
        margin: smallest margin that was seen, shape []; -inf where one was not finite.
    """

    certified: Bool[Array, ""]
    margin: Float[Array, ""]

    @staticmethod
    def of(rows: Float[Array, " R"]) -> "Promise":
        """The promise that margins [R] make. Decided by `all`, never by `min`, which drops NaN."""
        finite = jnp.all(jnp.isfinite(rows))
        return Promise(jnp.all(rows >= 0) & finite, jnp.where(finite, jnp.min(rows), -jnp.inf))

    def kept(self) -> "Promise":
        """The same after the set's own action: that it holds is known, by how much is not looked at."""
        return Promise(self.certified, jnp.zeros_like(self.margin))


class ExplicitSource(Source):
    """A source that holds a set, and not a plan: its promise is made anew from every state that can be read, and none from
    one that cannot, as nothing can be replayed blindly against a disturbance."""

    def standing(self, x: Float[Array, " n"], commitment: Promise) -> Promise:
        return self.init(x)

    def after_fallback(self, commitment: Promise) -> Promise:
        return commitment.kept()


def controlled(system: System, controller: Callable, x: Float[Array, " n"]) -> Float[Array, " m"]:
    """The controller's action in the input box, shape [m]. Of a state that cannot be read it sees the equilibrium."""
    rest, resting = (jnp.asarray(v, x.dtype) for v in system.equilibrium())
    action = controller(jnp.where(jnp.all(jnp.isfinite(x)), x, rest))
    return system.input_box.clip(jnp.where(jnp.all(jnp.isfinite(action)), action, resting))
