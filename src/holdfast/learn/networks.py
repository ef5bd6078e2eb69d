"""Networks of the learning algorithms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from holdfast.sets import Box


class Network(eqx.Module):
    """A fully connected network with tanh hidden layers, weights [in, out].

    Attributes:
        layers: weights and biases, first to last.
    """

    layers: list[tuple[Array, Array]]

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " j"]:
        for weight, bias in self.layers[:-1]:
            x = jnp.tanh(x @ weight + bias)
        weight, bias = self.layers[-1]
        return x @ weight + bias

    @staticmethod
    def initialise(key: Key[Array, ""], sizes: tuple[int, ...], last_gain: float = 0.01) -> "Network":
        """Orthogonal weights, zero biases; a small last layer starts a policy near its mean."""
        keys = jax.random.split(key, len(sizes) - 1)
        gains = [np.sqrt(2.0)] * (len(sizes) - 2) + [last_gain]
        orthogonal = jax.nn.initializers.orthogonal
        return Network(
            [(orthogonal(gain)(k, (i, j)), jnp.zeros(j)) for k, gain, i, j in zip(keys, gains, sizes[:-1], sizes[1:])]
        )


class TanhGaussian(eqx.Module):
    """A stochastic policy: tanh of a Gaussian about a nominal input, scaled to the input box.

    With a network that says zero it is the nominal input. The middle of the box would be no good start: for a quadrotor
    it is twice its weight. Called without noise, it is its own deterministic mean.

    Attributes:
        network: normalised observation [o] -> mean before the tanh [m], on top of the nominal input's.
        log_std: state-independent, shape [m].
        input_box: outputs are centre + half_width * tanh(.).
    """

    network: Network
    log_std: Float[Array, " m"]
    input_box: Box

    @staticmethod
    def initialise(
        key: Key[Array, ""], observations: int, hidden: tuple[int, ...], input_box: Box, std: float
    ) -> "TanhGaussian":
        """A policy that begins at the nominal input, with noise of standard deviation `std` before the tanh."""
        m = input_box.dimension
        return TanhGaussian(Network.initialise(key, (observations, *hidden, m)), jnp.full(m, jnp.log(std)), input_box)

    def __call__(
        self, observation: Float[Array, " o"], nominal: Float[Array, " m"], noise: Float[Array, " m"] | None = None
    ) -> Float[Array, " m"]:
        """The action for standard normal noise [m], reparametrised so that gradients flow through the noise."""
        centre = jnp.asarray(self.input_box.centre, observation.dtype)
        half = jnp.asarray(self.input_box.half_widths, observation.dtype)
        # Not closer to the edges of the box than this: the tanh would let no derivative through.
        raw = jnp.arctanh(jnp.clip((nominal - centre) / half, -0.95, 0.95)) + self.network(observation)
        raw = raw if noise is None else raw + jnp.exp(self.log_std) * noise
        # The clip only takes back rounding of centre + half, so that every proposal is admissible.
        return self.input_box.clip(centre + half * jnp.tanh(raw))
