"""Whole episodes of a policy behind a guard: metrics, violations, statuses, and the first few trajectories."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import AcceptanceMargins
from holdfast.evaluate.disturbances import OneOf, default_disturbances, looked_at_again
from holdfast.safeguards import BackupCBF
from holdfast.tasks import Disturb, Task, reset, rollout
from holdfast.types import Guard, Status

INTERVENED = (Status.corrected, Status.fell_back, Status.bad_action, Status.bad_state)
"""Statuses that mean: something else than the proposed action was applied, and safely."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Kept episodes 0..K-1, as numpy arrays.

    Attributes:
        states: x_0..x_T, shape [K, T+1, n].
        reference: what the task asked for at those times, shape [K, T+1, n].
        proposed, applied: actions, shape [K, T, m].
        status: `Status` of each step, shape [K, T].
        margins: safe-set margins at x_0..x_T, shape [K, T+1, p].
        reward: shape [K, T].
        dt: sampling period, s.
        seed: of the start states, as in `EpisodeResults`.
    """

    states: np.ndarray
    reference: np.ndarray
    proposed: np.ndarray
    applied: np.ndarray
    status: np.ndarray
    margins: np.ndarray
    reward: np.ndarray
    dt: float
    seed: int = 0

    @property
    def times(self) -> np.ndarray:
        """Times of the states in s, shape [T+1]."""
        return self.dt * np.arange(self.states.shape[1])


@dataclass(frozen=True, eq=False)
class EpisodeResults:
    """E episodes of one policy behind one guard. Episode i starts from key fold_in(key(seed), i).

    Attributes:
        metrics: the task's metrics and "return" by name, shape [E] each; NaN where an episode diverged.
        violations: samples among x_0..x_T with a margin < 0 (no tolerance) or a number that is not finite, shape [E].
        worst_margin: smallest margin of each constraint over x_0..x_T, shape [E, p]; -inf where the episode diverged.
        diverged: whether a state was not finite, shape [E].
        statuses: steps by `Status`, shape [E, 7].
        uncertified_starts: starts where the guard could promise nothing, shape [E]; such episodes are run and counted
            like all others. False throughout without a safeguard, whose steps all say `unguarded`.
        lapses: samples of an episode with a certified start at which the promise did not hold any more, shape [E]: the
            step says `uncertified`, or the guard keeps an invariant set and the state is not certified anew. Zero, or
            the plant is not what the certificate is about. For the published layer, which promises nothing: samples
            outside its implicit set.
        steps: steps of an episode.
        seed: of the start states.
        trajectories: the first few episodes whole.
        seconds, compile_seconds: wall time of the episodes, and of compiling (0 where a program was reused).
    """

    metrics: dict[str, np.ndarray]
    violations: np.ndarray
    worst_margin: np.ndarray
    diverged: np.ndarray
    statuses: np.ndarray
    uncertified_starts: np.ndarray
    lapses: np.ndarray
    steps: int
    seed: int
    trajectories: Trajectories
    seconds: float
    compile_seconds: float

    @property
    def episodes(self) -> int:
        return self.violations.shape[0]

    @property
    def interventions(self) -> np.ndarray:
        """Steps of each episode on which something else than the proposed action was applied, shape [E]."""
        return self.statuses[:, list(INTERVENED)].sum(axis=1)

    @property
    def fallbacks(self) -> np.ndarray:
        """Steps of each episode on which the committed plan was replayed, shape [E]."""
        return self.statuses[:, [Status.fell_back, Status.bad_action, Status.bad_state]].sum(axis=1)

    def status_counts(self) -> dict[str, int]:
        """Steps by the name of their status, over all episodes."""
        return {status.name: int(self.statuses[:, status].sum()) for status in Status}


class Evaluator:
    """Compiles the evaluation of one kind of guard and policy once, and runs it for any number of seeds and parameters.

    Args:
        task: what is rolled out.
        guard, policy: examples; later ones may differ in their JAX arrays (and acceptance margins) only, or a new
            program is compiled.
        batch: episodes rolled out at once. Results do not depend on it but for rounding: keys belong to episodes.
        keep: episodes whose trajectories are kept, at most `batch`.
        steps: length of an episode, the task's own by default.
        dtype: float type of the states, JAX's default one by default.
        disturb: chooses the disturbance in place of the task; see `holdfast.evaluate.default_disturbances`.
    """

    def __init__(
        self,
        task: Task,
        guard: Guard,
        policy: Callable,
        *,
        batch: int = 250,
        keep: int = 4,
        steps: int | None = None,
        dtype=None,
        disturb: Disturb | None = None,
    ):
        if batch < 1 or keep < 1:
            raise ValueError(f"Evaluator: batch = {batch}, keep = {keep}; give at least one episode each")
        self.task, self.batch, self.keep = task, batch, min(keep, batch)
        self.steps = task.episode_steps if steps is None else steps
        self.dtype, self.disturb = dtype, disturb
        self.compile_seconds = 0.0
        self._static = None
        self._compile(*split(guard, policy, disturb))

    def __call__(
        self, guard: Guard, policy: Callable, *, seed: int, episodes: int, disturb: Disturb | None = None
    ) -> EpisodeResults:
        """Runs `episodes` episodes, in batches of one size: the last one is filled up and the surplus dropped.

        `disturb` takes the place of the evaluator's own; one that differs in its JAX arrays only needs no new program.
        """
        if episodes < 1:
            raise ValueError(f"Evaluator: episodes = {episodes}; give at least one")
        arrays, static = split(guard, policy, self.disturb if disturb is None else disturb)
        if not eqx.tree_equal(static, self._static):
            self._compile(arrays, static)
        start = time.perf_counter()
        key, parts, kept = jax.random.key(seed), [], None
        for first in range(0, episodes, self.batch):
            index = jnp.arange(first, first + self.batch, dtype=jnp.uint32)
            summary, whole = self._program(arrays, key, index)
            kept = jax.device_get(whole) if kept is None else kept
            parts.append(jax.device_get(summary))
        summary = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:episodes], *parts)
        # JAX sorts dictionaries; reports keep the task's order.
        names = [*self.task.metric_units, *summary["metrics"]]
        summary["metrics"] = {name: summary["metrics"][name] for name in names if name in summary["metrics"]}
        kept = {name: np.asarray(value[:episodes]) for name, value in (kept or {}).items()}
        seconds = time.perf_counter() - start
        compile_seconds, self.compile_seconds = self.compile_seconds, 0.0
        return EpisodeResults(
            **summary,
            steps=self.steps,
            seed=seed,
            trajectories=Trajectories(**kept, dt=float(self.task.system.dt), seed=seed),
            seconds=seconds,
            compile_seconds=compile_seconds,
        )

    def _compile(self, arrays, static) -> None:
        # Parameters are arguments; boxes and other numpy constants stay constants: they are rounded inwards that way.
        def run(arrays, key, index):
            parts = eqx.combine(arrays, static)
            summary, whole = jax.vmap(lambda i: self._episode(*parts, jax.random.fold_in(key, i)))(index)
            return summary, jax.tree.map(lambda leaf: leaf[: self.keep], whole)

        start = time.perf_counter()
        index = jnp.arange(self.batch, dtype=jnp.uint32)
        self._program = jax.jit(run).lower(arrays, jax.random.key(0), index).compile()
        self._static = static
        self.compile_seconds += time.perf_counter() - start

    def _episode(self, guard, policy, disturb, key):
        task = self.task
        start = reset(task, guard, key, self.dtype)
        _, steps = rollout(task, guard, policy, start, self.steps, disturb)
        states = jnp.concatenate([start.x[None], steps.x_next])
        margins = jnp.concatenate([task.safe_set.margin(start.x)[None], steps.margin])
        finite = jnp.all(jnp.isfinite(states), axis=1)
        safe = jnp.all(margins >= 0, axis=1) & finite
        # XLA's min drops NaN, so a state that is not finite says -inf instead.
        seen = jnp.where(finite[:, None] & jnp.isfinite(margins), margins, -jnp.inf)
        status = steps.guard.status
        certified_start = jnp.asarray(getattr(start.guard, "certified", True))
        lapsed = jnp.concatenate([status == Status.uncertified, jnp.zeros(1, bool)])
        if looked_at_again(guard):
            again = ~jax.vmap(guard.init)(states).certified
            lapsed = again if isinstance(guard, BackupCBF) else lapsed | again
        summary = {
            "metrics": task.metrics(states, start.context) | {"return": jnp.sum(steps.reward)},
            "violations": jnp.sum(~safe, dtype=jnp.int32),
            "worst_margin": jnp.min(seen, axis=0),
            "diverged": ~jnp.all(finite),
            "statuses": jnp.sum(status[:, None] == jnp.arange(len(Status))[None], axis=0, dtype=jnp.int32),
            "uncertified_starts": ~certified_start,
            "lapses": jnp.sum(lapsed & certified_start, dtype=jnp.int32),
        }
        times = jnp.arange(self.steps + 1, dtype=jnp.int32)
        whole = {
            "states": states,
            "reference": jax.vmap(task.reference, in_axes=(0, None))(times, start.context).astype(states.dtype),
            "proposed": steps.proposed,
            "applied": steps.applied,
            "status": status,
            "margins": margins,
            "reward": steps.reward,
        }
        return summary, whole


def evaluate_policy(task: Task, guard: Guard, policy: Callable, **options) -> EpisodeResults:
    """Rolls out whole episodes of a deterministic policy behind a guard; see `Evaluator`.

    Args:
        task: what is rolled out.
        guard: a `Safeguard`, or `types.Unguarded`.
        policy: observation [o] -> action [m].
        options: as for `evaluate_seeds`.
    """
    return evaluate_seeds(task, [guard], [policy], **options)[0]


def evaluate_seeds(
    task: Task,
    guards: Sequence[Guard],
    policies: Sequence[Callable],
    *,
    seed: int = 0,
    episodes: int = 1000,
    batch: int = 250,
    keep: int = 4,
    steps: int | None = None,
    dtype=None,
    disturb: Disturb | None = None,
) -> list[EpisodeResults]:
    """One `EpisodeResults` for each trained seed, all on the same start states, by one compiled program.

    Args:
        guards, policies: one of each for every trained seed.
        seed: of the start states, common to all, so that differences between seeds can be paired.
        task: what is rolled out.
        episodes: how many for each; episode i starts from fold_in(key(seed), i).
        batch, keep, steps, dtype, disturb: as for `Evaluator`.

    Raises:
        ValueError: if there are not as many guards as policies, or none.
    """
    if not policies or len(guards) != len(policies):
        raise ValueError(f"evaluate_seeds: {len(guards)} guards for {len(policies)} policies; give one of each a seed")
    batch = min(batch, episodes)
    evaluator = Evaluator(
        task, guards[0], policies[0], batch=batch, keep=keep, steps=steps, dtype=dtype, disturb=disturb
    )
    return [evaluator(guard, policy, seed=seed, episodes=episodes) for guard, policy in zip(guards, policies)]


def evaluate_noise(
    task: Task,
    guards: Sequence[Guard],
    policies: Sequence[Callable],
    *,
    episodes: int = 1000,
    seed: int = 0,
    **options,
) -> dict[str, list[EpisodeResults]]:
    """`evaluate_seeds` under each of the default disturbances in place of the task's own noise, by one compiled program.

    Args:
        task, guards, policies, episodes, seed: as for `evaluate_seeds`.
        options: batch, keep, steps, dtype of `Evaluator`.

    Returns:
        By the disturbance's name, one `EpisodeResults` for each trained seed; nothing where the system is undisturbed.
    """
    kinds = default_disturbances(task, guards[0])
    if not kinds:
        return {}
    choices = [OneOf(kinds, jnp.asarray(i)) for i in range(len(kinds))]
    options["batch"] = min(options.get("batch", 250), episodes)
    evaluator = Evaluator(task, guards[0], policies[0], disturb=choices[0], **options)
    pairs = list(zip(guards, policies, strict=True))
    return {
        kind.name: [evaluator(guard, policy, seed=seed, episodes=episodes, disturb=choice) for guard, policy in pairs]
        for kind, choice in zip(kinds, choices)
    }


def split(*trees):
    """JAX arrays (the arguments of a program) and everything else (its constants).

    Acceptance margins count among the arrays: they differ from seed to seed, like the networks that they belong to.
    """

    def is_acceptance(node):
        return isinstance(node, AcceptanceMargins)

    def as_arrays(node):
        if not is_acceptance(node):
            return node
        return jax.tree.map(jnp.asarray, node)

    return eqx.partition(
        jax.tree.map(as_arrays, trees, is_leaf=is_acceptance), lambda leaf: isinstance(leaf, jax.Array)
    )
