"""Every benchmark that the README's numbers come from, one after the other: `python -m benchmarks [--quick]`. But for
those that need PyTorch or another extra of their own: projection_speed, sb3, latency and newcomer say what they need.

Hours on two cores, and it wants a quiet machine; `--quick` is a smoke test of all of it.
"""

import argparse
import subprocess
import sys

from benchmarks._common import ROOT

TASKS = ("lane-keeping", "power-loop")
EVERY_TASK = ("optimal_control", "training_time", "seeds", "safeguard_speed", "attack")
BENCHMARKS = (
    *((name, ("--task", task)) for task in TASKS for name in EVERY_TASK),
    ("committed_plan", ("--task", "lane-keeping")),
    ("correction_size", ("--task", "lane-keeping")),
    ("attack", ("--task", "rigid-eight")),
    ("layer_attack", ("--task", "lane-keeping")),
    ("sac_throughput", ("--task", "lane-keeping")),
    *(("phase1", ("--task", task)) for task in TASKS),
    *((name, ()) for name in ("proofs", "examples", "scaling")),
)
"""(module, arguments)."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="a smoke test: little of everything, results not kept")
    quick = arguments.parse_args().quick
    failed = []
    for name, options in BENCHMARKS:
        words = " ".join([name, *options])
        print(f"== benchmarks.{words}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options, *["--quick"] * quick]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(words)
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
