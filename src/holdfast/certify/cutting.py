"""The maximal robust invariant polytope of a linear model under a clipped feedback u = clip(K x), cut out facet by facet.

Since n_i B_j clip(K_j x) <= max(n_i B_j K_j x, min over u_j of n_i B_j u_j), a polytope is invariant if for each facet and
each choice of inputs taken as free or as saturated in the facet's favour

    n_i (A + B_free K_free) x <= d_i - max_w n_i E w - max r_i - min_u n_i B_sat u_sat       for all x in S.

Facets that fail this are cut off by that very half-space, until none fails: the maximal invariant set of Gilbert and Tan
(1991), for saturated feedback. The cut goes deeper than the condition asks, so that few cuts suffice.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from holdfast.certify.duality import corner_basis, maximise

_MOST_ROUNDS = 150
#: What facets must keep of their distance from the centre, and to what depth cuts go.
_KEPT, _DEPTH = 2e-4, 3e-3


@dataclass(frozen=True)
class Model:
    """x+ - c = A (x - c) + B (u - u_c) + E (w - w_c) + rest, with samples of the rest along the closed loop."""

    A: np.ndarray
    B: np.ndarray
    E: np.ndarray


def invariant_polytope(design, model: Model, K, rest, low, high, limit: int, start=None):
    """Cuts until every facet holds: (N, d) about the centre, or None where the centre is cut off or facets abound.

    `design` knows the sizes n and m, the noise and the inputs' range; `rest`: samples of r; `start`: facets (N, d) beside
    those of the box."""
    n, m = design.n, design.m
    N = np.concatenate([np.eye(n), -np.eye(n)])
    d = np.concatenate([high, -low])
    box = d.copy()
    if start is not None:
        N, d = np.concatenate([N, start[0]]), np.concatenate([d, start[1]])
        keep = _needed(N, d, low, high)
        N, d = N[keep], d[keep]
    queue = np.arange(len(d))
    for _ in range(_MOST_ROUNDS):
        if not queue.size:
            break
        rows, heights, deep = [], [], []
        normals, offsets = N[queue], d[queue]
        swing = np.abs(normals @ model.E) @ design.noise.half_widths + 1.02 * np.max(normals @ rest.T, axis=1)
        pushed = normals @ model.B
        best = np.minimum(pushed * design.u_low, pushed * design.u_high)
        for choice in itertools.product((True, False), repeat=m):
            free = np.array(choice)
            rows.append(normals @ model.A + (pushed * free) @ K)
            room = offsets - swing - np.where(free, 0.0, best).sum(1)
            heights.append(room - _KEPT * offsets)
            deep.append(room - _DEPTH * offsets)
        rows, heights, deep = np.concatenate(rows), np.concatenate(heights), np.concatenate(deep)
        worst = most(rows, N, d, low, high)
        fails = np.flatnonzero(worst > heights + 1e-12)
        if not fails.size:
            break
        if (deep[fails] <= 1e-6 * box.max()).any():
            return None
        # The cuts that take most away come first; they often settle others.
        sizes = np.linalg.norm(rows[fails], axis=1)
        new_N, new_d = rows[fails] / sizes[:, None], deep[fails] / sizes
        order = np.argsort(-(worst[fails] - heights[fails]) / np.abs(heights[fails]))[: max(8, len(fails) // 4)]
        start = len(d)
        N, d = np.concatenate([N, new_N[order]]), np.concatenate([d, new_d[order]])
        keep = _needed(N, d, low, high)
        again = np.concatenate([queue, np.arange(start, len(d))])
        queue = np.flatnonzero(np.isin(np.arange(len(d)), again)[keep])
        N, d = N[keep], d[keep]
        if len(d) > 2 * limit:
            return None
    else:
        return None
    return (N, d) if len(d) <= limit else None


def most(rows, N, d, low, high) -> np.ndarray:
    """max of rows [k, n] over {N x <= d} and the box."""
    n = N.shape[1]
    G = np.concatenate([N, np.eye(n), -np.eye(n)])
    h = np.concatenate([d, 2 * high, -2 * low])
    found = maximise(rows, G, np.broadcast_to(h, (len(rows), h.size)), corner_basis(rows, len(d)))
    return np.einsum("bn,bn->b", rows, found.x)


def _needed(N, d, low, high) -> np.ndarray:
    """Which facets touch the polytope; of equal ones the first."""
    order = np.argsort(d, kind="stable")
    first = np.sort(order[np.unique(np.round(N[order], 9), axis=0, return_index=True)[1]])
    return first[_touching(N[first], d[first], low, high)]


def _touching(N, d, low, high) -> np.ndarray:
    """Which facets, no two of them parallel, are not implied by the others."""
    n = N.shape[1]
    G = np.concatenate([N, np.eye(n), -np.eye(n)])
    h = np.tile(np.concatenate([d, 2 * high, -2 * low]), (len(d), 1))
    h[np.arange(len(d)), np.arange(len(d))] += np.abs(d)
    found = maximise(N, G, h, corner_basis(N, len(d)))
    keep = np.einsum("bn,bn->b", N, found.x) > d * (1 + 1e-9)
    return np.flatnonzero(keep)
