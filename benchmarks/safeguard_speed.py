"""The safeguard's time for each state in a batch, and on one state, against the published layer in the same run.

Three mixes of situations, the same for both: proposals that are all accepted, the trained policy's own mix over its
evaluation episodes, and proposals that are all rejected and corrected (for each map). Batches of float32 states,
equal horizon, same backup network; `_published_layer` tells how the layer is written and what its tuned form is. One-state
latency is taken in a process of its own, on one core with one thread, from numpy arrays in to a numpy action out.
"""

import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._asked import asked
from benchmarks._common import (
    SAFEGUARDS,
    Situations,
    guard_of,
    interleaved,
    parser,
    policy_of,
    print_table,
    pushed,
    quantiles,
    run_json,
    trained_run,
    visited,
    write_results,
)
from benchmarks._published_layer import PublishedLayer
from holdfast.types import Status


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batch", type=int, default=None, help="states in a batch; 1024, or 256 of many dimensions")
    arguments.add_argument("--repetitions", type=int, default=None, help="timed calls of each program")
    arguments.add_argument("--calls", type=int, default=None, help="timed calls of the one-state safeguard")
    arguments.add_argument("--skip-gradients", action="store_true", help="forward passes only")
    arguments.add_argument("--latency-only", type=int, default=None, help="(internal) measure latency on this core")
    arguments = arguments.parse_args()
    if arguments.latency_only is not None:
        os.sched_setaffinity(0, {arguments.latency_only})
    quick = arguments.quick
    calls = arguments.calls or (2_000 if quick else 20_000)
    trained = trained_run(arguments)
    task = trained.task
    # The published layer takes seconds for a batch of ten-dimensional states: fewer of them, and fewer times.
    small = task.system.state_size <= 4
    repetitions = arguments.repetitions or (8 if quick else 60 if small else 12)
    guard, target = guard_of(trained), asked(trained.task.name)
    implicit = guard.source.implicit_set
    layer = PublishedLayer.of(implicit)
    layers = {"published": layer, "tuned": layer.tuned()}

    seen = visited(task, guard, policy_of(trained), episodes=16 if quick else 256)
    accepted = seen.where(np.asarray(seen.status) == Status.accepted)
    if arguments.latency_only is not None:
        print(json.dumps(latency(guard, layers, accepted.draw(64), calls)))
        return
    rejected = pushed(task, guard_of(trained, "all"), plants=128 if quick else 512, steps=50 if quick else 100)
    corrected = rejected.where(np.asarray(rejected.status) == Status.corrected)
    rate = float(np.mean(np.asarray(seen.status) != Status.accepted))
    training_rate = training_interventions(trained)
    batch = arguments.batch or (128 if quick else 1024 if small else 256)
    some = round(batch * training_rate)
    mixes = {
        "accepting": [accepted.draw(batch)],
        # Interventions are rare: several batches, or the mix would be luck. The mean over them is what counts.
        "policy": [seen.draw(batch, seed) for seed in range(4 if quick else 16)],
        "policy in training": [join(accepted.draw(batch - some), corrected.draw(some))],
        "corrected": [corrected.draw(batch)],
    }
    guards = {name: guard_of(trained, name) for name in SAFEGUARDS}
    own = trained.config.safeguard
    forward, rows = {}, []
    for mix, batches in mixes.items():
        names = SAFEGUARDS if mix == "corrected" else (own,)
        forward[mix] = compare({name: guards[name] for name in names}, layers, batches, repetitions)
        rows += [table_row(mix, name, forward[mix], str(target.get(mix, ""))) for name in names]
    headings = ("map", "us/state", "published", "tuned", "ratio", "to tuned")
    print_table(("forward", *headings, "asked"), rows)

    gradients, rows = {}, []
    if not arguments.skip_gradients:
        for mix in ("accepting", "corrected"):
            names = SAFEGUARDS if mix == "corrected" else (own,)
            chosen = {name: guards[name] for name in names}
            gradients[mix] = compare(chosen, layers, mixes[mix], max(3, repetitions // 4), gradient=True)
            rows += [table_row(mix, name, gradients[mix]) for name in names]
        print_table(("forward and gradient", *headings), rows)

    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "benchmarks.safeguard_speed", "--latency-only", str(core), "--calls", str(calls)]
    command += (
        ["--task", arguments.task]
        + ["--quick"] * quick
        + (["--run", str(arguments.run.resolve())] if arguments.run else [])
    )
    one_thread = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    single = run_json(command, **one_thread)
    rows = [(name, each["median_us"], each["p99_us"], each["calls"]) for name, each in single.items()]
    print_table(("one state, accepting", "median us", "p99 us", "calls"), rows)

    accuracy = {name: quality(each, mixes["corrected"][0]) for name, each in layers.items()}
    write_results(
        __spec__.name,
        arguments,
        task=task.name,
        settings={
            "safeguard of the run": own,
            "horizon": implicit.horizon,
            "batch": batch,
            "repetitions": repetitions,
            "dtype": "float32",
            "evaluations": guard.evaluations,
            "resolution": guard.resolution,
            "published": {
                "slack_weight": layer.layer.slack_weight,
                "tolerance": layer.tolerance,
                "max_iterations": {name: each.max_iterations for name, each in layers.items()},
                "squarings": layer.squarings,
                "sensitivities": {
                    name: "products of matrix exponentials" if each.exponentials else "tangents of the flow"
                    for name, each in layers.items()
                },
                "gains": [layer.layer.safe_gain, layer.layer.base_gain],
            },
            "latency": {"threads": 1, "cores": 1, "calls": calls, "from and to": "numpy arrays"},
        },
        numbers={
            "asked": target,
            "intervention_rate": rate,
            "intervention_rate_in_training": training_rate,
            "forward": forward,
            "forward_and_gradient": gradients,
            "latency": single,
            "published_layer_on_corrected": accuracy,
        },
    )


def join(first: Situations, second: Situations) -> Situations:
    """Both, one after the other; their kinds must not matter."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def training_interventions(trained) -> float:
    """Share of guarded training steps on which something else than the proposal was applied."""
    counts = np.asarray(trained.policy.safety.statuses, np.float64).reshape(-1, len(Status)).sum(axis=0)
    return float(1 - counts[Status.accepted] / counts.sum())


def table_row(mix: str, name: str, found: dict, *more: str) -> tuple:
    """One line of the tables: times of a map and of both forms of the published layer, and the ratios."""
    ours, layers = found["safeguards"][name], found["layers"]
    times = (ours["mean_us"], *(each["mean_us"] for each in layers.values()))
    return (mix, name, *times, *ours["ratio"].values(), *more)


def compare(
    guards: dict,
    layers: dict[str, PublishedLayer],
    batches: list[Situations],
    repetitions: int,
    *,
    gradient: bool = False,
) -> dict:
    """Times of safeguards and of the published layer on the same batches, interleaved.

    Returns: {"layers": {name: times}, "safeguards": {name: times and "ratio" to each layer}} in us for each state. The
    ratio is that of the medians over calls, or of the means where there are several batches, whose mixes differ.
    """
    step = with_gradient if gradient else forward_only
    programs = {("safeguards", name): jax.jit(jax.vmap(step(guard))) for name, guard in guards.items()}
    for name, layer in layers.items():
        programs["layers", name] = jax.jit(jax.vmap(published_with_gradient(layer) if gradient else published(layer)))
    turn = dict.fromkeys(programs, 0)

    def call(key):
        each = batches[turn[key] % len(batches)]
        turn[key] += 1
        return programs[key](each.commitment, each.x, each.u)

    rounds = -(-repetitions // len(batches)) * len(batches)
    calls = {key: lambda key=key: call(key) for key in programs}
    times = interleaved(calls, repetitions=rounds, warm_up=len(batches) + 1)
    size, middle = len(batches[0]), np.median if len(batches) == 1 else np.mean
    found = {"layers": {}, "safeguards": {}}
    for (group, name), seconds in times.items():
        mean = {"mean_us": float(np.mean(seconds) * 1e6 / size)}
        found[group][name] = quantiles(seconds, per=size) | mean
    for name, each in found["safeguards"].items():
        own = middle(times["safeguards", name])
        each["ratio"] = {layer: float(middle(times["layers", layer]) / own) for layer in layers}
    return found


def forward_only(guard):
    """(commitment, x, u) -> (answer, commitment): what a closed loop needs."""
    # A bound method of a module that holds NumPy leaves has no hash, which `jit` asks for.
    return lambda state, x, u: guard.step(state, x, u)


def published(layer: PublishedLayer):
    """The layer in the shape of a safeguard's step; it remembers nothing."""
    return lambda state, x, u: layer.solve(x, u)


def with_gradient(guard):
    """(commitment, x, u) -> action, and the gradient of its sum by x and u."""

    def run(state, x, u):
        action, pull_back = jax.vjp(lambda x, u: guard.step(state, x, u)[0].action, x, u)
        return action, pull_back(jnp.ones_like(action))

    return run


def published_with_gradient(layer: PublishedLayer):
    """(commitment, x, u) -> action of the layer, and the gradient of its sum by x and u."""

    def run(state, x, u):
        action, pull_back = jax.vjp(layer, x, u)
        return action, pull_back(jnp.ones_like(action))

    return run


def quality(layer: PublishedLayer, situations: Situations) -> dict:
    """What qpax says about the published layer's problems, and whether the layer needed its slack."""
    answer = jax.device_get(jax.jit(jax.vmap(layer.solve))(situations.x, situations.u))
    return {
        "converged": float(np.mean(answer.converged)),
        "finite": float(np.mean(np.isfinite(answer.action).all(axis=1))),
        "slack_used": float(np.mean(answer.slack > 1e-2)),
        "iterations_median": float(np.median(answer.iterations)),
        "iterations_max": int(np.max(answer.iterations)),
    }


def latency(guard, layers: dict[str, PublishedLayer], situations: Situations, calls: int) -> dict:
    """One state at a time, as a control loop calls: numpy arrays in, a numpy action out, the commitment kept as is.

    Ours and the published layer in turns, one call of the latter for twenty of ours.
    """
    count = len(situations)
    commitments = [jax.tree.map(lambda leaf, i=i: leaf[i], situations.commitment) for i in range(count)]
    x, u = np.asarray(situations.x), np.asarray(situations.u)

    def compiled(function):
        return jax.jit(function).lower(commitments[0], x[0], u[0]).compile()

    step = compiled(forward_only(guard))
    solvers = {name: compiled(published(layer)) for name, layer in layers.items()}
    for call in range(200):
        i = call % count
        jax.block_until_ready([program(commitments[i], x[i], u[i]) for program in (step, *solvers.values())])
    seconds: dict[str, list[float]] = {"safeguard": []} | {name: [] for name in solvers}
    for call in range(calls):
        i = call % count
        begin = time.perf_counter()
        answer, _ = step(commitments[i], x[i], u[i])
        np.asarray(answer.action)
        seconds["safeguard"].append(time.perf_counter() - begin)
        if int(answer.status) != Status.accepted:
            raise RuntimeError(f"status {int(answer.status)} on the accepting path")
        for name, solve in solvers.items() if call % 20 == 0 else ():
            begin = time.perf_counter()
            np.asarray(solve(commitments[i], x[i], u[i]).action)
            seconds[name].append(time.perf_counter() - begin)
    return {name: quantiles(np.asarray(each)) | {"calls": len(each)} for name, each in seconds.items()}


if __name__ == "__main__":
    main()
