"""Phase 1 by TD3 on the value of safe arrival, as PS2-RL trains its backup, against training through the simulator.

Both train the backup outside of the same proved base set, with the same horizon, on states of the same region. Told are:
how much the backup certifies, and how that grew with time and steps; how long it takes to arrive; what becomes of the
states that it does not certify; steps of the system and seconds. TD3 is trained twice where published numbers are known:
with ours, and with the published discount and action penalty.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import NullFormatter

from benchmarks._common import ROOT, parser, print_table, result_name, write_results
from holdfast.cli.build import certify_task, implicit_set, load_task, of_seed
from holdfast.cli.config import TrainConfig
from holdfast.cli.timing import CompileClock
from holdfast.cli.training import run_keys
from holdfast.learn import BACKUP_TRAININGS, BackupTrainer, initialise, train
from holdfast.plots import LIGHT, to_png
from holdfast.plots.theme import figure_legend, new_figure
from holdfast.tasks import RobustSafety

PUBLISHED = {
    "lane-keeping": {"discount": 0.92, "action_penalty": 0.02, "steps": 3e6, "seconds": 840},
    "power-loop": {"discount": 0.99, "action_penalty": 0.05, "steps": 5e6, "seconds": 2400},
}
"""What PS2-RL (arXiv 2606.14536) says of its phase 1; seconds on a V100. Its base sets and horizons are others."""
NAMES = {
    "simulator": "through the simulator",
    "td3": "TD3, our settings",
    "td3 published": "TD3, published discount and penalty",
}
LOOKS = {"simulator": ("actual", "-"), "td3": ("unsafe", "--"), "td3 published": ("proposed", "-.")}
BATCH = 4096
"""States, the same for all, at which curves are looked at; the end of training is looked at with many times as many."""
KNOTS = 24
"""Points of a curve."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3, help="seeds of each way to train, side by side")
    arguments.add_argument("--steps", type=float, help="steps of the system for TD3; as published if not given")
    arguments = arguments.parse_args()
    if arguments.run is not None:
        raise SystemExit("phase1 trains by itself: leave out --run, give --task")
    problem = Problem(arguments.task, 2 if arguments.quick else 64)
    methods = trainers(problem, 3e4 if arguments.quick else arguments.steps)
    courses = {name: Course(problem, trainer, arguments.seeds) for name, trainer in methods.items()}
    numbers = compare(problem, courses)
    rows = [
        (NAMES[name], *(float(np.mean(each[key])) for key in ("share", "arrival_mean", "arrival_p95", "unsafe", "late")),
         each["steps"], each["seconds"], each["compile_seconds"])
        for name, each in numbers["methods"].items()
    ]  # fmt: skip
    print_table(
        ("backup", problem.share, "arrival (s)", "p95", "unsafe", "late", "steps", "seconds", "+ compile"), rows
    )
    print(f"analytic backup: {numbers['analytic']:.4f}")
    path = write_results(
        __spec__.name,
        arguments,
        task=problem.task.name,
        settings={
            "share": problem.share,
            "seeds": arguments.seeds,
            "base set": problem.level,
            "horizon": problem.horizon,
            "states": problem.states.shape[0] * BATCH,
            "states of the curves": BATCH,
            "trainers": {name: settings_of(trainer) for name, trainer in methods.items()},
        },
        numbers=numbers,
    )
    picture = f"{result_name('phase1', problem.task.name)}.png"
    draw(problem, numbers, path.parent / picture if arguments.quick else ROOT / "docs" / picture)
    if any(count for each in numbers["methods"].values() for count in each["impossible"]):
        raise SystemExit("a state was certified that no policy can keep safe")


class Problem:
    """A task with its proved base set, and batches of states at which backups are looked at."""

    def __init__(self, name: str, batches: int):
        self.task = task = load_task(name)
        if isinstance(task.safety, RobustSafety):
            raise SystemExit(f"--task {name}: it is kept by a robust control invariant set, and has no backup to train")
        self.certified = certify_task(task, level=None, horizon=None)
        self.horizon, self.level = task.safety.horizon, float(self.certified.base_set.ellipsoid.level)
        keys = jax.random.split(jax.random.key(1), (batches, BATCH))
        self.states = jax.vmap(jax.vmap(task.sample_state))(keys).astype(jnp.float32)
        self._look = jax.jit(self._look_at)
        self.share = "share of the viability kernel"
        if task.viable(self.states[0, 0]) is None:
            self.share = "share of the safe states drawn"

    def look(self, network, batches: int | None = None) -> dict[str, np.ndarray]:
        """What a backup does at the states, by name, each [states]; None: all batches."""
        learned, rest = eqx.partition(network, is_learned)
        parts = [jax.device_get(self._look(learned, rest, states)) for states in self.states[:batches]]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _look_at(self, learned, rest, states):
        task, acceptance = self.task, self.certified.acceptance
        implicit = implicit_set(task, self.certified, eqx.combine(learned, rest), self.horizon)

        def one(x):
            plan, flow = implicit.plan(x, acceptance), implicit.flow(x)
            before = jnp.cumsum(flow.base_margins >= 0) == 0
            safe, viable, possible = task.safe_set.contains(x), task.viable(x), task.possibly_viable(x)
            known = jnp.asarray(True) if viable is None else viable
            return {
                "certified": plan.certified & safe,
                "counted": safe & known,
                "impossible": plan.certified & safe & ~(known & (True if possible is None else possible)),
                "begins in the base set": implicit.policy.base.contains(x),
                "length": plan.length,
                "unsafe": jnp.any(~jnp.all(flow.margins >= 0, axis=1) & before),
            }

        return jax.vmap(one)(states)


def share_of(found: dict[str, np.ndarray], mask: np.ndarray | None = None) -> float:
    """Share of the states that count which are certified, or in a mask."""
    return float(np.mean((found["certified"] if mask is None else mask)[found["counted"]]))


def is_learned(leaf: Any) -> bool:
    """Whether a leaf is a JAX array; the rest are constants of the problem."""
    return isinstance(leaf, jax.Array)


def trainers(problem: Problem, steps: float | None) -> dict[str, BackupTrainer]:
    """The ways to train: through the simulator as `holdfast train` does, by TD3, and by TD3 with the published numbers."""
    task, published = problem.task, PUBLISHED.get(problem.task.name)

    def trainer(kind: str, **given) -> BackupTrainer:
        trainer, settings = BACKUP_TRAININGS[kind]
        config = TrainConfig(task.name, backup_training=kind).for_task(task)
        given = {"updates": config.backup_updates} | given
        return trainer(problem.certified.base_set, task.safe_set, task.sample_state, problem.horizon, settings(**given))

    td3, steps = trainer("td3"), steps or (published["steps"] if published else None)
    given = {} if steps is None else {"updates": max(1, round(steps / td3.steps_per_update))}
    found = {"simulator": trainer("simulator"), "td3": trainer("td3", **given)}
    if published is not None:
        given |= {name: published[name] for name in ("discount", "action_penalty")}
        found["td3 published"] = trainer("td3", **given)
    return found


def settings_of(trainer: BackupTrainer) -> dict[str, Any]:
    """Every number of a trainer, and the discount that follows where none is given."""
    found = {name: getattr(trainer.settings, name) for name in trainer.settings.__dataclass_fields__}
    return found | ({"discount": trainer.discount} if "discount" in found else {})


@dataclass
class Course:
    """One way to train, from the first update to the last.

    Attributes:
        steps, seconds: of the system and of training without compiling, for one seed, at the points of the curve [K].
        shares: certified share [K, S].
        networks: the trained ones, stacked over seeds.
        compile_seconds: of tracing and compiling.
        cpu_seconds: of the process, for one seed, without what looks on; seconds of a busy machine tell less.
    """

    problem: Problem
    trainer: BackupTrainer
    seeds: int
    steps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)

    def __post_init__(self):
        clock, updates = CompileClock(), self.trainer.settings.updates
        every = max(1, -(-updates // KNOTS))
        looked = {"seconds": 0.0, "compile": 0.0, "cpu": 0.0}

        def now() -> dict[str, float]:
            return {"seconds": time.monotonic(), "compile": clock.seconds, "cpu": time.process_time()}

        def spent() -> dict[str, float]:
            return {name: value - begun[name] - looked[name] for name, value in now().items()}

        def on_chunk(done: int, state: Any, _) -> None:
            before, so_far = now(), spent()
            self.steps.append(float(done * self.trainer.steps_per_update))
            self.seconds.append((so_far["seconds"] - so_far["compile"]) / self.seeds)
            found = [self.problem.look(of_seed(state.network, index), 1) for index in range(self.seeds)]
            self.shares.append([share_of(each) for each in found])
            for name, value in now().items():
                looked[name] += value - before[name]

        begun = now()
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(run_keys(TrainConfig("", seeds=self.seeds)))
        state = initialise(self.trainer, keys)
        state = train(self.trainer, state, updates=updates, chunk=every, on_chunk=on_chunk)
        self.networks, total = state.network, spent()
        self.compile_seconds, self.cpu_seconds = total["compile"], total["cpu"] / self.seeds


def compare(problem: Problem, courses: dict[str, Course]) -> dict[str, Any]:
    """What is told of every way, one number a seed; arrivals over the states outside the base set that all of them certify."""
    seen = {
        name: [problem.look(of_seed(each.networks, i)) for i in range(each.seeds)] for name, each in courses.items()
    }
    analytic = problem.look(None)
    common = np.all([each["certified"] for found in seen.values() for each in found], axis=0)
    common &= ~analytic["begins in the base set"]
    dt, numbers = problem.task.system.dt, {}
    for name, course in courses.items():
        times = [dt * each["length"][common] for each in seen[name]]
        numbers[name] = {
            "share": [share_of(each) for each in seen[name]],
            "impossible": [int(np.sum(each["impossible"])) for each in seen[name]],
            "arrival_mean": [float(np.mean(each)) for each in times],
            "arrival_p95": [float(np.quantile(each, 0.95)) for each in times],
            "unsafe": [share_of(each, each["unsafe"]) for each in seen[name]],
            "late": [share_of(each, ~each["certified"] & ~each["unsafe"]) for each in seen[name]],
            "steps": int(course.steps[-1]),
            "seconds": course.seconds[-1],
            "compile_seconds": course.compile_seconds,
            "cpu_seconds_with_compile": course.cpu_seconds,
            "curve": {"steps": course.steps, "seconds": course.seconds, "shares": course.shares},
        }
    return {
        "methods": numbers,
        "analytic": share_of(analytic),
        "commonly certified outside the base set": int(common.sum()),
        "published": PUBLISHED.get(problem.task.name),
    }


def words_of(seeds: int) -> str:
    """What a line and its band are."""
    return "one seed" if seeds == 1 else f"mean and range of {seeds} seeds"


def draw(problem: Problem, numbers: dict[str, Any], path: Path) -> None:
    """Share against seconds and against steps of the system: mean over seeds, and their range."""
    figure, axes = new_figure(LIGHT, "wide", 1, 2, row_height=3.2, share_x=False)
    for ax, x, words in zip(axes[0], ("seconds", "steps"), ("training time of one seed (s)", "steps of the system")):
        for name, each in numbers["methods"].items():
            colour, dash = getattr(LIGHT, LOOKS[name][0]), LOOKS[name][1]
            along, shares = each["curve"][x], 100 * np.asarray(each["curve"]["shares"])
            ax.plot(along, shares.mean(axis=1), dash, color=colour, linewidth=1.8, label=NAMES[name])
            ax.fill_between(along, shares.min(axis=1), shares.max(axis=1), color=colour, alpha=0.15, linewidth=0)
        analytic = 100 * numbers["analytic"]
        ax.axhline(analytic, color=LIGHT.analytic, linestyle=":", linewidth=1.4, label="analytic backup (LQR)")
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(words)
    axes[0, 0].set_ylabel(f"certified {problem.share} (%)")
    axes[0, 0].yaxis.label.set_fontsize(9)
    seeds = np.shape(numbers["methods"]["td3"]["curve"]["shares"])[1]
    axes[0, 0].set_title(
        f"{problem.task.name}, N = {problem.horizon}: {words_of(seeds)}, without compiling",
        fontsize=9.5,
        loc="left",
        color=LIGHT.muted,
    )
    figure_legend(figure, LIGHT, "wide")
    path.write_bytes(to_png(figure))


if __name__ == "__main__":
    main()
