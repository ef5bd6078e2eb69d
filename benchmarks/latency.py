"""How long an exported controller takes for one state: median, p99, p99.9 and jitter over 10^5 calls on one core; and that it
agrees with the original on 10^4 states.

The controller flies the task in closed loop, as deployed: state and observation in, action out, the commitment handed on. Every
hundredth proposal is NaN and every tenth observation distorted, so that all paths are timed. `python -m benchmarks.latency`.
"""

import dataclasses
import os
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks._asked import asked
from benchmarks._common import guard_of, parser, policy_of, print_table, quantiles, trained_run, write_results
from holdfast.interop import agreement, export_controller, load_controller
from holdfast.types import Status

CALLS, STATES, DISTORTED, NOT_A_NUMBER = 100_000, 10_000, 10, 100


def one_core() -> int | None:
    """Keeps this process on one core, where the operating system lets it; its number. Before JAX starts its threads."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def fly(controller, task, calls: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every call of `step` and what it answered, [calls] each; the plant is not timed."""
    rng, plant = np.random.default_rng(0), jax.jit(lambda x, u: task.system.step(x, u))
    seconds, statuses, t = np.empty(calls), np.empty(calls, np.int64), task.episode_steps
    for call in range(calls):
        if t == task.episode_steps:
            start = task.sample_start(jax.random.fold_in(jax.random.key(0), call))
            x, t = np.asarray(start, np.float32), 0
            commitment = controller.init(x)
        seen = controller.observe(x, t)
        if call % DISTORTED == 0:
            seen = (seen * (1 + 3 * rng.standard_normal(seen.shape))).astype(np.float32)
        if call % NOT_A_NUMBER == 0:
            seen = np.full_like(seen, np.nan)
        begin = time.perf_counter()
        action, status, _, commitment = controller.step(commitment, x, seen)
        seconds[call] = time.perf_counter() - begin
        statuses[call] = status
        x, t = np.asarray(plant(x, action)), t + 1
    return seconds, statuses


def summary(seconds: np.ndarray) -> dict[str, float]:
    """Quantiles in microseconds, and how much one call differs from the next (jitter)."""
    tail = {"p999_us": float(np.quantile(seconds, 0.999) * 1e6), "largest_us": float(seconds.max() * 1e6)}
    change = np.abs(np.diff(seconds)) * 1e6
    spread = {"jitter_us": float(np.median(change)), "jitter_p99_us": float(np.quantile(change, 0.99))}
    return quantiles(seconds) | tail | spread | {"over_1ms": float(np.mean(seconds > 1e-3))}


def main() -> None:
    core = one_core()
    arguments = parser(__doc__).parse_args()
    calls, states = (2_000, 500) if arguments.quick else (CALLS, STATES)
    trained = trained_run(arguments)
    task, guard, policy = trained.task, guard_of(trained), policy_of(trained)
    directory = Path(".cache") / "benchmarks" / f"{task.name}-controller"
    begin = time.perf_counter()
    export_controller(directory, task=task, guard=guard, policy=policy, certificate=trained.certified.certificate)
    exported = time.perf_counter()
    controller = load_controller(directory)
    loaded = time.perf_counter()
    agreed = agreement(controller, task=task, guard=guard, policy=policy, states=states)
    seconds, statuses = fly(controller, task, calls)
    found = summary(seconds)
    print_table(("status", "calls", "median us", "p99 us"), [
        (status.name, int(rows.sum()), *(float(np.quantile(seconds[rows], q) * 1e6) for q in (0.5, 0.99)))
        for status in Status if (rows := statuses == status).any()
    ])  # fmt: skip
    print_table(tuple(found), [tuple(found.values())])
    print(f"agreement: {agreed}")
    numbers = {
        "latency": found,
        "by_status": {s.name: quantiles(seconds[statuses == s]) for s in Status if np.any(statuses == s)},
        "statuses": {s.name: int(np.sum(statuses == s)) for s in Status},
        "agreement": dataclasses.asdict(agreed),
        "asked": {key: value for key, value in asked(task.name).items() if key.startswith("latency")},
        "export_seconds": exported - begin,
        "load_seconds": loaded - exported,
        "program_bytes": {name: entry["bytes"] for name, entry in controller.header["programs"].items()},
    }
    settings = {"calls": calls, "states": states, "one_core": core is not None, "dtype": "float32"}
    write_results(__spec__.name, arguments, task=task.name, settings=settings, numbers=numbers)
    if agreed.differ:
        raise SystemExit(f"{agreed.differ} of {agreed.states} states: the exported controller is not the original")


if __name__ == "__main__":
    main()
