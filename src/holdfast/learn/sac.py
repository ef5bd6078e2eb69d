"""SAC: a soft actor-critic that learns from replayed transitions, with a guard between proposal and plant."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from holdfast.learn.experience import PolicySettings, report, tamed
from holdfast.learn.networks import TanhGaussian, TwinCritic, log_density
from holdfast.learn.optimise import adam, descend, moved_towards, norm, over_steps_if, start, value_and_gradient
from holdfast.learn.policy_trainer import PolicyState, PolicyTrainer
from holdfast.learn.replay import Replay, Transitions, transitions_of


class SacSettings(PolicySettings):
    """Settings of SAC: `PolicySettings`; and

    Placement "environment": critics and actor know proposed actions only, and the guard is part of what the world does
    with them. Placement "policy": critics judge applied actions, and the actor's derivative passes through the guard. A
    replayed state has no commitment, so the guard starts from a fresh one there and claims no recursion; steps of the
    plant are guarded as ever.

    Attributes:
        replay: transitions kept.
        batch: transitions of a gradient step.
        update_ratio: gradient steps for each environment step.
        warm_up: environment steps with actions uniform in the input box, before the first gradient step.
        target_smoothing: share of the critics that moves into their targets at each gradient step.
        initial_temperature: weight of the entropy at the start, in units of scaled rewards.
        temperature_rate: peak rate of Adam for its logarithm.
        target_entropy: what the temperature steers the entropy to, for each input, of actions in units of half-widths.
    """

    updates: int = eqx.field(static=True, default=800)
    environments: int = eqx.field(static=True, default=16)
    window: int = eqx.field(static=True, default=8)
    actor_rate: float = eqx.field(static=True, default=1e-3)
    initial_std: float = eqx.field(static=True, default=0.5)
    restart: float = eqx.field(static=True, default=0.003)
    lost: float = eqx.field(static=True, default=10.0)
    replay: int = eqx.field(static=True, default=100_000)
    batch: int = eqx.field(static=True, default=128)
    update_ratio: float = eqx.field(static=True, default=0.25)
    warm_up: int = eqx.field(static=True, default=1000)
    target_smoothing: float = eqx.field(static=True, default=0.02)
    initial_temperature: float = eqx.field(static=True, default=0.01)
    temperature_rate: float = eqx.field(static=True, default=3e-3)
    target_entropy: float = eqx.field(static=True, default=-2.0)

    def __check_init__(self):
        size = self.environments * self.window
        if self.replay < size:
            raise ValueError(
                f"SacSettings: replay = {self.replay} holds less than the {size} steps of an update "
                "(environments * window); give at least as many"
            )

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of an update."""
        return max(1, round(self.update_ratio * self.environments * self.window))


#: Fields of the state that gradient steps move.
_LEARNED = (
    "actor",
    "actor_optimiser",
    "critic",
    "critic_optimiser",
    "target",
    "log_temperature",
    "temperature_optimiser",
)


class SacState(PolicyState):
    """Everything a resumed run needs."""

    critic: TwinCritic
    target: TwinCritic
    log_temperature: Float[Array, ""]
    critic_optimiser: Any
    temperature_optimiser: Any
    replay: Replay


class SacTrainer(PolicyTrainer):
    """Soft actor-critic (Haarnoja et al. 2018, arXiv 1801.01290 and 1812.05905) on a task, through a guard: twin critics,
    automatic temperature, uniform replay. Targets bootstrap where an episode is truncated or cut, not where it is over.
    """

    settings: SacSettings = SacSettings()

    def init(self, key: Key[Array, ""]) -> SacState:
        task, settings = self.task, self.settings
        actor_key, first_key, second_key, episode_key, unit_key, key = jax.random.split(key, 6)
        o, n, m = task.observation_size, task.system.state_size, task.system.input_size
        actor = TanhGaussian.initialise(
            actor_key, o, settings.hidden, task.system.input_box, settings.initial_std, std_of_state=True
        )
        sizes = (o + m, *settings.hidden, 1)
        critic = TwinCritic.initialise(first_key, second_key, sizes)
        temperature = jnp.log(jnp.asarray(settings.initial_temperature))
        steps = settings.gradient_steps
        return SacState(
            nominal=task.nominal,
            actor=actor,
            actor_optimiser=start(self._actor_optimiser(steps), actor),
            experience=self.collector.start(episode_key, unit_key),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            critic=critic,
            target=critic,
            log_temperature=temperature,
            critic_optimiser=start(self._critic_optimiser(steps), critic),
            temperature_optimiser=start(self._temperature_optimiser(), temperature),
            replay=Replay.empty(settings.replay, o, n if self._through_guard else 0, m),
        )

    def update(self, state: SacState) -> tuple[SacState, dict[str, Array]]:
        settings = self.settings
        key, fly_key, fit_key = jax.random.split(state.key, 3)
        experience, window = self.fly(state, fly_key)
        seen = transitions_of(tamed(window, settings), settings, self._through_guard)
        replay, broken = state.replay.add(seen)
        state = replace(state, experience=experience, key=key, updates=state.updates + 1, replay=replay)
        learned, metrics = self._learn(state, experience.safety.steps >= settings.warm_up, fit_key)
        state = replace(state, **learned)
        nonfinite = jnp.sum(metrics.pop("nonfinite")) + broken
        means = {name: jnp.mean(value) for name, value in metrics.items()}
        temperature = jnp.exp(state.log_temperature)
        return state, report(experience, window) | means | {"temperature": temperature, "nonfinite": nonfinite}

    def fly(self, state: SacState, key: Key[Array, ""]):
        """(experience after a window, the window)."""
        settings, box = self.settings, self.task.system.input_box
        normal_key, uniform_key, key = jax.random.split(key, 3)
        shape = (settings.window, settings.environments, self.task.system.input_size)
        noise = jax.random.normal(normal_key, shape), jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
        warm = state.safety.steps >= settings.warm_up

        def act(observation, noise):
            wanted = state.propose(state.actor, observation, noise[0])
            centre, half = (jnp.asarray(part, wanted.dtype) for part in (box.centre, box.half_widths))
            return jnp.where(warm, wanted, box.clip(centre + half * noise[1])), ()

        return self.collector.collect(state.experience, key, noise, act)

    def _learn(self, state: SacState, ready: Bool[Array, ""], key: Key[Array, ""]):
        """What is learned after an update's gradient steps, by the names of its fields, and metrics of each step."""
        keys = jax.random.split(key, self.settings.gradient_steps)
        learned = {name: getattr(state, name) for name in _LEARNED}
        return over_steps_if(ready, lambda learned, key: self._fit(replace(state, **learned), key), learned, keys)

    def _fit(self, state: SacState, key: Key[Array, ""]):
        """One gradient step of critics, actor and temperature on a batch of what is replayed."""
        settings, normaliser = self.settings, state.experience.normaliser
        draw_key, next_key, now_key = jax.random.split(key, 3)
        batch = state.replay.sample(draw_key, settings.batch, state.experience.reward_scale.dtype)
        batch = batch.charged(state.experience.violation_cost)
        noise = jax.random.normal(next_key, batch.proposed.shape), jax.random.normal(now_key, batch.proposed.shape)
        goals = jax.lax.stop_gradient(self.targets(state, batch, noise[0]))
        observations = jax.vmap(normaliser)(batch.observation)
        judged = batch.applied if self._through_guard else batch.proposed

        def miss(critic):
            values = jax.vmap(lambda o, u: self._values(critic, o, u))(observations, judged)
            # Huber's loss: a few episodes far out would otherwise drown what happens near the goal.
            misses = optax.huber_loss(values / settings.value_unit, goals[:, None] / settings.value_unit)
            return 2 * jnp.mean(jnp.sum(misses, axis=1)), None

        (critic_loss, _), gradient = value_and_gradient(miss, state.critic)
        optimiser = self._critic_optimiser(settings.gradient_steps)
        critic, critic_optimiser, critic_bad = descend(optimiser, gradient, state.critic_optimiser, state.critic)

        temperature = jnp.exp(state.log_temperature)

        def regret(actor):
            def one(observation, x, noise):
                action, density = self._sample(state, actor, observation, noise)
                taken = self._taken(x, action)
                value = jnp.min(self._values(critic, normaliser(observation), taken))
                # Where critics judge applied actions, moving a proposal is charged here, not in the reward.
                moved = jnp.sum(((action - taken) / self._half(action.dtype)) ** 2)
                return temperature * density - value + settings.intervention_penalty * moved, density

            losses, densities = jax.vmap(one)(batch.observation, batch.x, noise[1])
            return jnp.mean(losses) / settings.value_unit, jnp.mean(densities)

        (_, density), actor_gradient = value_and_gradient(regret, state.actor)
        optimiser = self._actor_optimiser(settings.gradient_steps)
        actor, actor_optimiser, actor_bad = descend(optimiser, actor_gradient, state.actor_optimiser, state.actor)

        # Where there is less entropy than asked for, the temperature rises.
        missing = density + settings.target_entropy * self.task.system.input_size
        log_temperature, temperature_optimiser, temperature_bad = descend(
            self._temperature_optimiser(), -missing, state.temperature_optimiser, state.log_temperature
        )
        learned = {
            "actor": actor,
            "actor_optimiser": actor_optimiser,
            "critic": critic,
            "critic_optimiser": critic_optimiser,
            "target": moved_towards(state.target, critic, settings.target_smoothing),
            "log_temperature": log_temperature,
            "temperature_optimiser": temperature_optimiser,
        }
        metrics = {
            "critic_loss": critic_loss,
            "entropy": -density,
            "gradient_norm": norm(actor_gradient),
            "nonfinite": critic_bad + actor_bad + temperature_bad,
        }
        return learned, metrics

    def targets(self, state: SacState, batch: Transitions, noise: Float[Array, "B m"]) -> Float[Array, " B"]:
        """What the critics should say of a batch: r + gamma (min_i Q_i(s', a') - alpha log pi(a'|s')), shape [B]."""

        def soft_value(observation, x, noise):
            action, density = self._sample(state, state.actor, observation, noise)
            seen = state.experience.normaliser(observation)
            return jnp.min(self._values(state.target, seen, self._taken(x, action))) - temperature * density

        temperature = jnp.exp(state.log_temperature)
        following = jax.vmap(soft_value)(batch.next_observation, batch.x_next, noise)
        return batch.reward + self.settings.discount * batch.bootstrap * following

    def _sample(self, state: SacState, actor: TanhGaussian, observation, noise):
        """(action [m], its log density) of a raw observation."""
        mean, log_std = actor.gaussian(state.experience.normaliser(observation), state.nominal(observation))
        raw = mean + jnp.exp(log_std) * noise
        return actor.squashed(raw), log_density(raw, mean, log_std)

    def _taken(self, x, action: Float[Array, " m"]) -> Float[Array, " m"]:
        """The action that critics judge: as proposed, or as a guard without a history would apply it."""
        if not self._through_guard:
            return action
        afresh = getattr(self.guard, "guard", None)
        return (self.guard.step(self.guard.init(x), x, action)[0] if afresh is None else afresh(x, action)).action

    def _values(self, critic: TwinCritic, observation: Float[Array, " o"], action: Float[Array, " m"]):
        """Both critics on a normalised observation, shape [2]."""
        scaled = (action - jnp.asarray(self.task.system.input_box.centre, action.dtype)) / self._half(action.dtype)
        seen = jnp.concatenate([observation, scaled])
        return jnp.stack([self.settings.value(critic.first, seen), self.settings.value(critic.second, seen)])

    def _half(self, dtype) -> Float[Array, " m"]:
        return jnp.asarray(self.task.system.input_box.half_widths, dtype)

    @property
    def _through_guard(self) -> bool:
        return self.settings.placement == "policy"

    def _temperature_optimiser(self):
        return adam(self.settings.temperature_rate, self.settings.updates * self.settings.gradient_steps, clip=1.0)
