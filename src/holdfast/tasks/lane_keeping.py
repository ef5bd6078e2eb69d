"""Lane keeping: follow a reference that leaves the lane, without leaving the lane."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import Unicycle, wrap
from holdfast.tasks.base import SafetySettings, Task
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Scene

LANE = 1.8
HEADING = np.pi / 3


def _lane_margins(x):
    y, _, psi = x
    return jnp.stack([LANE - y, LANE + y, HEADING - psi, HEADING + psi])


class LaneKeeping(Task):
    """|y| <= 1.8 m and |psi| <= pi/3 for a car whose reference weaves with an amplitude of 2.5 m.

    Physics, reward, reference, starts and metrics as published: PS2-RL (arXiv 2606.14536), lane keeping.
    """

    name: ClassVar = "lane-keeping"
    episode_steps: ClassVar = 400
    metric_units: ClassVar = {"y_rmse": "m", "v_rmse": "m/s", "psi_rmse": "rad"}
    published: ClassVar = {"y_rmse": 0.52, "v_rmse": 0.83, "psi_rmse": 0.11}
    # benchmarks/results/lane_keeping_optimal_control.json, mean over 64 starts.
    optimal_control: ClassVar = {"return": -843.2, "y_rmse": 0.3619, "v_rmse": 0.08125, "psi_rmse": 0.08938}
    amplitude: ClassVar = 2.5
    period: ClassVar = 10.0

    system: Unicycle = eqx.field(default_factory=Unicycle)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: SuperlevelSet(
            _lane_margins,
            ("left lane edge", "right lane edge", "heading left", "heading right"),
            ("m", "m", "rad", "rad"),
        )
    )
    state_box: Box = eqx.field(default_factory=lambda: Box([-LANE, 0.0, -HEADING], [LANE, 12.0, HEADING]))
    safety: SafetySettings = eqx.field(
        default_factory=lambda: SafetySettings(state_cost=(1.0, 1.0, 1.0), input_cost=(0.01, 0.5), horizon=40)
    )

    def sample_start(self, key):
        spread = jnp.array([0.5, 1.5, 0.2])
        centre = jnp.array([0.0, self.system.cruise_speed, 0.0])
        return centre + spread * jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)

    def reference(self, t, context):
        speed, rate = self.system.cruise_speed, 2 * np.pi / self.period
        time = t * self.system.dt
        slope = self.amplitude * rate * jnp.cos(rate * time) / speed
        return jnp.stack([self.amplitude * jnp.sin(rate * time), speed + 0 * time, jnp.arcsin(jnp.clip(slope, -1, 1))])

    def observe(self, x, t, context):
        phase = 2 * np.pi / self.period * (t * self.system.dt)
        tail = jnp.concatenate([self.reference(t, context), jnp.stack([jnp.sin(phase), jnp.cos(phase)])])
        return jnp.concatenate([x, tail.astype(x.dtype)])

    def reward(self, x, u, x_next, t, context):
        y_ref, v_ref, psi_ref = self.reference(t + 1, context).astype(x.dtype)
        y, v, psi = x_next
        a, r = u
        tracking = 20 * ((v - v_ref) / 5) ** 2 + 50 * ((y - y_ref) / LANE) ** 2
        heading = 10 * (wrap(psi - psi_ref) / HEADING) ** 2
        return -tracking - heading - 0.05 * ((a / 5) ** 2 + r**2)

    def metrics(self, states, context):
        times = jnp.arange(states.shape[0])
        error = states - jax.vmap(self.reference, in_axes=(0, None))(times, context).astype(states.dtype)
        error = error.at[:, 2].set(wrap(error[:, 2]))[1:]
        rmse = jnp.sqrt(jnp.mean(error**2, axis=0))
        return {"y_rmse": rmse[0], "v_rmse": rmse[1], "psi_rmse": rmse[2]}

    def viable(self, x):
        """Closed form: x is viable iff full braking while turning to psi = 0 at full rate keeps it safe.

        No other input lets |y| grow less while the heading points outwards. After the heading is zero the car goes on
        straight for ever, so ceil((pi/3) / (dt r_max)) steps decide.
        """

        def advance(state, _):
            state = self.system.step(state, self.braking(state))
            return state, jnp.all(self.safe_set.margin(state) >= 0)

        steps = int(np.ceil(HEADING / (self.system.dt * self.system.input_box.upper[1]))) + 1
        _, safe = jax.lax.scan(advance, x, None, length=steps)
        return jnp.all(safe) & self.safe_set.contains(x)

    def barrier_rows(self, x, rate: float = 2.0):
        """(A [4, 2], b [4]) of A u >= b: control barrier rows by hand, in continuous time, for u = (a, r).

        The lane has relative degree two. With h = 1.8 -+ y and h' = -+ v sin psi, the barrier of second order
        psi_1 = h' + rate h asks psi_1' + rate psi_1 >= 0, that is
            -+(sin psi a + v cos psi r) >= -2 rate h' - rate^2 h.
        The heading has relative degree one: with h = pi/3 -+ psi,  -+r >= -rate h.
        """
        y, v, psi = x
        sin, cos = jnp.sin(psi), jnp.cos(psi)
        normals, offsets = [], []
        for sign in (-1.0, 1.0):
            lane, drift = LANE + sign * y, sign * v * sin
            normals.append(sign * jnp.stack([sin, v * cos]))
            offsets.append(-2 * rate * drift - rate**2 * lane)
            normals.append(sign * jnp.stack([0 * psi, 1 + 0 * psi]))
            offsets.append(-rate * (HEADING + sign * psi))
        return jnp.stack(normals), jnp.stack(offsets)

    def braking(self, x):
        """Full braking while turning to psi = 0 at full rate, shape [2]: what keeps every viable state safe."""
        lower, upper = self.system.input_box.lower, self.system.input_box.upper
        turn = jnp.clip(-x[2] / self.system.dt, lower[1], upper[1])
        return jnp.stack([jnp.full_like(turn, lower[0]), turn])

    def scene(self, states, t, context, futures):
        """Seen from above, moving with the car; the limits hold for the car's centre."""
        left, right, top = -9.0, 21.0, 3.0
        distance = self._distance(states)
        ahead = distance - distance[t]
        times = self.system.dt * np.arange(len(states))
        wanted = self.amplitude * np.sin(2 * np.pi / self.period * times)

        def path(along, across, role):
            shown = (along >= left - 1) & (along <= right + 1)
            return Polyline(np.stack([along[shown], across[shown]], axis=1), role)

        def strip(bottom, top, role):
            return Rectangle(((left + right) / 2, (bottom + top) / 2), (right - left, top - bottom), role)

        # Dashes of 1.5 m every 4 m, fixed to the road.
        first = 4.0 * np.floor((left + distance[t]) / 4.0) - distance[t]
        dashes = tuple(Rectangle((first + 4.0 * k, 0.0), (1.5, 0.08), "scenery") for k in range(9))
        limits = tuple(Polyline(np.array([[left, y], [right, y]]), "limit") for y in (-LANE, LANE))
        shapes = (strip(-top, -LANE, "unsafe"), strip(LANE, top, "unsafe"), *limits, *dashes)
        # The reference is drawn where the car is at the same time, so that the gap between them is the error.
        shapes += (path(ahead, wanted, "reference"), path(ahead[: t + 1], states[: t + 1, 0], "trail"))
        shapes += tuple(path(self._distance(f), f[:, 0], role) for role, f in futures.items())
        y, _, psi = states[t]
        shapes += (Rectangle((0.0, float(y)), (2.6, 1.1), "body", float(psi)), Circle((0.0, float(y)), 0.13, "limit"))
        return Scene(shapes, (left, right, -top, top), ("ahead of the car (m)", "across the road (m)"))

    def _distance(self, states: np.ndarray) -> np.ndarray:
        """Distance along the road from the first of states [K, 3], shape [K], in m."""
        travelled = np.cumsum(states[:-1, 1] * np.cos(states[:-1, 2])) * self.system.dt
        return np.concatenate([[0.0], travelled])
