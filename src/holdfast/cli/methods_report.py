"""From the cells of PS2-RL's tables to what is shown: rows beside the published ones, sentences, Markdown, pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.cli.build import load_task
from holdfast.cli.methods import ADDED, ANALYTIC, METHODS, OURS, REMOVED, cell_name, unpack
from holdfast.evaluate import (
    Slice,
    bootstrap_interval,
    environment,
    interquartile_mean,
    rule_of_three,
    upper_bound,
)
from holdfast.plots import Curve, learning_curves_figure, paths_figure, slice_figure, to_png
from holdfast.plots.html import NOTHING, number, percent, seconds
from holdfast.runs import atomic_write, write_json

#: Published results of arXiv 2606.14536 (10 seeds x 1000 episodes) by task and row: the metrics in the task's order, then the
#: share of safe episodes. The methods are theirs; the training is ours, so that a row is compared with its namesake.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "lane-keeping": {
        OURS: (0.52, 0.83, 0.11, 1.0),
        ANALYTIC: (0.97, 0.43, 0.15, 1.0),
        "SAC, high penalty": (1.11, 1.85, 0.15, 1.0),
        "model-predictive shielding, as published": (0.68, 0.48, 0.17, 0.978),
        "published layer, SAC": (0.52, 0.83, 0.11, 1.0),
    },
    "power-loop": {
        OURS: (0.60, 0.96, 0.45, 1.0),
        ANALYTIC: (1.39, 1.74, 0.82, 1.0),
        "model-predictive shielding, as published": (2.00, 4.07, 1.41, 1.0),
        "CBF-RL: filter in training only": (2.29, 4.36, 2.06, 0.998),
        "published layer, SAC": (0.60, 0.96, 0.45, 1.0),
    },
}
#: The published ablation tells the first metric, and a share of safe episodes where the layer was removed.
ABLATED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "power-loop": {OURS: (0.5275,), REMOVED: (0.74, None, None, 0.0), ADDED: (0.93,)},
}
#: The component on the horizontal axis (None: time) and the one on the vertical axis of the picture of paths.
_SHOWN: dict[str, tuple[int | None, int]] = {"lane-keeping": (None, 0), "power-loop": (0, 2)}
#: Gain of a learning curve's last fifth, as a share of all that it gained, below which it is called flat.
_FLAT = 0.02
LEGEND = (
    "Metrics and return: interquartile mean over seeds of each seed's mean, with a bootstrap 95 % interval over seeds. Safe: "
    "share of episodes without a sample outside the safe set, no tolerance; behind it a bound: with 95 % confidence no larger "
    "share of episodes violates (3/n where none did). Violations: samples, in training and in evaluation. Worst: the largest "
    "violation in evaluation, in the constraint's unit; a dash where there was none. Interventions: share of steps on which "
    "something else than the proposal was applied. Still learning: share of what the return gained in training that it "
    "gained in the last fifth. Time: wall seconds of all seeds, phase 1 and compiling included."
)


def method_rows(
    task: str, names: Sequence[str], cells: Mapping[str, Mapping[str, Any]], table: str
) -> list[dict[str, Any]]:
    """One row for every deployment of every method whose cell is there."""
    published = ABLATED if table == "ablation" else PUBLISHED
    return [
        _row(task, name, row, cell, published.get(task, {}).get(row))
        for name in names
        if (cell := cells.get(cell_name(task, name))) is not None
        for row in cell["rows"]
    ]


def _row(task: str, method: str, name: str, cell: Mapping[str, Any], published) -> dict[str, Any]:
    found, evaluation = cell["rows"][name], cell["rows"][name]["evaluation"]
    safe, episodes, spent = sum(found["safe_episodes"]), evaluation["episodes"], cell["seconds"]
    units = load_task(task).metric_units
    own = dict(zip([*units, "safe"], published or ()))
    metrics = {key: _spread(values) | {"published": own.get(key)} for key, values in found["metrics"].items()}
    return {
        "method": method,
        "row": name,
        "seeds": cell["seeds"],
        "steps": cell["steps"],
        "metrics": metrics,
        "safe": safe / episodes,
        "safe_published": own.get("safe"),
        "episodes": episodes,
        "unsafe_bound": rule_of_three(episodes) if safe == episodes else upper_bound(episodes - safe, episodes),
        "training_steps": cell["training"]["steps"],
        "training_violations": cell["training"]["violations"] + cell["training"]["unpromised_violations"],
        "violations": evaluation["violations"],
        "worst_violation": max(0.0, -evaluation["worst_margin"]),
        "uncertified_starts": evaluation["uncertified_starts"],
        "interventions": float(np.mean(found["moved"])),
        "still_learning": still_learning(cell["curve"]),
        "seconds": spent,
        "wall_seconds": spent["backup"] + spent["train"] + spent["compile"],
        "curve": {
            "steps": [point["step"] for point in cell["curve"]],
            "returns": [[float(f"{value:.6g}") for value in point["per_seed"]] for point in cell["curve"]],
        },
    }


def _spread(per_seed: Sequence[float]) -> dict[str, Any]:
    values = np.asarray(per_seed, np.float64)
    finite = bool(np.all(np.isfinite(values)))
    iqm = float(interquartile_mean(values)) if finite else float("nan")
    return {"iqm": iqm, "ci95": list(bootstrap_interval(values, statistic=interquartile_mean)), "per_seed": per_seed}


def still_learning(curve: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of what a learning curve gained that it gained in its last fifth; None where it gained nothing."""
    mean = np.asarray([np.mean(point["per_seed"]) for point in curve])
    if len(mean) < 2 or not np.all(np.isfinite(mean)) or mean.max() <= mean[0]:
        return None
    late = 4 * (len(mean) - 1) // 5
    return float(max(0.0, mean[late + 1 :].max() - mean[: late + 1].max()) / (mean.max() - mean[0]))


def verdicts(task: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences: whether ours tracks better than every rival without a violation, metric by metric; who had not converged."""
    ours = next((row for row in rows if row["row"] == OURS), None)
    if ours is None:
        return []
    said, names = [], list(load_task(task).metric_units)
    # Our own road with another backup, horizon or map is no rival.
    safe = [row for row in rows if not row["row"].startswith(OURS) and row["violations"] == 0]
    for name in names:
        mine = ours["metrics"][name]
        better = [row for row in safe if row["metrics"][name]["iqm"] < mine["iqm"]]
        against = min(safe, key=lambda row: row["metrics"][name]["iqm"], default=None)
        if ours["violations"]:
            said.append(f"Ours violated {ours['violations']} samples: no claim on {name}.")
        elif not better and against is not None:
            apart = mine["ci95"][1] < against["metrics"][name]["ci95"][0]
            said.append(
                f"{name}: ours {number(mine['iqm'])} is below every rival without a violation; next is "
                f"{against['row']} with {number(against['metrics'][name]['iqm'])} "
                f"({'the intervals are apart' if apart else 'the intervals overlap'})."
            )
        else:
            which = ", ".join(f"{row['row']} ({number(row['metrics'][name]['iqm'])})" for row in better) or "nobody"
            said.append(f"{name}: ours {number(mine['iqm'])}; lower without a violation: {which}.")
    unfinished = [row for row in rows if (row["still_learning"] or 0) > _FLAT]
    moving = dict.fromkeys(f"{row['method']} ({percent(row['still_learning'])})" for row in unfinished)
    if moving:
        said.append(f"Not converged, by the last fifth of the learning curve: {', '.join(moving)}.")
    return said


def missing(task: str, names: Sequence[str]) -> list[str]:
    """Why named methods have no row."""
    return [
        f"{name}: " + ("not on this task" if task not in METHODS[name].tasks else "not in this version of holdfast")
        for name in names
        if task not in METHODS[name].tasks or not METHODS[name].known
    ]


def method_markdown(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one task in Markdown."""
    units = load_task(task).metric_units
    named = [f"{name} ({unit})" for name, unit in units.items()]
    head = ["method", "seeds x steps", *named, "return", "safe", "violations (training / evaluation)", "worst"]
    head += ["interventions", "still learning", "time"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        metrics = [_metric_words(row["metrics"][name]) for name in (*units, "return")]
        shown = f"{percent(row['safe'], 4)} (unsafe < {percent(row['unsafe_bound'])})"
        if row["safe_published"] is not None:
            shown += f"; published {percent(row['safe_published'], 4)}"
        lines.append(
            [
                row["row"],
                f"{row['seeds']} x {row['steps']:,}",
                *metrics,
                shown,
                f"{number(row['training_violations'])} / {number(row['violations'])}",
                number(row["worst_violation"]) if row["worst_violation"] > 0 else NOTHING,
                percent(row["interventions"], 2),
                NOTHING if row["still_learning"] is None else percent(row["still_learning"], 2),
                seconds(row["wall_seconds"]),
            ]
        )
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a table; bars within a cell are escaped."""
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _metric_words(metric: Mapping[str, Any]) -> str:
    low, high = metric["ci95"]
    words = f"{number(metric['iqm'])} ({number(low)} to {number(high)})"
    return words if metric["published"] is None else f"{words}; published {number(metric['published'])}"


def write_method_table(
    name: str,
    table: Mapping[str, list[dict]],
    cells: Mapping[str, Any],
    absent: Sequence[str],
    out: Path,
    *,
    command: str,
) -> list[Path]:
    """Writes NAME.json, NAME.md, NAME-curves.png and a picture of paths for each task; returns where."""
    out.mkdir(parents=True, exist_ok=True)
    notes = {task: verdicts(task, rows) for task, rows in table.items()}
    document = {"command": command, "tasks": table, "verdicts": notes, "missing": list(absent)}
    files = [out / f"{name}.json", out / f"{name}.md"]
    write_json(files[0], document | {"environment": environment()})
    parts = [f"# {name}\n\n`{command}`\n\n{LEGEND}\n"]
    for task, rows in table.items():
        if rows:
            said = "".join(f"- {sentence}\n" for sentence in notes[task])
            parts.append(f"\n## {task}\n\n{method_markdown(task, rows)}\n{said}")
    parts.append("".join(f"- no row for {each}\n" for each in absent))
    curves = {
        task: {
            row["method"]: Curve(np.asarray(row["curve"]["steps"]), np.asarray(row["curve"]["returns"])) for row in rows
        }
        for task, rows in table.items()
        if rows
    }
    if curves:
        # Each to its own end: lengths of training differ, and what an untrained policy earns would dwarf the rest.
        limits = {task: _limits(each.values()) for task, each in curves.items()}
        files.append(out / f"{name}-curves.png")
        atomic_write(files[-1], to_png(learning_curves_figure(curves, y_limits=limits), dpi=110))
        parts.append(picture(files[-1], "Returns in training, by method"))
    for task, rows in table.items():
        drawn = {row["row"]: cells[cell_name(task, row["method"])]["rows"][row["row"]] for row in rows}
        if drawn:
            first = next(iter(drawn.values()))
            paths = {row: np.asarray(each["states"]) for row, each in drawn.items()}
            figure = paths_figure(load_task(task), paths, np.asarray(first["reference"]), shown=_SHOWN[task])
            files.append(out / (f"{name}-paths.png" if len(table) == 1 else f"{name}-{task}-paths.png"))
            atomic_write(files[-1], to_png(figure, dpi=110))
            parts.append(picture(files[-1], f"{task}: one episode of each row, from a common start"))
    atomic_write(files[1], "".join(parts).encode())
    return files


def picture(file: Path, words: str) -> str:
    """A picture beside the page, in Markdown."""
    return f"\n![{words}]({file.name})\n"


def _limits(curves) -> tuple[float, float]:
    """From what three quarters of the methods reach in the second half of their training to the best."""
    late = [np.mean(curve.returns[-max(1, len(curve.returns) // 2) :]) for curve in curves]
    low, high = np.quantile(np.asarray(late)[np.isfinite(late)], [0.25, 1.0])
    return float(low - 0.3 * (high - low) - 1e-9), float(high + 0.1 * (high - low) + 1e-9)


_SHARES = {
    "certified": ("certified", "analytic"),
    "of the viability kernel": ("kernel_share", "kernel_share_analytic"),
    "of what physics does not rule out": ("possible_share", "possible_share_analytic"),
}


def set_rows(
    tasks: Sequence[str], ways: Sequence[str], cells: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict]]:
    """By task, a row for each way to learn a backup, then one for the analytic backup."""
    table = {}
    for task in tasks:
        rows, analytic = [], None
        for way in ways:
            cell = cells.get(cell_name(task, f"set-{way}"))
            if cell is None:
                continue
            shares = {words: _share(cell["coverage"], key) for words, (key, _) in _SHARES.items()}
            rows.append(
                {
                    "backup": f"learned ({way})",
                    "cell": cell_name(task, f"set-{way}"),
                    "seeds": cell["seeds"],
                    "updates": cell["updates"],
                    "seconds": cell["seconds"]["backup"],
                    "samples": sum(each["safe_samples"] for each in cell["coverage"]),
                    "shares": shares,
                    "impossible": sum(each["outside_kernel"] or 0 for each in cell["coverage"]),
                }
            )
            first = cell["coverage"][0]
            known = {
                words: None if first[key] is None else _spread([first[key]]) for words, (_, key) in _SHARES.items()
            }
            analytic = {"backup": "analytic (LQR)", "seeds": 1, "updates": 0, "seconds": 0.0, "shares": known}
            analytic |= {"samples": first["safe_samples"], "impossible": 0, "cell": rows[-1]["cell"]}
        table[task] = rows + ([analytic] if analytic else [])
    return table


def _share(coverage: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    return None if coverage[0][key] is None else _spread([each[key] for each in coverage])


def set_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one task's sets in Markdown."""
    shown = [words for words in _SHARES if any(row["shares"][words] for row in rows)]
    lines = [["backup", "seeds x updates", *shown, "time"], ["---", *["---:"] * (len(shown) + 2)]]
    for row in rows:
        shares = [NOTHING if row["shares"][words] is None else _share_words(row["shares"][words]) for words in shown]
        lines.append([row["backup"], f"{row['seeds']} x {row['updates']:,}", *shares, seconds(row["seconds"])])
    return markdown(lines)


def _share_words(share: Mapping[str, Any]) -> str:
    low, high = share["ci95"]
    return f"{percent(share['iqm'], 4)} ({percent(low, 4)} to {percent(high, 4)})"


def write_set_table(
    name: str, table: Mapping[str, list[dict]], cells: Mapping[str, Any], out: Path, *, command: str
) -> list[Path]:
    """Writes NAME.json, NAME.md and a picture of slices for each task; returns where."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.json", out / f"{name}.md"]
    write_json(files[0], {"command": command, "tasks": table, "environment": environment()})
    words = "Shares of the safe states that are certified, by a sample of each seed; the analytic backup needs no learning.\n"
    parts = [f"# {name}\n\n`{command}`\n\n{words}"]
    parts += [f"\n## {task}\n\n{set_markdown(rows)}" for task, rows in table.items() if rows]
    for task, rows in table.items():
        if not rows:
            continue
        learned = [row for row in rows if row["cell"] and row["updates"]]
        figure = slice_figure(load_task(task), [_slice(task, cells[row["cell"]]["slice"]) for row in learned])
        for ax, row in zip(figure.axes, learned):
            ax.set_title(f"{row['backup']}; other states held", fontsize=9.5)
        files.append(out / f"{name}-{task}.png")
        atomic_write(files[-1], to_png(figure, dpi=110))
        parts.append(picture(files[-1], f"{task}: a slice of the certified sets"))
    atomic_write(files[1], "".join(parts).encode())
    return files


def _slice(task: str, kept: Mapping[str, Any]) -> Slice:
    system, (i, j) = load_task(task).system, kept["axes"]
    units = system.state_units or ("",) * system.state_size
    first, second = np.asarray(kept["first"]), np.asarray(kept["second"])
    masks: dict[str, Any] = {
        key: None if rows is None else unpack(rows, len(first)) for key, rows in kept["masks"].items()
    }
    names = (system.state_names[i], system.state_names[j])
    return Slice((i, j), names, (units[i], units[j]), first, second, np.asarray(kept["fixed"]), **masks)
