"""Systems that move: x+ = F(x, u, w), sampled with period dt, inputs in a box."""

from holdfast.systems.angles import wrap
from holdfast.systems.base import ContinuousSystem, System
from holdfast.systems.cart_pole import CartPole
from holdfast.systems.double_integrator import DoubleIntegrator
from holdfast.systems.feedback import ClippedFeedback
from holdfast.systems.household import Household
from holdfast.systems.linearise import linearise
from holdfast.systems.longitudinal_quadrotor import LongitudinalQuadrotor
from holdfast.systems.pendulum import Pendulum
from holdfast.systems.planar_quadrotor import PlanarQuadrotor
from holdfast.systems.quadrotor import Quadrotor
from holdfast.systems.retreat import Retreat
from holdfast.systems.rigid_quadrotor import RigidQuadrotor
from holdfast.systems.seeker import Seeker
from holdfast.systems.structure import MANIFOLD_TOLERANCE, Spread, Symmetry
from holdfast.systems.unicycle import Unicycle

__all__ = [
    "MANIFOLD_TOLERANCE",
    "CartPole",
    "ClippedFeedback",
    "ContinuousSystem",
    "DoubleIntegrator",
    "Household",
    "LongitudinalQuadrotor",
    "Pendulum",
    "PlanarQuadrotor",
    "Quadrotor",
    "Retreat",
    "RigidQuadrotor",
    "Seeker",
    "Spread",
    "Symmetry",
    "System",
    "Unicycle",
    "linearise",
    "wrap",
]
