"""PPO: clipped policy gradients from whole windows of experience, with a guard between proposal and plant."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from holdfast.learn.advantage import generalised_advantage
from holdfast.learn.experience import PolicySettings, Window, report, tamed
from holdfast.learn.networks import Network, TanhGaussian, log_density
from holdfast.learn.optimise import descend, norm, over_steps, start, value_and_gradient
from holdfast.learn.policy_trainer import PolicyState, PolicyTrainer


class PpoSettings(PolicySettings):
    """Settings of PPO: `PolicySettings`, where `placement` changes nothing, because a policy gradient asks only for the
    probability of what was proposed and for the reward that followed; and

    Attributes:
        trace: lambda of the advantages.
        epochs: passes over each window.
        minibatches: gradient steps in a pass.
        ratio_clip: how far the probability of an action may move in an update before nothing more is gained from it.
        entropy_bonus: weight of the policy's entropy beside advantages of variance one.
    """

    updates: int = eqx.field(static=True, default=100)
    environments: int = eqx.field(static=True, default=32)
    initial_std: float = eqx.field(static=True, default=0.5)
    restart: float = eqx.field(static=True, default=0.003)
    lost: float = eqx.field(static=True, default=10.0)
    trace: float = eqx.field(static=True, default=0.95)
    epochs: int = eqx.field(static=True, default=8)
    minibatches: int = eqx.field(static=True, default=8)
    ratio_clip: float = eqx.field(static=True, default=0.2)
    entropy_bonus: float = eqx.field(static=True, default=1e-3)

    def __check_init__(self):
        size = self.environments * self.window
        if size % self.minibatches:
            raise ValueError(
                f"PpoSettings: minibatches = {self.minibatches} does not divide the {size} steps of an update "
                "(environments * window); give a divisor"
            )


class PpoState(PolicyState):
    """Everything a resumed run needs."""

    critic: Network
    critic_optimiser: Any


class _Batch(eqx.Module):
    """What a gradient step looks at, a leading axis [B] on every leaf."""

    observation: Float[Array, "B o"]
    nominal: Float[Array, "B m"]
    raw: Float[Array, "B m"]
    noise: Float[Array, "B m"]
    log_density: Float[Array, " B"]
    advantage: Float[Array, " B"]
    target: Float[Array, " B"]


class PpoTrainer(PolicyTrainer):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) on a task, through a guard.

    Probabilities are those of proposed actions: what the guard makes of them is the environment's doing. The critic
    regresses TD(lambda) targets, which bootstrap from the true successor where an episode is truncated or cut.
    """

    settings: PpoSettings = PpoSettings()

    def init(self, key: Key[Array, ""]) -> PpoState:
        actor_key, critic_key, episode_key, unit_key, key = jax.random.split(key, 5)
        actor, critic = self._networks(actor_key, critic_key)
        return PpoState(
            nominal=self.task.nominal,
            actor=actor,
            actor_optimiser=start(self._actor_optimiser(self._steps), actor),
            experience=self.collector.start(episode_key, unit_key),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            critic=critic,
            critic_optimiser=start(self._critic_optimiser(self._steps), critic),
        )

    def update(self, state: PpoState) -> tuple[PpoState, dict[str, Array]]:
        key, fly_key, fit_key = jax.random.split(state.key, 3)
        experience, window = self.fly(state, fly_key)
        batch = self._batch(state, tamed(window, self.settings))
        models = (state.actor, state.actor_optimiser, state.critic, state.critic_optimiser)
        models, metrics = over_steps(lambda m, rows: self._fit(m, batch, rows), models, self._rows(fit_key))
        actor, actor_optimiser, critic, critic_optimiser = models
        following = PpoState(
            state.nominal, actor, actor_optimiser, experience, key, state.updates + 1, critic, critic_optimiser
        )
        nonfinite = jnp.sum(metrics.pop("nonfinite"))
        means = {name: jnp.mean(value) for name, value in metrics.items()}
        spread = {"std": jnp.mean(jnp.exp(actor.log_std)), "nonfinite": nonfinite}
        return following, report(experience, window) | means | spread

    def fly(self, state: PpoState, key: Key[Array, ""]):
        """(experience after a window, the window); its `extra` is (before the tanh [m], noise [m], log density [])."""
        settings, normaliser = self.settings, state.experience.normaliser
        noise_key, key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (settings.window, settings.environments, self.task.system.input_size))

        def act(observation, noise):
            mean, log_std = state.actor.gaussian(normaliser(observation), state.nominal(observation))
            raw = mean + jnp.exp(log_std) * noise
            return state.actor.squashed(raw), (raw, noise, log_density(raw, mean, log_std))

        def value(observation):
            return settings.value(state.critic, normaliser(observation))

        return self.collector.collect(state.experience, key, noise, act, value)

    def _batch(self, state: PpoState, window: Window) -> _Batch:
        settings = self.settings
        observations = jax.vmap(jax.vmap(state.experience.normaliser))(window.observation)
        values = jax.vmap(jax.vmap(lambda o: settings.value(state.critic, o)))(observations)
        ends = (window.terminated, window.ended)
        advantage, target = generalised_advantage(
            window.shaped, values, window.value, *ends, settings.discount, settings.trace
        )
        advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
        raw, noise, density = window.extra
        nominal = jax.vmap(jax.vmap(state.nominal))(window.observation)
        batch = _Batch(observations, nominal, raw, noise, density, advantage, target)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)

    def _fit(self, models, batch: _Batch, rows):
        """One gradient step of actor and critic on some rows of the batch."""
        settings = self.settings
        actor, actor_optimiser, critic, critic_optimiser = models
        batch = jax.tree.map(lambda leaf: leaf[rows], batch)
        (_, metrics), gradient = value_and_gradient(self._actor_loss, actor, batch)
        optimiser = self._actor_optimiser(self._steps)
        actor, actor_optimiser, bad = descend(optimiser, gradient, actor_optimiser, actor)

        def miss(critic):
            values = jax.vmap(lambda o: settings.value(critic, o))(batch.observation)
            return jnp.mean(((values - batch.target) / settings.value_unit) ** 2), None

        (critic_loss, _), critic_gradient = value_and_gradient(miss, critic)
        optimiser = self._critic_optimiser(self._steps)
        critic, critic_optimiser, critic_bad = descend(optimiser, critic_gradient, critic_optimiser, critic)
        metrics |= {"critic_loss": critic_loss, "gradient_norm": norm(gradient), "nonfinite": bad + critic_bad}
        return (actor, actor_optimiser, critic, critic_optimiser), metrics

    def _actor_loss(self, actor: TanhGaussian, batch: _Batch):
        settings = self.settings
        mean, log_std = jax.vmap(actor.gaussian)(batch.observation, batch.nominal)
        log_std = jnp.broadcast_to(log_std, mean.shape)
        change = jax.vmap(log_density)(batch.raw, mean, log_std) - batch.log_density
        ratio = jnp.exp(change)
        clipped = jnp.clip(ratio, 1 - settings.ratio_clip, 1 + settings.ratio_clip)
        gain = jnp.mean(jnp.minimum(ratio * batch.advantage, clipped * batch.advantage))
        # The entropy after the tanh has no closed form: an estimate that is differentiated through its samples.
        entropy = -jnp.mean(jax.vmap(log_density)(mean + jnp.exp(log_std) * batch.noise, mean, log_std))
        metrics = {"entropy": entropy, "divergence": jnp.mean(ratio - 1 - change)}
        return -gain - settings.entropy_bonus * entropy, metrics

    def _rows(self, key):
        """Rows of each gradient step: every epoch goes through the window once, in an order of its own."""
        epochs, size = self.settings.epochs, self.steps_per_update
        orders = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, epochs))
        return orders.reshape(self._steps, -1)

    @property
    def _steps(self) -> int:
        """Gradient steps of an update."""
        return self.settings.epochs * self.settings.minibatches
