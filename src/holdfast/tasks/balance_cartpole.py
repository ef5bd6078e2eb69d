"""Balancing a pole on a cart under a disturbance, from anywhere in a robust control invariant set."""

from typing import ClassVar

import equinox as eqx
import numpy as np

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import CartPole
from holdfast.tasks.base import RobustSafety, Task
from holdfast.tasks.cart_pole import cart_with_pole
from holdfast.tasks.limits import limits
from holdfast.tasks.scene import Polyline, Rectangle, Scene
from holdfast.tasks.shipped import shipped_safety
from holdfast.tasks.tracking import tracking_rmse

TRACK, TOP_SPEED = 10.0, 10.0


def _cart_pole() -> CartPole:
    return CartPole(disturbance=Box([-0.1], [0.1]))


class BalanceCartPole(Task):
    """|x| <= 10 m, |theta| <= pi and speeds up to 10 for a pole that is to stand upright in the middle of the track.

    Physics, feasible box, disturbance and reward as published (arXiv 2506.01665), the reward at the successor. The
    invariant set is ours, a slab about a sliding surface (`holdfast.certify.sliding`); starts are uniform in it.
    """

    name: ClassVar = "balance-cartpole"
    episode_steps: ClassVar = 240
    metric_units: ClassVar = {"x_rmse": "m", "theta_rmse": "rad"}
    training: ClassVar = {
        "updates": 512,
        "environments": 8,
        "window": 48,
        "discount": 0.99,
        "actor_rate": 3e-3,
        "initial_std": 0.3,
        "restart": 0.01,
        # A fallen pole turns round and round, with costs and derivatives that drown all others.
        "lost": 6.0,
        "gradient_limit": 100.0,
    }

    system: CartPole = eqx.field(default_factory=_cart_pole)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: limits(
            track=(0, -TRACK, TRACK, "m"),
            angle=(1, -np.pi, np.pi, "rad"),
            speed=(2, -TOP_SPEED, TOP_SPEED, "m/s"),
            rate=(3, -TOP_SPEED, TOP_SPEED, "rad/s"),
        )
    )
    state_box: Box = eqx.field(
        default_factory=lambda: Box([-TRACK, -np.pi, -TOP_SPEED, -TOP_SPEED], [TRACK, np.pi, TOP_SPEED, TOP_SPEED])
    )
    safety: RobustSafety = eqx.field(
        default_factory=lambda: shipped_safety(BalanceCartPole.name, _cart_pole().input_box)
    )

    def reward(self, x, u, x_next, t, context):
        position, theta, v, omega = x_next
        return -0.05 * position**2 - 0.1 * v**2 - theta**2 - 0.1 * omega**2

    def metrics(self, states, context):
        return {name: tracking_rmse(self, states, context, [i]) for i, name in enumerate(self.metric_units)}

    def scene(self, states, t, context, futures):
        """Seen from the side; the window goes along with the cart."""
        length = 2 * float(self.system.half_length)
        x = float(states[t, 0])
        window = (x - 2.2, x + 2.2, -1.3, 1.3)
        beyond = tuple(Rectangle((side * (TRACK + 3.0), 0.0), (6.0, 2.6), "unsafe") for side in (-1, 1))
        ends = tuple(Polyline(np.array([[end, -1.3], [end, 1.3]]), "limit") for end in (-TRACK, TRACK))
        rail = Polyline(np.array([[-TRACK, -0.1], [TRACK, -0.1]]), "scenery")
        upright = Polyline(np.array([[0.0, 0.0], [0.0, length]]), "reference")
        moving = cart_with_pole(states[t], futures, length)
        return Scene((*beyond, *ends, rail, upright, *moving), window, ("along the track (m)", "height (m)"))
