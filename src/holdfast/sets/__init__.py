"""Sets, all with `margin(x) >= 0` inside. Geometry only: no dynamics, no policies."""

from holdfast.sets.ball import Ball
from holdfast.sets.base import Set
from holdfast.sets.box import Box
from holdfast.sets.capsule import Capsule
from holdfast.sets.ellipsoid import Ellipsoid
from holdfast.sets.free_space import FreeSpace
from holdfast.sets.length import length
from holdfast.sets.locally_convex import LocallyConvex
from holdfast.sets.polytope import Polytope
from holdfast.sets.superlevel import SuperlevelSet
from holdfast.sets.tiling import Tiling
from holdfast.sets.zonotope import Zonotope

__all__ = [
    "Ball",
    "Box",
    "Capsule",
    "Ellipsoid",
    "FreeSpace",
    "LocallyConvex",
    "Polytope",
    "Set",
    "SuperlevelSet",
    "Tiling",
    "Zonotope",
    "length",
]
