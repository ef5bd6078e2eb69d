"""Writes the README's table of numbers from benchmarks/results, and its picture from a run.

    python -m benchmarks._readme [--run RUNDIR]

What has no results file yet is named in the table. Every number in it comes from a results file; `tests/test_claims.py`
checks that the README holds what this writes.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks._asked import asked
from benchmarks._common import result_name
from holdfast.tasks import make_task

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPRODUCED = ROOT / "docs" / "reproduced"
BEGIN, END = "<!-- numbers: python -m benchmarks._readme -->", "<!-- end of numbers -->"


TASKS = ("lane-keeping", "power-loop")
MISSING = "**not measured yet**"
"""What stands in the table where there is no results file."""


def results(name: str, task: str | None = None) -> dict[str, Any] | None:
    """The numbers of one results file, or None where it was not measured yet."""
    file = RESULTS / f"{result_name(name, task)}.json"
    return json.loads(file.read_text(encoding="utf-8"))["numbers"] if file.is_file() else None


def table() -> str:
    """The table in Markdown; what was not measured yet has a row that says so."""
    rows = [("what", "published", "asked", "holdfast", "command")]
    for task in TASKS:
        for name, write in PER_TASK.items():
            rows += _rows(name, write, task)
    for name, write in LANE_KEEPING.items():
        rows += _rows(name, write, "lane-keeping")
    rows += _rows("attack", _attack, "rigid-eight")
    for task in ("lane-keeping", "pendulum"):
        rows += _rows("sb3", _sb3, task)
    for task in TASKS:
        rows += _rows("phase1", _phase1, task)
    for name, write in OF_ALL.items():
        rows += _rows(name, write, None)
    for name, write in TABLES.items():
        command = f"`holdfast reproduce {name} --results docs/reproduced`"
        found = reproduced(name)
        rows += [(name, "", "", MISSING, command)] if found is None else [(*row, command) for row in write(found)]
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def reproduced(name: str) -> dict[str, list[dict[str, Any]]] | None:
    """By task, the rows of a table that `holdfast reproduce` wrote; None where it was not computed yet."""
    file = REPRODUCED / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))["tasks"] if file.is_file() else None


def _rows(name: str, write, task: str | None):
    """The rows of one benchmark: (what, published, asked, holdfast) from `write`, with the command behind."""
    command = f"`python -m benchmarks.{name}{'' if task is None else f' --task {task}'}`"
    found = results(name, task)
    if found is None:
        return [(f"{_words(task)}{name.replace('_', ' ')}", "", "", MISSING, command)]
    return [(f"{_words(task)}{what}", *cells, command) for what, *cells in write(found, task)]


def _words(task: str | None) -> str:
    return "" if task is None else f"{task.replace('-', ' ')}: "


def _at_most(task: str, name: str, form: str = "<= {:g}") -> str:
    target = asked(task).get(name)
    return "" if target is None else form.format(target)


def _seeds(found, task):
    safety, training, metrics = found["safety"], found["training_safety"], found["metrics"]
    seeds = len(metrics["return"]["per_seed"])
    for name, metric in metrics.items():
        if name == "return":
            continue
        low, high = metric["ci95"]
        words = f"{metric['mean']:.3f} (IQM {metric['iqm']:.3f}, 95 % {low:.3f} to {high:.3f})"
        published = found["published"].get(name)
        yield (
            f"{name.replace('_', '-')}, {seeds} seeds",
            "" if published is None else f"{published:g}",
            _at_most(task, name),
            words,
        )
    words, optimum = f"{metrics['return']['mean']:.0f}", results("optimal_control", task)
    if optimum is not None:
        best, nominal = optimum["mean"]["return"], optimum["nominal"]["return"]
        gap = (best - metrics["return"]["mean"]) / abs(best)
        words += f", {gap:.1%} below open-loop optimal control ({best:.1f}; {nominal:.1f} from the nominal start)"
    yield "return", "", _at_most(task, "return_gap", "within {:.0%}"), words
    words = f"{safety['violations']} in {safety['steps']:,} steps; {training['violations']} in {training['steps']:,}"
    yield "violations in evaluation; in training", "0; not given", "0; 0", words
    yield from _coverage(found["coverage"], task)


def _coverage(coverage, task):
    """Shares certified: of the kernel where it is known, else of all states drawn, with the physical bound beside."""
    horizon = make_task(task).safety.horizon
    name, of, analytic = ("certified", "the states drawn", "analytic")
    if coverage[0].get("kernel_share") is not None:
        name, of, analytic = ("kernel_share", "the viability kernel", "kernel_share_analytic")
    shares = [each[name] for each in coverage]
    words = f"{sum(shares) / len(shares):.4f} (worst seed {min(shares):.4f}; LQR backup {coverage[0][analytic]:.4f})"
    asked_for = _at_most(task, name, ">= {:g}")
    yield f"learned backup certifies this share of {of}, N = {horizon}", "not given", asked_for, words
    outside, seeds = sum(each.get("outside_kernel") or 0 for each in coverage), len(coverage)
    drawn = f"{coverage[0]['samples']:,} samples a seed"
    if name == "kernel_share":
        yield f"certified states outside the kernel, {drawn}", "", "0", f"{outside}, {seeds} seeds"
    elif coverage[0].get("possible") is not None:
        ruled_out = sum(each["outside_possible"] for each in coverage)
        words = f"{coverage[0]['possible']:.4f} ({ruled_out} certified states beyond it)"
        yield f"the same of any policy at most, by full braking at once, {drawn}", "", "told", words


def _time(found, task):
    runs = found["runs"]
    seconds = max(run["wall_seconds"] for run in runs)
    words = f"{seconds:.0f} s, of which {max(run['phases']['compile'] for run in runs):.0f} s compiling"
    published = {"lane-keeping": "5 h (V100)", "power-loop": "14 h (V100)"}.get(task, "")
    yield (
        "both phases, proof, 1000 episodes, report; cold start",
        published,
        _at_most(task, "wall_seconds", "<= {:g} s"),
        words,
    )
    yield (
        "peak memory of that",
        "",
        _at_most(task, "peak_gib", "<= {:g} GiB"),
        f"{max(run['peak_gib'] for run in runs):.1f} GiB",
    )


def _speed(found, task):
    horizon = make_task(task).safety.horizon
    words = {
        "accepting": "all accepted",
        "policy": f"at the trained policy's intervention rate ({found['intervention_rate']:.2%})",
        "corrected": "all corrected",
    }
    for mix, setting in words.items():
        for name, times in found["forward"][mix]["safeguards"].items():
            ratio = times["ratio"]["published"]
            tuned = times["ratio"]["tuned"]
            cost = f"{ratio:.1f}x faster; {tuned:.1f}x than its tuned form ({times['mean_us']:.0f} us a state)"
            what = f"safeguard `{name}` against the published layer, batch, {setting}"
            yield what, "1", _at_most(task, mix, ">= {:g}x"), cost
    single = found["latency"]["safeguard"]
    cost = f"{single['median_us']:.0f} us / {single['p99_us']:.0f} us"
    limits = f"{_at_most(task, 'latency_median_us', '{:g}')} / {_at_most(task, 'latency_p99_us', '{:g}')} us"
    yield f"safeguard on one state, accepting, N = {horizon}: median / 99th percentile", "", limits, cost


def _attack(found, task):
    words = f"{found['violations']} in {found['steps']:,}; {found['certified_steps']:,} held a committed plan"
    limit = f"0 in 10^{round(math.log10(asked(task)['attack_steps']))}"
    yield "violations under attack, float32, plant in another program", "not tested", limit, words


def _plans(found, task):
    words = (
        f"{found['states_with_a_flip']:,} of {found['boundary_states']:,} boundary states flip; "
        f"{found['replay']['violations']} violations in {found['replay']['samples']:,} replayed samples"
    )
    yield "re-evaluation flips, the committed plan holds", "", "0 violations", words


def _sizes(found, task):
    for push, sizes in found.items():
        if not isinstance(sizes, dict) or "maps" not in sizes:
            continue
        words = ", ".join(f"{name} {each['mean']:.4f}" for name, each in sizes["maps"].items())
        yield f"mean correction in half-widths, {push}", "", "below ray", words


def _scaling(found, task):
    """The fewest and the most states at the common horizon; the rest is in docs/scaling.png."""
    counts = [each["horizon"] for each in found["measured"]]
    common = max(set(counts), key=counts.count)
    at_common = [each for each in found["measured"] if each["horizon"] == common]
    for part in ("rollout", "accept", "correct"):
        ends = [
            f"{each['states']} states {each['batch'][part]['median_us']:.1f} us ({each['single'][part]['median_us']:.0f})"
            for each in (at_common[0], at_common[-1])
        ]
        yield f"{part}, time a state in a batch (alone), N = {common}", "", "told", ", ".join(ends)
    proofs = found["proofs"].values()
    proved = [each for each in proofs if each["level"] is not None]
    words = f"{len(proved)} of {len(proofs)} tasks; " + ", ".join(
        f"{each['states']} states {each['seconds']:.1f} s" for each in sorted(proved, key=lambda each: each["states"])
    )
    yield "proof of the base set from nothing", "", "told", words


def _proofs(found, task):
    for name, each in found.items():
        target = {"planar-quadrotor": ">= 12; < 60 s", "power-loop": "< 30 s"}.get(name, "< 60 s")
        share = each["level"] / each["cap"]
        words = (
            f"c = {each['level']:.4g}, {share:.4g} of the cap; {each['seconds']:.1f} s in all, {each['boxes']:,} boxes"
        )
        yield f"{name}: base set proved, {each['errors']} error numbers", "", target, words


def _examples(found, task):
    for name, each in found.items():
        attack, share = each["attack"], each["certified"]
        words = f"{attack['violations']} in {attack['steps']:,} attacked steps; certifies {share['certified']:.3f} of its states"
        words += f" (base controller {share['analytic']:.3f})"
        yield f"`examples/{name}.py`, {each['lines']} lines", "", "0 in 10^5; <= 30 lines", words


def _safeguards(found):
    """SHAC behind each safeguard against its unsafe twin on the balance tasks; safety and time of all rows."""
    guarded = [row for rows in found.values() for row in rows if row["safeguard"] != "none"]
    for task, rows in found.items():
        if not task.startswith("balance-"):
            continue
        against = {row["safeguard"]: row["against_unsafe"] for row in rows if row["algorithm"] == "shac"}
        del against["none"]
        low, _ = against["boundary projection"]["relative_interval"]
        worst = min(against, key=lambda name: against[name]["relative_interval"][0])
        words = (
            f"{against['boundary projection']['relative']:+.2%} (95 % from {low:+.2%}); worst of {len(against)} variants: "
            f"{worst} {against[worst]['relative']:+.2%} (from {against[worst]['relative_interval'][0]:+.2%})"
        )
        yield f"{task}: SHAC behind boundary projection against unsafe, paired IQM difference", "", ">= -5 %", words
    ends = {
        (task, row["safeguard"]): row["last_against_best"]["relative_interval"][0] >= -0.05
        for task, rows in found.items()
        for row in rows
        if task.startswith("balance-") and row["algorithm"] == "shac" and row["safeguard"] != "none"
    }
    late = ", ".join(f"{name} ({task})" for (task, name), within in ends.items() if not within)
    words = f"{sum(ends.values())} of {len(ends)} variants" + (f"; not {late}" if late else "")
    yield "balance tasks: SHAC's last evaluation within 5 % of its best", "", "all", words
    counts = ("training_violations", "violations", "chosen_noise_violations")
    violations = sum(row[count] or 0 for row in guarded for count in counts)
    chosen = [row["training_under_chosen_noise"] for row in guarded if row["training_under_chosen_noise"]]
    violations += sum(each["violations"] + each["unpromised_violations"] for each in chosen)
    steps = sum(row["training_steps"] + row["evaluation_steps"] + row["chosen_noise_steps"] for row in guarded)
    steps += sum(each["steps"] for each in chosen)
    what = f"invariant sets, {len(guarded)} safeguarded rows: violations in training and evaluation, worst-case noise among them"
    yield what, "0", "0", f"{violations} in {steps:,} steps"
    slowest = max((row for row in guarded if row["relative_time"]), key=lambda row: row["relative_time"])
    times = [row["relative_time"] for row in guarded if row["relative_time"]]
    words = f"{min(times):.1f}x to {max(times):.1f}x ({slowest['algorithm']}, {slowest['safeguard']})"
    yield "invariant sets: safeguarded training, time of unsafe training", "16x to 216x", "<= 3x", words


def _phase1(found, task):
    published = found["published"]
    for name, each in found["methods"].items():
        share = each["share"]
        spread = "" if len(share) == 1 else f" ({min(share):.4f} to {max(share):.4f})"
        words = (
            f"{sum(share) / len(share):.4f}{spread}; {each['steps']:,} steps, {each['seconds']:.0f} s and "
            f"{each['compile_seconds']:.0f} s compiling"
        )
        given = "" if name == "simulator" or not published else f"not given; {published['seconds'] / 60:.0f} min (V100)"
        what = {
            "simulator": "through the simulator (ours)",
            "td3": "by TD3",
            "td3 published": "by TD3, published discount and penalty",
        }[name]
        seeds = "one seed" if len(share) == 1 else f"{len(share)} seeds"
        yield f"backup learned {what}: certified share, {seeds}; LQR {found['analytic']:.4f}", given, "told", words


def _layer(found, task):
    for name, each in found.items():
        words = (
            f"{each['leavings']} in {each['steps']:,} attacked steps, {each['plants_left']} of {each['plants']} plants; "
            f"{each['violations']} violations"
        )
        kind = "alone" if name == "backup_cbf" else "with our check behind"
        yield f"the published layer, {kind}: leaves the implicit set", "not tested", "told", words


def _throughput(found, task):
    published = found["published_steps_per_second_on_a_v100"]
    names = {
        "none": "no safeguard",
        "backup_cbf": "the published layer, in our form",
        "backup_cbf_verified": "that layer, verified",
        "qpax": "the published layer as published (qpax)",
    }
    for name, each in found["guards"].items():
        what = names.get(name, f"our safeguard, `{name}`")
        wanted = ">= 1000" if name not in names else ""
        words = f"{each['steps_per_second']:,.0f} ({each['steps_per_cpu_second']:,.0f} a CPU second)"
        yield (
            f"SAC through {what}: environment steps a second",
            f"{published:g} (V100)" if name == "qpax" else "",
            wanted,
            words,
        )


def _projection(found, task):
    for name, each in found["instances"].items():
        far = each["clarabel"]
        for ours in each["forward"]["ratio"]:
            ratios = [each[way]["ratio"][ours] for way in ("forward", "forward_and_gradient")]
            whole = "the whole safeguard" if ours == "safeguard" else "boundary projection"
            kind = f"{name}, {each['rows']} half-spaces, float32, calls in a row"
            what = f"{whole} ({kind}) against cvxpylayers (float64), time a batch element"
            yield what, "1", ">= 200x", f"{ratios[0]:.0f}x; with gradient {ratios[1]:.0f}x"
        words = f"{far['largest']:.1e} in {far['instances']:,}"
        if far["unsolved_by_clarabel"]:
            words += f"; Clarabel gives up on {far['unsolved_by_clarabel']:,} more"
        yield f"boundary projection ({name}) against Clarabel, largest difference", "", "<= 1e-6", words


def _latency(found, task):
    each, far = found["latency"], found["agreement"]
    words = f"{each['median_us']:.0f} us / {each['p99_us']:.0f} us; largest {each['largest_us']:.0f} us"
    limits = f"{_at_most(task, 'latency_median_us', '{:g}')} / {_at_most(task, 'latency_p99_us', '{:g}')} us"
    yield "exported controller, one core, 10^5 calls: median / 99th percentile", "", limits, words
    yield (
        "exported controller against the original",
        "",
        "0 differ",
        f"{far['differ']} of {far['states']:,} states differ",
    )


def _sb3(found, task):
    for guarded in (True, False):
        cases = [each for each in found["cases"] if each["safeguard"] == guarded]
        names = ", ".join(dict.fromkeys(each["algorithm"] for each in cases))
        counts = [sum(each[part]["violations"] for each in cases) for part in ("training", "evaluation")]
        steps = [sum(each[part]["steps"] for each in cases) for part in ("training", "evaluation")]
        words = f"{counts[0]:,} in {steps[0]:,} steps; {counts[1]:,} in {steps[1]:,}"
        kind = "behind the safeguard" if guarded else "without one"
        yield f"Stable-Baselines3 {names} {kind}: violations", "", "0" if guarded else "", words


PER_TASK = {"seeds": _seeds, "training_time": _time, "safeguard_speed": _speed, "attack": _attack}
"""Benchmarks of every task, and what writes their rows."""
OF_ALL = {"proofs": _proofs, "examples": _examples, "scaling": _scaling, "projection_speed": _projection}
"""Benchmarks that go through many tasks by themselves."""


def _methods(found):
    """Our own road's errors beside the best that another method reached without a violation."""
    for task, rows in found.items():
        ours, *others = rows
        rivals = [row for row in others if not row["row"].startswith("ours") and not row["violations"]]
        for name, mine in ours["metrics"].items():
            if name == "return" or not rivals:
                continue
            best = min(rivals, key=lambda row: row["metrics"][name]["iqm"])
            (low, high), other = mine["ci95"], best["metrics"][name]["iqm"]
            words = (
                f"{mine['iqm']:.3f} ({low:.3f} to {high:.3f}); best of {len(rivals)} rivals: {other:.3f}, {best['row']}"
            )
            given = "" if mine["published"] is None else f"{mine['published']:g}"
            yield (
                f"{task.replace('-', ' ')}, ours against rivals without a violation: {name} (IQM)",
                given,
                "least",
                words,
            )


TABLES = {"safeguards": _safeguards, "lane-keeping": _methods, "power-loop": _methods}
"""Tables of `holdfast reproduce`."""
LANE_KEEPING = {
    "committed_plan": _plans,
    "correction_size": _sizes,
    "layer_attack": _layer,
    "sac_throughput": _throughput,
    "latency": _latency,
}


def insert(readme: str, numbers: str) -> str:
    """The README with the table between its marks."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{numbers}\n{END}{after}"


def picture(run: Path) -> bytes:
    """The first kept episode of a run against lane and reference, as PNG."""
    import numpy as np

    from holdfast.evaluate import Trajectories
    from holdfast.plots import to_png, trajectory_figure

    with np.load(run / "trajectories.npz") as data:
        kept = {name: data[name] for name in data.files}
    dt = float(kept.pop("dt"))
    return to_png(trajectory_figure(make_task("lane-keeping"), Trajectories(**kept, dt=dt)), dpi=110)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, help="draw docs/lane_keeping.png from this run")
    chosen = arguments.parse_args()
    readme = ROOT / "README.md"
    readme.write_text(insert(readme.read_text(encoding="utf-8"), table()), encoding="utf-8")
    if chosen.run:
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "lane_keeping.png").write_bytes(picture(chosen.run))
