"""Trials: seeds trained in one program, looked at on the way and at the end, all on the same starts. Tables consist of them."""

import time
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.certify import CertifiedBaseSet
from holdfast.cli.build import Certified, backup_trainer, certify_task, load_task, make_guard, of_seed, policy_trainer
from holdfast.cli.config import SettledConfig
from holdfast.cli.timing import CompileClock
from holdfast.cli.training import require_proof, run_keys
from holdfast.evaluate import Disturbance, EpisodeResults, Evaluator, OneOf, default_disturbances
from holdfast.learn import PolicyTrainer, initialise, train
from holdfast.tasks import Task
from holdfast.types import Guard

#: Start states of evaluation: common to all cells, so that differences can be paired, and never the training's own.
EVALUATION_SEED = 20_000

#: What cells of earlier versions, which had fewer settings, were computed with.
BEFORE = {each.name: each.default for each in fields(SettledConfig) if each.default is not MISSING}


@dataclass(frozen=True)
class Size:
    """How much a cell computes: environment steps (None: the table's), seeds (None: the table's), points of the learning
    curve, episodes at each point, and episodes of the final comparison, for each seed."""

    steps: int | None = None
    seeds: int | None = None
    points: int = 10
    curve_episodes: int = 200
    episodes: int = 1000
    worst_case_episodes: int = 200


QUICK = Size(steps=4096, seeds=2, points=2, curve_episodes=8, episodes=16, worst_case_episodes=8)

_certified: dict[tuple[str, int | None], Certified] = {}


def certified_for(config: SettledConfig) -> Certified:
    """The proof for a task and a horizon, once a process."""
    which = config.task, config.horizon
    if which not in _certified:
        certified = certify_task(load_task(config.task), level=config.level, horizon=config.horizon)
        require_proof(certified.certificate)
        _certified[which] = certified
    return _certified[which]


def base_set_for(config: SettledConfig) -> CertifiedBaseSet:
    """The same where it is a base set's.

    Raises:
        ValueError: for a task that is kept by an invariant set.
    """
    certified = certified_for(config)
    if not isinstance(certified, CertifiedBaseSet):
        raise ValueError(f"task = {config.task!r} is kept by an invariant set and has no backup to learn")
    return certified


@dataclass(frozen=True)
class Backups:
    """Phase 1 of some seeds: networks, stacked, and wall seconds of a seed."""

    network: Any
    seconds: float


_backups: dict[tuple[Any, ...], tuple[int, Backups]] = {}


def backups_for(config: SettledConfig) -> Backups:
    """The learned backups of a config's seeds, the same that `holdfast train` learns; once a process for the most seeds.

    A seed's network does not depend on how many others are trained beside it.
    """
    names = ("task", "level", "horizon", "backup_training", "backup_updates", "seed")
    which = tuple(getattr(config, name, None) for name in names)
    if which not in _backups or _backups[which][0] < config.seeds:
        task, certified = load_task(config.task), base_set_for(config)
        begun = time.monotonic()
        trainer = backup_trainer(task, certified, config)
        state = initialise(trainer, jax.vmap(lambda key: jax.random.fold_in(key, 1))(run_keys(config)))
        state = train(trainer, state, updates=config.backup_updates)
        jax.block_until_ready(jax.tree.leaves(state.network))
        _backups[which] = config.seeds, Backups(state.network, (time.monotonic() - begun) / config.seeds)
    found = _backups[which][1]
    first = jax.tree.map(lambda leaf: leaf[: config.seeds] if isinstance(leaf, jax.Array) else leaf, found.network)
    return Backups(first, found.seconds)


@dataclass(frozen=True)
class Trial:
    """What is trained: the guard with its seeds' networks, the trainer, the keys of the seeds, and the updates of a stretch
    between two looks."""

    task: Task
    guard: Guard
    trainer: PolicyTrainer
    keys: jax.Array
    chunk: int

    @staticmethod
    def prepare(config: SettledConfig, size: Size, network: Any = None) -> "Trial":
        task = load_task(config.task)
        guard = make_guard(task, certified_for(config), network, config)
        updates = policy_trainer(task, guard, config).settings.updates
        # Whole chunks only: a remainder would compile a program of its own.
        chunk = -(-updates // size.points)
        updates = chunk * (-(-updates // chunk))
        trainer = policy_trainer(task, guard, replace(config, steps=None, updates=updates))
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(run_keys(config))
        return Trial(task, guard, trainer, keys, chunk)

    def learn(self) -> "Learned":
        """Trains all seeds in one program and keeps the policy of every stretch."""
        clock, begun = CompileClock(), time.monotonic()
        state = initialise(self.trainer, self.keys)
        policies = [(0, state.policy)]

        def keep(done: int, state: Any, metrics: dict[str, np.ndarray]) -> None:
            policies.append((done * self.trainer.steps_per_update, state.policy))

        updates = self.trainer.settings.updates
        state = train(self.trainer, state, updates=updates, chunk=self.chunk, on_chunk=keep)
        jax.block_until_ready(jax.tree.leaves(state.policy))
        seconds = {"train": time.monotonic() - begun - clock.seconds, "compile": clock.seconds}
        return Learned(policies, state, seconds)


@dataclass(frozen=True)
class Learned:
    """[(environment steps, stacked policy)], the state after the last update, and seconds {train, compile}."""

    policies: list[tuple[int, Any]]
    state: Any
    seconds: dict[str, float]

    def curve(self, look: "Look", episodes: int) -> list[dict[str, Any]]:
        """[{step, per_seed: mean returns}], in the order of training."""
        return [
            {"step": step, "per_seed": [float(each.metrics["return"].mean()) for each in look(policy, episodes)]}
            for step, policy in self.policies
        ]


class _OwnNoise(Disturbance):
    """The task's own disturbance, in the shape of an adversary's."""

    name: ClassVar = "own"
    task: Task

    def __call__(self, key, x, applied, t, context):
        return self.task.disturbance(jax.random.fold_in(key, t), t, context).astype(x.dtype)


class Look:
    """(stacked policy, episodes, kind of noise) -> results of every seed, all on the same starts, by one compiled program."""

    def __init__(self, task: Task, guard: Guard, policy: Any, batch: int, seeds: int, keep: int = 1):
        disturbed = task.system.disturbance_box is not None
        kinds = (_OwnNoise(task), *default_disturbances(task, guard)[1:]) if disturbed else ()
        self.choices = {kind.name: OneOf(kinds, jnp.asarray(i)) for i, kind in enumerate(kinds)}
        self.chosen_noise = [name for name in self.choices if name != _OwnNoise.name]
        self.guard, self.seeds = guard, seeds
        own = self.choices.get(_OwnNoise.name)
        first = of_seed(guard, 0), of_seed(policy, 0)
        self.evaluator = Evaluator(task, *first, batch=batch, keep=keep, disturb=own)

    def __call__(self, policy: Any, episodes: int, kind: str = _OwnNoise.name) -> list[EpisodeResults]:
        options = {"seed": EVALUATION_SEED, "episodes": episodes, "disturb": self.choices.get(kind)}
        pairs = [(of_seed(self.guard, index), of_seed(policy, index)) for index in range(self.seeds)]
        return [self.evaluator(*pair, **options) for pair in pairs]


def rounded(values: np.ndarray) -> list[float]:
    """Seven digits are what float32 has."""
    return [float(f"{value:.7g}") for value in np.asarray(values, np.float64)]


def counts(results: Sequence[EpisodeResults]) -> dict[str, Any]:
    """What was seen in all episodes of all seeds, summed."""
    return {
        "episodes": sum(each.episodes for each in results),
        "steps": sum(each.episodes * each.steps for each in results),
        "violations": sum(int(each.violations.sum(dtype=np.int64)) for each in results),
        "interventions": sum(int(each.interventions.sum()) for each in results),
        "fallbacks": sum(int(each.fallbacks.sum()) for each in results),
        "uncertified_starts": sum(int(each.uncertified_starts.sum()) for each in results),
        "uncertified_steps": sum(each.status_counts()["uncertified"] for each in results),
        "worst_margin": min(float(each.worst_margin.min()) for each in results),
    }
