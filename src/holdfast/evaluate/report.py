"""The report of a run: everything that is claimed about it, in one JSON file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from holdfast.certify.certificate import Certificate
from holdfast.evaluate.attack import constraint_names
from holdfast.evaluate.coverage import Coverage
from holdfast.evaluate.episodes import EpisodeResults
from holdfast.evaluate.interventions import Intervention, count_by_constraint
from holdfast.evaluate.statistics import rule_of_three, summarise, upper_bound
from holdfast.evaluate.strict_json import decode, encode, plain
from holdfast.tasks import Task

WALL_SECONDS = ("compile", "backup", "policy", "verify", "evaluate")
_EXAMPLES = 20
_NOISE = {"uniform": "uniform", "vertices": "held-vertex", "gradient": "gradient-chosen"}
_PACKAGES = ("holdfast", "jax", "jaxlib", "equinox", "optax", "numpy", "scipy")


@dataclass(frozen=True)
class Report:
    """What `report.json` holds. Plain JSON values throughout; `make_report` builds one from results.

    Attributes:
        task, algorithm, safeguard: names.
        seeds: trained seeds, in the order of every `per_seed`.
        wall_seconds: {compile, backup, policy, verify, evaluate}; None where not measured.
        metrics: name -> {mean, iqm, ci95, per_seed}; see `statistics.summarise`.
        metric_units: name -> unit.
        safety: {episodes, steps, violations, violating_episodes, worst_margin (by constraint), violation_bound,
            interventions, fallbacks, uncertified_starts, lapses, diverged, statuses}. `violation_bound`: 95 % upper bound
            of the probability that an episode violates, 3/n where none of n did. `lapses`: samples after a certified
            start at which nothing was promised any more. With worst-case noise also `noise`: who chose the disturbance
            -> the same counts of those episodes.
        training_safety: {steps, violations, interventions}, of all steps that the safeguard guarded in training.
        coverage: `Coverage.to_json`, or None.
        interventions: {explained, by_constraint, examples}, of the kept trajectories.
        certificate: `Certificate.to_json`, or None.
        environment: {versions, device, precision, ...}.
        published: name -> published value of the metric, to compare; or None.
        optimal_control: name -> value of the metric under open-loop optimal control, to compare; or None.
        notes: sentences a reader must know.
    """

    task: str
    algorithm: str
    safeguard: str
    seeds: list[int]
    wall_seconds: dict[str, float | None]
    metrics: dict[str, dict]
    metric_units: dict[str, str]
    safety: dict[str, Any]
    training_safety: dict[str, Any] | None
    coverage: dict[str, Any] | None
    interventions: dict[str, Any]
    certificate: dict[str, Any] | None
    environment: dict[str, Any]
    published: dict[str, float] | None = None
    optimal_control: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object without NaN or infinity: such a number is null, and `non_finite` says where and which."""
        return encode(dataclasses.asdict(self))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Report:
        """The inverse of `to_json`, numbers that are not finite included.

        Raises:
            ValueError: if fields are missing or unknown.
        """
        data = decode(data)
        known = {each.name for each in dataclasses.fields(Report)}
        required = known - {"published", "optimal_control", "notes"}
        if unfit := (required - data.keys()) | (data.keys() - known):
            raise ValueError(f"Report.from_json: missing or unknown fields {sorted(unfit)}; is this a report.json?")
        return Report(**data)

    def write(self, path: str | Path) -> None:
        """Writes `report.json`, whole or not at all."""
        path = Path(path)
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)

    @staticmethod
    def read(path: str | Path) -> Report:
        """Reads what `write` wrote."""
        return Report.from_json(json.loads(Path(path).read_text(encoding="utf-8")))


def make_report(
    task: Task,
    results: Sequence[EpisodeResults],
    *,
    algorithm: str,
    safeguard: str,
    seeds: Sequence[int],
    wall_seconds: Mapping[str, float] | None = None,
    training_safety: Mapping[str, Any] | None = None,
    coverage: Coverage | None = None,
    interventions: Sequence[Intervention] = (),
    certificate: Certificate | None = None,
    published: Mapping[str, float] | None = None,
    optimal_control: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    noise: Mapping[str, Sequence[EpisodeResults]] | None = None,
) -> Report:
    """Assembles the report of one run.

    Args:
        task: what was evaluated.
        results: one a trained seed, in the order of `seeds`.
        algorithm, safeguard: names.
        seeds: trained seeds.
        wall_seconds: by phase; evaluation and its compile time are taken from `results` where not given.
        training_safety: {steps, violations, interventions}.
        coverage, interventions, certificate, published, optimal_control, notes: see `Report`. Notes about diverged
            episodes, uncertified starts and violations are added.
        noise: results of the same seeds by who chose the disturbance (`evaluate_noise`).

    Raises:
        ValueError: if there is not one result for each seed.
    """
    if not results or len(results) != len(seeds):
        raise ValueError(f"make_report: {len(results)} results for {len(seeds)} seeds; give one result for each seed")
    spent = {
        "evaluate": sum(each.seconds for each in results),
        "compile": sum(each.compile_seconds for each in results),
    }
    wall = dict.fromkeys(WALL_SECONDS) | spent | dict(wall_seconds or {})
    safety = _safety(task, results)
    if noise:
        safety["noise"] = {name: _safety(task, found) for name, found in noise.items()}
    report = Report(
        task=task.name,
        algorithm=algorithm,
        safeguard=safeguard,
        seeds=[int(seed) for seed in seeds],
        wall_seconds=wall,
        metrics={name: summarise([each.metrics[name] for each in results]) for name in results[0].metrics},
        metric_units={"return": ""} | dict(task.metric_units),
        safety=safety,
        training_safety=None if training_safety is None else dict(training_safety),
        coverage=None if coverage is None else coverage.to_json(),
        interventions={
            "explained": len(interventions),
            "by_constraint": count_by_constraint(list(interventions)),
            "examples": [dataclasses.asdict(each) for each in _spread(interventions)],
        },
        certificate=None if certificate is None else certificate.to_json(),
        environment=environment(results[0].worst_margin.dtype),
        published=None if published is None else dict(published),
        optimal_control=None if optimal_control is None else dict(optimal_control),
        notes=[*notes, *_notes(safety, certificate)],
    )
    return dataclasses.replace(
        report, **{each.name: plain(getattr(report, each.name)) for each in dataclasses.fields(Report)}
    )


def environment(precision: Any = None) -> dict[str, Any]:
    """Versions of the packages in use, device, and the float type that was evaluated."""
    device = jax.devices()[0]
    precision = np.dtype(jax.dtypes.canonicalize_dtype(float) if precision is None else precision).name
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "device": f"{device.platform}: {device.device_kind}",
        "precision": precision,
        "cpus": os.cpu_count(),
        "system": platform.platform(),
    }


def _safety(task: Task, results: Sequence[EpisodeResults]) -> dict[str, Any]:
    episodes = sum(each.episodes for each in results)
    violating = sum(int(np.sum(each.violations > 0)) for each in results)
    worst = np.min([each.worst_margin.min(axis=0) for each in results], axis=0)
    counts = [each.status_counts() for each in results]
    return {
        "episodes": episodes,
        "steps": sum(each.episodes * each.steps for each in results),
        "violations": sum(int(each.violations.sum(dtype=np.int64)) for each in results),
        "violating_episodes": violating,
        "worst_margin": dict(zip(constraint_names(task, worst.shape[0]), map(float, worst))),
        "violation_bound": rule_of_three(episodes) if violating == 0 else upper_bound(violating, episodes),
        "interventions": sum(int(each.interventions.sum()) for each in results),
        "fallbacks": sum(int(each.fallbacks.sum()) for each in results),
        "uncertified_starts": sum(int(each.uncertified_starts.sum()) for each in results),
        "lapses": sum(int(each.lapses.sum(dtype=np.int64)) for each in results),
        "diverged": sum(int(each.diverged.sum()) for each in results),
        "statuses": {name: sum(count[name] for count in counts) for name in counts[0]},
    }


def _notes(safety: Mapping[str, Any], certificate: Certificate | None) -> list[str]:
    episodes, notes = safety["episodes"], []
    if safety["violations"] == 0:
        notes.append(
            f"No violation in {episodes} episodes: by these episodes alone, the probability of one is below "
            f"{safety['violation_bound']:.3g} an episode (95 %). The certificate says what is proved beyond that."
        )
    else:
        notes.append(f"{safety['violating_episodes']} of {episodes} episodes violate the safe set.")
    if safety["uncertified_starts"]:
        notes.append(
            f"{safety['uncertified_starts']} of {episodes} starts were not certified; they were run and counted, and "
            "nothing is promised for them until a plan is committed."
        )
    if safety["lapses"]:
        notes.append(
            f"At {safety['lapses']} samples after certified starts nothing was promised any more: the plant left what the "
            "certificate is about, or the certificate is wrong."
            if certificate is None or certificate.holds
            else f"At {safety['lapses']} samples after starts in the certified set the state lay outside of it: no promise was "
            "held, so nothing brought it back."
        )
    for name, found in safety.get("noise", {}).items():
        notes.append(
            f"With {_NOISE.get(name, name)} noise: {found['violations']} violations and {found['lapses']} lapsed promises in "
            f"{found['steps']} steps of {found['episodes']} episodes."
        )
    if safety["diverged"]:
        notes.append(f"{safety['diverged']} episodes diverged; their metrics are not numbers and are written as null.")
    if certificate is None:
        notes.append("No certificate belongs to this report.")
    elif not certificate.holds:
        notes.append("The certificate does not hold: an obligation is refuted, not proved or only sampled.")
    return notes


def _spread(interventions: Sequence[Intervention]) -> list[Intervention]:
    """Some examples of every binding constraint, in the order in which they happened."""
    room = _EXAMPLES // max(1, len({each.constraint for each in interventions}))
    taken: dict[str, int] = {}
    found = []
    for each in interventions:
        taken[each.constraint] = taken.get(each.constraint, 0) + 1
        if taken[each.constraint] <= max(1, room):
            found.append(each)
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
