"""From the cells of the table of safeguards to what is shown: rows with intervals, Markdown, figure, one JSON file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.cli.safeguards_table import MODEL_FREE, VARIANTS, cell_name, chosen_noise_name, time_name
from holdfast.evaluate import (
    PairedComparison,
    bootstrap_interval,
    compare_paired,
    environment,
    interquartile_mean,
    steps_to_share,
)
from holdfast.plots import SAFEGUARD_LEGEND, Curve, VariantResult, learning_curves_figure, safeguard_markdown, to_png
from holdfast.runs import atomic_write, write_json

#: Mean final returns of arXiv 2506.01665 (10 seeds) by task, algorithm and variant. Sets, starts, and the household's year
#: are ours, so that they set the scale and no more.
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "balance-pendulum": {
        "shac": {
            "none": -8.78,
            "boundary projection": -8.40,
            "boundary projection + regulariser": -8.41,
            "ray mask": -8.41,
            "ray mask + regulariser": -8.49,
            "ray mask, pass-through": -8.53,
            "hyperbolic ray mask": -11.8,
            "hyperbolic ray mask + regulariser": -13.8,
        },
        "sac": {"none": -14.1, "boundary projection": -1083.0},
        "ppo": {"none": -596.0, "boundary projection": -10.3},
    },
    "balance-quadrotor": {
        "shac": {
            "none": -157.5,
            "boundary projection": -333.7,
            "boundary projection + regulariser": -177.1,
            "ray mask": -251.8,
            "ray mask + regulariser": -228.1,
            "ray mask, pass-through": -156.5,
            "hyperbolic ray mask": -372.0,
            "hyperbolic ray mask + regulariser": -170.6,
        },
        "sac": {"none": -1047.0, "boundary projection": -338.0},
        "ppo": {"none": -1711.0, "boundary projection": -403.0},
    },
    "household": {
        "shac": {
            "none": -114165.0,
            "boundary projection": -89168.0,
            "boundary projection + regulariser": -83142.0,
            "ray mask": -8794.0,
            "ray mask + regulariser": -13771.0,
            "ray mask, pass-through": -44347.0,
            "hyperbolic ray mask": -8565.0,
            "hyperbolic ray mask + regulariser": -7973.0,
        },
    },
}


def safeguards_table(
    cells: Mapping[str, Mapping[str, Any]], tasks: Sequence[str], algorithms: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Rows by task, JSON values; only cells that are there count."""
    table: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        rows = []
        for algorithm in algorithms:
            unsafe = cells.get(cell_name(task, algorithm, "none"))
            times = relative_times(cells.get(time_name(task, algorithm)))
            for variant in VARIANTS if algorithm == "shac" else MODEL_FREE:
                cell = cells.get(cell_name(task, algorithm, variant))
                if cell is not None:
                    row = _row(task, algorithm, variant, cell, unsafe) | {"relative_time": times.get(variant)}
                    chosen = cells.get(chosen_noise_name(task, algorithm, variant))
                    rows.append(row | {"training_under_chosen_noise": chosen})
        table[task] = rows
    return table


def relative_times(cell: Mapping[str, Any] | None) -> dict[str, float]:
    """Median over the turns of a variant's seconds over those of unsafe training in the same turn."""
    if cell is None:
        return {}
    unsafe = np.asarray(cell["seconds"]["none"])
    return {variant: float(np.median(np.asarray(each) / unsafe)) for variant, each in cell["seconds"].items()}


def _row(task: str, algorithm: str, variant: str, cell, unsafe) -> dict[str, Any]:
    returns, best = np.asarray(cell["returns"]), np.asarray(cell["best_returns"])
    against = None if unsafe is None or variant == "none" else compare_paired(returns, np.asarray(unsafe["returns"]))
    last = compare_paired(returns, best)
    curve, evaluation, worst = cell["curve"], cell["evaluation"], cell.get("worst_case", {})
    return {
        "algorithm": algorithm,
        "safeguard": variant,
        "seeds": cell["seeds"],
        "steps": cell["steps"],
        "mean": float(returns.mean()),
        "iqm": float(interquartile_mean(returns.ravel())),
        # Over seeds: all episodes of a seed share one policy.
        "interval": list(bootstrap_interval(interquartile_mean(returns), statistic=interquartile_mean)),
        "per_seed": interquartile_mean(returns).tolist(),
        "published": PUBLISHED.get(task, {}).get(algorithm, {}).get(variant),
        "against_unsafe": None if against is None else vars(against),
        "last_against_best": vars(last),
        "steps_to_95": steps_to_share(
            np.asarray([p["step"] for p in curve]), np.asarray([p["per_seed"] for p in curve])
        ),
        "interventions": evaluation["interventions"] / evaluation["steps"],
        "fallbacks": evaluation["fallbacks"] / evaluation["steps"],
        "uncertified_starts": evaluation["uncertified_starts"],
        "training_steps": cell["training"]["steps"],
        "training_violations": cell["training"]["violations"] + cell["training"]["unpromised_violations"],
        "evaluation_steps": evaluation["steps"],
        "violations": evaluation["violations"],
        "chosen_noise_steps": sum(each["steps"] for each in worst.values()),
        "chosen_noise_violations": sum(each["violations"] for each in worst.values()) if worst else None,
        "lapses": evaluation["uncertified_steps"] + sum(each["uncertified_steps"] for each in worst.values()),
        "train_seconds": cell["seconds"]["train"],
        "metrics": {name: float(np.mean(values)) for name, values in cell["metrics"].items()},
        "curve": {
            "steps": [point["step"] for point in curve],
            "returns": [[float(f"{value:.6g}") for value in point["per_seed"]] for point in curve],
        },
    }


def results_of(row: Mapping[str, Any]) -> VariantResult:
    """A row as the plots room takes it."""
    names = ("algorithm", "safeguard", "seeds", "steps", "iqm", "published", "steps_to_95", "interventions")
    counts = ("training_violations", "violations", "chosen_noise_violations", "relative_time")
    against = row["against_unsafe"]
    return VariantResult(
        **{name: row[name] for name in (*names, *counts)},
        interval=tuple(row["interval"]),
        against_unsafe=None if against is None else PairedComparison(**against),
    )


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for every safeguarded variant of SHAC: against unsafe, and its last evaluation against its best."""
    said = []
    for row in rows:
        if row["algorithm"] != "shac" or row["against_unsafe"] is None:
            continue
        against = PairedComparison(**row["against_unsafe"]).sentence(-0.05, row["safeguard"], "no safeguard")
        last = PairedComparison(**row["last_against_best"])
        ends = "within" if last.not_below(-0.05) else "not shown to be within"
        begun, ended = (float(np.mean(row["curve"]["returns"][i])) for i in (0, -1))
        said.append(
            f"{against} Its last evaluation is {ends} 5 % of its best ({last.relative:+.2%}). Mean return before training "
            f"{begun:.4g}, after it {ended:.4g}."
        )
    return said


def chosen_noise_sentence(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What training under noise that an adversary chose came to, over all variants for which it was done."""
    trained = [row["training_under_chosen_noise"] for row in rows if row["training_under_chosen_noise"]]
    if not trained:
        return None
    steps = sum(each["steps"] for each in trained)
    violations = sum(each["violations"] + each["unpromised_violations"] for each in trained)
    lapses = sum(each["statuses"]["uncertified"] for each in trained)
    return (
        f"Training under chosen noise (vertices held, and the vertex that takes most from the set's margins): {steps:,} steps "
        f"of {len(trained)} safeguarded variants, {violations} violations, {lapses} steps without a promise."
    )


def write_safeguards_table(table: Mapping[str, list[dict]], out: Path, *, command: str) -> list[Path]:
    """Writes safeguards.json, safeguards.md and safeguards-curves.png; returns where."""
    files = [out / name for name in ("safeguards.json", "safeguards.md", "safeguards-curves.png")]
    out.mkdir(parents=True, exist_ok=True)
    write_json(files[0], {"command": command, "tasks": table, "environment": environment()})
    parts = [f"# Safeguards\n\n`{command}`\n\n{SAFEGUARD_LEGEND}\n"]
    for task, rows in table.items():
        if rows:
            noise = chosen_noise_sentence(rows)
            said = "".join(f"- {sentence}\n" for sentence in (*verdicts(rows), *([noise] if noise else ())))
            parts.append(f"\n## {task}\n\n{safeguard_markdown([results_of(row) for row in rows])}\n{said}")
    figure = safeguards_figure(table)
    if figure is not None:
        parts.insert(1, f"\n![SHAC's returns in training, by task and safeguard]({files[2].name})\n")
        atomic_write(files[2], to_png(figure, dpi=110))
    atomic_write(files[1], "".join(parts).encode())
    return files if figure is not None else files[:2]


def safeguards_figure(table: Mapping[str, list[dict]]):
    """SHAC's learning curves, a panel a task; None without any."""
    panels, limits = {}, {}
    for task, rows in table.items():
        curves = {
            row["safeguard"]: Curve(np.asarray(row["curve"]["steps"]), np.asarray(row["curve"]["returns"]))
            for row in rows
            if row["algorithm"] == "shac" and row["safeguard"] in _DRAWN
        }
        if curves:
            panels[task] = curves
            low, high = _range_of(list(curves.values()))
            limits[task] = (float(low - 0.3 * (high - low)), float(high + 0.1 * (high - low)))
    return learning_curves_figure(panels, y_limits=limits) if panels else None


def _range_of(curves: Sequence[Curve]) -> tuple[float, float]:
    """Returns after the first evaluations; variants that end far below the median one are left out."""
    ends = np.array([interquartile_mean(curve.returns[-1]) for curve in curves])
    usual = np.median(ends)
    drawn = [curve for curve, end in zip(curves, ends) if end >= usual - 10 * abs(usual)]
    last = np.concatenate([curve.returns[min(2, len(curve.returns) - 1) :].ravel() for curve in drawn])
    low, high = np.quantile(last[np.isfinite(last)], [0.02, 1.0])
    return float(low), float(high)


#: Eight lines are as many as can be told apart; what is left out differs from a neighbour by the regulariser.
_DRAWN = (
    "none",
    "boundary projection",
    "boundary projection, pass-through",
    "ray mask",
    "ray mask, pass-through",
    "ray mask, chord",
    "hyperbolic ray mask",
)
