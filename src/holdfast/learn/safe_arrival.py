"""Phase 1: a backup policy that arrives safely. Here: what every way to learn it shares, and ours, by differentiating
through the simulator."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from holdfast.backup import BackupNetwork, BackupPolicy, BaseSet, backup_flow
from holdfast.learn.optimise import adam, descend, start, value_and_gradient
from holdfast.sets import Set


class SafeArrivalSettings(eqx.Module):
    """Settings of phase 1.

    Attributes:
        updates: gradient steps.
        batch: states a step, drawn over the whole region.
        learning_rate: peak rate of Adam.
        hidden: hidden layers of the backup network.
        margin: how far inside, as a share of the margins at the equilibrium, the hinge asks the flow to stay.
        violation_weight: weight of the hinge against the arrival terms.
    """

    updates: int = eqx.field(static=True, default=400)
    batch: int = eqx.field(static=True, default=256)
    learning_rate: float = eqx.field(static=True, default=5e-3)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(32, 32))
    margin: float = eqx.field(static=True, default=0.02)
    violation_weight: float = eqx.field(static=True, default=20.0)


class SafeArrivalState(eqx.Module):
    """Network, optimiser state, key and updates done."""

    network: BackupNetwork
    optimiser: Any
    key: Key[Array, ""]
    updates: Array


class BackupTrainer(eqx.Module):
    """What every way is to learn a backup policy: a `Trainer` of the training loop whose states have a `network`.

    Attributes:
        base: base set and controller, used inside the base set as in deployment.
        safe_set: C.
        sample_state: key -> state of the region.
        horizon: N.
        settings: numbers, among them `updates` and `hidden`.
    """

    base: BaseSet
    safe_set: Set
    sample_state: Callable[[Key[Array, ""]], Float[Array, " n"]]
    horizon: int = eqx.field(static=True)
    settings: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> Any: ...

    @abc.abstractmethod
    def update(self, state: Any) -> tuple[Any, dict[str, Array]]: ...

    @property
    @abc.abstractmethod
    def steps_per_update(self) -> int:
        """Steps of the system that one update makes."""

    def _network(self, key: Key[Array, ""]) -> BackupNetwork:
        """The network that learning begins with."""
        return BackupNetwork.initialise(key, self.base.system, self._scale(), self.settings.hidden)

    def _scale(self) -> Float[Array, " f"]:
        """Typical size of each feature over the region: root mean square of a fixed sample."""
        states = jax.vmap(self.sample_state)(jax.random.split(jax.random.key(0), 1024))
        features = jax.vmap(self.base.system.features)(states)
        return jnp.sqrt(jnp.mean(features**2, axis=0)) + 1e-6


class SafeArrivalTrainer(BackupTrainer):
    """Minimises, over states x of the region and along the backup flow phi_0..phi_N from each:

        violation_weight * mean_k sum_i [margin - h_i(phi_k) / h_i(x*)]_+  +  log(1 + V(phi_N)/c)  +  mean_k log(1 + V(phi_k)/c)

    with V of the system's `bounded_error`. The first term is safety, the second arrival, the third speed. Where PS2-RL
    (arXiv 2606.14536) learns the same policy from a safe-arrival value by TD3, the simulator's derivative is used here
    (`Td3Trainer` does as they do).
    """

    settings: SafeArrivalSettings = SafeArrivalSettings()

    def init(self, key: Key[Array, ""]) -> SafeArrivalState:
        network_key, key = jax.random.split(key)
        network = self._network(network_key)
        optimiser = start(self._optimiser(), network)
        return SafeArrivalState(network, optimiser, key, jnp.zeros((), jnp.int32))

    def update(self, state: SafeArrivalState) -> tuple[SafeArrivalState, dict[str, Array]]:
        key, sample_key = jax.random.split(state.key)
        states = jax.vmap(self.sample_state)(jax.random.split(sample_key, self.settings.batch))
        (_, metrics), gradient = value_and_gradient(self._loss, state.network, states)
        network, optimiser, nonfinite = descend(self._optimiser(), gradient, state.optimiser, state.network)
        return SafeArrivalState(network, optimiser, key, state.updates + 1), metrics | {"nonfinite": nonfinite}

    def _loss(self, network: BackupNetwork, states: Float[Array, "B n"]):
        settings, policy = self.settings, BackupPolicy(self.base, network)
        equilibrium = jnp.asarray(self.base.system.equilibrium()[0], states.dtype)
        typical = jax.lax.stop_gradient(self.safe_set.margin(equilibrium))

        def one(x):
            flow = backup_flow(policy, self.safe_set, x, self.horizon)
            hinge = jnp.mean(jnp.sum(jax.nn.relu(settings.margin - flow.margins / typical[None]), axis=1))
            errors = jax.vmap(self.base.system.bounded_error)(flow.states)
            distance = jnp.log1p(jax.vmap(self.base.ellipsoid.value)(errors) / self.base.ellipsoid.level)
            safe = jnp.all(flow.margins >= 0) & (flow.base_margins[-1] >= 0)
            return settings.violation_weight * hinge + distance[-1] + jnp.mean(distance), safe

        loss, safe = jax.vmap(one)(states)
        loss = jnp.mean(loss)
        return loss, {"loss": loss, "certified": jnp.mean(safe.astype(loss.dtype))}

    @property
    def steps_per_update(self) -> int:
        return self.settings.batch * self.horizon

    def _optimiser(self):
        return adam(self.settings.learning_rate, self.settings.updates, clip=1.0)
