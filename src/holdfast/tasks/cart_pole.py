"""Cart-pole: weave further than a short track is long, without leaving it or dropping the pole."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import CartPole
from holdfast.tasks.base import SafetySettings, Task
from holdfast.tasks.limits import limits
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Role, Scene
from holdfast.tasks.tracking import tracking_rmse

TRACK, LEAN = 1.0, 0.5
TOP_SPEED, TOP_RATE = 3.0, 5.0


class CartPoleTrack(Task):
    """|x| <= 1 m and |theta| <= 0.5 rad for a cart whose reference weaves with an amplitude of 1.3 m."""

    name: ClassVar = "cart-pole"
    episode_steps: ClassVar = 400
    metric_units: ClassVar = {"x_rmse": "m", "theta_rmse": "rad"}
    training: ClassVar = {"backup_updates": 150, "updates": 400, "window": 32, "discount": 0.98, "actor_rate": 2e-3}
    amplitude: ClassVar = 1.3
    period: ClassVar = 8.0
    #: Half-widths of the box from which the backup is trained and measured; plans may go faster.
    sampled: ClassVar = (TRACK, LEAN, 1.5, 2.0)

    system: CartPole = eqx.field(default_factory=CartPole)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: limits(track=(0, -TRACK, TRACK, "m"), lean=(1, -LEAN, LEAN, "rad"))
    )
    state_box: Box = eqx.field(
        default_factory=lambda: Box([-TRACK, -LEAN, -TOP_SPEED, -TOP_RATE], [TRACK, LEAN, TOP_SPEED, TOP_RATE])
    )
    safety: SafetySettings = eqx.field(
        default_factory=lambda: SafetySettings(state_cost=(1.0, 3.7, 0.2, 0.8), input_cost=(0.062,), horizon=60)
    )

    def sample_start(self, key):
        return jnp.array([0.3, 0.1, 0.2, 0.2]) * jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)

    def sample_state(self, key):
        return jnp.asarray(self.sampled) * jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)

    def reference(self, t, context):
        rate = 2 * np.pi / self.period
        phase = rate * self.system.dt * t
        x, v = self.amplitude * jnp.sin(phase), self.amplitude * rate * jnp.cos(phase)
        return jnp.stack([x, 0 * x, v, 0 * x])

    def reward(self, x, u, x_next, t, context):
        position, theta, v, omega = x_next - self.reference(t + 1, context).astype(x.dtype)
        return -2 * position**2 - 0.1 * v**2 - theta**2 - 0.1 * omega**2 - 0.001 * (u[0] / 10) ** 2

    def metrics(self, states, context):
        return {name: tracking_rmse(self, states, context, [i]) for i, name in enumerate(self.metric_units)}

    def scene(self, states, t, context, futures):
        """Seen from the side; the track's limits hold for the middle of the cart."""
        left, right, bottom, top = -1.9, 1.9, -0.25, 1.35
        middle, width, height = (bottom + top) / 2, right - TRACK, top - bottom
        shapes = tuple(Rectangle((side * (right + TRACK) / 2, middle), (width, height), "unsafe") for side in (-1, 1))
        shapes += tuple(Polyline(np.array([[x, bottom], [x, top]]), "limit") for x in (-TRACK, TRACK))
        shapes += (Polyline(np.array([[left, -0.1], [right, -0.1]]), "scenery"),)
        wanted = self.amplitude * np.sin(2 * np.pi / self.period * self.system.dt * t)
        shapes += (Circle((wanted, 0.0), 0.05, "reference"),)
        shapes += cart_with_pole(states[t], futures, 2 * float(self.system.half_length))
        return Scene(shapes, (left, right, bottom, top), ("along the track (m)", "height (m)"))


def cart_with_pole(
    state: np.ndarray, futures: dict[Role, np.ndarray], length: float
) -> tuple[Polyline | Rectangle, ...]:
    """The cart and its pole from the side, and the paths of the pole's tip.

    Args:
        state: beginning with the cart's position and the pole's angle.
        futures: states over time by role, see `Task.scene`.
        length: of the pole, m.
    """

    def tips(f):
        return np.stack([f[:, 0] + length * np.sin(f[:, 1]), length * np.cos(f[:, 1])], axis=1)

    x = float(state[0])
    paths = tuple(Polyline(tips(f), role) for role, f in futures.items())
    pole = Polyline(np.concatenate([[[x, 0.0]], tips(state[None])]), "body")
    return (*paths, Rectangle((x, 0.0), (0.4, 0.2), "body"), pole)
