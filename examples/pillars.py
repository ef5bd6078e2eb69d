"""A point mass crosses a yard with three pillars to a place behind them, and can always come back home."""

import jax.numpy as jnp

from holdfast.tasks import Box, ContinuousSystem, SuperlevelSet, Task


class PointMass(ContinuousSystem):
    state_names, state_units = ("x", "y", "vx", "vy"), ("m", "m", "m/s", "m/s")
    input_names, input_units = ("ax", "ay"), ("m/s²", "m/s²")
    dt, input_box = 0.1, Box([-2, -2], [2, 2])

    def derivative(self, x, u, w):
        return jnp.concatenate([x[2:], u])

    def equilibrium(self):
        return jnp.zeros(4), jnp.zeros(2)


def margins(x):
    pillars = [(x[0] - a) ** 2 + (x[1] - b) ** 2 - 0.5**2 for a, b in ((1.3, 0.8), (2.3, -0.8), (3.2, 0.9))]
    return jnp.stack([4 - x[0], x[0] + 1, 2 - x[1], x[1] + 2, *pillars])


class Pillars(Task):
    system = PointMass()
    safe_set = SuperlevelSet(margins, ("east", "west", "north", "south", "pillar 1", "pillar 2", "pillar 3"))

    def reward(self, x, u, x_next, t, context):
        return -((x_next[0] - 3.5) ** 2) - x_next[1] ** 2 - 0.02 * jnp.sum(u**2)
