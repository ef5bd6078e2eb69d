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


class TwinCritic(eqx.Module):
    """Two networks (what is seen [o], action in units of the input box [m]) -> value; the lesser is believed."""

    first: Network
    second: Network

    @staticmethod
    def initialise(first_key: Key[Array, ""], second_key: Key[Array, ""], sizes: tuple[int, ...]) -> "TwinCritic":
        """Two networks that begin with small values."""
        return TwinCritic(*(Network.initialise(key, sizes, last_gain=0.1) for key in (first_key, second_key)))


class TanhGaussian(eqx.Module):
    """A stochastic policy: tanh of a Gaussian about a nominal input, scaled to the input box.

    With a network that says zero it is the nominal input. The middle of the box would be no good start: for a quadrotor
    it is twice its weight. Called without noise, it is its own deterministic mean.

    Attributes:
        network: normalised observation [o] -> mean before the tanh [m], on top of the nominal input's; or [2m], where the
            second half is added to `log_std`.
        log_std: logarithm of the Gaussian's standard deviation, shape [m].
        input_box: outputs are centre + half_width * tanh(.).
    """

    network: Network
    log_std: Float[Array, " m"]
    input_box: Box

    @staticmethod
    def initialise(
        key: Key[Array, ""],
        observations: int,
        hidden: tuple[int, ...],
        input_box: Box,
        std: float,
        std_of_state: bool = False,
    ) -> "TanhGaussian":
        """A policy that begins at the nominal input, with noise of standard deviation `std` before the tanh; later the
        noise may depend on the observation if `std_of_state`."""
        m = input_box.dimension
        network = Network.initialise(key, (observations, *hidden, 2 * m if std_of_state else m))
        return TanhGaussian(network, jnp.full(m, jnp.log(std)), input_box)

    def __call__(
        self, observation: Float[Array, " o"], nominal: Float[Array, " m"], noise: Float[Array, " m"] | None = None
    ) -> Float[Array, " m"]:
        """The action for standard normal noise [m], reparametrised so that gradients flow through the noise."""
        mean, log_std = self.gaussian(observation, nominal)
        return self.squashed(mean if noise is None else mean + jnp.exp(log_std) * noise)

    def gaussian(
        self, observation: Float[Array, " o"], nominal: Float[Array, " m"]
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """(mean, logarithm of the standard deviation) before the tanh, shapes [m]."""
        centre, half = self._scale(observation.dtype)
        said, m = self.network(observation), nominal.shape[0]
        # Not closer to the edges of the box than this: the tanh would let no derivative through.
        mean = jnp.arctanh(jnp.clip((nominal - centre) / half, -0.95, 0.95)) + said[:m]
        if said.shape[0] == m:
            return mean, self.log_std
        return mean, jnp.clip(self.log_std + said[m:], -10.0, 2.0)

    def squashed(self, raw: Float[Array, " m"]) -> Float[Array, " m"]:
        """The action of a number before the tanh, shape [m]."""
        centre, half = self._scale(raw.dtype)
        # The clip only takes back rounding of centre + half, so that every proposal is admissible.
        return self.input_box.clip(centre + half * jnp.tanh(raw))

    def _scale(self, dtype):
        return jnp.asarray(self.input_box.centre, dtype), jnp.asarray(self.input_box.half_widths, dtype)


def log_density(raw: Float[Array, " m"], mean: Float[Array, " m"], log_std: Float[Array, " m"]) -> Float[Array, ""]:
    """log density of tanh(raw), an action in units of the input box's half-widths, where raw is Gaussian; shape [].

    The change of variables costs log(1 - tanh(raw)^2), written without the difference that rounds to zero far out.
    Source: Haarnoja et al. 2018, appendix C.
    """
    gaussian = -0.5 * ((raw - mean) * jnp.exp(-log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    slope = 2 * (np.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.sum(gaussian - slope)
