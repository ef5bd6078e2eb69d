"""A point that keeps its distance: the controller of free space."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box, FreeSpace


class Retreat(eqx.Module):
    """Rests, and where a wall or an obstacle is closer than the next disturbance may push, moves off just as far as needed.

    For p+ = p + dt u + w with |w_i| <= w_max. A face with unit normal n asks for a distance of |n|_1 w_max before the
    disturbance. From walls each coordinate moves by itself; from the obstacle that is lacking most, along its normal.
    Whether that always suffices is a matter of the gaps between obstacles: see `certify.free_space`.

    Attributes:
        region: free space.
        dt: s.
        noise: w_max, m.
        input_box: velocities that there are.
        surplus: m more than the disturbance asks for, against rounding.
    """

    region: FreeSpace
    dt: float
    noise: float
    input_box: Box
    surplus: float = 3e-3

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The velocity at x, shape [n]; zero where x is not finite."""
        normals, offsets = self.region.piece(x)
        slack = offsets - jnp.matmul(normals, x, precision="highest")
        lacking = jnp.sum(jnp.abs(normals), axis=1) * self.noise + self.surplus - slack
        n = x.shape[0]
        walls, obstacles = jnp.maximum(lacking[: 2 * n], 0.0), lacking[2 * n :]
        move = walls[:n] - walls[n:]
        if obstacles.shape[0]:
            worst = jnp.argmax(obstacles)
            move = move - jnp.maximum(obstacles[worst], 0.0) * normals[2 * n + worst]
        u = move / self.dt
        return self.input_box.clip(jnp.where(jnp.all(jnp.isfinite(u)), u, 0.0))
