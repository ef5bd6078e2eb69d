"""Boxes that cover the states of a system: on its manifold, and around its base set."""

from __future__ import annotations

import jax
import numpy as np

from holdfast.certify import interval as iv
from holdfast.certify.interpreter import IntervalDomain, Program, interval_eval
from holdfast.certify.interval import Interval
from holdfast.certify.slope import run_slopes
from holdfast.sets import Box
from holdfast.systems import MANIFOLD_TOLERANCE, System

#: Parts into which each coordinate of a manifold, of an error and of a fibre is cut, within `_MOST_CELLS`.
_PARTS, _ERROR_PARTS, _FIBRE_PARTS = 11, 2, 64
_MOST_CELLS, _MOST_ERROR_CELLS = 20_000, 1000


def grid(lower: np.ndarray, upper: np.ndarray, parts: np.ndarray) -> Interval:
    """The box lower..upper [n] cut into parts[i] along coordinate i: cells [n, prod(parts)]."""
    edges = [np.linspace(lo, hi, int(k) + 1) for lo, hi, k in zip(lower, upper, parts)]
    lo = np.meshgrid(*(e[:-1] for e in edges), indexing="ij")
    hi = np.meshgrid(*(e[1:] for e in edges), indexing="ij")
    return Interval.boxes(np.stack([a.ravel() for a in lo]), np.stack([a.ravel() for a in hi]))


def cover_region(system: System, region: Box) -> Interval:
    """Cells [n, cells] that cover the states of `region` that lie on the system's manifold."""
    whole = Interval.box(region.lower, region.upper)
    program = Program(system.manifold, jax.ShapeDtypeStruct((region.dimension,), np.float64))
    value, slopes, _ = run_slopes(program, whole)
    if value.lo.shape[0] == 0:
        return whole
    curved = (slopes.magnitude[..., 0] > 0).any(0)
    parts = np.where(curved, _PARTS, 1)
    if parts.prod() > _MOST_CELLS:
        parts = np.where(curved, max(1, int(_MOST_CELLS ** (1 / curved.sum()))), 1)
    cells = grid(region.lower, region.upper, parts)
    residual = interval_eval(system.manifold, cells)
    meets = ((residual.lo <= MANIFOLD_TOLERANCE) & (residual.hi >= -MANIFOLD_TOLERANCE)).all(0)
    return Interval(cells.lo[:, meets], cells.hi[:, meets])


def cover_base(system: System, radii: np.ndarray, region: Box) -> tuple[Interval, Interval]:
    """Cells of errors [e, cells] that cover |e| <= radii, and of states [n, cells'] that cover all states above them.

    All states, that is, but for the dropped coordinates that are not in the system's `fibre_box`. A system whose error has
    fewer numbers than its state and that declares no fibre: all such states of `region`.
    """
    fibre = system.fibre_box
    if fibre.dimension == 0 and len(radii) < region.dimension:
        parts = max(_ERROR_PARTS, int(_MOST_ERROR_CELLS ** (1 / len(radii))))
        return grid(-radii, radii, np.full(len(radii), parts)), _near_base(system, radii, region)
    sizes = (len(radii), fibre.dimension)
    parts = np.concatenate([np.full(sizes[0], _ERROR_PARTS), np.full(sizes[1], _FIBRE_PARTS)])
    if parts.prod() > _MOST_CELLS:
        parts = np.maximum(1, parts * (_MOST_CELLS / parts.prod()) ** (1 / len(parts))).astype(int)
    cells = grid(np.concatenate([-radii, fibre.lower]), np.concatenate([radii, fibre.upper]), parts)
    errors = Interval(cells.lo[: sizes[0]], cells.hi[: sizes[0]])
    along = Interval(cells.lo[sizes[0] :], cells.hi[sizes[0] :])
    states = interval_eval(system.lift_along, errors, along)
    shape = (states.lo.shape[0], cells.lo.shape[1])
    return errors, Interval(np.broadcast_to(states.lo, shape).copy(), np.broadcast_to(states.hi, shape).copy())


def _near_base(system: System, radii: np.ndarray, region: Box) -> Interval:
    """Cells [n, cells] that cover the states of `region` with |error| <= radii: halved where their errors vary much."""
    cells, program = Interval.box(region.lower, region.upper), Program(system.error, region.lower)
    done: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    while True:
        near = np.zeros(cells.lo.shape[1], bool)
        wide = near.copy()
        for errors in _branches(program, cells):
            # `~` keeps what is not known, and what is not finite.
            reaches = ~((errors.lo > radii[:, None]) | (errors.hi < -radii[:, None])).any(0)
            near |= reaches
            wide |= reaches & ~(errors.width <= 0.5 * radii[:, None]).all(0)
        done.append((cells.lo[:, near & ~wide], cells.hi[:, near & ~wide]))
        count += done[-1][0].shape[1]
        lo, hi = cells.lo[:, wide], cells.hi[:, wide]
        if lo.shape[1] == 0 or count + 2 * lo.shape[1] > _MOST_CELLS:
            break
        # All of them have one size: halve the coordinate in which it is largest, in units of the region.
        axis = int(np.argmax((hi - lo)[:, 0] / np.maximum(region.half_widths, 1e-300)))
        middle = 0.5 * (lo[axis] + hi[axis])
        left, right = hi.copy(), lo.copy()
        left[axis] = right[axis] = middle
        cells = Interval(np.concatenate([lo, right], axis=1), np.concatenate([left, hi], axis=1))
    parts = [*done, (lo, hi)]
    found = Interval(*(np.concatenate(side, axis=1) for side in zip(*parts)))
    return found if found.lo.shape[1] else Interval.box(region.lower, region.upper)


class _Branch(IntervalDomain):
    """Intervals with an arctangent that goes on across its cut, above pi (turns = 0) or below -pi (turns = -1)."""

    def __init__(self, turns: int):
        super().__init__()
        self.turns, self.calls = turns, 0
        self.rules = self.rules | {"atan2": self._atan2}

    def _atan2(self, y: Interval, x: Interval, **_) -> Interval:
        self.calls += 1
        plain, opposite = iv.atan2(y, x), iv.atan2(iv.neg(y), iv.neg(x))
        half = Interval(np.full(1, np.nextafter(np.pi, 0)), np.full(1, np.nextafter(np.pi, 4)))
        shifted = iv.add(opposite, half) if self.turns == 0 else iv.sub(opposite, half)
        cut = (x.hi < 0) & (y.lo <= 0) & (y.hi >= 0)
        return Interval(np.where(cut, shifted.lo, plain.lo), np.where(cut, shifted.hi, plain.hi))


def _branches(program: Program, cells: Interval) -> list[Interval]:
    """Enclosures of the errors in each cell, one of which holds at each state.

    An angle's cut would otherwise look like any angle at all. With one arctangent there are two ways to go on across it.
    """
    domains = [_Branch(0), _Branch(-1)]
    found = [program(domain, cells)[0] for domain in domains]
    return found if domains[0].calls <= 1 else [program(IntervalDomain(), cells)[0]]
