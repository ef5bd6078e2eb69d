"""Experience: episodes side by side through a guard, renewed where they end, with what the guard did counted."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from holdfast.learn.networks import Network
from holdfast.learn.normalisation import RunningNormaliser
from holdfast.tasks import Disturb, Episode, Task, reset, step
from holdfast.types import Guard, Status, Transition

Placement = Literal["policy", "environment"]

#: What a step into a state that is not finite is charged, as a multiple of doing nothing for ever.
_DIVERGED = 10.0


class PolicySettings(eqx.Module):
    """Settings that every algorithm has which learns a policy through a guard.

    Attributes:
        updates: updates of the whole training; learning rates decay over them.
        environments: episodes side by side.
        window: steps that each of them makes in an update.
        discount: gamma.
        actor_rate, critic_rate: peak rates of Adam.
        hidden: hidden layers of actor and critic.
        initial_std: standard deviation of the policy's noise before the tanh, at the start.
        intervention_penalty: weight of |applied - proposed|^2 in units of the input box's half-widths.
        margin_penalty, margin_target: weight of [margin_target - h_i(x)/h_i(x*)]_+^2, summed over constraints.
        violation_penalty: what a step into a violation costs, in units of scaled rewards. A step function has no
            derivative: SHAC learns of it through its critic only.
        violation_limit: the share of steps that may violate. Where it is finite, the cost of a violation is a Lagrange
            multiplier that begins at `violation_penalty`; see `multiplier_after`.
        multiplier_rate: how much the multiplier rises for each violating step beyond the limit.
        restart: probability with which an episode is cut and started anew at each step (a truncation: the value of its
            state still counts), so that starts are not rare where episodes are long.
        practice: probability with which a training episode begins at the task's `sample_practice` instead of a start.
        lost: an episode ends in training where a step costs more than `lost` times what doing nothing costs, charged as
            if the rest of it cost as much: there is little to learn from what follows, and much noise.
        placement: where the learner sees the guard, in the policy or in the environment. The plant gets what the guard
            applies either way.
    """

    updates: int = eqx.field(static=True, default=300)
    environments: int = eqx.field(static=True, default=64)
    window: int = eqx.field(static=True, default=32)
    discount: float = eqx.field(static=True, default=0.98)
    actor_rate: float = eqx.field(static=True, default=3e-3)
    critic_rate: float = eqx.field(static=True, default=3e-3)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(64, 64))
    initial_std: float = eqx.field(static=True, default=0.3)
    intervention_penalty: float = eqx.field(static=True, default=1.0)
    margin_penalty: float = eqx.field(static=True, default=0.0)
    margin_target: float = eqx.field(static=True, default=0.02)
    violation_penalty: float = eqx.field(static=True, default=0.0)
    violation_limit: float = eqx.field(static=True, default=float("inf"))
    multiplier_rate: float = eqx.field(static=True, default=1e-4)
    restart: float = eqx.field(static=True, default=0.01)
    practice: float = eqx.field(static=True, default=0.0)
    lost: float = eqx.field(static=True, default=float("inf"))
    placement: Placement = eqx.field(static=True, default="policy")

    @property
    def value_unit(self) -> float:
        """Values are sums of about 1 / (1 - gamma) rewards of order one; critics' losses are in units of a tenth of it."""
        return 0.1 / (1 - self.discount)

    def value(self, critic: Network, observation: Float[Array, " i"]) -> Float[Array, ""]:
        """What a critic says, in the unit of values."""
        return critic(observation)[0] / (1 - self.discount) * 0.1


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


class Experience(eqx.Module):
    """Where training stands in its environments.

    Attributes:
        episodes: the running ones, a leading axis [E] on every leaf.
        returns: what they have earned so far, shape [E]; NaN for those that began in practice.
        last_returns: of the last whole episode in each environment, shape [E]; NaN before there is one.
        normaliser: of all observations so far.
        reward_scale: rewards times this are of order one, shape [].
        safety: counts over all steps so far.
        violation_cost: what a step into a violation costs now, in units of scaled rewards, shape [].
    """

    episodes: Episode
    returns: Float[Array, " E"]
    last_returns: Float[Array, " E"]
    normaliser: RunningNormaliser
    reward_scale: Float[Array, ""]
    safety: Safety
    violation_cost: Float[Array, ""]


class Window(eqx.Module):
    """H steps of E environments side by side; every shape begins with [H, E].

    Attributes:
        x, x_next: states before and after, [n]; `x_next` is the true successor, before any renewal.
        observation, next_observation: [o], raw.
        proposed, applied: actions before and after the guard, [m].
        extra: what else the policy said when it acted.
        reward: the task's.
        shaped: scaled, with all penalties: what is learned from.
        charged: what `shaped` was charged for a violation.
        moved: |applied - proposed|^2 in units of the input box's half-widths.
        cost: 1.0 where the successor violates the safe set.
        margin: smallest safe-set margin of the successor.
        status: what the guard did.
        terminated, diverged, lost: see `Transition` and `PolicySettings`.
        ended: the episode ends here, for whatever reason, and the next step is another one's.
        value: of the successor: zero where the task is over, the charge where the episode is lost.
        uncertified_start: an episode begins after this step that the guard does not answer for.
    """

    x: Float[Array, "H E n"]
    x_next: Float[Array, "H E n"]
    observation: Float[Array, "H E o"]
    next_observation: Float[Array, "H E o"]
    proposed: Float[Array, "H E m"]
    applied: Float[Array, "H E m"]
    extra: Any
    reward: Float[Array, "H E"]
    shaped: Float[Array, "H E"]
    charged: Float[Array, "H E"]
    moved: Float[Array, "H E"]
    cost: Float[Array, "H E"]
    margin: Float[Array, "H E"]
    status: Int[Array, "H E"]
    terminated: Bool[Array, "H E"]
    diverged: Bool[Array, "H E"]
    lost: Bool[Array, "H E"]
    ended: Bool[Array, "H E"]
    value: Float[Array, "H E"]
    uncertified_start: Bool[Array, "H E"] | None = None


class Collector(eqx.Module):
    """Makes experience. Steps of every episode go through the guard, so its promise holds in training.

    Attributes:
        task: what is to be done.
        guard: between proposed and applied action.
        settings: numbers.
        disturb: chooses the disturbance in place of the task, if given.
    """

    task: Task
    guard: Guard
    settings: PolicySettings
    disturb: Disturb | None = None

    def start(self, episode_key: Key[Array, ""], unit_key: Key[Array, ""], anew: bool = False) -> Experience:
        """Before the first step. `anew`: these episodes are never flown, because every window begins with new ones."""
        task, count = self.task, self.settings.environments
        # All begin in practice, at different times, so that a window holds every phase of the task.
        episodes = jax.vmap(lambda k: self.begin(k, 1.0))(jax.random.split(episode_key, count))
        zeros = jnp.zeros((), jnp.int32)
        born = zeros if anew else jnp.sum(~_all_certified(episodes), dtype=jnp.int32)
        safety = Safety(zeros, zeros, zeros, jnp.zeros(len(Status), jnp.int32), born, jnp.asarray(jnp.inf))
        # A unit in which rewards are of order one: what doing nothing costs at a start, whatever time it is.
        idle = jnp.asarray(task.system.equilibrium()[1], jnp.float32)
        starts = jax.vmap(task.sample_start)(jax.random.split(unit_key, count))
        times = jax.random.randint(unit_key, (count,), 0, task.episode_steps)
        rewards = jax.vmap(lambda x, t, c: task.reward(x, idle, task.system.step(x, idle), t, c))
        contexts = jax.vmap(task.context_at)(starts, episodes.context)
        unit = jnp.mean(jnp.abs(rewards(starts, times, contexts)))
        normaliser = RunningNormaliser.initialise(task.observation_size).update(jax.vmap(self.observe)(episodes))
        none = jnp.full(count, jnp.nan)
        cost = jnp.asarray(self.settings.violation_penalty, jnp.float32)
        return Experience(episodes, _return_from(episodes), none, normaliser, 1.0 / (unit + 1e-6), safety, cost)

    def move(self, episode: Episode, u: Float[Array, " m"]) -> tuple[Episode, Transition]:
        """One step with the proposed action u [m], through the guard and under the disturbance."""
        return step(self.task, self.guard, episode, u, self.disturb and _chosen(self.disturb))

    def collect(
        self,
        experience: Experience,
        key: Key[Array, ""],
        noise: Any,
        act: Callable[[Float[Array, " o"], Any], tuple[Float[Array, " m"], Any]],
        value: Callable[[Float[Array, " o"]], Float[Array, ""]] | None = None,
        move: Callable[[Episode, Float[Array, " m"]], tuple[Episode, Transition]] | None = None,
        anew: bool = False,
    ) -> tuple[Experience, Window]:
        """Experience after a window of steps, and the window. Differentiable where `act` and `move` are.

        Args:
            noise: what `act` draws from, leading axes [H, E].
            act: (observation [o], noise) -> (proposed action [m], anything to remember).
            value: observation [o] -> value of what follows; zero if not given.
            move: (episode, proposed) -> (episode, transition): `move` if not given.
            anew: begin with new episodes instead of going on.
        """
        settings, task = self.settings, self.task
        move = move or self.move
        half = jnp.asarray(task.system.input_box.half_widths, jnp.float32)
        typical = task.safe_set.margin(jnp.asarray(task.system.equilibrium()[0], jnp.float32))

        def one(episode, running, last, noise, key):
            observation = self.observe(episode)
            proposed, extra = act(observation, noise)
            episode_next, seen = move(episode, proposed)
            moved = jnp.sum(((proposed - seen.applied) / half) ** 2)
            shortfall = jax.nn.relu(settings.margin_target - seen.margin / typical)
            shaped = seen.reward * experience.reward_scale
            shaped = shaped - settings.intervention_penalty * moved - settings.margin_penalty * jnp.sum(shortfall**2)
            penalty = experience.violation_cost.astype(shaped.dtype) * seen.cost
            cut = jax.random.bernoulli(key, settings.restart)
            whole = seen.terminated | seen.truncated | seen.diverged
            lost = seen.reward * experience.reward_scale < -settings.lost
            next_observation = self.observe(episode_next)
            following = jnp.zeros_like(shaped) if value is None else value(next_observation)
            # A lost episode is charged its last reward for the rest of its time.
            left = task.episode_steps - episode.t - 1 if task.finite else jnp.inf
            rest = jnp.minimum(left, 1 / (1 - settings.discount))
            following = jnp.where(lost, seen.reward * experience.reward_scale * rest, following)
            following = jnp.where(seen.terminated, 0.0, following)
            running = running + jax.lax.stop_gradient(seen.reward)
            # Only whole episodes have a return to report; it is NaN for those that began in practice.
            charged = jnp.where(lost, jax.lax.stop_gradient(seen.reward) * rest, 0.0)
            last = jnp.where((whole | lost) & ~jnp.isnan(running), running + charged, last)
            record = Window(
                x=seen.x,
                x_next=seen.x_next,
                observation=observation,
                next_observation=next_observation,
                proposed=proposed,
                applied=seen.applied,
                extra=extra,
                reward=seen.reward,
                shaped=shaped - penalty,
                charged=penalty,
                moved=moved,
                cost=seen.cost,
                margin=jnp.min(seen.margin),
                status=seen.guard.status,
                terminated=seen.terminated,
                diverged=seen.diverged,
                lost=lost,
                ended=whole | cut | lost,
                value=following,
            )
            return episode_next, running, last, record

        # A commitment costs a whole rollout of the backup: one batch a window, for whoever ends in it.
        begin_key, cut_key = jax.random.split(key)
        begin_keys = jax.random.split(begin_key, settings.environments)
        fresh = detached(jax.vmap(lambda k: self.begin(k, settings.practice))(begin_keys))
        uncertified = ~_all_certified(fresh)

        def advance(carry, inputs):
            noise, key = inputs
            cut_keys = jax.random.split(key, settings.environments)
            episodes, running, last, record = jax.vmap(one)(*carry, noise, cut_keys)

            def renew(new, old):
                return jnp.where(record.ended.reshape(-1, *[1] * (old.ndim - 1)), new, old)

            episodes = jax.tree.map(renew, fresh, episodes)
            running = jnp.where(record.ended, _return_from(fresh), running)
            record = eqx.tree_at(
                lambda r: r.uncertified_start, record, record.ended & uncertified, is_leaf=lambda leaf: leaf is None
            )
            return (episodes, running, last), record

        episodes, returns = (fresh, _return_from(fresh)) if anew else (experience.episodes, experience.returns)
        keys = jax.random.split(cut_key, settings.window)
        carry, window = jax.lax.scan(advance, (episodes, returns, experience.last_returns), (noise, keys))
        if anew:
            # What is renewed at the end of the window is never flown; what the window began with is.
            began = jnp.concatenate([uncertified[None], window.uncertified_start[:-1]])
            window = eqx.tree_at(lambda w: w.uncertified_start, window, began)
        observations = window.observation.reshape(-1, window.observation.shape[-1])
        normaliser, safety = experience.normaliser.update(observations), _count(experience.safety, window)
        cost = multiplier_after(experience.violation_cost, window.cost, settings)
        return Experience(*carry, normaliser, experience.reward_scale, safety, cost), window

    def observe(self, episode: Episode) -> Float[Array, " o"]:
        return self.task.observe(episode.x, episode.t, episode.context)

    def begin(self, key: Key[Array, ""], practice: float) -> Episode:
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


def multiplier_after(
    multiplier: Float[Array, ""], cost: Float[Array, "H E"], settings: PolicySettings
) -> Float[Array, ""]:
    """The Lagrange multiplier of "no more than a share `violation_limit` of the steps violates" after a window of costs.

    One step of projected ascent, [lambda + rate * sum(cost - limit)]_+, on a slower time scale than the policy: reward
    constrained policy optimisation (Tessler et al. 2019, arXiv 1805.11074). As it is, where there is no limit.
    """
    if settings.violation_limit == float("inf"):
        return multiplier
    excess = jnp.sum(jax.lax.stop_gradient(cost).astype(multiplier.dtype) - settings.violation_limit)
    return jnp.maximum(multiplier + settings.multiplier_rate * excess, 0.0)


def report(experience: Experience, window: Window) -> dict[str, Array]:
    """What the training loop logs of a window, whatever the algorithm."""
    status, size = window.status, window.cost.size
    intervened = (status != Status.accepted) & (status != Status.unguarded)
    return {
        "return": jnp.nanmean(experience.last_returns),
        "reward": jnp.mean(window.reward),
        "violations": jnp.sum(window.cost > 0),
        "violation_cost": experience.violation_cost,
        "interventions": jnp.sum(intervened) / size,
        "fallbacks": jnp.sum(status == Status.fell_back) / size,
        "lost": jnp.sum(window.lost) / size,
        "uncertified": jnp.sum(status == Status.uncertified) / size,
        "diverged": jnp.sum(window.diverged) / size,
        "worst_margin": jnp.min(window.margin),
    }


def tamed(window: Window, settings: PolicySettings) -> Window:
    """The window with divergence as a costly end: a step into a state that is not finite terminates the episode, and its
    successor is not looked at. For algorithms that do not differentiate the step; `report` counts such steps as they are.

    A reward that is not finite at a finite state is an error of the task, and stays.
    """
    gone = window.diverged

    def where_gone(replacement, values):
        return jnp.where(gone.reshape(gone.shape + (1,) * (values.ndim - 2)), replacement, values)

    return eqx.tree_at(
        lambda w: (w.x_next, w.next_observation, w.shaped, w.value, w.terminated, w.lost),
        window,
        (
            where_gone(window.x, window.x_next),
            where_gone(window.observation, window.next_observation),
            where_gone(-_DIVERGED / (1 - settings.discount), window.shaped),
            where_gone(0.0, window.value),
            window.terminated | gone,
            window.lost & ~gone,
        ),
    )


def detached(tree: Any) -> Any:
    """The tree with no derivative through it."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def _chosen(disturb: Disturb) -> Disturb:
    """The adversary, to whom learning has no derivative."""
    return lambda key, x, applied, t, context: detached(disturb(key, detached(x), detached(applied), t, context))


def _return_from(episodes: Episode) -> Float[Array, " E"]:
    """What episodes have earned when they begin: nothing, or NaN where they begin in the middle."""
    return jnp.where(episodes.t == 0, 0.0, jnp.nan)


def _certified(guard_state) -> Bool[Array, ""]:
    """Whether a guard's state promises anything; guards without promises break none."""
    return jnp.asarray(getattr(guard_state, "certified", True))


def _all_certified(episodes: Episode) -> Bool[Array, " E"]:
    return jax.vmap(lambda episode: jnp.broadcast_to(_certified(episode.guard), episode.t.shape))(episodes)


def _count(safety: Safety, window: Window) -> Safety:
    status = window.status.reshape(-1)
    violated, promised = window.cost.reshape(-1) > 0, status != Status.uncertified
    begun = jnp.zeros((), bool) if window.uncertified_start is None else window.uncertified_start
    return Safety(
        safety.steps + status.shape[0],
        safety.violations + jnp.sum(violated & promised, dtype=jnp.int32),
        safety.unpromised_violations + jnp.sum(violated & ~promised, dtype=jnp.int32),
        safety.statuses + jnp.sum(jax.nn.one_hot(status, len(Status), dtype=jnp.int32), axis=0, dtype=jnp.int32),
        safety.uncertified_starts + jnp.sum(begun, dtype=jnp.int32),
        jnp.minimum(safety.worst_margin, jnp.min(window.margin)),
    )
