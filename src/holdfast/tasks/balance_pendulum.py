"""Balancing a pendulum under a disturbance, from anywhere in a robust control invariant set."""

from typing import ClassVar

import equinox as eqx
import numpy as np

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import Pendulum
from holdfast.tasks.base import RobustSafety, Task
from holdfast.tasks.limits import limits
from holdfast.tasks.scene import Circle, Polyline, Scene
from holdfast.tasks.shipped import shipped_safety
from holdfast.tasks.tracking import tracking_rmse

TOP_RATE = 8.0


def _pendulum() -> Pendulum:
    return Pendulum(disturbance=Box([-0.1], [0.1]))


class BalancePendulum(Task):
    """|theta| <= pi and |omega| <= 8 rad/s for a pendulum that is to stand upright; starts uniform in the invariant set.

    Physics, feasible box, disturbance and reward as published (arXiv 2506.01665), the reward at the successor. The
    invariant set is ours, so starts differ from the published ones.
    """

    name: ClassVar = "balance-pendulum"
    episode_steps: ClassVar = 240
    metric_units: ClassVar = {"theta_rmse": "rad"}
    training: ClassVar = {
        "updates": 256,
        "environments": 8,
        "window": 48,
        "discount": 0.95,
        "actor_rate": 3e-3,
        "restart": 0.01,
        "lost": 10.0,
    }

    system: Pendulum = eqx.field(default_factory=_pendulum)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: limits(angle=(0, -np.pi, np.pi, "rad"), rate=(1, -TOP_RATE, TOP_RATE, "rad/s"))
    )
    state_box: Box = eqx.field(default_factory=lambda: Box([-np.pi, -TOP_RATE], [np.pi, TOP_RATE]))
    safety: RobustSafety = eqx.field(
        default_factory=lambda: shipped_safety(BalancePendulum.name, _pendulum().input_box)
    )

    def reward(self, x, u, x_next, t, context):
        theta, omega = x_next
        return -(theta**2) - 0.1 * omega**2 - 0.001 * (u[0] / 30) ** 2

    def metrics(self, states, context):
        return {"theta_rmse": tracking_rmse(self, states, context, [0])}

    def scene(self, states, t, context, futures):
        """Seen from the side, theta to the right; hanging down, from either side, is the limit."""
        length = float(self.system.length)

        def tips(theta):
            return length * np.stack([np.sin(theta), np.cos(theta)], axis=-1)

        circle = Polyline(tips(np.linspace(-np.pi, np.pi, 121)), "scenery")
        limit = Polyline(tips(np.array([np.pi])) * np.array([[0.85], [1.15]]), "limit")
        shapes = (circle, limit, Polyline(np.array([[0.0, 0.0], [0.0, length]]), "reference"))
        shapes += tuple(Polyline(tips(f[:, 0]), role) for role, f in futures.items())
        tip = tips(float(states[t, 0]))
        rod = Polyline(np.stack([np.zeros(2), tip]), "body")
        shapes += (rod, Circle((float(tip[0]), float(tip[1])), 0.05 * length, "body"))
        edge = 1.3 * length
        return Scene(shapes, (-edge, edge, -edge, edge), ("across (m)", "height (m)"))
