"""What every benchmark needs: arguments, a trained run, states to work on, timing, and results as strict JSON."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from holdfast.cli.build import implicit_set, make_guard, of_seed
from holdfast.cli.config import TrainConfig
from holdfast.cli.evaluation import EVALUATION_SEED
from holdfast.cli.training import Trained, load_run
from holdfast.evaluate import BoundaryHugging, HeldCorners, default_adversaries
from holdfast.evaluate.strict_json import encode
from holdfast.runs import RunDirectory, environment, write_json
from holdfast.safeguards import Safeguard
from holdfast.tasks import Task, reset
from holdfast.types import Status

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / ".cache" / "benchmarks"
REQUIRED = ("benchmark", "command", "date", "quick", "settings", "numbers", "environment")
"""Keys of every results file."""
SAFEGUARDS = ("ray", "boundary_projection", "per_input", "all")
"""What `holdfast train --safeguard` may be given, but for none."""
QUICK_TRAINING = ("--updates", "50", "--backup-updates", "100", "--episodes", "50")


def parser(module_doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share; the module's docstring is the help text."""
    found = argparse.ArgumentParser(description=module_doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--task", default="lane-keeping", help="a task's name; of no effect with --run, which has its own"
    )
    found.add_argument("--run", type=Path, help="a run directory of `holdfast train`; one is trained if not given")
    found.add_argument("--quick", action="store_true", help="a smoke test: little of everything, results not kept")
    return found


def run_path(arguments: argparse.Namespace, *, label: str = "", train: tuple[str, ...] = ()) -> Path:
    """The directory of `--run`, or of a run that is trained in `runs/bench-TASK-LABEL` and found there the next time."""
    if arguments.run is not None:
        return arguments.run
    if arguments.quick:
        train = (*train, *QUICK_TRAINING)
    name = "-".join(word for word in ("bench", arguments.task, label, "quick" * arguments.quick) if word)
    path = ROOT / "runs" / name
    train_into(path, arguments.task, train)
    return path


def load(path: Path) -> Trained:
    """A run directory in memory."""
    run = RunDirectory.open(path)
    return load_run(run, run.read_config(TrainConfig))


def trained_run(arguments: argparse.Namespace) -> Trained:
    """The run of `--run`, or one that is trained for the benchmarks."""
    return load(run_path(arguments))


def train_into(path: Path, task: str, train: tuple[str, ...]) -> None:
    """`holdfast train TASK` into a directory, in a process of its own; nothing where it is finished."""
    if (path / "report.json").is_file():
        return
    resume = ("--resume",) if (path / "config.json").is_file() else ()
    command = [sys.executable, "-m", "holdfast", "train", task, "--out", str(path), *train, *resume]
    print(f"training: holdfast train {task} {' '.join(train)}", file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr)


def guard_of(trained: Trained, safeguard: str | None = None, index: int = 0) -> Safeguard:
    """The safeguard of one seed of a run, with its own maps or with those of another `--safeguard`."""
    config = trained.config
    config = dataclasses.replace(config, safeguard=safeguard or config.safeguard)
    guard = make_guard(trained.task, trained.certified, of_seed(trained.network, index), config)
    if not isinstance(guard, Safeguard):
        raise SystemExit("the run was trained with --safeguard none: there is no safeguard to measure")
    return guard


def policy_of(trained: Trained, index: int = 0) -> Callable[[Float[Array, " o"]], Float[Array, " m"]]:
    """The trained policy of one seed: observation [o] -> action [m]."""
    return of_seed(trained.policy.policy, index)


def implicit_sets(trained: Trained, index: int = 0):
    """(learned, analytic) implicit invariant set of one seed."""
    horizon = trained.config.horizon or trained.task.safety.horizon
    learned = implicit_set(trained.task, trained.certified, of_seed(trained.network, index), horizon)
    return learned, implicit_set(trained.task, trained.certified, None, horizon)


class Situations(eqx.Module):
    """B situations in which a safeguard was asked: what it remembered, where it was, what was proposed.

    Attributes:
        commitment: the safeguard's state before the step, stacked [B, ...].
        x: states, shape [B, n].
        u: proposed actions, shape [B, m].
        status: what the safeguard said, shape [B].
        kind: who proposed, an index whose meaning the maker tells, shape [B].
    """

    commitment: Any
    x: Float[Array, "B n"]
    u: Float[Array, "B m"]
    status: Int[Array, " B"]
    kind: Int[Array, " B"]

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, rows: np.ndarray) -> "Situations":
        """The situations of some rows, shape [K]."""
        return jax.tree.map(lambda leaf: leaf[jnp.asarray(rows)], self)

    def where(self, mask: np.ndarray) -> "Situations":
        """Those for which a mask [B] is true."""
        return self.take(np.flatnonzero(np.asarray(mask)))

    def draw(self, count: int, seed: int = 0) -> "Situations":
        """`count` of them at random; without repetition if there are enough."""
        rng = np.random.default_rng(seed)
        return self.take(rng.choice(len(self), count, replace=len(self) < count))


def visited(
    task: Task, guard: Safeguard, policy: Callable, *, episodes: int, seed: int = EVALUATION_SEED
) -> Situations:
    """Every step of evaluation episodes of a deterministic policy behind its safeguard, as `holdfast evaluate` runs
    them; float32. `kind` is the episode."""

    def one(index):
        start = reset(task, guard, jax.random.fold_in(jax.random.key(seed), index), jnp.float32)

        def advance(carry, t):
            x, state = carry
            u = policy(task.observe(x, t, start.context))
            answer, following = guard.step(state, x, u)
            found = Situations(state, x, u, answer.status, index)
            return (task.system.step(x, answer.action), following), found

        return jax.lax.scan(advance, (start.x, start.guard), jnp.arange(task.episode_steps, dtype=jnp.int32))[1]

    found = jax.jit(jax.vmap(one))(jnp.arange(episodes, dtype=jnp.int32))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


PUSHES = ("bang-bang", "near-boundary")
"""What `kind` means in `pushed`."""


def pushed(task: Task, guard: Safeguard, *, plants: int, steps: int, seed: int = 0) -> Situations:
    """Rejected proposals only, met in closed loops that are pushed against the boundary of the certified set; float32.

    Half of the plants are driven by held corners of the input box (`kind` 0), half by the acceptable action with the
    least margin (`kind` 1), to which every other step adds noise, so that many proposals lie just beyond the margin.
    Loops start from certified states of `task.sample_state`.
    """
    adversaries = {type(each): each for each in default_adversaries(task, guard)}
    corners, hugging = adversaries[HeldCorners], adversaries[BoundaryHugging]
    box = task.system.input_box
    start_key, loop_key = jax.random.split(jax.random.key(seed))
    x = jax.vmap(task.sample_state)(jax.random.split(start_key, 8 * plants)).astype(jnp.float32)
    commitment = jax.jit(jax.vmap(guard.init))(x)
    certified = np.flatnonzero(np.asarray(commitment.certified & jax.vmap(task.safe_set.contains)(x)))
    rows = jnp.asarray(np.resize(certified, plants))
    x, commitment = jax.tree.map(lambda leaf: leaf[rows], (x, commitment))
    kind = (jnp.arange(plants, dtype=jnp.int32) >= plants // 2).astype(jnp.int32)

    def propose(key, kind, x, u, t):
        push_key, noise_key, size_key = jax.random.split(key, 3)
        near = hugging(push_key, x, u, t)
        size = 0.5 * jax.random.uniform(size_key, (), x.dtype) ** 2 * (t % 2).astype(x.dtype)
        noise = size * jnp.asarray(box.half_widths, x.dtype) * jax.random.normal(noise_key, u.shape, x.dtype)
        return jnp.where(kind == 0, corners(push_key, x, u, t), box.clip(near + noise))

    def advance(carry, t):
        x, state, u = carry
        keys = jax.random.split(jax.random.fold_in(loop_key, t), plants)
        u = jax.vmap(propose, in_axes=(0, 0, 0, 0, None))(keys, kind, x, u, t)
        answer, following = jax.vmap(guard.step)(state, x, u)
        found = Situations(state, x, u, answer.status, kind)
        return (jax.vmap(task.system.step)(x, answer.action), following, u), found

    u = jnp.zeros((plants, task.system.input_size), x.dtype)
    loop = jax.jit(lambda carry: jax.lax.scan(advance, carry, jnp.arange(steps, dtype=jnp.int32))[1])
    found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), loop((x, commitment, u)))
    return found.where(np.isin(np.asarray(found.status), (Status.corrected, Status.fell_back)))


def interleaved(
    programs: dict[str, Callable[[], Any]], *, repetitions: int, warm_up: int = 2
) -> dict[str, Float[np.ndarray, " repetitions"]]:
    """Seconds of each call of each program, A B C A B C ..., so that a slow spell of the machine meets all of them.

    Args:
        programs: by name; each call's result is waited for.
        repetitions: timed calls of each.
        warm_up: calls before them, which compile and fill caches.
    """
    for _ in range(warm_up):
        for program in programs.values():
            jax.block_until_ready(program())
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repetitions):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - begin)
    return {name: np.asarray(values) for name, values in seconds.items()}


def quantiles(seconds: np.ndarray, *, per: int = 1) -> dict[str, float]:
    """Median and spread of times, in microseconds for each of `per` states."""
    names = {"q10_us": 0.1, "median_us": 0.5, "q90_us": 0.9, "p99_us": 0.99}
    return {name: float(np.quantile(seconds, q) * 1e6 / per) for name, q in names.items()}


def result_name(benchmark: str, task: str | None = None) -> str:
    """Name of a results file without its ending: the task's, if the benchmark is about one, and the benchmark's."""
    return benchmark if task is None else f"{task.replace('-', '_')}_{benchmark}"


def write_results(
    module: str,
    arguments: argparse.Namespace,
    *,
    task: str | None = None,
    settings: dict[str, Any],
    numbers: dict[str, Any],
) -> Path:
    """Writes a benchmark's results: the command, the settings, the numbers, the environment, the date.

    No path and no host name is written: a `--run` appears as RUN.

    Args:
        module: `__spec__.name` of the benchmark.
        arguments: as parsed.
        task: name of the task that was measured; None where the benchmark goes through several.
        settings, numbers: anything that JSON can hold; numbers that are not finite become null and are named.
    """
    name = module.rpartition(".")[2]
    about = "" if task is None else f" --task {task}" if arguments.run is None else " --run RUN"
    command = f"python -m benchmarks.{name}{about}" + " --quick" * arguments.quick
    found = environment()
    for package in ("qpax",):
        try:
            found["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][package] = None
    document = {
        "benchmark": name,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "quick": arguments.quick,
        "settings": ({} if task is None else {"task": task}) | settings,
        "numbers": numbers,
        "environment": found | {"load_average": [round(each, 2) for each in os.getloadavg()]},
    }
    path = (QUICK_RESULTS if arguments.quick else RESULTS) / f"{result_name(name, task)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, encode(document))
    print(f"written: {path.relative_to(ROOT)}")
    return path


def print_table(headings: tuple[str, ...], rows: list[tuple]) -> None:
    """A plain table: words to the left, numbers to the right with four digits."""
    cells = [[each if isinstance(each, str) else f"{each:,}" if isinstance(each, int) else f"{each:.4g}" for each in row]
             for row in rows]  # fmt: skip
    widths = [max(len(line[i]) for line in [list(headings), *cells]) for i in range(len(headings))]
    for line, values in [(list(headings), None), *zip(cells, rows)]:
        parts = []
        for i, (text, width) in enumerate(zip(line, widths)):
            is_word = isinstance(values[i], str) if values is not None else i == 0
            parts.append(text.ljust(width) if is_word else text.rjust(width))
        print("  ".join(parts).rstrip())


def run_json(command: list[str], **environment_changes: str) -> Any:
    """The JSON that a child process prints as its last line, run in the repository with changed environment variables."""
    child = subprocess.run(
        command, check=True, cwd=ROOT, env=os.environ | environment_changes, stdout=subprocess.PIPE, text=True
    )
    return json.loads(child.stdout.strip().splitlines()[-1])
