"""How large the certified set is: its shares of the safe set, of what any policy can save and of the starts; and slices."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import AcceptanceMargins, ImplicitInvariantSet, InvariantSet
from holdfast.evaluate.statistics import clopper_pearson, lower_bound
from holdfast.tasks import Task

_CHUNK = 4096


@dataclass(frozen=True)
class Coverage:
    """Shares measured on random states of `task.sample_state` that lie in the safe set. None: not known, not asked.

    Attributes:
        samples, safe_samples: states drawn, and those inside the safe set.
        certified: share of the safe samples that the implicit set certifies.
        certified_ci95: its Clopper-Pearson interval.
        analytic: the same with the analytic backup.
        base_set: share of the safe samples inside the base set; None for an invariant set, which needs none.
        viable: share of the safe samples inside the viability kernel.
        kernel_share, kernel_share_analytic: certified share of the viability kernel.
        outside_kernel: certified samples outside the viability kernel; anything but 0 is an error somewhere.
        possible: share of the safe samples that physics does not rule out (`Task.possibly_viable`): no policy can save more.
        possible_share, possible_share_analytic: certified share of those.
        outside_possible: certified samples that physics rules out; anything but 0 is an error somewhere.
        starts: start states drawn.
        starts_certified: share of them that is certified.
        starts_lower_bound: 95 % lower bound of that probability.
        seconds: wall time, compiling included.
    """

    samples: int
    safe_samples: int
    certified: float
    certified_ci95: tuple[float, float]
    analytic: float | None
    base_set: float | None
    viable: float | None
    kernel_share: float | None
    kernel_share_analytic: float | None
    outside_kernel: int | None
    possible: float | None
    possible_share: float | None
    possible_share_analytic: float | None
    outside_possible: int | None
    starts: int
    starts_certified: float
    starts_lower_bound: float
    seconds: float

    def to_json(self) -> dict:
        """A JSON object."""
        return dataclasses.asdict(self) | {"certified_ci95": list(self.certified_ci95)}


def measure_coverage(
    task: Task,
    implicit_set: ImplicitInvariantSet | InvariantSet,
    analytic: ImplicitInvariantSet | None = None,
    *,
    acceptance: AcceptanceMargins | None = None,
    samples: int = 100_000,
    starts: int = 10_000,
    seed: int = 0,
    dtype=jnp.float32,
) -> Coverage:
    """Measures how much an implicit set, or a robust control invariant set, certifies.

    Args:
        task: draws the states and starts, and tells the viability kernel, or a bound of it, where that is known.
        implicit_set, analytic: learned and, to compare, analytic backup; or the invariant set.
        acceptance: margins that a plan must clear, as in the safeguard; none by default.
        samples, starts: how many states and starts to draw; rounded up to whole chunks.
        seed: of both.
        dtype: float type of the states.

    Raises:
        ValueError: if no sample lies in the safe set.
    """
    begin = time.perf_counter()
    judge = _judge(task, implicit_set, analytic, acceptance)
    program = jax.jit(lambda key, draw_start: _sums(task, judge, key, draw_start, dtype))
    state_key, start_key = jax.random.split(jax.random.key(seed))
    counts = _total(program, state_key, False, samples)
    at_starts = _total(program, start_key, True, starts)

    safe, kernel, possible = int(counts["safe"]), counts.get("viable"), counts.get("possible")
    if safe == 0:
        raise ValueError(f"measure_coverage: none of {samples} states of task {task.name!r} lies in its safe set")
    drawn = int(at_starts["drawn"])
    certified_starts = int(at_starts["certified"])

    def share(name: str, of) -> float | None:
        return None if name not in counts or of is None else float(counts[name] / max(int(of), 1))

    return Coverage(
        samples=int(counts["drawn"]),
        safe_samples=safe,
        certified=float(counts["certified"] / safe),
        certified_ci95=clopper_pearson(int(counts["certified"]), safe),
        analytic=share("analytic", safe),
        base_set=share("base", safe),
        viable=share("viable", safe),
        kernel_share=share("certified_viable", kernel),
        kernel_share_analytic=share("analytic_viable", kernel),
        outside_kernel=None if kernel is None else int(counts["certified"] - counts["certified_viable"]),
        possible=share("possible", safe),
        possible_share=share("certified_possible", possible),
        possible_share_analytic=share("analytic_possible", possible),
        outside_possible=None if possible is None else int(counts["certified"] - counts["certified_possible"]),
        starts=drawn,
        starts_certified=certified_starts / drawn,
        starts_lower_bound=lower_bound(certified_starts, drawn),
        seconds=time.perf_counter() - begin,
    )


@dataclass(frozen=True, eq=False)
class Slice:
    """Two-dimensional slice of the certified set: masks on a grid, [rows of the second axis, columns of the first].

    Attributes:
        axes: indices of the two state components.
        names, units: of the two.
        first, second: grid coordinates, shape [nx] and [ny].
        fixed: the state whose other components are held, shape [n].
        certified, safe: masks, shape [ny, nx].
        base, analytic, viable, possible: the same, or None.
    """

    axes: tuple[int, int]
    names: tuple[str, str]
    units: tuple[str, str]
    first: np.ndarray
    second: np.ndarray
    fixed: np.ndarray
    certified: np.ndarray
    safe: np.ndarray
    base: np.ndarray | None
    analytic: np.ndarray | None
    viable: np.ndarray | None
    possible: np.ndarray | None = None


def invariant_slice(
    task: Task,
    implicit_set: ImplicitInvariantSet | InvariantSet,
    analytic: ImplicitInvariantSet | None = None,
    *,
    axes: tuple[int, int] | None = None,
    fixed: np.ndarray | None = None,
    resolution: int = 201,
    acceptance: AcceptanceMargins | None = None,
    dtype=jnp.float32,
) -> Slice:
    """Masks of the certified set on a grid over the task's state box.

    Args:
        task, implicit_set, analytic, acceptance, dtype: as for `measure_coverage`.
        axes: the two state components that vary; `constrained_axes(task)` by default.
        fixed: the state that gives the other components, shape [n]; the equilibrium by default.
        resolution: grid points along each axis.

    Raises:
        ValueError: if the axes are not two different state components.
    """
    i, j = constrained_axes(task) if axes is None else axes
    n = task.system.state_size
    if i == j or not (0 <= i < n and 0 <= j < n):
        raise ValueError(f"invariant_slice: axes = {(i, j)}; give two different indices of the {n} state components")
    fixed = np.asarray(task.system.equilibrium()[0] if fixed is None else fixed, np.float64)
    lower, upper = np.asarray(task.state_box.lower), np.asarray(task.state_box.upper)
    first, second = (np.linspace(lower[axis], upper[axis], resolution) for axis in (i, j))
    grid = np.tile(fixed, (resolution * resolution, 1))
    grid[:, i], grid[:, j] = (each.reshape(-1) for each in np.meshgrid(first, second))
    judge = jax.jit(jax.vmap(_judge(task, implicit_set, analytic, acceptance)))
    parts = []
    for start in range(0, len(grid), _CHUNK):
        rows = np.minimum(np.arange(start, start + _CHUNK), len(grid) - 1)
        parts.append(jax.device_get(judge(jnp.asarray(grid[rows], dtype))))
    masks = {
        key: np.concatenate([part[key] for part in parts])[: len(grid)].reshape(resolution, resolution)
        for key in parts[0]
    }
    names, units = task.system.state_names, task.system.state_units or ("",) * n
    return Slice(
        axes=(i, j),
        names=(names[i], names[j]),
        units=(units[i], units[j]),
        first=first,
        second=second,
        fixed=fixed,
        certified=masks["certified"],
        safe=masks["safe"],
        base=masks.get("base"),
        analytic=masks.get("analytic"),
        viable=masks.get("viable"),
        possible=masks.get("possible"),
    )


def constrained_axes(task: Task) -> tuple[int, int]:
    """Two state components to look at: the constrained ones, then those that drive them in one step.

    Constrained: the safe set's margins depend on it at the equilibrium. Driving: the largest influence on a constrained
    component over one step.
    """
    x, u = (jnp.asarray(v) for v in task.system.equilibrium())
    slopes = np.abs(np.asarray(jax.jacfwd(task.safe_set.margin)(x)))
    constrained = [int(axis) for axis in np.flatnonzero(slopes.max(axis=0) > 0)]
    if not constrained:
        constrained = [0]
    if len(constrained) >= 2:
        return constrained[0], constrained[1]
    influence = np.abs(np.asarray(jax.jacfwd(task.system.step)(x, u)))[constrained[0]]
    influence[constrained[0]] = -1.0
    return constrained[0], int(np.argmax(influence))


def _judge(task: Task, implicit_set, analytic, acceptance) -> Callable:
    """x [n] -> masks by name; "base", "viable", "possible" and "analytic" only where they are known or asked for."""

    def judge(x):
        safe = task.safe_set.contains(x)
        if isinstance(implicit_set, InvariantSet):
            found = {"safe": safe, "certified": safe & implicit_set.contains(x)}
        else:
            found = {"safe": safe, "certified": safe & implicit_set.plan(x, acceptance).certified}
            found["base"] = safe & implicit_set.policy.base.contains(x)
        if analytic is not None:
            found["analytic"] = safe & analytic.plan(x, acceptance).certified
        for name, known in (("viable", task.viable(x)), ("possible", task.possibly_viable(x))):
            if known is not None:
                found[name] = safe & known
        return found

    return judge


def _sums(task: Task, judge, key, draw_start, dtype) -> dict:
    def one(key):
        x = jnp.where(draw_start, task.sample_start(key).astype(dtype), task.sample_state(key).astype(dtype))
        found = judge(x)
        both = [(a, b) for a in ("certified", "analytic") for b in ("viable", "possible") if {a, b} <= found.keys()]
        return found | {f"{a}_{b}": found[a] & found[b] for a, b in both}

    masks = jax.vmap(one)(jax.random.split(key, _CHUNK))
    return {name: jnp.sum(mask, dtype=jnp.int32) for name, mask in masks.items()}


def _total(program, key, draw_start: bool, samples: int) -> dict[str, int]:
    chunks = max(1, -(-samples // _CHUNK))
    parts = [program(jax.random.fold_in(key, i), draw_start) for i in range(chunks)]
    parts = jax.device_get(parts)
    return {name: int(sum(int(part[name]) for part in parts)) for name in parts[0]} | {"drawn": chunks * _CHUNK}
