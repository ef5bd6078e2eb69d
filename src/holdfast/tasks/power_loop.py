"""Power loop: fly a vertical loop whose top lies above the ceiling, without touching the ceiling."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import Quadrotor, quaternion
from holdfast.tasks.base import SafetySettings, Task
from holdfast.tasks.side_view import side_view

CEILING = 3.0
RADIUS, SPEED, CENTRE = 1.5, 4.5, 2.0
STEPS = 106


def _ceiling_margin(x):
    return (CEILING - x[2])[None]


def _loop(dt: float, gravity: float) -> tuple[np.ndarray, np.ndarray]:
    """Reference states [STEPS, 10] and body rates [STEPS, 3]: one loop at constant speed, thrust along the acceleration."""
    time = dt * np.arange(STEPS)
    rate = SPEED / RADIUS
    theta = rate * time + np.pi
    sin, cos, zero = np.sin(theta), np.cos(theta), np.zeros(STEPS)
    pitch = np.unwrap(np.arctan2(-RADIUS * rate**2 * sin, -RADIUS * rate**2 * cos + gravity))
    attitude = [np.cos(pitch / 2), zero, np.sin(pitch / 2), zero]
    states = np.stack([RADIUS * sin, zero, CENTRE + RADIUS * cos, SPEED * cos, zero, -SPEED * sin, *attitude], axis=1)
    rates = np.stack([zero, np.gradient(pitch, time, edge_order=2), zero], axis=1)
    return states, rates


class PowerLoop(Task):
    """z <= 3 m for a quadrotor whose reference is a loop of radius 1.5 m about z = 2 m at 4.5 m/s, inverted at the top.

    Physics, reward, reference, starts and metrics as published: PS2-RL (arXiv 2606.14536), power loop. The base set is
    ours: weights for the yaw-free error of `Quadrotor`, for which a level can be proved.
    """

    name: ClassVar = "power-loop"
    episode_steps: ClassVar = STEPS
    finite: ClassVar = True
    #: Windows as long as the loop: its return is differentiated whole.
    training: ClassVar = {
        "backup_updates": 600,
        "updates": 1200,
        "environments": 16,
        "window": STEPS,
        "discount": 0.998,
        "actor_rate": 3e-3,
        "critic_steps": 1,
        "initial_std": 0.01,
        "restart": 0.0,
        "lost": 0.1,
        "gradient_limit": 20.0,
        "intervention_penalty": 0.01,
    }
    metric_units: ClassVar = {"p_rmse": "m", "v_rmse": "m/s", "att_rmse": "rad"}
    published: ClassVar = {"p_rmse": 0.60, "v_rmse": 0.96, "att_rmse": 0.45}
    # benchmarks/results/power_loop_optimal_control.json, mean over 64 starts; from the nominal start the return is -368.1.
    optimal_control: ClassVar = {"return": -373.1, "p_rmse": 0.3712, "v_rmse": 0.3942, "att_rmse": 0.0258}
    #: Largest speed along each axis for which the backup is trained and measured, m/s.
    sampled_speed: ClassVar = 6.0

    system: Quadrotor = eqx.field(default_factory=Quadrotor)
    safe_set: SuperlevelSet = eqx.field(default_factory=lambda: SuperlevelSet(_ceiling_margin, ("ceiling",), ("m",)))
    # Plans may fly well below the start. A unit quaternion may be a rounding longer than one.
    state_box: Box = eqx.field(
        default_factory=lambda: Box([-15.0] * 6 + [-1.001] * 4, [15.0, 15.0, CEILING] + [15.0] * 3 + [1.001] * 4)
    )
    safety: SafetySettings = eqx.field(
        default_factory=lambda: SafetySettings(
            state_cost=(1.1, 0.32, 0.32, 0.16, 1.5, 1.5), input_cost=(0.028, 0.08, 0.08, 0.01), horizon=100
        )
    )

    def sample_start(self, key):
        """The reference's start, up to 0.1 m off in each coordinate."""
        offset = 0.1 * jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
        return jnp.asarray(self._states[0], offset.dtype).at[:3].add(offset)

    def sample_state(self, key):
        """z in [0, 3] m, |v_i| <= 6 m/s, any attitude; where it is in the plane does not matter."""
        height, velocity, attitude = jax.random.split(key, 3)
        z = jax.random.uniform(height, (1,), maxval=CEILING)
        v = jax.random.uniform(velocity, (3,), minval=-self.sampled_speed, maxval=self.sampled_speed)
        q = quaternion.normalise(jax.random.normal(attitude, (4,)))
        return jnp.concatenate([jnp.zeros(2, z.dtype), z, v, q])

    def sample_practice(self, key):
        """The reference at any time, up to 0.1 m off in each coordinate and under the ceiling."""
        when, where = jax.random.split(key)
        t = jax.random.randint(when, (), 0, STEPS)
        offset = 0.1 * jax.random.uniform(where, (3,), minval=-1.0, maxval=1.0)
        x = jnp.asarray(self._states, offset.dtype)[t].at[:3].add(offset)
        return x.at[2].min(CEILING - 0.05), t

    def reference(self, t, context):
        return jnp.asarray(self._states)[jnp.clip(t, 0, STEPS - 1)]

    def reference_rates(self, t) -> Float[Array, " 3"]:
        """Body rates of the reference at step t, rad/s, shape [3]."""
        return jnp.asarray(self._rates)[jnp.clip(t, 0, STEPS - 1)]

    def observe(self, x, t, context):
        progress = t / (STEPS - 1)
        clock = jnp.stack([t * self.system.dt, jnp.sin(2 * np.pi * progress), jnp.cos(2 * np.pi * progress)])
        wanted = self.reference(t, context).astype(x.dtype)
        gap = jnp.concatenate([wanted[:6] - x[:6], attitude_error(wanted[6:], x[6:])])
        tail = jnp.concatenate([self.reference_rates(t), clock])
        return jnp.concatenate([x, wanted, tail.astype(x.dtype), gap])

    def nominal(self, observation):
        """The inputs of the reference itself: thrust for its acceleration, towards the loop's centre, and its rates."""
        x, z = observation[10], observation[12]
        square = (SPEED / RADIUS) ** 2
        thrust = jnp.hypot(square * x, self.system.gravity - square * (z - CENTRE))
        return jnp.concatenate([thrust[None], observation[20:23]])

    def reward(self, x, u, x_next, t, context):
        wanted = self.reference(t + 1, context).astype(x.dtype)
        rates = 0.5 * (self.reference_rates(t) + self.reference_rates(t + 1)).astype(x.dtype)
        position, velocity = wanted[:3] - x_next[:3], wanted[3:6] - x_next[3:6]
        attitude = attitude_error(wanted[6:], x_next[6:])
        turning = u[1:] - rates
        weigh = lambda weights, vector: jnp.asarray(weights, x.dtype) @ vector**2  # noqa: E731
        cost = weigh([2.5, 2.5, 2.0], position) + 4 * (velocity @ velocity) + 16 * (attitude @ attitude)
        cost = cost + weigh([0.1, 0.2, 0.05], turning) + weigh([0.01] * 4, u)
        return -cost

    def metrics(self, states, context):
        times = jnp.arange(states.shape[0])
        wanted = jax.vmap(self.reference, in_axes=(0, None))(times, context).astype(states.dtype)[1:]
        states = states[1:]
        gap = states[:, :6] - wanted[:, :6]
        sine = jnp.linalg.norm(jax.vmap(attitude_error)(wanted[:, 6:], states[:, 6:]), axis=1)
        angle = 2 * jnp.arcsin(jnp.clip(sine, 0.0, 1.0))

        def rms(square):
            return jnp.sqrt(jnp.mean(square))

        return {
            "p_rmse": rms(jnp.sum(gap[:, :3] ** 2, axis=1)),
            "v_rmse": rms(jnp.sum(gap[:, 3:] ** 2, axis=1)),
            "att_rmse": rms(angle**2),
        }

    def stoppable(self, x):
        """Whether five g straight down, at once, would stop x under the ceiling: no policy can save any other state.

        Necessary, not sufficient: the robot has to turn before it can push downwards.
        """
        brake, dt = self.system.input_box.upper[0] + self.system.gravity, self.system.dt
        rise = jnp.maximum(x[5], 0.0)
        steps = jnp.floor(rise / (brake * dt)) + 1  # with these steps the speed is spent
        peak = x[2] + dt * (steps * rise - brake * dt * steps * (steps - 1) / 2)
        return jnp.maximum(x[2], peak) <= CEILING

    def possibly_viable(self, x):
        return self.stoppable(x)

    def scene(self, states, t, context, futures):
        """Seen from the side, x to the right and z up; the robot is a bar with two rotors, thrust away from the bar."""
        return side_view(states, t, self._states, futures, (-3.6, 3.6, -0.4, 4.1), CEILING)

    @property
    def _states(self) -> np.ndarray:
        return _loop(self.system.dt, self.system.gravity)[0]

    @property
    def _rates(self) -> np.ndarray:
        return _loop(self.system.dt, self.system.gravity)[1]


def attitude_error(wanted: Float[Array, " 4"], q: Float[Array, " 4"]) -> Float[Array, " 3"]:
    """Vector part of wanted * conj(q), of the shorter of the two rotations, shape [3]: axis times sin(angle / 2)."""
    difference = quaternion.multiply(wanted, quaternion.conjugate(q))
    return jnp.where(difference[0] < 0, -1.0, 1.0) * difference[1:]
