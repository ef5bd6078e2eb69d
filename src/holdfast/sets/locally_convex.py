"""Sets that hold a convex piece around each of their points."""

import abc

from jaxtyping import Array, Float, Key

from holdfast.sets.base import Set
from holdfast.sets.box import Box


class LocallyConvex(Set):
    """A set that can name, for each of its points, half-spaces around that point which hold nothing but points of the set.

    A convex set names its own half-spaces whatever the point; the outside of obstacles names tangents.
    """

    @abc.abstractmethod
    def piece(self, x: Float[Array, " n"]) -> tuple[Float[Array, "p n"], Float[Array, " p"]]:
        """(normals N [p, n], offsets d [p]), in the type of x: every z with N z <= d lies in the set, and so does x if x
        does. Differentiable by x."""

    @abc.abstractmethod
    def bounding_box(self) -> Box:
        """The smallest box around it, found on the host."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """A point that is uniform, or nearly so, shape [n]; each class says how nearly."""
