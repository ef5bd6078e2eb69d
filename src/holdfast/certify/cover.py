"""Boxes that cover the states of a system: on its manifold, and around its base set."""

from __future__ import annotations

import jax
import numpy as np

from holdfast.certify.interpreter import Program, interval_eval
from holdfast.certify.interval import Interval
from holdfast.certify.slope import run_slopes
from holdfast.sets import Box
from holdfast.systems import MANIFOLD_TOLERANCE, System

#: Parts into which each coordinate of a manifold, of an error and of a fibre is cut, within `_MOST_CELLS`.
_PARTS, _ERROR_PARTS, _FIBRE_PARTS = 11, 2, 64
_MOST_CELLS = 20_000


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


def cover_base(system: System, radii: np.ndarray) -> tuple[Interval, Interval]:
    """Cells of errors [e, cells] that cover |e| <= radii, and of states [n, cells] that cover all states above them.

    All states, that is, but for the dropped coordinates that are not in the system's `fibre_box`.
    """
    fibre = system.fibre_box
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
