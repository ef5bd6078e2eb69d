"""Upper bounds of linear functions over polytopes, from dual multipliers that need not be trusted.

max c'x over {G x <= h} is at most lambda'h + |c - G'lambda|' |x| for any lambda >= 0 (weak duality). A batched dual simplex
finds good multipliers in floating point; the bound itself is evaluated in interval arithmetic, with the residual charged
over a box that holds the polytope. Wrong multipliers give a useless bound, never a false one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.certify import interval as iv
from holdfast.certify.interval import Interval
from holdfast.certify.linear import total

_TOLERANCE = 1e-10
_PIVOT, _HAIR = 1e-9, 1e-9
#: Half-width of the box from which the search for a bounding box starts: what is larger counts as unbounded.
_LARGEST = 1e6


@dataclass(frozen=True)
class Multipliers:
    """What the dual simplex leaves, for b problems in n variables.

    Attributes:
        rows: which rows of G carry a multiplier, shape [b, n + 1].
        values: the multipliers, >= 0, shape [b, n + 1].
        x: where the maximum is taken, shape [b, n]; meaningful where `optimal`.
        optimal: whether the maximum was found, shape [b].
        empty: whether the polytope was found empty, shape [b]; then the multipliers prove a bound below the target.
    """

    rows: np.ndarray
    values: np.ndarray
    x: np.ndarray
    optimal: np.ndarray
    empty: np.ndarray


def corner_basis(c: np.ndarray, first: int) -> np.ndarray:
    """The corner of a box at which c [b, n] is largest, as a dual feasible basis [b, n]: rows `first` + j say x_j <= ..,
    rows `first` + n + j say -x_j <= .."""
    n = c.shape[1]
    return first + np.arange(n) + np.where(c >= 0, 0, n)


def maximise(
    c: np.ndarray,
    G: np.ndarray,
    h: np.ndarray,
    basis: np.ndarray,
    target: np.ndarray | float = -np.inf,
    limit: int = 200,
) -> Multipliers:
    """max c'x over {G x <= h} for a batch, by the dual simplex (Lemke 1954). Every iterate is a valid bound, so a problem
    stops as soon as its bound is at most `target`.

    Args:
        c: objectives, shape [b, n].
        G: rows, shape [q, n], shared; or [b, q, n].
        h: offsets, shape [b, q].
        basis: dual feasible rows to start from, shape [b, n], as of `corner_basis`.
        target: bounds that are good enough, shape [b] or a number.
        limit: most pivots.
    """
    b, n = c.shape
    shared = G.ndim == 2
    target = np.broadcast_to(np.asarray(target, np.float64), (b,))
    norms = np.maximum(np.linalg.norm(G, axis=-1), 1e-300)
    rows = np.concatenate([basis, basis[:, :1]], axis=1).copy()
    values, x = np.zeros((b, n + 1)), np.zeros((b, n))
    optimal, empty = np.zeros(b, bool), np.zeros(b, bool)
    active, basis = np.arange(b), basis.copy()
    # Pivots are chosen for an objective moved a hair, or ties would let the simplex go round in circles.
    hair = np.random.default_rng(0).uniform(0.5, 1.0, n) * _HAIR * np.abs(c).max(axis=1, keepdims=True)
    moved = c + np.where(c >= 0, hair, -hair)
    for pivots in range(limit + 1):
        if not active.size:
            break
        own = G[basis[active]] if shared else G[active[:, None], basis[active]]
        inverse = _inverse(own)
        offsets = np.take_along_axis(h[active], basis[active], 1)
        point = np.einsum("bij,bj->bi", inverse, offsets)
        weights = np.maximum(np.einsum("bi,bij->bj", c[active], inverse), 0.0)
        rows[active, :n], values[active, :n], x[active] = basis[active], weights, point
        reached = np.einsum("bj,bj->b", weights, offsets) <= target[active]
        outside = (point @ G.T if shared else np.einsum("bqi,bi->bq", G[active], point)) - h[active]
        outside = outside / (norms if shared else norms[active])
        entering = np.argmax(outside, axis=1)
        scale = 1 + 1e-4 * np.abs(point).max(axis=1)
        best = ~(outside[np.arange(active.size), entering] > _TOLERANCE * scale)
        optimal[active[best]] = True
        go_on = ~(best | reached)
        if pivots == limit or not go_on.any():
            break
        active, inverse, entering = active[go_on], inverse[go_on], entering[go_on]
        weights = np.maximum(np.einsum("bi,bij->bj", moved[active], inverse), 0.0)
        row = G[entering] if shared else G[active, entering]
        blend = np.einsum("bi,bij->bj", row, inverse)  # row = sum_j blend_j of the basis' rows
        usable = blend > _PIVOT * np.maximum(np.abs(blend).max(axis=1, keepdims=True), 1e-30)
        with np.errstate(all="ignore"):
            ratio = np.where(usable, weights / blend, np.inf)
            relaxed = np.where(usable, (weights + 1e-13 * np.abs(c[active]).max(1, keepdims=True)) / blend, np.inf)
        nearly = ratio <= relaxed.min(axis=1, keepdims=True)
        leaving = np.argmax(np.where(nearly & usable, blend, -np.inf), axis=1)
        none = ~usable.any(axis=1)
        if none.any():
            _add_ray(rows, values, active[none], entering[none], blend[none], h, x, G, target)
            empty[active[none]] = True
            active, leaving, entering = active[~none], leaving[~none], entering[~none]
        basis[active, leaving] = entering
    return Multipliers(rows, values, x, optimal, empty)


def _add_ray(rows, values, which, entering, blend, h, x, G, target) -> None:
    """Where the entering row contradicts the basis, its multiplier may grow: as far as brings the bound below the target."""
    n = blend.shape[1]
    row = G[entering] if G.ndim == 2 else G[which, entering]
    outside = np.einsum("bi,bi->b", row, x[which]) - h[which, entering]
    offsets = np.take_along_axis(h[which], rows[which, :n], 1)
    bound = np.einsum("bj,bj->b", values[which, :n], offsets)
    wanted = np.where(np.isfinite(target[which]), target[which], bound) - 1e-6 * (1 + np.abs(bound))
    step = np.maximum(bound - wanted, 0.0) / np.maximum(outside, 1e-300)
    values[which, :n] += step[:, None] * np.maximum(-blend, 0.0)
    rows[which, n], values[which, n] = entering, step


def _inverse(matrices: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.inv(matrices)
    except np.linalg.LinAlgError:
        return np.linalg.pinv(matrices)


def upper_bound(c: Interval, G: np.ndarray, h: np.ndarray, found: Multipliers, x: Interval) -> np.ndarray:
    """Rigorous upper bounds of c'x over {G x <= h} and the box x, shape [b]; NaN where nothing is known.

    Args:
        c: objectives, an interval [n, b].
        G: rows [q, n]; exact. h: offsets [b, q]; exact.
        found: multipliers; clipped at zero here, otherwise not trusted.
        x: a box that holds the polytope, [n, b].
    """
    weights = np.maximum(found.values, 0.0).T  # [n + 1, b]
    weight = Interval(weights, weights)
    offset = np.take_along_axis(h, found.rows, 1).T
    own = G[found.rows].transpose(1, 2, 0)  # [n + 1, n, b]
    bound, residual = total(iv.mul(weight, Interval(offset, offset))), c
    for k in range(weights.shape[0]):
        residual = iv.sub(residual, iv.mul(weight[k][None], Interval(own[k], own[k])))
    return iv.add(bound, total(iv.mul(residual, x))).hi


class Unbounded(ValueError):
    """A polytope has no bounding box."""


def bounding_box(normals: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds [n] that hold {N x <= d}, outward rounded.

    With multipliers for each of the 2n directions, +-x_j <= b_j + sum_k E_jk |x_k|, E the residuals. So for norm(E) < 1
    the polytope is bounded (a ray y would have |y| <= E |y|), by max(b) / (1 - norm(E)).

    Raises:
        Unbounded: if no bound is found, or the polytope is empty.
    """
    n = normals.shape[1]
    eye = np.eye(n)
    directions = np.concatenate([eye, -eye])
    G = np.concatenate([normals, directions])
    h = np.concatenate([offsets, np.full(2 * n, _LARGEST)])
    h = np.broadcast_to(h, (2 * n, h.size))
    found = maximise(directions, G, h, corner_basis(directions, len(normals)))
    if found.empty.any():
        raise Unbounded("the polytope is empty: no x has N x <= d")
    # What is tiny is rounding: it is set to zero and charged as a residual.
    artificial = (found.values * (found.rows >= len(normals))).max(axis=1) / (1 + found.values.max(axis=1))
    if (artificial > 1e-7).any() or not found.optimal.all():
        free = [f"{'+-'[k // n]}x[{k % n}]" for k in np.flatnonzero((artificial > 1e-7) | ~found.optimal)]
        raise Unbounded(f"the polytope is unbounded in the direction {', '.join(free)}")
    c = Interval(directions.T, directions.T)
    honest = Multipliers(found.rows, np.where(found.rows < len(normals), found.values, 0.0), *[found.x] * 3)
    zero = Interval(np.zeros((n, 2 * n)), np.zeros((n, 2 * n)))
    bound = upper_bound(c, G, h, honest, zero)
    own = G[honest.rows]  # the residual, a little enlarged for its own rounding
    sizes = np.abs(directions) + np.einsum("bk,bkj->bj", honest.values, np.abs(own))
    residual = np.abs(directions - np.einsum("bk,bkj->bj", honest.values, own)) + 1e-14 * sizes
    norm = residual.sum(axis=1).max() * (1 + 1e-12)
    if not norm < 0.5:
        raise Unbounded(f"no bounding box of the polytope can be shown (residual {norm:.1e}); scale its rows alike")
    largest = max(bound.max(), 0.0) / (1 - norm)
    bound = bound + residual.sum(axis=1) * largest * (1 + 1e-9) + 1e-12 * (np.abs(bound) + 1e-12)
    if np.any(-bound[n:] > bound[:n]):
        raise Unbounded("the polytope is empty: no x has N x <= d")
    bound = np.minimum(bound, _walls(normals, offsets))
    return -bound[n:], bound[:n]


def _walls(normals: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """What rows with a single entry say of +x and -x, [2n]: bounds to the last bit, as sets often end where limits do."""
    n = normals.shape[1]
    found = np.full(2 * n, np.inf)
    for row in np.flatnonzero((normals != 0).sum(axis=1) == 1):
        j = int(np.flatnonzero(normals[row])[0])
        side, size = j + n * int(normals[row, j] < 0), abs(normals[row, j])
        value = offsets[row] if size == 1 else np.nextafter(offsets[row] / size, np.inf)
        found[side] = min(found[side], value)
    return found
