"""`holdfast reproduce safeguards`: variants of the safeguard x {SHAC, PPO, SAC} x tasks, in resumable cells."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.cli.build import Certified, certify_task, load_task, make_guard, of_seed, physics_of, policy_trainer
from holdfast.cli.cells import Cell
from holdfast.cli.config import Algorithm, SettledConfig, TrainConfig
from holdfast.cli.timing import CompileClock
from holdfast.cli.training import require_proof, run_keys, training_safety
from holdfast.evaluate import Disturbance, EpisodeResults, Evaluator, OneOf, default_disturbances
from holdfast.learn import compiled, initialise, train
from holdfast.runs import to_json
from holdfast.tasks import Task

#: Start states of evaluation: common to all cells, so that differences can be paired, and never the training's own.
EVALUATION_SEED = 20_000

#: The variants, by the name of their row: settings of `holdfast train`. Of the paper's ray masks, the centre is that of an
#: inscribed zonotope ("zonotope") or the middle of the chord through the orthogonal projection ("chord").
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"safeguard": "none"},
    "boundary projection": {"safeguard": "boundary_projection"},
    "boundary projection + regulariser": {"safeguard": "boundary_projection", "intervention_penalty": 0.1},
    "boundary projection, pass-through": {"safeguard": "boundary_projection", "gradient": "straight_through"},
    "ray mask": {"safeguard": "ray_mask", "centre": "zonotope"},
    "ray mask + regulariser": {"safeguard": "ray_mask", "centre": "zonotope", "intervention_penalty": 0.1},
    "ray mask, pass-through": {"safeguard": "ray_mask", "centre": "zonotope", "gradient": "straight_through"},
    "ray mask, chord": {"safeguard": "ray_mask", "centre": "chord"},
    "hyperbolic ray mask": {"safeguard": "hyperbolic_ray_mask", "centre": "zonotope"},
    "hyperbolic ray mask + regulariser": {
        "safeguard": "hyperbolic_ray_mask",
        "centre": "zonotope",
        "intervention_penalty": 0.1,
    },
}
#: What PPO and SAC are compared with; the safeguard is part of their environment.
MODEL_FREE = ("none", "boundary projection", "ray mask")
#: What is trained under chosen noise too.
CHOSEN_NOISE = ("boundary projection", "ray mask")
ALGORITHMS: tuple[Algorithm, ...] = ("shac", "ppo", "sac")
#: Environment steps of phase 2 (published: 100 k, 200 k, 1 M for pendulum, quadrotor, household).
STEPS = {
    "balance-pendulum": 100_000,
    "balance-cartpole": 200_000,
    "balance-quadrotor": 200_000,
    "seeker": 200_000,
    "household": 1_000_000,
}
#: SAC takes a gradient step every four environment steps: the household's million would take it an hour.
_SAC_STEPS = {"household": 200_000}
#: Stretches of training that are timed.
_REPETITIONS = 3
_SEEDS: dict[str, int] = {"shac": 10, "ppo": 3, "sac": 3}


@dataclass(frozen=True)
class Size:
    """How much a cell computes: environment steps (None: `STEPS`), seeds (None: 10 for SHAC, 3 for the others), points of
    the learning curve, episodes at each point, and episodes of the final comparison, for each seed."""

    steps: int | None = None
    seeds: int | None = None
    points: int = 10
    curve_episodes: int = 200
    episodes: int = 1000
    worst_case_episodes: int = 200


QUICK = Size(steps=4096, seeds=2, points=2, curve_episodes=8, episodes=16, worst_case_episodes=8)


def safeguard_cells(tasks: Sequence[str], algorithms: Sequence[str], size: Size) -> list[Cell]:
    """The cells of the table, in the order in which they are computed: SHAC whole, then what it is compared with."""
    cells = []
    for algorithm in ALGORITHMS:
        if algorithm not in algorithms:
            continue
        for task in tasks:
            variants = tuple(VARIANTS) if algorithm == "shac" else MODEL_FREE
            cells += [_cell(task, algorithm, variant, size) for variant in variants]
            cells += [_chosen_noise_cell(task, algorithm, variant, size) for variant in CHOSEN_NOISE]
            cells.append(_time_cell(task, algorithm, variants, size))
    return cells


def cell_name(task: str, algorithm: str, variant: str) -> str:
    return f"{task}/{algorithm}/{variant.replace(',', '').replace('+', 'with').replace(' ', '_')}"


def time_name(task: str, algorithm: str) -> str:
    """The cell with the seconds of training of all variants."""
    return f"{task}/{algorithm}/training_time"


def chosen_noise_name(task: str, algorithm: str, variant: str) -> str:
    """The cell with a safeguarded variant's training under chosen noise."""
    return f"{cell_name(task, algorithm, variant)}_under_chosen_noise"


def _cell(task: str, algorithm: Algorithm, variant: str, size: Size) -> Cell:
    config = _config(task, algorithm, variant, size)
    return Cell(cell_name(task, algorithm, variant), _settings(config, size), lambda: compute(config, size))


def _chosen_noise_cell(task: str, algorithm: Algorithm, variant: str, size: Size) -> Cell:
    config = _config(task, algorithm, variant, size)
    name = chosen_noise_name(task, algorithm, variant)
    return Cell(name, _settings(config, size), lambda: train_under_chosen_noise(config, size))


def _time_cell(task: str, algorithm: Algorithm, variants: Sequence[str], size: Size) -> Cell:
    configs = {variant: _config(task, algorithm, variant, size) for variant in variants}
    settings = {variant: _settings(config, size) for variant, config in configs.items()}
    return Cell(time_name(task, algorithm), settings, lambda: training_times(configs, size))


def _config(task: str, algorithm: Algorithm, variant: str, size: Size) -> SettledConfig:
    options = {"intervention_penalty": 0.0, "margin_penalty": 0.0, "gradient": "exact"} | VARIANTS[variant]
    return TrainConfig(
        task=task,
        algorithm=algorithm,
        placement="policy" if algorithm == "shac" else "environment",
        seeds=size.seeds or _SEEDS[algorithm],
        steps=float(size.steps or (_SAC_STEPS if algorithm == "sac" else {}).get(task) or STEPS[task]),
        episodes=size.episodes,
        **options,
    ).for_task(load_task(task))


def _settings(config: SettledConfig, size: Size) -> dict[str, Any]:
    return to_json(config) | {"size": asdict(size), "physics": physics_of(load_task(config.task))}


_certified: dict[str, Certified] = {}


def _certify(name: str) -> Certified:
    """The task's proof, once a process."""
    if name not in _certified:
        certified = certify_task(load_task(name), level=None, horizon=None)
        require_proof(certified.certificate)
        _certified[name] = certified
    return _certified[name]


def _prepare(config: SettledConfig, size: Size):
    """(task, guard, trainer, keys of the seeds, updates of a point of the curve)."""
    task = load_task(config.task)
    guard = make_guard(task, _certify(config.task), None, config)
    updates = policy_trainer(task, guard, config).settings.updates
    # Whole chunks only: a remainder would compile a program of its own.
    chunk = -(-updates // size.points)
    updates = chunk * (-(-updates // chunk))
    trainer = policy_trainer(task, guard, replace(config, steps=None, updates=updates))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(run_keys(config))
    return task, guard, trainer, keys, chunk


def training_times(configs: Mapping[str, SettledConfig], size: Size) -> dict[str, Any]:
    """Seconds of the same stretch of training for every variant, in turns, so that a load that comes and goes meets all
    alike: {"updates", "seconds": {variant: [repetitions]}}. The first stretch, in which programs are compiled, is left out.
    """
    running, seconds = {}, {variant: [] for variant in configs}
    for variant, config in configs.items():
        _, _, trainer, keys, chunk = _prepare(config, size)
        state = initialise(trainer, keys)
        advance = compiled(trainer, state)
        running[variant] = advance, advance(state, chunk)[0], chunk
    for _ in range(_REPETITIONS):
        for variant, (advance, state, chunk) in running.items():
            jax.block_until_ready(jax.tree.leaves(state))
            begun = time.monotonic()
            state, _ = advance(state, chunk)
            jax.block_until_ready(jax.tree.leaves(state))
            seconds[variant].append(time.monotonic() - begun)
            running[variant] = advance, state, chunk
    return {"updates": {variant: chunk for variant, (_, _, chunk) in running.items()}, "seconds": seconds}


def train_under_chosen_noise(config: SettledConfig, size: Size) -> dict[str, Any]:
    """What the guard did in a stretch of training whose noise an adversary chose: vertices held for one seed, the vertex that
    takes most from the set's margins for the next, in turns."""
    task, guard, _, keys, chunk = _prepare(config, size)
    kinds = default_disturbances(task, guard)[1:]
    # An array has a seed axis in training.
    adversary = OneOf(kinds, jnp.arange(config.seeds) % len(kinds))
    trainer = policy_trainer(task, guard, config, adversary)
    state = train(trainer, initialise(trainer, keys), updates=chunk, chunk=chunk)
    return {"seeds": config.seeds, "noise": [kind.name for kind in kinds], **training_safety(state)}


def compute(config: SettledConfig, size: Size) -> dict[str, Any]:
    """Trains one cell's seeds in one program and evaluates them along the way and at the end, on common starts."""
    task, guard, trainer, keys, chunk = _prepare(config, size)
    updates, clock, begun = trainer.settings.updates, CompileClock(), time.monotonic()
    state = initialise(trainer, keys)
    policies = [(0, state.policy)]

    def keep(done: int, state: Any, metrics: dict[str, np.ndarray]) -> None:
        policies.append((done, state.policy))

    state = train(trainer, state, updates=updates, chunk=chunk, on_chunk=keep)
    jax.block_until_ready(jax.tree.leaves(state.policy))
    seconds = {"train": time.monotonic() - begun - clock.seconds, "compile": clock.seconds}

    look = _Look(task, guard, policies[0][1], min(size.curve_episodes, 200), config.seeds)
    curve = [
        {
            "step": done * trainer.steps_per_update,
            "per_seed": [float(each.metrics["return"].mean()) for each in results],
        }
        for done, policy in policies
        for results in (look(policy, size.curve_episodes),)
    ]
    best = int(np.argmax([np.mean(point["per_seed"]) for point in curve]))
    last = look(policies[-1][1], size.episodes)
    best_results = last if best == len(policies) - 1 else look(policies[best][1], size.episodes)
    return {
        "seeds": config.seeds,
        "steps": updates * trainer.steps_per_update,
        "updates": updates,
        "seconds": seconds,
        "curve": curve,
        "best_step": curve[best]["step"],
        "returns": [_rounded(each.metrics["return"]) for each in last],
        "best_returns": [_rounded(each.metrics["return"]) for each in best_results],
        "metrics": {
            name: [float(np.mean(each.metrics[name])) for each in last] for name in last[0].metrics if name != "return"
        },
        "evaluation": _counts([*last, *(best_results if best_results is not last else ())]),
        "training": training_safety(state),
        "worst_case": {
            kind: _counts(look(policies[-1][1], size.worst_case_episodes, kind)) for kind in look.chosen_noise
        },
    }


class _OwnNoise(Disturbance):
    """The task's own disturbance, in the shape of an adversary's."""

    name: ClassVar = "own"
    task: Task

    def __call__(self, key, x, applied, t, context):
        return self.task.disturbance(jax.random.fold_in(key, t), t, context).astype(x.dtype)


class _Look:
    """(stacked policy, episodes, kind of noise) -> results of every seed, all on the same starts, by one compiled program."""

    def __init__(self, task: Task, guard, policy, batch: int, seeds: int):
        disturbed = task.system.disturbance_box is not None
        kinds = (_OwnNoise(task), *default_disturbances(task, guard)[1:]) if disturbed else ()
        self.choices = {kind.name: OneOf(kinds, jnp.asarray(i)) for i, kind in enumerate(kinds)}
        self.chosen_noise = [name for name in self.choices if name != _OwnNoise.name]
        self.guard, self.seeds = guard, seeds
        own = self.choices.get(_OwnNoise.name)
        self.evaluator = Evaluator(task, guard, of_seed(policy, 0), batch=batch, keep=1, disturb=own)

    def __call__(self, policy, episodes: int, kind: str = _OwnNoise.name) -> list[EpisodeResults]:
        options = {"seed": EVALUATION_SEED, "episodes": episodes, "disturb": self.choices.get(kind)}
        return [self.evaluator(self.guard, of_seed(policy, index), **options) for index in range(self.seeds)]


def _rounded(values: np.ndarray) -> list[float]:
    """Seven digits are what float32 has."""
    return [float(f"{value:.7g}") for value in np.asarray(values, np.float64)]


def _counts(results: Sequence[EpisodeResults]) -> dict[str, Any]:
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
