# A Dubins car circles between two walls: where on its circle it is does not matter, so `error` drops that.
import jax.numpy as jnp

from holdfast.tasks import Box, ContinuousSystem, SuperlevelSet, Task


class Dubins(ContinuousSystem):
    state_names, input_names, angles = ("x", "y", "heading"), ("turn rate",), (2,)
    dt, input_box, integrator = 0.1, Box([-1.5], [1.5]), "runge_kutta_4"

    def derivative(self, x, u, w):
        return jnp.stack([jnp.cos(x[2]), jnp.sin(x[2]), u[0]])

    def equilibrium(self):
        return jnp.array([3.0, 0.0, jnp.pi / 2]), jnp.array([1 / 3])

    def error(self, x):  # distance from the circle of radius 3, heading against its tangent
        r, (c, s, _) = jnp.sqrt(jnp.sum(x[:2] ** 2)), self.derivative(x, x, x)
        return jnp.stack([r - 3, jnp.arctan2(-x[0] * c - x[1] * s, x[0] * s - x[1] * c)])

    def lift(self, e):
        return jnp.stack([3 + e[0], 0 * e[0], jnp.pi / 2 + e[1]])


class Annulus(Task):
    system = Dubins()
    safe_set = SuperlevelSet(lambda x: jnp.stack([16 - jnp.sum(x[:2] ** 2), jnp.sum(x[:2] ** 2) - 4]), ("out", "in"))

    def reward(self, x, u, x_next, t, context):
        return -((jnp.sqrt(jnp.sum(x_next[:2] ** 2)) - 2.2) ** 2)
