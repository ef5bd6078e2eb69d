"""Shared vocabulary: statuses, records, and the protocols that let rooms work together without importing each other.

Shape names used in every annotation of the package:

====  =======================================================================
n     numbers in a state x
e     numbers in an error (reduced) state, e <= n
m     numbers in an input (action) u
d     numbers in a disturbance w
p     constraints, the length of a safe set's margin vector
o     numbers in an observation
N     steps of the backup horizon
K     candidates
R     rows, margins along a whole backup flow
====  =======================================================================
"""

from holdfast.types.protocols import Guard, Policy, Unguarded
from holdfast.types.records import Safeguarded, Transition
from holdfast.types.status import Status

__all__ = ["Guard", "Policy", "Safeguarded", "Status", "Transition", "Unguarded"]
