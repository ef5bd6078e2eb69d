"""A control loop at 1 kHz around an exported controller: every millisecond a state comes in and an action goes out.

    holdfast export RUN --out controller
    python examples/loop_1khz.py controller [--seconds 10] [--log misses.csv]

What is late is logged, not hidden: a deadline is missed when the action was not there one period after its state was read.
The plant here is a stand-in that holds the state; put your sensor and your actuators in its place. The loop needs nothing
of holdfast but the loader, `holdfast/interop/controller.py`.
"""

import argparse
import csv
import gc
import time
from pathlib import Path

import numpy as np

from holdfast.interop.controller import load_controller

PERIOD = 1e-3


def read_state(controller, action) -> np.ndarray:
    """The sensor: here the middle of everything, with a little noise."""
    x = getattr(read_state, "x", np.zeros(controller.header["state"]["shape"]))
    noise = 1e-3 * np.random.default_rng().standard_normal(x.shape)
    return (x + noise).astype(controller.header["state"]["dtype"])


def run(controller, start: np.ndarray, seconds: float, period: float = PERIOD, read=read_state):
    """(latencies [steps] in s, misses as rows (step, latency, behind, status)); sleeps until shortly before each deadline."""
    steps = round(seconds / period)
    latencies, misses, commitment = np.zeros(steps), [], controller.init(start)
    x, action = start, None
    gc.collect()
    gc.disable()  # a collection in the middle of a period would be a miss
    due = time.perf_counter() + period
    for step in range(steps):
        while (left := due - time.perf_counter()) > 0:
            if left > 3e-4:
                time.sleep(left - 2e-4)
        begin = time.perf_counter()
        x = read(controller, action)
        seen = controller.observe(x, step) if "observe" in controller.header["programs"] else x
        action, status, _, commitment = controller.step(commitment, x, seen)
        latencies[step] = time.perf_counter() - begin
        behind = time.perf_counter() - (due + period)
        if behind > 0:
            misses.append((step, latencies[step], behind, controller.statuses[status]["name"]))
        # A miss is not made up for by haste: the next period begins now.
        due = due + period if behind <= 0 else time.perf_counter()
    gc.enable()
    return latencies, misses


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("controller", type=Path, help="a directory that `holdfast export` wrote")
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--start", type=float, nargs="+", help="the state at the start; zeros by default")
    arguments.add_argument("--log", type=Path, help="write the misses here, as CSV")
    arguments = arguments.parse_args()
    controller = load_controller(arguments.controller)
    state = controller.header["state"]
    read_state.x = np.array(arguments.start or np.zeros(state["shape"]))
    start = read_state(controller, None)
    if not controller.certified(controller.init(start)):
        raise SystemExit(f"nothing can be promised from {dict(zip(state['names'], start))}; give another --start")
    latencies, misses = run(controller, start, arguments.seconds)
    us = {name: np.quantile(latencies, q) * 1e6 for name, q in (("median", 0.5), ("p99", 0.99), ("p99.9", 0.999))}
    print(f"{len(latencies)} periods of {PERIOD * 1e3:g} ms:", ", ".join(f"{k} {v:.0f} us" for k, v in us.items()))
    print(f"{len(misses)} deadlines missed ({len(misses) / len(latencies):.3%})")
    for step, latency, behind, status in misses[:10]:
        print(f"  period {step}: {latency * 1e6:.0f} us, {behind * 1e6:.0f} us late, {status}")
    if arguments.log:
        with arguments.log.open("w", newline="") as file:
            csv.writer(file).writerows([("period", "latency_s", "late_s", "status"), *misses])


if __name__ == "__main__":
    main()
