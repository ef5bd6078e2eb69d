"""What all algorithms share that learn a policy through a guard: their state, their networks, their optimisers."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, Key

from holdfast.learn.experience import Collector, Experience, PolicySettings, Safety
from holdfast.learn.networks import Network, TanhGaussian
from holdfast.learn.normalisation import NormalisedPolicy
from holdfast.learn.optimise import adam
from holdfast.tasks import Disturb, Task
from holdfast.types import Guard


class PolicyState(eqx.Module):
    """What every algorithm needs to go on, beside its critics: a pytree of arrays; `nominal` is the task's.

    Attributes:
        nominal: observation [o] -> the input [m] that the policy corrects.
        actor: the policy on normalised observations.
        actor_optimiser: its optimiser's state.
        experience: where training stands in its environments.
        key: for all that follows.
        updates: done so far, shape [].
    """

    nominal: Callable[[Float[Array, " o"]], Float[Array, " m"]]
    actor: TanhGaussian
    actor_optimiser: Any
    experience: Experience
    key: Key[Array, ""]
    updates: Int[Array, ""]

    @property
    def policy(self) -> NormalisedPolicy:
        """The deterministic policy on raw observations."""
        return NormalisedPolicy(self.experience.normaliser, self.actor, self.nominal)

    @property
    def safety(self) -> Safety:
        """What the guard did in training so far."""
        return self.experience.safety

    def propose(self, actor: TanhGaussian, observation: Float[Array, " o"], noise: Float[Array, " m"]):
        """An actor's action [m] on a raw observation, for standard normal noise [m]."""
        return actor(self.experience.normaliser(observation), self.nominal(observation), noise)


class PolicyTrainer(eqx.Module):
    """What every algorithm is that learns a policy through a guard: a `Trainer` of the training loop.

    Attributes:
        task: what is to be done.
        guard: between proposed and applied action: a safeguard, or `Unguarded`.
        settings: numbers.
        disturb: chooses the disturbances of training in place of the task, if given.
    """

    task: Task
    guard: Guard
    settings: eqx.AbstractVar[PolicySettings]
    disturb: Disturb | None = eqx.field(kw_only=True, default=None)

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> PolicyState: ...

    @abc.abstractmethod
    def update(self, state: PolicyState) -> tuple[PolicyState, dict[str, Array]]: ...

    @property
    def collector(self) -> Collector:
        return Collector(self.task, self.guard, self.settings, self.disturb)

    @property
    def steps_per_update(self) -> int:
        """Environment steps that one update makes."""
        return self.settings.environments * self.settings.window

    def _networks(self, actor_key: Key[Array, ""], critic_key: Key[Array, ""]) -> tuple[TanhGaussian, Network]:
        """An actor, and a critic of states."""
        task, settings, o = self.task, self.settings, self.task.observation_size
        actor = TanhGaussian.initialise(actor_key, o, settings.hidden, task.system.input_box, settings.initial_std)
        return actor, Network.initialise(critic_key, (o, *settings.hidden, 1), last_gain=0.1)

    def _actor_optimiser(self, steps: int = 1):
        """Adam for `steps` steps an update."""
        return adam(self.settings.actor_rate, self.settings.updates * steps, clip=1.0)

    def _critic_optimiser(self, steps: int = 1):
        return adam(self.settings.critic_rate, self.settings.updates * steps, clip=1.0)
