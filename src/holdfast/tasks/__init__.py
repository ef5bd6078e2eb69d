"""Tasks: a system with a purpose, a safe set, and plain settings for its safety; and how to roll them out.

What a file with a task of one's own needs from `sets` and `systems` is here too, so that it needs one import.
"""

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import ContinuousSystem, System
from holdfast.tasks.balance_cartpole import BalanceCartPole
from holdfast.tasks.balance_pendulum import BalancePendulum
from holdfast.tasks.balance_quadrotor import BalanceQuadrotor
from holdfast.tasks.base import RobustSafety, SafetySettings, Task
from holdfast.tasks.cart_pole import CartPoleTrack
from holdfast.tasks.double_integrator import DoubleIntegratorRoom
from holdfast.tasks.household import HouseholdMonth
from holdfast.tasks.lane_keeping import LaneKeeping
from holdfast.tasks.pendulum import PendulumSwing
from holdfast.tasks.planar_quadrotor import PlanarQuadrotorRoom
from holdfast.tasks.power_loop import PowerLoop
from holdfast.tasks.registry import UnknownTask, make_task, task_names
from holdfast.tasks.rollout import Disturb, Episode, episode_context, reset, rollout, step
from holdfast.tasks.seeker import SeekerCourse
from holdfast.tasks.shipped import DamagedSet, read_safety, shipped_safety

__all__ = [
    "BalanceCartPole",
    "BalancePendulum",
    "BalanceQuadrotor",
    "Box",
    "CartPoleTrack",
    "ContinuousSystem",
    "DamagedSet",
    "Disturb",
    "DoubleIntegratorRoom",
    "Episode",
    "HouseholdMonth",
    "LaneKeeping",
    "PendulumSwing",
    "PlanarQuadrotorRoom",
    "PowerLoop",
    "RobustSafety",
    "SafetySettings",
    "SeekerCourse",
    "SuperlevelSet",
    "System",
    "Task",
    "UnknownTask",
    "episode_context",
    "make_task",
    "read_safety",
    "reset",
    "rollout",
    "shipped_safety",
    "step",
    "task_names",
]
