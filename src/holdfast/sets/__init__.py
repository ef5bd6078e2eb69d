"""Sets, all with `margin(x) >= 0` inside. Geometry only: no dynamics, no policies."""

from holdfast.sets.base import LocallyConvex, Set
from holdfast.sets.box import Box
from holdfast.sets.ellipsoid import Ellipsoid
from holdfast.sets.polytope import Polytope
from holdfast.sets.superlevel import SuperlevelSet

__all__ = ["Box", "Ellipsoid", "LocallyConvex", "Polytope", "Set", "SuperlevelSet"]
