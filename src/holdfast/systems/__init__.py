"""Systems that move: x+ = F(x, u, w), sampled with period dt, inputs in a box."""

from holdfast.systems.base import ContinuousSystem, System
from holdfast.systems.unicycle import Unicycle
from holdfast.systems.angles import wrap
from holdfast.systems.linearise import linearise

__all__ = ["ContinuousSystem", "System", "Unicycle", "linearise", "wrap"]
