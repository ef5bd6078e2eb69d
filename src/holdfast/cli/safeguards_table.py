"""`holdfast reproduce safeguards`: variants of the safeguard x {SHAC, PPO, SAC} x tasks, in resumable cells."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.cli.build import load_task, physics_of, policy_trainer
from holdfast.cli.cells import Cell
from holdfast.cli.config import Algorithm, SettledConfig, TrainConfig
from holdfast.cli.training import training_safety
from holdfast.cli.trials import BEFORE, Look, Size, Trial, counts, rounded
from holdfast.evaluate import OneOf, default_disturbances
from holdfast.learn import compiled, initialise, train
from holdfast.runs import to_json

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
    return Cell(cell_name(task, algorithm, variant), _settings(config, size), lambda: compute(config, size), BEFORE)


def _chosen_noise_cell(task: str, algorithm: Algorithm, variant: str, size: Size) -> Cell:
    config = _config(task, algorithm, variant, size)
    name = chosen_noise_name(task, algorithm, variant)
    return Cell(name, _settings(config, size), lambda: train_under_chosen_noise(config, size), BEFORE)


def _time_cell(task: str, algorithm: Algorithm, variants: Sequence[str], size: Size) -> Cell:
    configs = {variant: _config(task, algorithm, variant, size) for variant in variants}
    settings = {variant: _settings(config, size) for variant, config in configs.items()}
    return Cell(time_name(task, algorithm), settings, lambda: training_times(configs, size), BEFORE)


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


def training_times(configs: Mapping[str, SettledConfig], size: Size) -> dict[str, Any]:
    """Seconds of the same stretch of training for every variant, in turns, so that a load that comes and goes meets all
    alike: {"updates", "seconds": {variant: [repetitions]}}. The first stretch, in which programs are compiled, is left out.
    """
    running, seconds = {}, {variant: [] for variant in configs}
    for variant, config in configs.items():
        trial = Trial.prepare(config, size)
        state = initialise(trial.trainer, trial.keys)
        advance = compiled(trial.trainer, state)
        running[variant] = advance, advance(state, trial.chunk)[0], trial.chunk
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
    trial = Trial.prepare(config, size)
    kinds = default_disturbances(trial.task, trial.guard)[1:]
    # An array has a seed axis in training.
    adversary = OneOf(kinds, jnp.arange(config.seeds) % len(kinds))
    trainer = policy_trainer(trial.task, trial.guard, config, adversary)
    state = train(trainer, initialise(trainer, trial.keys), updates=trial.chunk, chunk=trial.chunk)
    return {"seeds": config.seeds, "noise": [kind.name for kind in kinds], **training_safety(state)}


def compute(config: SettledConfig, size: Size) -> dict[str, Any]:
    """Trains one cell's seeds in one program and evaluates them along the way and at the end, on common starts."""
    trial = Trial.prepare(config, size)
    learned = trial.learn()
    policies = [policy for _, policy in learned.policies]
    look = Look(trial.task, trial.guard, policies[0], min(size.curve_episodes, 200), config.seeds)
    curve = learned.curve(look, size.curve_episodes)
    best = int(np.argmax([np.mean(point["per_seed"]) for point in curve]))
    last = look(policies[-1], size.episodes)
    best_results = last if best == len(policies) - 1 else look(policies[best], size.episodes)
    return {
        "seeds": config.seeds,
        "steps": curve[-1]["step"],
        "updates": trial.trainer.settings.updates,
        "seconds": learned.seconds,
        "curve": curve,
        "best_step": curve[best]["step"],
        "returns": [rounded(each.metrics["return"]) for each in last],
        "best_returns": [rounded(each.metrics["return"]) for each in best_results],
        "metrics": {
            name: [float(np.mean(each.metrics[name])) for each in last] for name in last[0].metrics if name != "return"
        },
        "evaluation": counts([*last, *(best_results if best_results is not last else ())]),
        "training": training_safety(learned.state),
        "worst_case": {kind: counts(look(policies[-1], size.worst_case_episodes, kind)) for kind in look.chosen_noise},
    }
