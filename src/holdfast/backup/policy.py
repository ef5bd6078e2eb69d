"""The backup policy: base controller inside the base set, any policy outside."""

import itertools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from holdfast.backup.base import BaseSet
from holdfast.sets import Box
from holdfast.systems import System


class BackupNetwork(eqx.Module):
    """A tanh network from the scaled features of a state to the input box; every output is admissible by construction.

    Attributes:
        layers: weights [in, out] and biases [out].
        system: gives `features`; by default the error coordinates.
        scale: typical size of each feature, shape [f]; fixed, not trained.
        input_box: outputs are centre + half_width * tanh(.).
    """

    layers: list[tuple[Array, Array]]
    system: System
    scale: Float[Array, " f"]
    input_box: Box

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        hidden = self.system.features(x) / jax.lax.stop_gradient(self.scale).astype(x.dtype)
        for weight, bias in self.layers[:-1]:
            hidden = jnp.tanh(hidden @ weight.astype(x.dtype) + bias.astype(x.dtype))
        weight, bias = self.layers[-1]
        squashed = jnp.tanh(hidden @ weight.astype(x.dtype) + bias.astype(x.dtype))
        centre, half = jnp.asarray(self.input_box.centre, x.dtype), jnp.asarray(self.input_box.half_widths, x.dtype)
        return self.input_box.clip(centre + half * squashed)

    @staticmethod
    def initialise(
        key: Key[Array, ""], system: System, scale: Float[Array, " f"], hidden: tuple[int, ...] = (64, 64)
    ) -> "BackupNetwork":
        """Random weights (LeCun normal; last layer small, so that training starts near the middle of the box)."""
        sizes = (scale.shape[0], *hidden, system.input_size)
        layers = []
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            gain = 0.1 if i == len(sizes) - 2 else 1.0
            weight = gain * jax.random.normal(jax.random.fold_in(key, i), (fan_in, fan_out)) / np.sqrt(fan_in)
            layers.append((weight, jnp.zeros(fan_out)))
        return BackupNetwork(layers, system, jnp.asarray(scale), system.input_box)


class BackupPolicy(eqx.Module):
    """pi_b(x): the base controller where x lies in the base set, `outside(x)` elsewhere.

    Attributes:
        base: base set and controller.
        outside: any callable x [n] -> u [m], clipped to the input box; None means the base controller everywhere (the analytic
            backup).
    """

    base: BaseSet
    outside: Callable[[Float[Array, " n"]], Float[Array, " m"]] | None = None

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        inside = self.base.action(x)
        if self.outside is None:
            return inside
        # Clipped here, so that a plan is rolled out, certified and replayed with the very same actions.
        outside = self.base.controller.input_box.clip(self.outside(x))
        return jnp.where(self.base.contains(x), inside, outside)
