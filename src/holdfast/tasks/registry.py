"""Tasks by name."""

from typing import Any

from holdfast.tasks.balance_cartpole import BalanceCartPole
from holdfast.tasks.balance_pendulum import BalancePendulum
from holdfast.tasks.balance_quadrotor import BalanceQuadrotor
from holdfast.tasks.base import Task
from holdfast.tasks.cart_pole import CartPoleTrack
from holdfast.tasks.double_integrator import DoubleIntegratorRoom
from holdfast.tasks.household import HouseholdMonth
from holdfast.tasks.lane_keeping import LaneKeeping
from holdfast.tasks.pendulum import PendulumSwing
from holdfast.tasks.planar_quadrotor import PlanarQuadrotorRoom
from holdfast.tasks.power_loop import PowerLoop
from holdfast.tasks.rigid_eight import RigidEight
from holdfast.tasks.seeker import SeekerCourse

_TASKS: dict[str, Any] = {
    task.name: task
    for task in (
        LaneKeeping,
        PowerLoop,
        PendulumSwing,
        CartPoleTrack,
        DoubleIntegratorRoom,
        PlanarQuadrotorRoom,
        RigidEight,
        BalancePendulum,
        BalanceCartPole,
        BalanceQuadrotor,
        SeekerCourse,
        HouseholdMonth,
    )
}


class UnknownTask(ValueError):
    """No task has that name."""


def task_names() -> list[str]:
    """Names of all tasks that come with the library."""
    return sorted(_TASKS)


def make_task(name: str) -> Task:
    """The task of that name, with its published settings.

    Raises:
        UnknownTask: naming the tasks there are.
    """
    if name not in _TASKS:
        raise UnknownTask(f"task = {name!r} is unknown; the tasks are: {', '.join(task_names())}")
    return _TASKS[name]()
