"""From a trained run to its report: episodes, coverage, explanations, pictures, one page."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from holdfast.certify import CertifiedInvariantSet, Obligation
from holdfast.cli.build import implicit_set, make_guard, of_seed
from holdfast.cli.config import SettledConfig
from holdfast.cli.timing import CompileClock, Stopwatch
from holdfast.cli.training import Trained, training_safety
from holdfast.evaluate import (
    EpisodeResults,
    Report,
    evaluate_noise,
    evaluate_seeds,
    explain_interventions,
    invariant_slice,
    make_report,
    measure_coverage,
)
from holdfast.plots import (
    PageFigure,
    can_be_projected,
    learning_figure,
    margin_figure,
    projection_figure,
    slice_figure,
    trajectory_figure,
    write_report_page,
)
from holdfast.runs import RunDirectory
from holdfast.safeguards import LAYERS, MASKS, BackupCBF, Safeguard

#: Start states of evaluation are those of this seed unless another is asked for: never the training's own.
EVALUATION_SEED = 10_000

_IMPLICIT = (
    "A slice through the implicit invariant set of the learned backup, against the analytic backup's, the base set "
    "and, where it is known, the viability kernel (the most that any policy could keep safe) or a bound of it."
)
_INVARIANT = (
    "A slice through the robust control invariant set: from each state in it some action keeps every disturbed successor "
    "in it."
)
_PROJECTED = (
    "The robust control invariant set as its projections show it, within the feasible box, with states of the episodes that "
    "were kept. It lies in the box if and only if every projection does."
)
#: Most states that are marked in a figure.
_MARKED = 2000


def evaluate_run(
    trained: Trained,
    run: RunDirectory,
    *,
    episodes: int,
    seed: int,
    command: str,
    clock: CompileClock,
    progress: Callable[[str], None],
    samples: int = 100_000,
) -> Report:
    """Evaluates every seed of a run, writes report.json, certificate.json, trajectories.npz and report.html.

    Args:
        trained: the run.
        run: where the files go.
        episodes: for each seed.
        seed: of the start states.
        command: the command line that makes the report again.
        clock: compile seconds so far.
        progress: told what is being done.
        samples: states on which coverage is measured.
    """
    task, config, watch = trained.task, trained.config, Stopwatch()
    guards = [make_guard(task, trained.certified, of_seed(trained.network, i), config) for i in range(config.seeds)]
    policies = [of_seed(trained.policy.policy, i) for i in range(config.seeds)]
    with watch("evaluate"):
        progress(f"{episodes} episodes for each of {config.seeds} seed{'s' * (config.seeds > 1)}")
        results = evaluate_seeds(task, guards, policies, seed=seed, episodes=episodes)
        noise = evaluate_noise(task, guards, policies, seed=seed, episodes=episodes)
        progress("how much is certified")
        looked_at = _certified_sets(trained)
        coverage = measure_coverage(task, *looked_at[:2], acceptance=looked_at[2], samples=samples)
        explained = explain_interventions(task, guards[0], results[0].trajectories)
        piece = invariant_slice(task, *looked_at[:2], acceptance=looked_at[2])
    certificate = trained.certified.certificate.with_obligation(_starts_obligation(coverage))
    finished = () if trained.finished else ("Training was interrupted before its last update.",)
    guarded = isinstance(guards[0], Safeguard | BackupCBF)
    unguarded = () if guarded else ("No safeguard: nothing is promised for this run.",)
    if isinstance(guards[0], BackupCBF):
        certificate = guards[0].certificate(certificate)
        unguarded = (
            "The published layer filters actions and verifies nothing; the certificate says what is not proved.",
        )
    report = make_report(
        task,
        results,
        algorithm=config.algorithm,
        safeguard=_safeguard_words(config),
        seeds=range(config.seed, config.seed + config.seeds),
        wall_seconds=trained.seconds | watch.seconds | {"compile": clock.seconds},
        training_safety=training_safety(trained.policy),
        coverage=coverage,
        interventions=explained,
        certificate=certificate if guarded else None,
        published=task.published or None,
        optimal_control=task.optimal_control or None,
        noise=noise,
        notes=[
            *finished,
            *unguarded,
            "Wall time of a phase includes its share of compiling; 'compile' tells how much that was in all.",
        ],
    )
    progress("report")
    run.write_certificate(certificate.to_json())
    report.write(run.path / "report.json")
    _keep_trajectories(results[0], run)
    rows = [row for row in run.read_metrics() if row["phase"] == "policy"]
    figures = _figures(trained, results[0], piece, rows)
    write_report_page(report, figures, run.path / "report.html", command=command)
    return report


def _safeguard_words(config: SettledConfig) -> str:
    more = f", rays from the {config.centre} centre" if config.safeguard in MASKS else ""
    if config.safeguard in LAYERS:
        more = f", gains {config.safe_gain:g} and {config.base_gain:g}"
    return f"{config.safeguard} (in the {config.placement}, gradient {config.gradient}{more})"


def _certified_sets(trained: Trained):
    """(the set of certified states, the analytic backup's to compare or None, acceptance margins or None)."""
    task, certified = trained.task, trained.certified
    if isinstance(certified, CertifiedInvariantSet):
        return certified.invariant, None, None
    horizon = trained.config.horizon or task.safety.horizon
    learned = implicit_set(task, certified, of_seed(trained.network, 0), horizon)
    return learned, implicit_set(task, certified, None, horizon), certified.acceptance


def _starts_obligation(coverage: Any) -> Obligation:
    share, bound = coverage.starts_certified, coverage.starts_lower_bound
    return Obligation(
        "starts",
        f"Episodes start at certified states: {share:.4%} of {coverage.starts} sampled starts are, so with 95 % confidence "
        f"at least {bound:.4%} of all are.",
        "sampled",
        "Clopper-Pearson bound on independent samples of the start distribution; each start is checked again at run time",
        {"starts": coverage.starts, "certified": share, "lower_bound": bound},
    )


def _keep_trajectories(results: EpisodeResults, run: RunDirectory) -> None:
    kept = {field.name: getattr(results.trajectories, field.name) for field in dataclasses.fields(results.trajectories)}
    with open(run.path / "trajectories.npz.partial", "wb") as file:
        np.savez_compressed(file, **kept)
    (run.path / "trajectories.npz.partial").replace(run.path / "trajectories.npz")


def _figures(trained: Trained, results: EpisodeResults, piece: Any, rows: list[dict[str, Any]]) -> list[PageFigure]:
    task, kept = trained.task, results.trajectories
    figures = [
        PageFigure(
            "One episode",
            "The first evaluation episode in full, others faint. Shaded is unsafe; the dashed reference may ask for what is "
            "unsafe. Marks at the foot show where the safeguard intervened.",
            partial(trajectory_figure, task, kept),
        ),
        PageFigure(
            "Distance to the constraints",
            "Margins over the episodes that were kept; negative would be a violation. Below, what the safeguard did in them.",
            partial(margin_figure, task, kept),
        ),
        PageFigure(
            "What is certified", _INVARIANT if piece.base is None else _IMPLICIT, partial(slice_figure, task, [piece])
        ),
    ]
    certified = trained.certified
    # Of two coordinates, the slice says it all.
    if (
        isinstance(certified, CertifiedInvariantSet)
        and task.system.state_size > 2
        and can_be_projected(certified.invariant.region)
    ):
        visited = kept.states.reshape(-1, task.system.state_size)
        visited = visited[:: -(-len(visited) // _MARKED)]
        shown = partial(projection_figure, task, {"invariant set": certified.invariant.region}, points=visited)
        figures.append(PageFigure("All coordinates", _PROJECTED, shown))
    if rows:
        figures.append(
            PageFigure(
                "Learning",
                "Episode return in training, and the share of steps at which the safeguard intervened or a constraint was "
                "violated.",
                partial(learning_figure, rows, optimal_return=task.optimal_control.get("return")),
            )
        )
    return figures
