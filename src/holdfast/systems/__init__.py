"""Systems that move: x+ = F(x, u, w), sampled with period dt, inputs in a box."""

from holdfast.systems.angles import wrap
from holdfast.systems.base import ContinuousSystem, System
from holdfast.systems.linearise import linearise
from holdfast.systems.unicycle import Unicycle

__all__ = ["ContinuousSystem", "System", "Unicycle", "linearise", "wrap"]
