"""Rigid eight: a rigid-body quadrotor flies an upright figure of eight that is taller than its room."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import RigidQuadrotor, quaternion
from holdfast.tasks.base import SafetySettings, Task
from holdfast.tasks.side_view import side_view

FLOOR, CEILING = 0.0, 3.0
MIDDLE = 0.5 * (FLOOR + CEILING)
WIDTH, HEIGHT, PERIOD = 2.0, 1.9, 6.0
STEPS = 300
#: How many steps ahead a policy sees the reference.
AHEAD = 10


def _room(x):
    return jnp.stack([CEILING - x[2], x[2] - FLOOR])


class RigidEight(Task):
    """0 <= z <= 3 m for a quadrotor with four rotor thrusts, 13 states, whose reference reaches from -0.4 m to 3.4 m.

    The reference is a figure of eight that stands upright, x = 2 sin(2 pi t / 6 s) and z = 1.5 + 1.9 sin(4 pi t / 6 s), with
    body axes along the world's. A policy learns to correct a geometric tracking controller (`nominal`). The task is ours.
    States for the backup: z in the room, |v_i| <= 4 m/s, tilts up to 135 degrees at any yaw, |wx|, |wy| <= 6 rad/s, |wz|
    <= 2 rad/s.
    """

    name: ClassVar = "rigid-eight"
    episode_steps: ClassVar = STEPS
    metric_units: ClassVar = {"p_rmse": "m", "v_rmse": "m/s", "tilt_rms": "rad"}
    training: ClassVar[dict[str, Any]] = {
        "backup_updates": 400,
        "updates": 400,
        "environments": 24,
        "window": 32,
        "discount": 0.97,
        "actor_rate": 2e-3,
        "initial_std": 0.02,
        "practice": 0.5,
        "lost": 3.0,
        "gradient_limit": 20.0,
    }
    #: Bounds of the states for which the backup is trained and measured: m/s, rad, rad/s, rad/s.
    sampled_speed: ClassVar = 4.0
    sampled_tilt: ClassVar = 0.75 * np.pi
    sampled_rates: ClassVar = (6.0, 6.0, 2.0)

    system: RigidQuadrotor = eqx.field(default_factory=lambda: RigidQuadrotor(hover_height=MIDDLE))
    safe_set: SuperlevelSet = eqx.field(default_factory=lambda: SuperlevelSet(_room, ("ceiling", "floor"), ("m", "m")))
    # No episode can leave it sideways. Rates bound how rounding spreads along a plan: wz turns the others.
    state_box: Box = eqx.field(
        default_factory=lambda: Box(
            [-60.0, -60.0, FLOOR, -8.0, -8.0, -8.0] + [-1.001] * 4 + [-15.0, -15.0, -4.0],
            [60.0, 60.0, CEILING, 8.0, 8.0, 8.0] + [1.001] * 4 + [15.0, 15.0, 4.0],
        )
    )
    safety: SafetySettings = eqx.field(
        default_factory=lambda: SafetySettings(
            state_cost=(5.0, 1.0, 1.0, 1.0, 10.0, 10.0, 0.6, 0.6, 0.6), input_cost=(1.0,) * 4, horizon=90
        )
    )

    def sample_start(self, key):
        """At rest in the middle of the room, up to 0.1 m off in each coordinate."""
        offset = 0.1 * jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
        return self.system.equilibrium()[0].astype(offset.dtype).at[:3].add(offset)

    def sample_state(self, key):
        """See the class; where it is in the plane does not matter."""
        height, velocity, tilt, about, yaw, rates = jax.random.split(key, 6)
        z = jax.random.uniform(height, (1,), minval=FLOOR, maxval=CEILING)
        v = jax.random.uniform(velocity, (3,), minval=-self.sampled_speed, maxval=self.sampled_speed)
        half, axis, psi = (
            0.5 * self.sampled_tilt * jax.random.uniform(tilt),
            2 * np.pi * jax.random.uniform(about),
            np.pi * jax.random.uniform(yaw),
        )
        zero = jnp.zeros_like(half)
        leaning = jnp.stack([jnp.cos(half), jnp.sin(half) * jnp.cos(axis), jnp.sin(half) * jnp.sin(axis), zero])
        turned = jnp.stack([jnp.cos(psi), zero, zero, jnp.sin(psi)])
        most = jnp.asarray(self.sampled_rates, z.dtype)
        w = jax.random.uniform(rates, (3,), minval=-most, maxval=most)
        return jnp.concatenate([jnp.zeros(2, z.dtype), z, v, quaternion.multiply(turned, leaning), w])

    def reference(self, t, context):
        phase = 2 * np.pi * self.system.dt / PERIOD * t
        x, z = WIDTH * jnp.sin(phase), MIDDLE + HEIGHT * jnp.sin(2 * phase)
        rate = 2 * np.pi / PERIOD
        vx, vz = WIDTH * rate * jnp.cos(phase), 2 * HEIGHT * rate * jnp.cos(2 * phase)
        zero = jnp.zeros_like(x)
        return jnp.stack([x, zero, z, vx, zero, vz, zero + 1, zero, zero, zero, zero, zero, zero])

    def _acceleration(self, t) -> Float[Array, " 3"]:
        """Of the reference at step t, m/s^2, shape [3]."""
        rate = 2 * np.pi / PERIOD
        phase = rate * self.system.dt * t
        x, z = -WIDTH * rate**2 * jnp.sin(phase), -HEIGHT * (2 * rate) ** 2 * jnp.sin(2 * phase)
        return jnp.stack([x, jnp.zeros_like(x), z])

    def _pull(self, position, velocity, acceleration) -> tuple[Float[Array, ""], Float[Array, " 3"]]:
        """sqrt(1 + |gap|^2) of a gap in position, and the thrust over mass, m/s^2 [3], that would close both gaps.

        Nearly linear far away: a robot that has lost the reference should still know where to go.
        """
        reach = jnp.sqrt(1 + position @ position)
        upwards = self.system.gravity * jnp.array([0.0, 0.0, 1.0], position.dtype)
        return reach, acceleration + 4 * position / reach + 3 * velocity + upwards

    def nominal(self, observation):
        """The geometric tracking controller of Lee, Leok and McClamroch (2010), which knows neither floor nor ceiling."""
        system, now, ahead = self.system, observation[:6], observation[6:12]
        axes, w = quaternion.rotation_matrix(observation[16:20]), observation[20:23]
        acceleration = (ahead[3:] - now[3:]) / (AHEAD * system.dt)
        _, pull = self._pull(now[:3], now[3:], acceleration)
        along, inertia = axes[:, 2] @ pull, jnp.asarray(system.inertia, w.dtype)
        wanted = axes.T @ (pull / jnp.sqrt(pull @ pull + 1e-6))
        # Turn thrust by e3 x wanted, and the nose (the body's x axis) to where the world's x axis is.
        turn = jnp.stack([-wanted[1], wanted[0], -axes[1, 0]])
        roll, pitch, yaw = inertia * (
            jnp.array([80.0, 80.0, 4.0], w.dtype) * turn - jnp.array([16.0, 16.0, 4.0], w.dtype) * w
        )
        share, roll, pitch, yaw = (
            system.mass * jnp.maximum(along, 0.0) / 4,
            roll / (2 * system.arm),
            pitch / (2 * system.arm),
            yaw / (4 * system.drag_torque),
        )
        return jnp.stack([share - pitch + yaw, share + roll - yaw, share + pitch + yaw, share - roll - yaw])

    def sample_practice(self, key):
        """On the reference at any time, up to 0.3 m off and away from floor and ceiling."""
        when, where = jax.random.split(key)
        t = jax.random.randint(when, (), 0, STEPS)
        offset = 0.3 * jax.random.uniform(where, (3,), minval=-1.0, maxval=1.0)
        x = self.reference(t, ()).astype(offset.dtype).at[:3].add(offset)
        return x.at[2].set(jnp.clip(x[2], FLOOR + 0.3, CEILING - 0.3)), t

    def observe(self, x, t, context):
        """Where the reference is from here and how it moves, now and a fifth of a second ahead, and x without its place."""
        now, ahead = (self.reference(t + k, context).astype(x.dtype)[:6] for k in (0, AHEAD))
        return jnp.concatenate([now - x[:6], ahead - x[:6], x[2:]])

    def reward(self, x, u, x_next, t, context):
        """Position, velocity, thrust against the one that would close their gaps (Lee et al. 2010), heading, rates.

        A thrust in the wrong direction costs at once, what it does to position only a second later.
        """
        wanted = self.reference(t + 1, context).astype(x.dtype)
        position, velocity, w = wanted[:3] - x_next[:3], wanted[3:6] - x_next[3:6], x_next[10:]
        axes = quaternion.rotation_matrix(x_next[6:10])
        reach, pull = self._pull(position, velocity, self._acceleration(t + 1).astype(x.dtype))
        along = axes[:, 2] @ pull
        length = jnp.sqrt(pull @ pull + 1)
        thrust = jnp.sum(u) / self.system.mass
        cost = 4 * (reach - 1) + 2 * (jnp.sqrt(1 + velocity @ velocity / 4) - 1)
        cost = cost + 6 * (1 - along / length) + 0.02 * (thrust - along) ** 2 + 0.5 * (1 - axes[0, 0])
        return -(cost + jnp.array([0.04, 0.04, 0.3], x.dtype) @ w**2)

    def metrics(self, states, context):
        times = jnp.arange(states.shape[0])
        wanted = jax.vmap(self.reference, in_axes=(0, None))(times, context).astype(states.dtype)[1:]
        states = states[1:]
        gap = states[:, :6] - wanted[:, :6]
        cosine = jax.vmap(lambda q: quaternion.world_z(q)[2])(states[:, 6:10])
        tilt = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))

        def rms(square):
            return jnp.sqrt(jnp.mean(square))

        return {
            "p_rmse": rms(jnp.sum(gap[:, :3] ** 2, axis=1)),
            "v_rmse": rms(jnp.sum(gap[:, 3:] ** 2, axis=1)),
            "tilt_rms": rms(tilt**2),
        }

    def scene(self, states, t, context, futures):
        """Seen from the side, between floor and ceiling."""
        return side_view(states, t, self._path, futures, (-4.0, 4.0, -0.8, 3.8), CEILING, FLOOR)

    @property
    def _path(self) -> np.ndarray:
        """Reference states of one episode, shape [k, 13], on the host."""
        with jax.ensure_compile_time_eval():
            times = jnp.arange(STEPS + 1)
            return np.asarray(jax.vmap(self.reference, in_axes=(0, None))(times, ()))
