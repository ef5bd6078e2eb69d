"""Sets given by functions: the usual form of a user's constraint."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets.base import Set


class SuperlevelSet(Set):
    """{x : h(x) >= 0} for a vector-valued h with a name and a unit for each row.

    Attributes:
        function: h, x [n] -> margins [p] (a scalar is read as one row).
        names: what each row constrains, p words, used in reports.
        units: unit of each row, p words.
    """

    function: Callable[[Float[Array, " n"]], Float[Array, " p"]]
    names: tuple[str, ...] = eqx.field(static=True, default=())
    units: tuple[str, ...] = eqx.field(static=True, default=())

    def margin(self, x: Float[Array, " n"]) -> Float[Array, " p"]:
        return jnp.atleast_1d(self.function(x))
