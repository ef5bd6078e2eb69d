"""Ten seeds of a task, 1000 episodes each: metrics, violations, return against optimal control, and what is certified.

How much is certified is told as a share of what could be: of the viability kernel where the task knows it, of the states
that physics does not rule out where it knows only that. Both are told for the learned backup of every seed and for the
analytic one (LQR), and as shares of all safe states that are drawn.
"""

import json

from benchmarks._asked import asked
from benchmarks._common import implicit_sets, load, parser, print_table, run_path, write_results
from holdfast.evaluate import measure_coverage

SHARES = ("certified", "kernel_share", "possible_share")
ANALYTIC = ("analytic", "kernel_share_analytic", "possible_share_analytic")
"""The same of the analytic backup, which all seeds share."""
OUTSIDE = ("outside_kernel", "outside_possible")
"""Certified samples that cannot be: anything but 0 is an error somewhere."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=None, help="states of the coverage, 1,000,000 by default")
    arguments = arguments.parse_args()
    samples = arguments.samples or (20_000 if arguments.quick else 1_000_000)
    path = run_path(arguments, label="seeds", train=("--seeds", "2" if arguments.quick else "10"))
    trained, report = load(path), json.loads((path / "report.json").read_text())
    task, seeds = trained.task, trained.config.seeds
    target = asked(task.name)
    metrics = {name: each | {"worst_seed": worst(name, each["per_seed"])} for name, each in report["metrics"].items()}
    print_table(
        ("metric", "mean", "IQM", "95 % low", "high", "worst seed", "asked", "published", "optimal control"),
        [
            (
                *(name, m["mean"], m["iqm"], *m["ci95"], m["worst_seed"]),
                *(str(known.get(name, "")) for known in (target, task.published, task.optimal_control)),
            )
            for name, m in metrics.items()
        ],
    )
    gap = return_gap(metrics["return"]["mean"], task.optimal_control.get("return"))
    if gap is not None:
        print(f"return: {gap:.1%} below open-loop optimal control (asked: {target.get('return_gap', 'nothing')})")
    for words, safety in (("evaluation", report["safety"]), ("training", report["training_safety"])):
        print(f"{words}: {safety['violations']} violations in {safety['steps']:,} guarded steps")

    coverage = [coverage_of(trained, index, samples) for index in range(seeds)]
    known = [name for name in SHARES if coverage[0][name] is not None]
    rows = [(str(i), *(each[name] for name in known), each["starts_certified"]) for i, each in enumerate(coverage)]
    rows.append(("asked", *(str(target.get(name, "")) for name in known), ""))
    rows.append(("analytic", *(coverage[0][ANALYTIC[SHARES.index(name)]] for name in known), ""))
    print_table(("seed", *known, "of starts"), rows)
    write_results(
        __spec__.name,
        arguments,
        task=task.name,
        settings={
            "training": f"holdfast train {task.name} --seeds {seeds}",
            "seeds": seeds,
            "episodes for each seed": report["safety"]["episodes"] // seeds,
            "coverage samples": samples,
        },
        numbers={
            "asked": target,
            "published": task.published,
            "optimal_control": task.optimal_control,
            "metrics": metrics,
            "return_gap": gap,
            "safety": report["safety"],
            "training_safety": report["training_safety"],
            "wall_seconds": report["wall_seconds"],
            "coverage": coverage,
        },
    )
    if any(each[name] for each in coverage for name in OUTSIDE):
        raise SystemExit("a state was certified that no policy can keep safe")


def worst(name: str, per_seed: list[float]) -> float:
    """The worst seed's value: the least return, the largest error."""
    return min(per_seed) if name == "return" else max(per_seed, key=abs)


def return_gap(mean: float, optimum: float | None) -> float | None:
    """How far a mean return lies below that of optimal control, as a share of it; None where that is not known."""
    return None if optimum is None else (optimum - mean) / abs(optimum)


def coverage_of(trained, index: int, samples: int) -> dict:
    """`measure_coverage` of one seed in JSON; the analytic backup with the first seed only, as it is the same for all."""
    learned, analytic = implicit_sets(trained, index)
    return measure_coverage(
        trained.task,
        learned,
        analytic if index == 0 else None,
        acceptance=trained.certified.acceptance,
        samples=samples,
    ).to_json()


if __name__ == "__main__":
    main()
