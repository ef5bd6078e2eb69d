"""The methods of PS2-RL's tables (arXiv 2606.14536), each a composition: settings of `holdfast train`, and a safeguard at
deployment that may be another one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args

import numpy as np

from holdfast.cli.build import implicit_set, load_task, make_guard, of_seed, physics_of
from holdfast.cli.cells import Cell
from holdfast.cli.config import SafeguardName, SettledConfig, TrainConfig
from holdfast.cli.timing import Stopwatch
from holdfast.cli.training import training_safety
from holdfast.cli.trials import BEFORE, Look, Size, Trial, backups_for, base_set_for, certified_for, counts, rounded
from holdfast.evaluate import EpisodeResults, invariant_slice, measure_coverage
from holdfast.runs import to_json

#: Of the published tables, the tasks.
TASKS = ("lane-keeping", "power-loop")
#: States on which the size of a certified set is measured, for each seed.
_SAMPLES = 200_000
_RESOLUTION = 161


@dataclass(frozen=True)
class Method:
    """How policies are trained, and the rows that come of them.

    Attributes:
        rows: name of the row -> settings in which the guard at deployment differs from that of training.
        options: settings of `holdfast train`.
        seeds: how many, where a size does not say.
        steps: environment steps of a seed, by task; its own number of updates where not given.
        by_task: settings that one task has in its own units, by task.
        horizon: share of the task's horizon that the backup has; 1: all.
        analytic: the backup is the base controller, not learned.
        tasks: on which it exists.
    """

    rows: dict[str, dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    steps: dict[str, int] = field(default_factory=dict)
    by_task: dict[str, dict[str, Any]] = field(default_factory=dict)
    horizon: float = 1.0
    analytic: bool = False
    tasks: tuple[str, ...] = TASKS

    @property
    def known(self) -> bool:
        """Whether `holdfast train` of this version has all of its settings."""
        asked = [self.options, *self.rows.values()]
        settings = {each.name for each in fields(TrainConfig)}
        return all(set(each) <= settings and each.get("safeguard", "none") in get_args(SafeguardName) for each in asked)

    def config(self, task: str, size: Size) -> SettledConfig:
        """The settings of one task."""
        own, options = load_task(task), self.options | self.by_task.get(task, {})
        if self.horizon != 1:
            options["horizon"] = max(1, round(self.horizon * own.safety.horizon))
        steps = size.steps or self.steps.get(task)
        if steps is not None:
            options["steps"] = float(steps)
        if size.steps is not None:
            options |= {"backup_updates": _QUICK_BACKUP}
        seeds = size.seeds or self.seeds
        return TrainConfig(task=task, seeds=seeds, episodes=size.episodes, **options).for_task(own)


#: Updates of phase 1 where a table is computed at toy size.
_QUICK_BACKUP = 60
_SAC = {"algorithm": "sac", "placement": "environment"}
_PUBLISHED = {"algorithm": "sac", "recipe": "published", "safeguard": "backup_cbf", "gradient": "relaxed"}
_PPO = {"algorithm": "ppo", "placement": "environment"}
#: Environment steps of what is model-free, for each seed. Published: 1 M and 1.5 M.
_STEPS = {"lane-keeping": 100_000, "power-loop": 100_000}
_PPO_STEPS = {"lane-keeping": 200_000, "power-loop": 200_000}
#: Of what asks the published layer in every update: on the power loop, milliseconds a step.
_LAYER_STEPS = {"lane-keeping": 100_000, "power-loop": 25_000}
#: What a violation costs is in units of scaled rewards, of which tracking over the ceiling saves less than over the lane's
#: edge: a low penalty is of the order of what a violating step saves, a high one fifty times that.
_MULTIPLIER = {"lane-keeping": {"multiplier_rate": 1e-4}, "power-loop": {"multiplier_rate": 1e-5}}

OURS = "ours"
REMOVED = "ours, safeguard removed at deployment"
ADDED = "unsafe tracker, safeguard added afterwards"
ANALYTIC = "ours, analytic backup (LQR)"

METHODS: dict[str, Method] = {
    "ours": Method(
        {
            OURS: {},
            REMOVED: {"safeguard": "none"},
            "ours, no map: committed action instead": {"safeguard": "committed_shield"},
        },
        seeds=10,
    ),
    "analytic": Method({ANALYTIC: {}}, analytic=True),
    "unsafe": Method({"unsafe tracker": {}, ADDED: {"safeguard": "ray"}}, {"safeguard": "none"}),
    "sac-low-penalty": Method(
        {"SAC, low penalty": {}},
        _SAC | {"safeguard": "none"},
        steps=_STEPS,
        by_task={"lane-keeping": {"violation_penalty": 0.02}, "power-loop": {"violation_penalty": 0.002}},
    ),
    "sac-high-penalty": Method(
        {"SAC, high penalty": {}},
        _SAC | {"safeguard": "none"},
        steps=_STEPS,
        by_task={"lane-keeping": {"violation_penalty": 1.0}, "power-loop": {"violation_penalty": 0.1}},
    ),
    "sac-lagrangian": Method(
        {"SAC-Lagrangian": {}},
        _SAC | {"safeguard": "none", "violation_limit": 1e-3},
        steps=_STEPS,
        by_task=_MULTIPLIER,
    ),
    "ppo-lagrangian": Method(
        {"PPO-Lagrangian (in place of CPO)": {}},
        _PPO | {"safeguard": "none", "violation_limit": 1e-3},
        steps=_PPO_STEPS,
        by_task=_MULTIPLIER,
    ),
    "cbf-rl": Method(
        {
            "CBF-RL: filter in training only": {"safeguard": "none"},
            "SAC, exact safeguard in the environment": {},
        },
        _SAC | {"safeguard": "ray"},
        steps=_STEPS,
    ),
    "shielding": Method(
        {
            "model-predictive shielding, as published": {},
            "model-predictive shielding, committed": {"safeguard": "committed_shield"},
            "gatekeeper": {"safeguard": "gatekeeper"},
        },
        _SAC | {"safeguard": "shield"},
        steps=_STEPS,
    ),
    "barrier": Method({"CBF-QP by hand": {}}, _SAC | {"safeguard": "barrier"}, steps=_STEPS, tasks=("lane-keeping",)),
    "published-layer": Method(
        {
            "published layer, SAC": {},
            "published layer, SAC, verified": {"safeguard": "backup_cbf_verified"},
        },
        _PUBLISHED,
        seeds=10,
        steps=_LAYER_STEPS,
    ),
    "td3-backup": Method({"ours, backup by TD3": {}}, {"backup_training": "td3"}),
    "half-horizon": Method({"ours, half the horizon": {}}, horizon=0.5),
    "quarter-horizon": Method({"ours, a quarter of the horizon": {}}, horizon=0.25),
    "small-gains": Method(
        {"published layer, SAC, gains halved": {}},
        _PUBLISHED | {"safe_gain": 2.0, "base_gain": 1.0},
        steps=_LAYER_STEPS,
    ),
}
_ONLY_ABLATED = ("half-horizon", "quarter-horizon", "small-gains")
_ALL = tuple(name for name in METHODS if name not in _ONLY_ABLATED)
#: The tables, by the methods that they compare.
COMPARED: dict[str, tuple[str, ...]] = {
    "lane-keeping": _ALL,
    "power-loop": _ALL,
    "ablation": ("ours", "analytic", "unsafe", "td3-backup", "published-layer", *_ONLY_ABLATED),
}


def methods_of(task: str, names: Sequence[str]) -> dict[str, Method]:
    """Those of the named methods that exist on a task, and in this version."""
    return {name: METHODS[name] for name in names if task in METHODS[name].tasks and METHODS[name].known}


def method_cells(task: str, names: Sequence[str], size: Size) -> list[Cell]:
    """One cell a method, ours first."""
    return [_cell(task, name, method, size) for name, method in methods_of(task, names).items()]


def cell_name(task: str, name: str) -> str:
    return f"{task}/{name}"


def _cell(task: str, name: str, method: Method, size: Size) -> Cell:
    config = method.config(task, size)
    settings = to_json(config) | {
        "size": asdict(size),
        "physics": physics_of(load_task(task)),
        "analytic": method.analytic,
        "deployed": method.rows,
    }
    return Cell(cell_name(task, name), settings, lambda: compute(method, config, size), BEFORE)


def compute(method: Method, config: SettledConfig, size: Size) -> dict[str, Any]:
    """Trains the seeds of a method in one program, and evaluates each of its rows on the common starts."""
    watch = Stopwatch()
    certified = certified_for(config)
    needed = not method.analytic and any(_needs_backup(each, config) for each in ({}, *method.rows.values()))
    backups = backups_for(config) if needed else None
    network = None if backups is None else backups.network
    trial = Trial.prepare(config, size, network)
    learned = trial.learn()
    rows, batch, seeds = {}, min(size.curve_episodes, size.episodes), config.seeds
    with watch("evaluate"):
        look = Look(trial.task, trial.guard, learned.policies[0][1], batch, seeds, keep=batch)
        curve = learned.curve(look, size.curve_episodes)
        policy = learned.policies[-1][1]
        for name, changes in method.rows.items():
            if changes:
                guard = make_guard(trial.task, certified, network, replace(config, **changes))
                rows[name] = _row(Look(trial.task, guard, policy, batch, seeds, keep=batch)(policy, size.episodes))
            else:
                rows[name] = _row(look(policy, size.episodes))
    return {
        "seeds": config.seeds,
        "steps": curve[-1]["step"],
        "seconds": learned.seconds
        | watch.seconds
        | {"backup": 0.0 if backups is None else backups.seconds * config.seeds},
        "curve": curve,
        "training": training_safety(learned.state),
        "rows": rows,
    }


def _needs_backup(changes: dict[str, Any], config: SettledConfig) -> bool:
    return replace(config, **changes).safeguard not in ("none", "barrier")


def _row(results: Sequence[EpisodeResults]) -> dict[str, Any]:
    """What is kept of one row: numbers of each seed, counts over all, and one episode to draw."""
    first = results[0].trajectories
    moved = [np.any(each.trajectories.applied != each.trajectories.proposed, axis=-1).mean() for each in results]
    return {
        "metrics": {name: [float(np.mean(each.metrics[name])) for each in results] for name in results[0].metrics},
        "safe_episodes": [int((each.violations == 0).sum()) for each in results],
        "moved": [float(each) for each in moved],
        "evaluation": counts(results),
        "states": [rounded(state) for state in first.states[0]],
        "reference": [rounded(state) for state in first.reference[0]],
    }


#: How the backups of the table of sets are learned: settings of `holdfast train`.
BACKUPS: dict[str, dict[str, Any]] = {"simulator": {}, "td3": {"backup_training": "td3"}}


def set_cells(tasks: Sequence[str], size: Size) -> list[Cell]:
    """The cells of the table of invariant sets: each way to learn a backup, on each task."""
    cells = []
    for task in tasks:
        for how, options in BACKUPS.items():
            if Method({}, options).known:
                config = Method({}, options).config(task, size)
                settings = to_json(config) | {"physics": physics_of(load_task(task)), "samples": _samples(size)}
                cells.append(Cell(cell_name(task, f"set-{how}"), settings, _measuring(config, size), BEFORE))
    return cells


def _measuring(config: SettledConfig, size: Size):
    return lambda: measure_set(config, size)


def _samples(size: Size) -> int:
    return _SAMPLES if size.steps is None else 4096


def measure_set(config: SettledConfig, size: Size) -> dict[str, Any]:
    """How much the backups of a config's seeds certify, how much the analytic one does, and a slice of the first seed's."""
    task, certified, watch = load_task(config.task), base_set_for(config), Stopwatch()
    backups, horizon = backups_for(config), config.horizon or task.safety.horizon
    analytic = implicit_set(task, certified, None, horizon)
    coverage = []
    with watch("measure"):
        for index in range(config.seeds):
            learned = implicit_set(task, certified, of_seed(backups.network, index), horizon)
            other = analytic if index == 0 else None
            found = measure_coverage(task, learned, other, acceptance=certified.acceptance, samples=_samples(size))
            coverage.append(found.to_json())
        learned = implicit_set(task, certified, of_seed(backups.network, 0), horizon)
        resolution = _RESOLUTION if size.steps is None else 21
        piece = invariant_slice(task, learned, analytic, resolution=resolution, acceptance=certified.acceptance)
    masks = {name: getattr(piece, name) for name in ("certified", "safe", "base", "analytic", "viable", "possible")}
    return {
        "seeds": config.seeds,
        "updates": config.backup_updates,
        "seconds": watch.seconds | {"backup": backups.seconds * config.seeds},
        "coverage": coverage,
        "slice": {
            "axes": piece.axes,
            "first": piece.first,
            "second": piece.second,
            "fixed": piece.fixed,
            "masks": {name: None if mask is None else pack(mask) for name, mask in masks.items()},
        },
    }


def pack(mask: np.ndarray) -> list[str]:
    """A mask's rows as hexadecimal words, eight points a byte."""
    return [np.packbits(row).tobytes().hex() for row in np.asarray(mask, bool)]


def unpack(rows: Sequence[str], columns: int) -> np.ndarray:
    """What `pack` packed."""
    return np.stack([np.unpackbits(np.frombuffer(bytes.fromhex(row), np.uint8))[:columns] for row in rows]).astype(bool)
