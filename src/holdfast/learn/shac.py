"""SHAC: short-horizon actor-critic through the differentiable simulator, with a guard in the loop."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from holdfast.learn.advantage import td_lambda
from holdfast.learn.networks import Network, TanhGaussian
from holdfast.learn.normalisation import NormalisedPolicy, RunningNormaliser
from holdfast.learn.optimise import adam, descend, limit_cotangent, start, value_and_gradient
from holdfast.tasks import Episode, Task, plant_step, reset, step
from holdfast.types import Guard, Status

Placement = Literal["policy", "environment"]


class ShacSettings(eqx.Module):
    """Settings of SHAC.

    Attributes:
        updates: actor updates.
        environments: episodes side by side.
        window: steps H differentiated through.
        discount, trace: gamma and lambda of the critic's targets.
        actor_rate, critic_rate: peak rates of Adam.
        critic_steps: critic updates for each actor update, each on a random half of the window.
        target_smoothing: share of the critic that moves into its target at each actor update.
        hidden: hidden layers of actor and critic.
        initial_std: standard deviation of the policy's noise before the tanh, at the start.
        intervention_penalty: weight of |applied - proposed|^2 in units of the input box's half-widths.
        margin_penalty, margin_target: weight of [margin_target - h_i(x)/h_i(x*)]_+^2, summed over constraints.
        restart: probability with which an episode is cut and started anew at each step (a truncation: the value of its
            state still counts), so that starts are not rare where episodes are long.
        practice: probability with which a training episode begins at the task's `sample_practice` instead of a start.
        lost: an episode ends in training where a step costs more than `lost` times what doing nothing costs, charged as
            if the rest of it cost as much: there is little to learn from what follows, and much noise.
        gradient_limit: longest derivative of the objective by an episode's state that is passed back over a step (in the
            objective's units over the state's): over long windows, a few chaotic episodes drown all others.
        placement: "policy" differentiates through the guard, "environment" sees only what it did.
    """

    updates: int = eqx.field(static=True, default=300)
    environments: int = eqx.field(static=True, default=64)
    window: int = eqx.field(static=True, default=32)
    discount: float = eqx.field(static=True, default=0.98)
    trace: float = eqx.field(static=True, default=0.95)
    actor_rate: float = eqx.field(static=True, default=3e-3)
    critic_rate: float = eqx.field(static=True, default=3e-3)
    critic_steps: int = eqx.field(static=True, default=8)
    target_smoothing: float = eqx.field(static=True, default=0.4)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(64, 64))
    initial_std: float = eqx.field(static=True, default=0.3)
    intervention_penalty: float = eqx.field(static=True, default=1.0)
    margin_penalty: float = eqx.field(static=True, default=0.0)
    margin_target: float = eqx.field(static=True, default=0.02)
    restart: float = eqx.field(static=True, default=0.01)
    practice: float = eqx.field(static=True, default=0.0)
    lost: float = eqx.field(static=True, default=float("inf"))
    gradient_limit: float = eqx.field(static=True, default=float("inf"))
    placement: Placement = eqx.field(static=True, default="policy")


class Safety(eqx.Module):
    """What the guard did in training so far: counts over all steps, all shape []; `statuses` shape [7].

    `violations` are steps that it answered for; `unpromised_violations` happened while it said `uncertified`.
    """

    steps: Int[Array, ""]
    violations: Int[Array, ""]
    unpromised_violations: Int[Array, ""]
    statuses: Int[Array, " 7"]
    uncertified_starts: Int[Array, ""]
    worst_margin: Float[Array, ""]


class ShacState(eqx.Module):
    """Everything a resumed run needs; `nominal` is the task's."""

    nominal: Callable[[Float[Array, " o"]], Float[Array, " m"]]
    actor: TanhGaussian
    critic: Network
    target: Network
    normaliser: RunningNormaliser
    actor_optimiser: Any
    critic_optimiser: Any
    episodes: Episode
    returns: Float[Array, " E"]
    last_returns: Float[Array, " E"]
    reward_scale: Float[Array, ""]
    safety: Safety
    key: Key[Array, ""]
    updates: Int[Array, ""]

    @property
    def policy(self) -> NormalisedPolicy:
        """The deterministic policy on raw observations."""
        return NormalisedPolicy(self.normaliser, self.actor, self.nominal)


class ShacTrainer(eqx.Module):
    """Short-horizon actor-critic (Xu et al., ICLR 2022) on a task, through a guard.

    The actor's loss is the discounted reward of H steps plus the target critic's value of the last state, differentiated
    through simulator, guard and policy. The critic regresses TD(lambda) targets. Steps of every episode go through the
    guard, so its promise holds in training.

    Attributes:
        task: what is to be done.
        guard: between proposed and applied action: a safeguard, or `Unguarded`.
        settings: numbers.
    """

    task: Task
    guard: Guard
    settings: ShacSettings = ShacSettings()

    def init(self, key: Key[Array, ""]) -> ShacState:
        task, settings = self.task, self.settings
        o, m = task.observation_size, task.system.input_size
        actor_key, critic_key, episode_key, unit_key, key = jax.random.split(key, 5)
        idle = jnp.asarray(task.system.equilibrium()[1], jnp.float32)
        network = Network.initialise(actor_key, (o, *settings.hidden, m))
        log_std = jnp.full(m, jnp.log(settings.initial_std))
        actor = TanhGaussian(network, log_std, task.system.input_box)
        critic = Network.initialise(critic_key, (o, *settings.hidden, 1), last_gain=0.1)
        count = settings.environments
        # All begin in practice, at different times, so that a window holds every phase of the task.
        episodes = jax.vmap(lambda k: self._begin(k, 1.0))(jax.random.split(episode_key, count))
        zeros = jnp.zeros((), jnp.int32)
        # Windows of whole episodes begin with new ones; others go on with these.
        born = zeros if self._whole else jnp.sum(~_all_certified(episodes), dtype=jnp.int32)
        safety = Safety(zeros, zeros, zeros, jnp.zeros(len(Status), jnp.int32), born, jnp.asarray(jnp.inf))
        # A unit in which rewards are of order one: what doing nothing costs at a start, whatever time it is.
        starts = jax.vmap(task.sample_start)(jax.random.split(unit_key, count))
        times = jax.random.randint(unit_key, (count,), 0, task.episode_steps)
        rewards = jax.vmap(lambda x, t, c: task.reward(x, idle, task.system.step(x, idle), t, c))
        contexts = jax.vmap(task.context_at)(starts, episodes.context)
        unit = jnp.mean(jnp.abs(rewards(starts, times, contexts)))
        return ShacState(
            task.nominal,
            actor,
            critic,
            critic,
            RunningNormaliser.initialise(o).update(jax.vmap(self._observe)(episodes)),
            start(self._actor_optimiser(), actor),
            start(self._critic_optimiser(), critic),
            episodes,
            _return_from(episodes),
            jnp.full(count, jnp.nan),
            1.0 / (unit + 1e-6),
            safety,
            key,
            zeros,
        )

    def update(self, state: ShacState) -> tuple[ShacState, dict[str, Array]]:
        settings = self.settings
        key, noise_key, critic_key = jax.random.split(state.key, 3)
        shape = (settings.window, settings.environments, self.task.system.input_size)
        noise = jax.random.normal(noise_key, shape)
        (_, window), gradient = value_and_gradient(self._actor_loss, state.actor, state, noise, noise_key)
        actor, actor_optimiser, nonfinite = descend(
            self._actor_optimiser(), gradient, state.actor_optimiser, state.actor
        )
        critic, critic_optimiser, critic_loss, critic_nonfinite = self._fit_critic(state, window, critic_key)
        smooth = settings.target_smoothing
        target = jax.tree.map(lambda old, new: (1 - smooth) * old + smooth * new, state.target, critic)
        safety = _count(state.safety, window)
        o = window["observation"].shape[-1]
        following = ShacState(
            state.nominal,
            actor,
            critic,
            target,
            state.normaliser.update(window["observation"].reshape(-1, o)),
            actor_optimiser,
            critic_optimiser,
            window["episodes"],
            window["returns"],
            window["last_returns"],
            state.reward_scale,
            safety,
            key,
            state.updates + 1,
        )
        size = window["cost"].size
        metrics = {
            "return": jnp.nanmean(window["last_returns"]),
            "reward": jnp.mean(window["reward"]),
            "violations": jnp.sum(window["cost"] > 0),
            "interventions": jnp.sum(_intervened(window["status"])) / size,
            "fallbacks": jnp.sum(window["status"] == Status.fell_back) / size,
            "lost": jnp.sum(window["lost"]) / size,
            "uncertified": jnp.sum(window["status"] == Status.uncertified) / size,
            "worst_margin": jnp.min(window["margin"]),
            "critic_loss": critic_loss,
            "std": jnp.mean(jnp.exp(actor.log_std)),
            "gradient_norm": jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))),
            "nonfinite": nonfinite + critic_nonfinite,
        }
        return following, metrics

    def _observe(self, episode: Episode):
        return self.task.observe(episode.x, episode.t, episode.context)

    def _actor_loss(self, actor: TanhGaussian, state: ShacState, noise, key):
        settings, task = self.settings, self.task
        half = jnp.asarray(task.system.input_box.half_widths, jnp.float32)
        typical = task.safe_set.margin(jnp.asarray(task.system.equilibrium()[0], jnp.float32))

        def one(episode, running, last, discount, noise, key):
            observation = self._observe(episode)
            proposed = actor(state.normaliser(observation), task.nominal(observation), noise)
            episode_next, seen = step(task, self.guard, self._limited(episode), proposed)
            if settings.placement == "environment":
                # The learner's derivative passes the guard by; the plant got what the guard applied.
                applied = _passing_by(proposed, seen.applied)
                x_next = plant_step(task, seen.x, applied, seen.disturbance)
                reward = task.reward(seen.x, applied, x_next, episode.t, episode.context)
                margin = task.safe_set.margin(x_next)
                cost = 1.0 - jnp.all(margin >= 0).astype(x_next.dtype)
                episode_next = eqx.tree_at(lambda e: e.x, episode_next, x_next)
                seen = eqx.tree_at(
                    lambda s: (s.applied, s.x_next, s.reward, s.margin, s.cost),
                    seen,
                    (jax.lax.stop_gradient(seen.applied), x_next, reward, margin, cost),
                )
            moved = jnp.sum(((proposed - seen.applied) / half) ** 2)
            shortfall = jax.nn.relu(settings.margin_target - seen.margin / typical)
            shaped = seen.reward * state.reward_scale
            shaped = shaped - settings.intervention_penalty * moved - settings.margin_penalty * jnp.sum(shortfall**2)
            cut = jax.random.bernoulli(key, settings.restart)
            whole = seen.terminated | seen.truncated | seen.diverged
            lost = seen.reward * state.reward_scale < -settings.lost
            ended = whole | cut | lost
            next_observation = self._observe(episode_next)
            value = self._value(state.target, state.normaliser(next_observation))
            # A lost episode is charged its last reward for the rest of its time.
            left = task.episode_steps - episode.t - 1 if task.finite else jnp.inf
            rest = jnp.minimum(left, 1 / (1 - settings.discount))
            value = jnp.where(lost, seen.reward * state.reward_scale * rest, value)
            value = jnp.where(seen.terminated, 0.0, value)
            running = running + jax.lax.stop_gradient(seen.reward)
            # Only whole episodes have a return to report; it is NaN for those that began in practice.
            charged = jnp.where(lost, jax.lax.stop_gradient(seen.reward) * rest, 0.0)
            last = jnp.where((whole | lost) & ~jnp.isnan(running), running + charged, last)
            record = {
                "observation": observation,
                "next_observation": next_observation,
                "reward": seen.reward,
                "shaped": shaped,
                "cost": seen.cost,
                "margin": jnp.min(seen.margin),
                "status": seen.guard.status,
                "lost": lost,
                "terminated": seen.terminated,
                "ended": ended,
                "value": value,
            }
            # The window's return: rewards while the episode lasts, then the value where it or the window ends.
            gain = discount * shaped + jnp.where(ended, discount * settings.discount * value, 0.0)
            discount = jnp.where(ended, 0.0 if self._whole else 1.0, discount * settings.discount)
            return episode_next, running, last, discount, gain, record

        # A commitment costs a whole rollout of the backup: one batch a window, for whoever ends in it.
        begin_key, cut_key = jax.random.split(key)
        begin_keys = jax.random.split(begin_key, settings.environments)
        fresh = _detach(jax.vmap(lambda k: self._begin(k, settings.practice))(begin_keys))
        uncertified = ~_all_certified(fresh)

        def advance(carry, inputs):
            episodes, running, last, discount = carry
            noise, key = inputs
            cut_keys = jax.random.split(key, settings.environments)
            episodes, running, *carry, gain, record = jax.vmap(one)(episodes, running, last, discount, noise, cut_keys)
            ended = record["ended"]

            def renew(new, old):
                return jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), new, old)

            episodes = jax.tree.map(renew, fresh, episodes)
            running = jnp.where(ended, _return_from(fresh), running)
            return (episodes, running, *carry), (gain, record | {"uncertified_start": ended & uncertified})

        keys = jax.random.split(cut_key, settings.window)
        episodes, returns = (fresh, _return_from(fresh)) if self._whole else (state.episodes, state.returns)
        carry = (episodes, returns, state.last_returns, jnp.ones(settings.environments))
        (episodes, running, last, discount), (gains, window) = jax.lax.scan(advance, carry, (noise, keys))
        final = jax.vmap(lambda e: self._value(state.target, state.normaliser(self._observe(e))))(episodes)
        # An episode that ended with the window has its value already.
        gains_end = jnp.where(window["ended"][-1], 0.0, discount * final)
        objective = (jnp.sum(gains) + jnp.sum(gains_end)) / gains.size
        window = jax.lax.stop_gradient(window)
        if self._whole:
            # What is renewed at the end of the window is never flown; what the window began with is.
            window["uncertified_start"] = jnp.concatenate([uncertified[None], window["uncertified_start"][:-1]])
        window |= {"episodes": _detach(episodes), "returns": running, "last_returns": last}
        return -objective, window

    def _begin(self, key, practice: float) -> Episode:
        """A new episode: with probability `practice`, and where the guard answers for it, one of the task's practice."""
        task, guard = self.task, self.guard
        start_key, where_key, whether_key = jax.random.split(key, 3)
        episode = reset(task, guard, start_key)
        if practice == 0:
            return episode
        x, t = task.sample_practice(where_key)
        x = x.astype(episode.x.dtype)
        trial = Episode(x, t, task.context_at(x, episode.context), guard.init(x), episode.key)
        chosen = jax.random.bernoulli(whether_key, practice) & _certified(trial.guard)
        return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), trial, episode)

    @property
    def _whole(self) -> bool:
        """Whether windows hold whole episodes. Then each begins with new ones, what follows their end does not count, and
        the objective is their return, with no critic's guess in it."""
        return self.task.finite and self.settings.window >= self.task.episode_steps

    def _limited(self, episode: Episode) -> Episode:
        if self.settings.gradient_limit == float("inf"):
            return episode
        return eqx.tree_at(lambda e: e.x, episode, limit_cotangent(episode.x, self.settings.gradient_limit))

    def _value(self, critic: Network, observation):
        # Values are sums of about 1 / (1 - gamma) rewards of order one.
        return critic(observation)[0] / (1 - self.settings.discount) * 0.1

    def _fit_critic(self, state: ShacState, window, key):
        settings = self.settings
        targets = td_lambda(
            window["shaped"],
            window["value"],
            window["terminated"],
            window["ended"],
            settings.discount,
            settings.trace,
        )
        observations = jax.vmap(jax.vmap(state.normaliser))(window["observation"])
        observations, targets = observations.reshape(-1, observations.shape[-1]), targets.reshape(-1)
        unit = 0.1 / (1 - settings.discount)

        def loss(critic, observations, targets):
            values = jax.vmap(lambda o: self._value(critic, o))(observations)
            return jnp.mean(((values - targets) / unit) ** 2), None

        def fit(carry, key):
            critic, optimiser_state = eqx.combine(carry, static)
            rows = jax.random.choice(key, targets.shape[0], (targets.shape[0] // 2,), replace=False)
            (value, _), gradient = value_and_gradient(loss, critic, observations[rows], targets[rows])
            critic, optimiser_state, bad = descend(self._critic_optimiser(), gradient, optimiser_state, critic)
            return eqx.filter((critic, optimiser_state), eqx.is_array), (value, bad)

        carry, static = eqx.partition((state.critic, state.critic_optimiser), eqx.is_array)
        carry, (values, bad) = jax.lax.scan(fit, carry, jax.random.split(key, settings.critic_steps))
        critic, optimiser_state = eqx.combine(carry, static)
        return critic, optimiser_state, jnp.mean(values), jnp.sum(bad)

    def _actor_optimiser(self):
        return adam(self.settings.actor_rate, self.settings.updates, clip=1.0)

    def _critic_optimiser(self):
        return adam(self.settings.critic_rate, self.settings.updates * self.settings.critic_steps, clip=1.0)


@jax.custom_jvp
def _passing_by(proposed, applied):
    """`applied`, bit for bit, with the derivative of `proposed`."""
    return applied


@_passing_by.defjvp
def _passing_by_jvp(primals, tangents):
    return primals[1], tangents[0]


def _detach(tree):
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def _return_from(episodes: Episode) -> Array:
    """What episodes have earned when they begin: nothing, or NaN where they begin in the middle."""
    return jnp.where(episodes.t == 0, 0.0, jnp.nan)


def _certified(guard_state) -> Array:
    """Whether a guard's state promises anything; guards without promises break none."""
    return jnp.asarray(getattr(guard_state, "certified", True))


def _all_certified(episodes: Episode) -> Array:
    return jax.vmap(lambda episode: jnp.broadcast_to(_certified(episode.guard), episode.t.shape))(episodes)


def _intervened(status):
    return (status != Status.accepted) & (status != Status.unguarded)


def _count(safety: Safety, window) -> Safety:
    status = window["status"].reshape(-1)
    violated, promised = window["cost"].reshape(-1) > 0, status != Status.uncertified
    return Safety(
        safety.steps + status.shape[0],
        safety.violations + jnp.sum(violated & promised, dtype=jnp.int32),
        safety.unpromised_violations + jnp.sum(violated & ~promised, dtype=jnp.int32),
        safety.statuses + jnp.sum(jax.nn.one_hot(status, len(Status), dtype=jnp.int32), axis=0, dtype=jnp.int32),
        safety.uncertified_starts + jnp.sum(window["uncertified_start"], dtype=jnp.int32),
        jnp.minimum(safety.worst_margin, jnp.min(window["margin"])),
    )
