"""SHAC: short-horizon actor-critic through the differentiable simulator, with a guard in the loop."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from holdfast.learn.advantage import td_lambda
from holdfast.learn.experience import PolicySettings, Window, detached, report
from holdfast.learn.networks import Network, TanhGaussian
from holdfast.learn.optimise import descend, limit_cotangent, moved_towards, norm, over_steps, start, value_and_gradient
from holdfast.learn.policy_trainer import PolicyState, PolicyTrainer
from holdfast.tasks import Episode
from holdfast.types import Transition


class ShacSettings(PolicySettings):
    """Settings of SHAC: `PolicySettings`, where `window` steps are differentiated through and `placement` "policy"
    differentiates through the guard too, while "environment" sees only what it did; and

    Attributes:
        trace: lambda of the critic's targets.
        critic_steps: critic updates for each actor update, each on a random half of the window.
        target_smoothing: share of the critic that moves into its target at each actor update.
        gradient_limit: longest derivative of the objective by an episode's state that is passed back over a step (in the
            objective's units over the state's): over long windows, a few chaotic episodes drown all others.
    """

    trace: float = eqx.field(static=True, default=0.95)
    critic_steps: int = eqx.field(static=True, default=8)
    target_smoothing: float = eqx.field(static=True, default=0.4)
    gradient_limit: float = eqx.field(static=True, default=float("inf"))


class ShacState(PolicyState):
    """Everything a resumed run needs."""

    critic: Network
    target: Network
    critic_optimiser: Any


class ShacTrainer(PolicyTrainer):
    """Short-horizon actor-critic (Xu et al., ICLR 2022) on a task, through a guard.

    The actor's loss is the discounted reward of H steps plus the target critic's value of the last state, differentiated
    through simulator, guard and policy. The critic regresses TD(lambda) targets.
    """

    settings: ShacSettings = ShacSettings()

    def init(self, key: Key[Array, ""]) -> ShacState:
        task, settings = self.task, self.settings
        actor_key, critic_key, episode_key, unit_key, key = jax.random.split(key, 5)
        actor, critic = self._networks(actor_key, critic_key)
        return ShacState(
            nominal=task.nominal,
            actor=actor,
            actor_optimiser=start(self._actor_optimiser(), actor),
            experience=self.collector.start(episode_key, unit_key, self._whole),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            critic=critic,
            target=critic,
            critic_optimiser=start(self._critic_optimiser(settings.critic_steps), critic),
        )

    def update(self, state: ShacState) -> tuple[ShacState, dict[str, Array]]:
        settings = self.settings
        key, noise_key, critic_key = jax.random.split(state.key, 3)
        shape = (settings.window, settings.environments, self.task.system.input_size)
        noise = jax.random.normal(noise_key, shape)
        (_, (experience, window)), gradient = value_and_gradient(self._actor_loss, state.actor, state, noise, noise_key)
        actor, actor_optimiser, nonfinite = descend(
            self._actor_optimiser(), gradient, state.actor_optimiser, state.actor
        )
        critic, critic_optimiser, critic_loss, critic_nonfinite = self._fit_critic(state, window, critic_key)
        following = ShacState(
            nominal=state.nominal,
            actor=actor,
            actor_optimiser=actor_optimiser,
            experience=experience,
            key=key,
            updates=state.updates + 1,
            critic=critic,
            target=moved_towards(state.target, critic, settings.target_smoothing),
            critic_optimiser=critic_optimiser,
        )
        return following, report(experience, window) | {
            "critic_loss": critic_loss,
            "std": jnp.mean(jnp.exp(actor.log_std)),
            "gradient_norm": norm(gradient),
            "nonfinite": nonfinite + critic_nonfinite,
        }

    def _actor_loss(self, actor: TanhGaussian, state: ShacState, noise, key):
        settings, old = self.settings, state.experience

        def value(observation):
            return settings.value(state.target, old.normaliser(observation))

        experience, window = self.collector.collect(
            old, key, noise, lambda o, noise: (state.propose(actor, o, noise), ()), value, self._move, self._whole
        )
        discounts, discount = _discounts(window.ended, settings.discount, 0.0 if self._whole else 1.0)
        # The window's return: rewards while the episode lasts, then the value where it or the window ends.
        gains = discounts * window.shaped
        gains = gains + jnp.where(window.ended, discounts * settings.discount * window.value, 0.0)
        final = jax.vmap(lambda e: value(self.collector.observe(e)))(experience.episodes)
        # An episode that ended with the window has its value already.
        gains_end = jnp.where(window.ended[-1], 0.0, discount * final)
        objective = (jnp.sum(gains) + jnp.sum(gains_end)) / gains.size
        return -objective, detached((experience, window))

    def _move(self, episode: Episode, proposed: Float[Array, " m"]) -> tuple[Episode, Transition]:
        """One step of an episode, with the derivatives that the settings ask for."""
        task = self.task
        episode_next, seen = self.collector.move(self._limited(episode), proposed)
        if self.settings.placement == "environment":
            # The learner's derivative passes the guard by; the plant got what the guard applied.
            applied = _passing_by(proposed, seen.applied)
            x_next = task.system.disturbed_step(seen.x, applied, seen.disturbance)
            reward = task.reward(seen.x, applied, x_next, episode.t, episode.context)
            margin = task.safe_set.margin(x_next)
            cost = 1.0 - jnp.all(margin >= 0).astype(x_next.dtype)
            episode_next = eqx.tree_at(lambda e: e.x, episode_next, x_next)
            seen = eqx.tree_at(
                lambda s: (s.applied, s.x_next, s.reward, s.margin, s.cost),
                seen,
                (jax.lax.stop_gradient(seen.applied), x_next, reward, margin, cost),
            )
        return episode_next, seen

    @property
    def _whole(self) -> bool:
        """Whether windows hold whole episodes. Then each begins with new ones, what follows their end does not count, and
        the objective is their return, with no critic's guess in it."""
        return self.task.finite and self.settings.window >= self.task.episode_steps

    def _limited(self, episode: Episode) -> Episode:
        if self.settings.gradient_limit == float("inf"):
            return episode
        return eqx.tree_at(lambda e: e.x, episode, limit_cotangent(episode.x, self.settings.gradient_limit))

    def _fit_critic(self, state: ShacState, window: Window, key):
        settings = self.settings
        targets = td_lambda(
            window.shaped, window.value, window.terminated, window.ended, settings.discount, settings.trace
        )
        observations = jax.vmap(jax.vmap(state.experience.normaliser))(window.observation)
        observations, targets = observations.reshape(-1, observations.shape[-1]), targets.reshape(-1)

        def loss(critic, observations, targets):
            values = jax.vmap(lambda o: settings.value(critic, o))(observations)
            return jnp.mean(((values - targets) / settings.value_unit) ** 2), None

        def fit(carry, key):
            critic, optimiser_state = carry
            rows = jax.random.choice(key, targets.shape[0], (targets.shape[0] // 2,), replace=False)
            (value, _), gradient = value_and_gradient(loss, critic, observations[rows], targets[rows])
            optimiser = self._critic_optimiser(settings.critic_steps)
            critic, optimiser_state, bad = descend(optimiser, gradient, optimiser_state, critic)
            return (critic, optimiser_state), (value, bad)

        keys = jax.random.split(key, settings.critic_steps)
        (critic, optimiser_state), (values, bad) = over_steps(fit, (state.critic, state.critic_optimiser), keys)
        return critic, optimiser_state, jnp.mean(values), jnp.sum(bad)


def _discounts(ended: Bool[Array, "H E"], discount: float, renewed: float):
    """(weight of each step's reward [H, E], weight of what follows the window [E]); a new episode begins at `renewed`."""

    def advance(weight, ended):
        return jnp.where(ended, renewed, weight * discount), weight

    last, weights = jax.lax.scan(advance, jnp.ones(ended.shape[1]), ended)
    return weights, last


@jax.custom_jvp
def _passing_by(proposed, applied):
    """`applied`, bit for bit, with the derivative of `proposed`."""
    return applied


@_passing_by.defjvp
def _passing_by_jvp(primals, tangents):
    return primals[1], tangents[0]
