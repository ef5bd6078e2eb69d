"""Wall time of `holdfast train TASK` by phase, from an empty compilation cache, and its peak memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._asked import asked
from benchmarks._common import QUICK_TRAINING, ROOT, parser, print_table, write_results


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=1, help="whole trainings, one after the other")
    arguments.add_argument("--seed", type=int, default=0, help="of the first training; the next ones count up")
    arguments = arguments.parse_args()
    if arguments.run is not None:
        raise SystemExit("training_time trains by itself: leave out --run, give --task")
    task, options = arguments.task, QUICK_TRAINING if arguments.quick else ()
    runs = [train_once(task, arguments.seed + i, options) for i in range(arguments.repeats)]
    phases = {name: [each["phases"].get(name) for each in runs] for name in runs[0]["phases"]}
    target = asked(task)
    rows = [(name, float(np.median(values)), "") for name, values in phases.items()]
    rows += [
        (name, float(np.median([each[name] for each in runs])), str(target.get(name, "")))
        for name in ("wall_seconds", "peak_gib")
    ]
    print_table(("phase", "seconds", "asked"), rows)
    write_results(
        __spec__.name,
        arguments,
        task=task,
        settings={
            "training": " ".join(["holdfast train", task, *options]),
            "compilation cache": "empty",
            "repeats": arguments.repeats,
            "compile": "seconds of tracing and compiling inside the other phases",
        },
        numbers={"asked": target, "runs": runs},
    )


def train_once(task: str, seed: int, options: tuple[str, ...]) -> dict:
    """One training in a fresh process: wall time of the process, time by phase, peak resident memory, headline."""
    with tempfile.TemporaryDirectory() as folder:
        out, cache = Path(folder) / "run", Path(folder) / "cache"
        command = [sys.executable, "-m", "holdfast", "train", task, "--out", str(out), "--seed", str(seed)]
        begin = time.perf_counter()
        child = subprocess.Popen(
            [*command, *options], cwd=ROOT, env=os.environ | {"HOLDFAST_CACHE": str(cache)}, stdout=subprocess.DEVNULL
        )
        # wait4 tells this child's own peak, where getrusage would tell that of all children so far.
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"training failed with exit status {child.returncode}")
        report = json.loads((out / "report.json").read_text())
    return {
        "seed": seed,
        "wall_seconds": seconds,
        "phases": report["wall_seconds"],
        "peak_gib": usage.ru_maxrss / 2**20,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "metrics": {name: each["mean"] for name, each in report["metrics"].items()},
        "violations": report["safety"]["violations"],
        "violations_in_training": report["training_safety"]["violations"],
    }


if __name__ == "__main__":
    main()
