"""Robust invariant sets about a sliding surface: few facets, and room for what the best feedback does. For one input.

LQR with a cheap input drives one fast mode sigma = k x to zero; then the state slides along sigma = 0. In coordinates
(z, sigma) with z = V x, V B = 0, no input reaches z, and a small sigma is a small disturbance to it:

    z+ = A_z z + c sigma + V E w + r,        sigma+ = a_z z + a_s sigma + k B u + k E w + r.

So S = {z in Z, |sigma| <= s} is invariant under the clipped feedback that lets sigma decay, if Z is invariant under its
own dynamics for every |sigma| <= s, and if at every z in Z the input's range can hold sigma back. The largest such Z is cut
out in one dimension less and without an input; it has tens of facets where the maximal invariant set has hundreds. The
input may saturate anywhere in S. What remains of the model goes into A_z and c as far as it is linear along the closed
loop. In S the LQR that gave the surface is never held back: its safety costs nothing.

Source of the coordinates: Utkin, Sliding Modes in Control and Optimization (1992). The sets are ours.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from holdfast.certify.cutting import Model, invariant_polytope, most

#: LQR's input cost relative to Bryson's rule: next to nothing. What a step leaves of sigma while the input is free.
_CHEAP, _DECAY = 1e-4, 0.5
_KEPT, _ROUNDS, _SURPLUS = 5e-4, 3, 1.05


@dataclass(frozen=True)
class _HalfWidths:
    half_widths: np.ndarray


@dataclass(frozen=True)
class _WithoutInput:
    """What cutting needs to know of z: its size, and that its disturbances are sigma and w."""

    n: int
    noise: _HalfWidths
    m: int = 0
    u_low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    u_high: np.ndarray = field(default_factory=lambda: np.zeros(0))


def sliding_candidates(design, scales, surfaces, thicknesses, max_facets: int) -> list[tuple]:
    """(score, N, d, K) about the centre for every choice that leaves room, the largest volume first.

    Args:
        design: what `holdfast.certify.synthesis` knows of the system.
        scales: shares of the feasible box for coordinates that bend the step.
        surfaces: LQR weights [n] of the states; the fast mode of the cheap LQR is the surface.
        thicknesses: s to try, with k scaled so that its largest entry is 1.
        max_facets: most facets, the two of sigma among them.

    Raises:
        ValueError: if the system has more inputs than one.
    """
    if design.m != 1:
        raise ValueError(f"{type(design.system).__name__} has {design.m} inputs; sliding surfaces are for one")
    bends, found = design.nonlinear(), []
    for scale in scales if bends.any() else (1.0,):
        # A hair less, so that rounding to float32 numbers stays inside.
        limits = (1 - 1e-5) * np.where(bends, scale, 1.0) * np.minimum(design.high, -design.low)
        model = design.fit(-0.6 * limits, 0.6 * limits)
        for weights, s in itertools.product(surfaces, thicknesses):
            gain = design.gain(model, np.asarray(weights, np.float64), _CHEAP)
            if gain is not None and (made := _slab(design, model, _fast_mode(model, gain), limits, s, max_facets)):
                found.append(made)
    return sorted(found, key=lambda each: -each[0])


def _fast_mode(model: Model, gain) -> np.ndarray:
    """The left eigenvector k [n] of A + B K that decays fastest, in float32 numbers."""
    values, vectors = (np.asarray(part) for part in np.linalg.eig(model.A + model.B @ gain))
    k = np.real(np.linalg.inv(vectors)[np.argmin(np.abs(values))])
    return (k / k[np.argmax(np.abs(k))]).astype(np.float32).astype(np.float64)


def _slab(design, model: Model, k, limits, s: float, max_facets: int):
    """(log volume, N, d, K) with the rest of the model sampled in the set that it makes; None where there is no room."""
    n, noise, push = design.n, design.noise.half_widths, (k @ model.B)[0]
    K = ((_DECAY * k - k @ model.A) / push).astype(np.float32).astype(np.float64)[None]
    V = scipy.linalg.null_space(model.B.T).T
    into = np.concatenate([V, k[None]])
    back = np.linalg.inv(into)
    A, E = into @ model.A @ back, into @ model.E
    about = _WithoutInput(n - 1, _HalfWidths(np.concatenate([[s], noise])))
    widest, reach = np.abs(V) @ limits, min(design.u_high[0], -design.u_low[0])
    N, d, high, made = np.stack([k, -k]), np.array([s, s]), limits, None
    for _ in range(_ROUNDS):
        x, rest = design.residuals(model, K, N, d, -high, high)
        # What is left out of z's dynamics is linear in x for the most part.
        slope = np.linalg.lstsq(x, rest @ V.T, rcond=None)[0].T
        reduced = A[:-1] + slope @ back
        parts = Model(reduced[:, :-1], np.zeros((n - 1, 0)), np.concatenate([reduced[:, -1:], E[:-1]], axis=1))
        moved = _SURPLUS * np.abs(rest @ k).max() + np.abs(E[-1]) @ noise
        held = reach * abs(push) + (1 - _KEPT - abs(A[-1, -1])) * s - moved
        inside = limits - np.abs(back[:, -1]) * s
        if _DECAY * s + moved > (1 - _KEPT) * s or held <= 0 or (inside <= 0).any():
            return None
        walls = np.concatenate([back[:, :-1], -back[:, :-1], A[-1:, :-1], -A[-1:, :-1]])
        start = walls, np.concatenate([inside, inside, [held, held]])
        left_out = _SURPLUS * (rest @ V.T - x @ slope.T)
        none = np.zeros((0, n - 1))
        made = invariant_polytope(about, parts, none, left_out, -widest, widest, max_facets - 2, start)
        if made is None:
            return None
        N, d = np.concatenate([made[0] @ V, [k, -k]]), np.concatenate([made[1], [s, s]])
        high = np.minimum(limits, most(np.eye(n), N, d, -limits, limits))
    return _log_volume(*made, widest) + np.log(2 * s / abs(np.linalg.det(into))), N, d, K


def _log_volume(N, d, widest) -> float:
    high = most(np.eye(len(widest)), N, d, -widest, widest)
    z = high * np.random.default_rng(1).uniform(-1, 1, (100_000, len(high)))
    return float(np.log(2 * high).sum() + np.log((z @ N.T <= d).all(axis=1).mean() + 1e-9))
