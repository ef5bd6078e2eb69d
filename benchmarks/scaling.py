"""What a safeguard costs against the number of states, over every task there is, and against the horizon.

For each task of the registry: microseconds a state, in a batch and alone, of the backup rollout, of accepting (all
proposals accepted) and of correcting (all rejected, the `ray` map), and the seconds that the proof of its base set takes
from nothing. All tasks are measured at one common horizon, so that only the system differs; the horizon is swept on those
with the fewest and the most states, and on lane keeping and the power loop.

Timing only, nothing here claims safety. Backup networks have the default size and random weights: the cost of a rollout
does not depend on them. So that plans are accepted without training, states lie close to the equilibrium, in a tiny base
set, and the base controller proposes. The same proposals are rejected by a safeguard that asks for margins that no plan
has, so that every search runs to its last check: the dearest case. Writes docs/scaling.png beside the results.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks._common import ROOT, interleaved, parser, print_table, quantiles, write_results
from holdfast.backup import (
    AcceptanceMargins,
    BackupNetwork,
    BackupPolicy,
    BaseSet,
    ImplicitInvariantSet,
    design_base_controller,
)
from holdfast.certify import NotProvable
from holdfast.cli.build import certify_task
from holdfast.learn import SafeArrivalSettings
from holdfast.plots import LIGHT, to_png
from holdfast.plots.theme import figure_legend, new_figure
from holdfast.safeguards import MAPS, BackupSource, Safeguard
from holdfast.tasks import Task, make_task, task_names
from holdfast.types import Status

HORIZON, HORIZONS = 50, (10, 20, 50, 100, 200)
SWEPT = ("lane-keeping", "power-loop")
MAP = "ray"
LEVEL = 1e-2
"""Of the tiny base set; states are drawn from a quarter of it."""
PARTS = ("rollout", "accept", "correct")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tasks", nargs="*", default=None, help="names, every task by default")
    arguments.add_argument("--batch", type=int, default=None, help="states in a batch, 1024 by default")
    arguments.add_argument("--seconds", type=float, default=120.0, help="most seconds of each search of a proof")
    arguments = arguments.parse_args()
    if arguments.run is not None:
        raise SystemExit("scaling goes through all tasks with random networks: leave out --run")
    quick = arguments.quick
    batch, repetitions = arguments.batch or (64 if quick else 1024), 5 if quick else 40
    common, horizons = (10, (5, 10)) if quick else (HORIZON, HORIZONS)
    names = arguments.tasks or (["lane-keeping"] if quick else list(task_names()))
    tasks = sorted((make_task(name) for name in names), key=lambda task: (task.system.state_size, task.name))
    swept = {tasks[0].name, tasks[-1].name, *SWEPT}
    measured, proofs = [], {}
    for task in tasks:
        for horizon in sorted({common, *horizons}) if task.name in swept else (common,):
            measured.append(cost(task, horizon, batch, repetitions))
        proofs[task.name] = proof_time(task, arguments.seconds)
    rows = [
        (
            *(each[key] for key in ("task", "states", "horizon")),
            *(each[how][part]["median_us"] for how in ("batch", "single") for part in PARTS),
        )
        for each in measured
    ]
    print_table(("us a state", "states", "N", *(f"{p}, batch" for p in PARTS), *(f"{p}, one" for p in PARTS)), rows)
    print_table(
        ("proof", "states", "seconds", "level"),
        [(name, each["states"], each["seconds"], str(each["level"] or "not proved")) for name, each in proofs.items()],
    )
    write_results(
        __spec__.name,
        arguments,
        settings={
            "batch": batch,
            "repetitions": repetitions,
            "common horizon": common,
            "network": f"hidden layers {SafeArrivalSettings().hidden}, random weights",
            "correction": f"{MAP}, every search to its last check",
            "seconds of each search of a proof": arguments.seconds,
            "dtype": "float32",
        },
        numbers={"measured": measured, "proofs": proofs},
    )
    if not quick:
        (ROOT / "docs" / "scaling.png").write_bytes(to_png(scaling_figure(measured, proofs, common), dpi=110))
        print("written: docs/scaling.png")


def cost(task: Task, horizon: int, batch: int, repetitions: int) -> dict:
    """Times of rollout, accept and correct for one task at one horizon, in us a state."""
    programs, arguments = programs_of(task, horizon, batch)
    one = jax.tree.map(lambda leaf: np.asarray(leaf[0]), arguments)
    together = {name: compiled(jax.vmap(program), arguments) for name, program in programs.items()}
    alone = {name: compiled(program, one) for name, program in programs.items()}
    found = {"task": task.name, "states": task.system.state_size, "inputs": task.system.input_size, "horizon": horizon}
    for how, chosen, given, per in (("batch", together, arguments, batch), ("single", alone, one, 1)):
        calls = {name: lambda program=program, given=given: program(*given) for name, program in chosen.items()}
        seconds = interleaved(calls, repetitions=repetitions if per > 1 else 20 * repetitions)
        found[how] = {name: quantiles(each, per=per) for name, each in seconds.items()}
    return found


def programs_of(task: Task, horizon: int, batch: int) -> tuple[dict[str, Callable], tuple]:
    """The three programs for one state, each of (commitment, x, u), and a batch of arguments for them.

    Raises:
        RuntimeError: if proposals are not accepted, or rejected, as they should be.
    """
    base = design_base_controller(
        task.system, np.asarray(task.safety.state_cost), np.asarray(task.safety.input_cost), LEVEL
    )
    features = jax.eval_shape(task.system.features, jnp.asarray(task.system.equilibrium()[0], jnp.float32)).shape[0]
    scale = jnp.ones(features, jnp.float32)
    network = BackupNetwork.initialise(jax.random.key(0), task.system, scale, SafeArrivalSettings().hidden)
    implicit = ImplicitInvariantSet(BackupPolicy(base, network), task.safe_set, horizon)
    x, u = states_near_rest(base, batch)
    p = task.safe_set.margin(x[0]).shape[0]

    def guard(margin):
        acceptance = AcceptanceMargins(np.full(p, margin), 0.0, task.state_box)
        return Safeguard(BackupSource(implicit, acceptance), (MAPS[MAP](),))

    accepting, rejecting = guard(0.0), guard(1e6)
    commitment = jax.jit(jax.vmap(accepting.init))(x)
    for each, wanted in ((accepting, True), (rejecting, False)):
        status = jax.jit(jax.vmap(lambda c, x, u, each=each: each.step(c, x, u)[0].status))(commitment, x, u)
        if not bool(jnp.all((status == Status.accepted) == wanted)):
            raise RuntimeError(f"{task.name}: not every proposal is {'accepted' if wanted else 'rejected'} near rest")
    programs = {
        "rollout": lambda commitment, x, u: implicit.flow(x).margins,
        "accept": lambda commitment, x, u: accepting.step(commitment, x, u),
        "correct": lambda commitment, x, u: rejecting.step(commitment, x, u),
    }
    return programs, (commitment, x, u)


def states_near_rest(base: BaseSet, count: int) -> tuple[jax.Array, jax.Array]:
    """Float32 states [count, n] with V <= level / 4, and the base controller's actions [count, m]."""
    size = base.ellipsoid.shape_matrix.shape[0]
    direction = np.random.default_rng(0).normal(size=(count, size))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    spread = np.linalg.cholesky(np.linalg.inv(base.ellipsoid.shape_matrix))
    errors = jnp.asarray(0.5 * np.sqrt(base.ellipsoid.level) * direction @ spread.T, jnp.float32)
    x = jax.jit(jax.vmap(base.system.lift))(errors)
    return x, jax.jit(jax.vmap(base.action))(x)


def compiled(function: Callable, arguments: tuple) -> Callable:
    """The program for arguments of these shapes."""
    return jax.jit(function).lower(*arguments).compile()


def proof_time(task: Task, max_seconds: float) -> dict:
    """Seconds from the task's plain settings to its certified base set, and the level; None if nothing was proved."""
    begin = time.perf_counter()
    try:
        certified = certify_task(task, level=None, horizon=None, max_seconds=max_seconds)
        level = certified.base_set.ellipsoid.level if certified.certificate.holds else None
    except NotProvable:
        level = None
    return {"states": task.system.state_size, "seconds": time.perf_counter() - begin, "level": level}


def scaling_figure(measured: list[dict], proofs: dict[str, dict], common: int) -> Figure:
    """Log-log: cost against states at the common horizon, proof time against states, cost against the horizon."""
    figure, axes = new_figure(LIGHT, "wide", 2, 2, row_height=3.0, share_x=False)
    roles = dict(zip(PARTS, (LIGHT.backup, LIGHT.actual, LIGHT.corrected)))
    at_common = [each for each in measured if each["horizon"] == common]
    for ax, how, title in ((axes[0, 0], "batch", "in a batch"), (axes[0, 1], "single", "one state alone")):
        for part, colour in roles.items():
            times = [each[how][part]["median_us"] for each in at_common]
            ax.plot([each["states"] for each in at_common], times, "o", color=colour, label=part)
        ax.set(xlabel="states", ylabel="time per state (us)", title=f"{title}, horizon {common}")
    ax = axes[1, 0]
    proved = [each for each in proofs.values() if each["level"] is not None]
    ax.plot([e["states"] for e in proved], [e["seconds"] for e in proved], "s", color=LIGHT.analytic, label="proof")
    ax.set(xlabel="states", ylabel="proof (s)", title="proof of the base set")
    ax = axes[1, 1]
    swept = sorted({each["task"] for each in measured if each["horizon"] != common})
    for name, dash in zip(swept, ("-", "--", "-.", ":")):
        for part, colour in roles.items():
            line = [each for each in measured if each["task"] == name]
            times = [each["batch"][part]["median_us"] for each in line]
            ax.plot([each["horizon"] for each in line], times, dash, marker=".", color=colour, linewidth=1.3)
        ax.plot([], [], dash, color=LIGHT.muted, label=name)
    ax.set(xlabel="horizon (steps)", ylabel="time per state (us)", title="in a batch")
    for ax in axes.flat:
        ax.set_xscale("log")
        ax.set_yscale("log")
    figure_legend(figure, LIGHT, "wide")
    return figure


if __name__ == "__main__":
    main()
