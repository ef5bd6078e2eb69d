"""A pole on a cart on a track of two metres: the pole must not fall, and the cart must not leave the track."""

import jax.numpy as jnp

from holdfast.tasks import Box, ContinuousSystem, SuperlevelSet, Task


class CartPole(ContinuousSystem):
    state_names, state_units = ("x", "theta", "v", "omega"), ("m", "rad", "m/s", "rad/s")
    input_names, input_units = ("force",), ("N",)
    dt, input_box = 0.02, Box([-10], [10])

    def derivative(self, x, u, w):
        _, theta, v, omega = x
        sin, cos = jnp.sin(theta), jnp.cos(theta)
        push = (u[0] + 0.05 * omega**2 * sin) / 1.1
        turn = (9.8 * sin - push * cos) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        return jnp.stack([v, omega, push - 0.05 / 1.1 * turn * cos, turn])

    def equilibrium(self):
        return jnp.zeros(4), jnp.zeros(1)


class ShortTrack(Task):
    system, names = CartPole(), ("right end", "left end", "falls right", "falls left")
    safe_set = SuperlevelSet(lambda x: jnp.stack([1 - x[0], 1 + x[0], 0.5 - x[1], 0.5 + x[1]]), names)

    def reward(self, x, u, x_next, t, context):
        return -((x_next[0] - 0.9) ** 2) - 0.1 * x_next[1] ** 2 - 0.001 * u[0] ** 2
