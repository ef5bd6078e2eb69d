"""Writes the README's table of numbers from benchmarks/results, and its picture from a run.

    python -m benchmarks._readme [--run RUNDIR]

Every number in the table comes from a results file; `tests/test_claims.py` checks that the README holds what this writes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- numbers: python -m benchmarks._readme -->", "<!-- end of numbers -->"


def results(name: str) -> dict[str, Any] | None:
    """The numbers of one results file, or None where it was not measured yet."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))["numbers"] if file.is_file() else None


def table() -> str:
    """The table in Markdown; rows without a results file are left out."""
    rows = [("what", "published", "asked", "holdfast", "command")]
    rows += [*_seeds(), *_time(), *_speed(), *_attack(), *_plans(), *_sizes()]
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def _command(name: str) -> str:
    return f"`python -m benchmarks.{name}`"


def _seeds():
    found = results("lane_keeping_seeds")
    if found is None:
        return
    command, safety, training = _command("lane_keeping_seeds"), found["safety"], found["training_safety"]
    seeds = len(found["metrics"]["y_rmse"]["per_seed"])
    for name, asked in (("y_rmse", "0.38"), ("v_rmse", "0.45"), ("psi_rmse", "0.11")):
        metric = found["metrics"][name]
        low, high = metric["ci95"]
        words = f"{metric['mean']:.3f} (IQM {metric['iqm']:.3f}, 95 % {low:.3f} to {high:.3f})"
        published = f"{found['published'][name]:g}"
        yield f"lane keeping {name.replace('_', '-')}, {seeds} seeds", published, f"<= {asked}", words, command
    optimum = found["optimal_control"]
    words = f"{found['metrics']['return']['mean']:.0f} (open-loop optimal control: {optimum['return']:.0f})"
    yield "lane keeping return", "", "", words, command
    words = f"{safety['violations']} in {safety['steps']:,} steps; {training['violations']} in {training['steps']:,}"
    yield "violations in evaluation; in training", "0; not given", "0; 0", words, command
    share = found["kernel_share"]
    words = f"{share['mean']:.4f} (worst seed {share['min']:.4f}; LQR backup {found['kernel_share_analytic']:.4f})"
    yield "learned backup's share of the viability kernel, N = 40", "not given", ">= 0.97", words, command
    yield "certified states outside the kernel, 10^6 samples a seed", "", "0", str(found["outside_kernel"]), command


def _time():
    found = results("lane_keeping_time")
    if found is None:
        return
    runs = found["runs"]
    seconds = max(run["wall_seconds"] for run in runs)
    words = f"{seconds:.0f} s, of which {max(run['phases']['compile'] for run in runs):.0f} s compiling"
    command = _command("lane_keeping_time")
    yield "lane keeping, both phases, proof, 1000 episodes, report; cold start", "5 h (V100)", "<= 90 s", words, command
    yield "peak memory of that", "", "<= 3 GiB", f"{max(run['peak_gib'] for run in runs):.1f} GiB", command


def _speed():
    found = results("safeguard_speed")
    if found is None:
        return
    command = _command("safeguard_speed")
    words = {
        "accepting": "all accepted",
        "policy": f"at the trained policy's intervention rate ({found['intervention_rate']:.2%})",
        "corrected": "all corrected",
    }
    for mix, asked in (("accepting", 20), ("policy", 10), ("corrected", 3)):
        for name, times in found["forward"][mix]["safeguards"].items():
            ratio = times["ratio"]["published"]
            early = times["ratio"]["tuned"]
            cost = f"{ratio:.1f}x faster; {early:.1f}x than its QP stopped early ({times['mean_us']:.0f} us a state)"
            yield (
                f"safeguard `{name}` against the published layer, batch, {words[mix]}",
                "1",
                f">= {asked}x",
                cost,
                command,
            )
    single = found["latency"]["safeguard"]
    cost = f"{single['median_us']:.0f} us / {single['p99_us']:.0f} us"
    yield "safeguard on one state, accepting, N = 40: median / 99th percentile", "", "300 / 1000 us", cost, command


def _attack():
    found = results("attack")
    if found is None:
        return
    words = f"{found['violations']} in {found['steps']:,}; {found['certified_steps']:,} held a committed plan"
    yield (
        "violations under attack, float32, plant in another program",
        "not tested",
        "0 in 10^7",
        words,
        _command("attack"),
    )


def _plans():
    found = results("committed_plan")
    if found is None:
        return
    words = (
        f"{found['states_with_a_flip']:,} of {found['boundary_states']:,} boundary states flip; "
        f"{found['replay']['violations']} violations in {found['replay']['samples']:,} replayed samples"
    )
    yield "re-evaluation flips, the committed plan holds", "", "0 violations", words, _command("committed_plan")


def _sizes():
    found = results("correction_size")
    if found is None:
        return
    for push, sizes in found.items():
        if not isinstance(sizes, dict) or "maps" not in sizes:
            continue
        words = ", ".join(f"{name} {each['mean']:.4f}" for name, each in sizes["maps"].items())
        yield f"mean correction in half-widths, {push}", "", "below ray", words, _command("correction_size")


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
    from holdfast.tasks import make_task

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
