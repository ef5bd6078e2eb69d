"""Running normalisation of observations."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class RunningNormaliser(eqx.Module):
    """Mean and variance over all observations seen, merged batch by batch (Chan, Golub, LeVeque 1979).

    Attributes:
        count: observations seen, shape [].
        mean: shape [o].
        variance: shape [o].
    """

    count: Float[Array, ""]
    mean: Float[Array, " o"]
    variance: Float[Array, " o"]

    @staticmethod
    def initialise(size: int) -> "RunningNormaliser":
        return RunningNormaliser(jnp.asarray(1e-2), jnp.zeros(size), jnp.ones(size))

    def update(self, batch: Float[Array, "B o"]) -> "RunningNormaliser":
        """The normaliser after a batch of observations."""
        n, mean, variance = batch.shape[0], jnp.mean(batch, axis=0), jnp.var(batch, axis=0)
        total = self.count + n
        delta = mean - self.mean
        merged = (self.count * self.variance + n * variance + delta**2 * self.count * n / total) / total
        return RunningNormaliser(total, self.mean + delta * n / total, merged)

    def __call__(self, observation: Float[Array, " o"]) -> Float[Array, " o"]:
        """Zero mean, unit variance; clipped to 10 standard deviations."""
        return jnp.clip((observation - self.mean) / jnp.sqrt(self.variance + 1e-6), -10.0, 10.0)


class NormalisedPolicy(eqx.Module):
    """A policy on raw observations: normalise, then ask for a correction of the nominal input.

    Attributes:
        normaliser: fixed once training ends.
        policy: normalised observation [o], nominal input [m] -> action [m].
        nominal: observation [o] -> input [m] that the policy corrects (`Task.nominal`).
    """

    normaliser: RunningNormaliser
    policy: Callable[[Float[Array, " o"], Float[Array, " m"]], Float[Array, " m"]]
    nominal: Callable[[Float[Array, " o"]], Float[Array, " m"]]

    def __call__(self, observation: Float[Array, " o"]) -> Float[Array, " m"]:
        return self.policy(self.normaliser(observation), self.nominal(observation))
