"""Constraints that bound one state: found from the safe set alone, so that plots can shade what is unsafe."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.evaluate.attack import constraint_names
from holdfast.tasks import Task

_PROBES = 16
_GRID = 513


@dataclass(frozen=True)
class UnsafeInterval:
    """Where one constraint is violated along one state: lower < x_i < upper, whatever the other states are.

    Attributes:
        lower, upper: in the state's unit; an end that lies at the limit asked for may go on beyond it.
        name: of the constraint.
    """

    lower: float
    upper: float
    name: str


def unsafe_intervals(task: Task, index: int, limits: tuple[float, float]) -> list[UnsafeInterval]:
    """The unsafe intervals along state `index` within `limits` (in its unit).

    A constraint counts where its margin depends on no other state: probed at random states of the task's `state_box`.
    So this is for shading a plot; it proves nothing.
    """
    probes = _probe_states(task)
    grid = np.linspace(*limits, _GRID)
    margins = np.asarray(_margins(task, jnp.asarray(_along(probes, index, grid)))).reshape(len(probes), _GRID, -1)
    names = constraint_names(task, margins.shape[-1])
    found = []
    for row, name in enumerate(names):
        values = margins[..., row]
        alone = np.ptp(values, axis=0).max() <= 1e-5 * max(1.0, np.abs(values).max())
        if alone and np.ptp(values[0]) > 0:
            found += [UnsafeInterval(lower, upper, name) for lower, upper in _negative_runs(grid, values[0])]
    return found


def constraint_units(task: Task, count: int) -> tuple[str, ...]:
    """The safe set's units, or empty ones where it gives none."""
    units = tuple(task.safe_set.units)
    return units if len(units) == count else ("",) * count


def _probe_states(task: Task) -> np.ndarray:
    low, high = np.asarray(task.state_box.lower), np.asarray(task.state_box.upper)
    low, high = np.where(np.isfinite(low), low, -1.0), np.where(np.isfinite(high), high, 1.0)
    return np.random.default_rng(0).uniform(low, high, (_PROBES, len(low)))


def _along(probes: np.ndarray, index: int, grid: np.ndarray) -> np.ndarray:
    states = np.repeat(probes, len(grid), axis=0)
    states[:, index] = np.tile(grid, len(probes))
    return states


@eqx.filter_jit
def _margins(task: Task, states):
    return jax.vmap(task.safe_set.margin)(states)


def _negative_runs(grid: np.ndarray, values: np.ndarray) -> list[tuple[float, float]]:
    """Intervals where the sampled function is negative, ends by linear interpolation."""
    negative = values < 0
    edges = np.flatnonzero(np.diff(negative.astype(int)))
    crossings = [float(grid[i] + (grid[i + 1] - grid[i]) * values[i] / (values[i] - values[i + 1])) for i in edges]
    ends = [float(grid[0])] * bool(negative[0]) + crossings + [float(grid[-1])] * bool(negative[-1])
    return list(zip(ends[::2], ends[1::2]))
