"""Phase 1 as published: a backup policy that arrives safely, learned from a value of safe arrival by TD3."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from holdfast.backup import BackupNetwork, BackupPolicy, ImplicitInvariantSet
from holdfast.learn.networks import TwinCritic
from holdfast.learn.optimise import adam, descend, moved_towards, over_steps, over_steps_if, start, value_and_gradient
from holdfast.learn.replay import Replay, Transitions
from holdfast.learn.safe_arrival import BackupTrainer

#: What arriving at the very end of the horizon is worth, if no discount is given.
_WORTH_AT_THE_HORIZON = 0.25
#: Draws for a start, of which the first is taken that is safe and not in the base set already.
_DRAWS = 4


class Td3Settings(eqx.Module):
    """Settings of phase 1 by TD3. What is published (PS2-RL, arXiv 2606.14536) is said so; all other numbers are ours.

    Attributes:
        updates: updates of the whole training; learning rates decay over them.
        environments: episodes side by side.
        window: steps that each of them makes in an update.
        hidden: hidden layers of the backup network; the critics' are the same.
        discount: beta, what a step later is worth. Published 0.92 for N = 20 and 0.99 for N = 100; None: such that
            arriving at the end of the horizon is worth 0.25, which lies between the two.
        actor_rate, critic_rate: peak rates of Adam.
        replay: transitions kept.
        batch: transitions of a gradient step.
        update_ratio: gradient steps of the critics for each environment step.
        delay: gradient steps of the critics for each one of the policy and of the targets.
        warm_up: environment steps with actions uniform in the input box, before the first gradient step.
        exploration: standard deviation of the noise on actions, in half-widths of the input box.
        target_noise, target_noise_limit: the same on the actions that targets look at, and where it is cut off.
        target_smoothing: share of policy and critics that moves into their targets.
        action_penalty: weight of |u - u*|^2, in half-widths of the input box, in the policy's loss. Published 0.02 (lane
            keeping) and 0.05 (power loop); 0 certifies more (`python -m benchmarks.phase1`).
        first_starts: starts begin with errors this many times those of the region's states.
        widening: share of the updates over which they grow to the whole region.
        judged: states of the region at which each update looks whether they are certified; for the log only.
    """

    updates: int = eqx.field(static=True, default=4000)
    environments: int = eqx.field(static=True, default=64)
    window: int = eqx.field(static=True, default=8)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(64, 64))
    discount: float | None = eqx.field(static=True, default=None)
    actor_rate: float = eqx.field(static=True, default=1e-3)
    critic_rate: float = eqx.field(static=True, default=1e-3)
    replay: int = eqx.field(static=True, default=200_000)
    batch: int = eqx.field(static=True, default=256)
    update_ratio: float = eqx.field(static=True, default=1 / 64)
    delay: int = eqx.field(static=True, default=2)
    warm_up: int = eqx.field(static=True, default=10_000)
    exploration: float = eqx.field(static=True, default=0.2)
    target_noise: float = eqx.field(static=True, default=0.2)
    target_noise_limit: float = eqx.field(static=True, default=0.5)
    target_smoothing: float = eqx.field(static=True, default=0.01)
    action_penalty: float = eqx.field(static=True, default=0.0)
    first_starts: float = eqx.field(static=True, default=0.3)
    widening: float = eqx.field(static=True, default=0.3)
    judged: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        size = self.environments * self.window
        if self.replay < size:
            raise ValueError(
                f"Td3Settings: replay = {self.replay} holds less than the {size} steps of an update; give at least as many"
            )
        if self.discount is not None and not 0 < self.discount < 1:
            raise ValueError(f"Td3Settings: discount = {self.discount}; give a number between 0 and 1, or None")

    @property
    def rounds(self) -> int:
        """Gradient steps of the policy in an update; the critics make `delay` times as many."""
        return max(1, round(self.update_ratio * self.environments * self.window / self.delay))


class Learned(eqx.Module):
    """What gradient steps move."""

    network: BackupNetwork
    target_network: BackupNetwork
    network_optimiser: Any
    critic: TwinCritic
    target_critic: TwinCritic
    critic_optimiser: Any


class Td3State(eqx.Module):
    """Everything a resumed run needs.

    Attributes:
        learned: networks, their targets and optimisers.
        x: where the episodes stand, shape [E, n].
        age: steps of theirs so far, shape [E].
        replay: transitions so far.
        key: for all that follows.
        updates, steps: done so far, in updates and in steps of the system, shape [].
    """

    learned: Learned
    x: Float[Array, "E n"]
    age: Int[Array, " E"]
    replay: Replay
    key: Key[Array, ""]
    updates: Int[Array, ""]
    steps: Int[Array, ""]

    @property
    def network(self) -> BackupNetwork:
        """The backup network."""
        return self.learned.network


class Td3Trainer(BackupTrainer):
    """TD3 (Fujimoto et al. 2018, arXiv 1802.09477) on the value of safe arrival

        V(x) = 1 in the base set, 0 outside the safe set, else beta V(F(x, pi(x))),

    as PS2-RL (arXiv 2606.14536) trains its backup. Twin critics Q(x, u) end in a sigmoid and are exact where V is known, so
    an episode's end needs no flag: the value of its last state says all. Episodes that merely took N steps say nothing, and
    bootstrap like any other step. What is replayed is the true successor, before any new start.
    """

    settings: Td3Settings = Td3Settings()

    def init(self, key: Key[Array, ""]) -> Td3State:
        settings, system = self.settings, self.base.system
        network_key, first_key, second_key, start_key, key = jax.random.split(key, 5)
        network = self._network(network_key)
        sizes = (network.scale.shape[0] + system.input_size, *settings.hidden, 1)
        critic = TwinCritic.initialise(first_key, second_key, sizes)
        learned = Learned(
            network,
            network,
            start(self._optimiser(settings.actor_rate), network),
            critic,
            critic,
            start(self._optimiser(settings.critic_rate), critic),
        )
        nought = jnp.zeros((), jnp.int32)
        x = self.starts(start_key, nought)
        # Nothing is observed but the state itself.
        replay = Replay.empty(settings.replay, 0, system.state_size, system.input_size)
        return Td3State(learned, x, jnp.zeros(settings.environments, jnp.int32), replay, key, nought, nought)

    def update(self, state: Td3State) -> tuple[Td3State, dict[str, Array]]:
        settings = self.settings
        key, fly_key, fit_key, judge_key = jax.random.split(state.key, 4)
        x, age, seen, counts = self.fly(state, fly_key)
        replay, broken = state.replay.add(seen)
        steps = state.steps + self.steps_per_update

        def fit(learned, key):
            return self._fit(learned, replay, x.dtype, key)

        keys = jax.random.split(fit_key, settings.rounds)
        learned, metrics = over_steps_if(steps >= settings.warm_up, fit, state.learned, keys)
        nonfinite = jnp.sum(metrics.pop("nonfinite")) + broken
        means = {name: jnp.mean(value) for name, value in metrics.items()}
        certified = self._certified(learned.network, judge_key)
        state = Td3State(learned, x, age, replay, key, state.updates + 1, steps)
        return state, means | counts | {"certified": certified, "nonfinite": nonfinite}

    def fly(self, state: Td3State, key: Key[Array, ""]):
        """(states [E, n] and ages [E] after a window, its transitions, how its episodes ended)."""
        settings, system = self.settings, self.base.system
        start_key, normal_key, uniform_key = jax.random.split(key, 3)
        shape = (settings.window, settings.environments, system.input_size)
        noise = settings.exploration * jax.random.normal(normal_key, shape)
        uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
        warm = state.steps >= settings.warm_up
        fresh = self.starts(start_key, state.updates)

        def one(x, age, noise, uniform):
            u = jnp.where(warm, self._noisy(state.network, x, noise), self._scaled(uniform.astype(x.dtype)))
            following = system.step(x, u)
            diverged = ~jnp.all(jnp.isfinite(following))
            following = jnp.where(diverged, x, following)
            over, timed_out = self._known(following) | diverged, age + 1 >= self.horizon
            nothing, number = jnp.zeros(0, x.dtype), jnp.ones((), x.dtype)
            bootstrap = jnp.where(diverged, 0.0, number)
            seen = Transitions(nothing, nothing, x, following, u, u, 0 * number, bootstrap, 0 * number)
            return seen, over, timed_out

        def advance(carry, noises):
            x, age = carry
            seen, over, timed_out = jax.vmap(one)(x, age, *noises)
            ended = over | timed_out
            arrived = jax.vmap(self.base.contains)(seen.x_next)
            x = jnp.where(ended[:, None], fresh, seen.x_next)
            counts = {"arrivals": arrived, "violations": over & ~arrived, "time_outs": timed_out & ~over}
            return (x, jnp.where(ended, 0, age + 1)), (seen, counts)

        (x, age), (seen, counts) = jax.lax.scan(advance, (state.x, state.age), (noise, uniform))
        size = self.steps_per_update
        seen = jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), seen)
        return x, age, seen, {name: jnp.sum(each) / size for name, each in counts.items()}

    def starts(self, key: Key[Array, ""], updates: Int[Array, ""]) -> Float[Array, "E n"]:
        """Where episodes begin after so many updates: states of the region, their errors shortened by the curriculum."""
        share, system = self.reach(updates), self.base.system

        def one(key):
            x = self.sample_state(key)
            return jnp.where(share < 1, system.lift(share.astype(x.dtype) * system.error(x)), x)

        def first_useful(key):
            drawn = jax.vmap(one)(jax.random.split(key, _DRAWS))
            return drawn[jnp.argmin(jax.vmap(self._known)(drawn))]

        return jax.vmap(first_useful)(jax.random.split(key, self.settings.environments))

    def reach(self, updates: Int[Array, ""]) -> Float[Array, ""]:
        """How much of the region starts are drawn from after so many updates, from `first_starts` to 1, shape []."""
        first, over = self.settings.first_starts, self.settings.widening * self.settings.updates
        return jnp.minimum(1.0, first + (1 - first) * updates / max(over, 1e-9))

    def values(
        self, critic: TwinCritic, scale: Float[Array, " f"], x: Float[Array, " n"], u: Float[Array, " m"]
    ) -> Float[Array, " 2"]:
        """Both critics: what taking u at x is worth; 1 in the base set and 0 outside the safe set, whatever they say.

        They see what the network of that `scale` sees, and the action.
        """
        system, box = self.base.system, self.base.system.input_box
        action = (u - jnp.asarray(box.centre, u.dtype)) / jnp.asarray(box.half_widths, u.dtype)
        # The scale is the network's own number, and fixed: the policy must not learn through it.
        scale = jax.lax.stop_gradient(scale).astype(x.dtype)
        seen = jnp.concatenate([system.features(x) / scale, action])
        said = jax.nn.sigmoid(jnp.concatenate([critic.first(seen), critic.second(seen)]))
        return jnp.where(self.base.contains(x), 1.0, jnp.where(self.safe_set.contains(x), said, 0.0))

    def targets(self, learned: Learned, batch: Transitions, noise: Float[Array, "B m"]) -> Float[Array, " B"]:
        """What the critics should say of a batch: beta min_i Q_i(x+, pi(x+) + noise) with the targets' networks, shape [B]."""

        def following(x, noise):
            u = self._noisy(learned.target_network, x, noise)
            return jnp.min(self.values(learned.target_critic, learned.network.scale, x, u))

        return self.discount * batch.bootstrap * jax.vmap(following)(batch.x_next, noise)

    def regret(self, network: BackupNetwork, critic: TwinCritic, x: Float[Array, "B n"]):
        """(what the policy minimises over states x: penalty less value, value by the first critic), both shape []."""
        system = self.base.system

        def one(x):
            u = network(x)
            value = self.values(critic, network.scale, x, u)[0]
            moved = (u - system.equilibrium()[1].astype(u.dtype)) / jnp.asarray(system.input_box.half_widths, u.dtype)
            return self.settings.action_penalty * jnp.sum(moved**2) - value, value

        losses, values = jax.vmap(one)(x)
        return jnp.mean(losses), jnp.mean(values)

    @property
    def discount(self) -> float:
        """beta."""
        given = self.settings.discount
        return _WORTH_AT_THE_HORIZON ** (1 / self.horizon) if given is None else given

    @property
    def steps_per_update(self) -> int:
        return self.settings.environments * self.settings.window

    def _fit(self, learned: Learned, replay: Replay, dtype, key: Key[Array, ""]):
        """A round: `delay` gradient steps of the critics, then one of the policy, then the targets move."""
        settings = self.settings
        critic_key, draw_key = jax.random.split(key)
        scale = learned.network.scale

        def judge(learned, key):
            draw_key, noise_key = jax.random.split(key)
            batch = replay.sample(draw_key, settings.batch, dtype)
            noise = settings.target_noise * jax.random.normal(noise_key, batch.applied.shape, dtype)
            noise = jnp.clip(noise, -settings.target_noise_limit, settings.target_noise_limit)
            goals = jax.lax.stop_gradient(self.targets(learned, batch, noise))

            def miss(critic):
                values = jax.vmap(lambda x, u: self.values(critic, scale, x, u))(batch.x, batch.applied)
                return jnp.mean(jnp.sum(optax.huber_loss(values, goals[:, None]), axis=1)), None

            (loss, _), gradient = value_and_gradient(miss, learned.critic)
            optimiser = self._optimiser(settings.critic_rate, settings.delay)
            critic, moved, bad = descend(optimiser, gradient, learned.critic_optimiser, learned.critic)
            return eqx.tree_at(lambda l: (l.critic, l.critic_optimiser), learned, (critic, moved)), (loss, bad)

        learned, (losses, critic_bad) = over_steps(judge, learned, jax.random.split(critic_key, settings.delay))
        x = replay.sample(draw_key, settings.batch, dtype).x
        (_, value), gradient = value_and_gradient(self.regret, learned.network, learned.critic, x)
        optimiser = self._optimiser(settings.actor_rate)
        network, moved, bad = descend(optimiser, gradient, learned.network_optimiser, learned.network)
        share = settings.target_smoothing
        # Layers only: the network's scale and its system's numbers are no one's to move, not even by a rounding.
        layers = moved_towards(learned.target_network.layers, network.layers, share)
        learned = Learned(
            network,
            eqx.tree_at(lambda n: n.layers, learned.target_network, layers),
            moved,
            learned.critic,
            moved_towards(learned.target_critic, learned.critic, share),
            learned.critic_optimiser,
        )
        return learned, {"loss": jnp.mean(losses), "value": value, "nonfinite": jnp.sum(critic_bad) + bad}

    def _known(self, x: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether the value is known at x: it has arrived, or failed."""
        return self.base.contains(x) | ~self.safe_set.contains(x)

    def _scaled(self, action: Float[Array, " m"]) -> Float[Array, " m"]:
        """An action in half-widths of the input box, in the system's units."""
        box = self.base.system.input_box
        return box.clip(jnp.asarray(box.centre, action.dtype) + jnp.asarray(box.half_widths, action.dtype) * action)

    def _noisy(self, network: BackupNetwork, x: Float[Array, " n"], noise: Float[Array, " m"]) -> Float[Array, " m"]:
        """What the network does at x, with noise in half-widths of the input box."""
        box = self.base.system.input_box
        return box.clip(network(x) + jnp.asarray(box.half_widths, x.dtype) * noise.astype(x.dtype))

    def _certified(self, network: BackupNetwork, key: Key[Array, ""]) -> Float[Array, ""]:
        """Share of some states of the region that the backup policy certifies, shape []."""
        implicit = ImplicitInvariantSet(BackupPolicy(self.base, network), self.safe_set, self.horizon)
        states = jax.vmap(self.sample_state)(jax.random.split(key, self.settings.judged))
        return jnp.mean(jax.vmap(implicit.contains)(states).astype(states.dtype))

    def _optimiser(self, rate: float, steps: int = 1):
        """Adam for `steps` gradient steps a round."""
        return adam(rate, self.settings.updates * self.settings.rounds * steps, clip=1.0)
