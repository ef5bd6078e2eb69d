"""Robust invariant sets with few facets: boxes in the modal coordinates of a feedback with real poles.

With left eigenvectors v_i of A + B K, |v_i x| <= s_i keeps itself where |lambda_i| s_i + |v_i E| h + r_i <= s_i, whatever
the other modes do. Among the boxes inside the feasible set and the inputs' range the largest volume is a convex problem in
log s. That makes 2 n facets, where the maximal set may need hundreds.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import scipy.optimize
import scipy.signal

_KEPT, _ROUNDS, _SURPLUS = 2e-3, 6, 1.03


def modal_candidates(design, scales, time_constants) -> list[tuple]:
    """(score, N, d, K) about the centre for every choice of time constants, the largest volume first.

    Args:
        design: what `holdfast.certify.synthesis` knows of the system.
        scales: shares of the feasible box for coordinates that bend the step.
        time_constants: for each coordinate the time constants in s of a closed-loop pole to try.
    """
    bends, found = design.nonlinear(), []
    for scale in scales if bends.any() else (1.0,):
        shrink = np.where(bends, scale, 1.0)
        # A hair less, so that rounding to float32 numbers stays inside.
        limits = (1 - 1e-5) * shrink * np.minimum(design.high, -design.low)
        model = design.fit(-0.5 * limits, 0.5 * limits)
        for constants in itertools.product(*time_constants):
            # No two poles alike, or there are no eigenvectors.
            apart = 1 + 0.06 * np.arange(design.n)
            poles = np.exp(-design.system.dt / (np.asarray(constants) * apart))
            try:
                placed: Any = scipy.signal.place_poles(model.A, model.B, poles)
                gain = -placed.gain_matrix
            except ValueError:
                continue
            gain = gain.astype(np.float32).astype(np.float64)
            if (made := _largest_box(design, model, gain, limits)) is not None:
                found.append((*made, gain))
    return sorted(found, key=lambda each: -each[0])


def _largest_box(design, model, gain, limits):
    """(log volume, N, d), with the rest of the model sampled in the box that it makes; None where there is no room."""
    values, vectors = (np.asarray(part) for part in np.linalg.eig(model.A + model.B @ gain))
    if np.abs(np.imag(values)).max() > 1e-9:
        return None
    vectors = np.real(vectors)
    left = np.linalg.inv(vectors)
    room = 1 - np.abs(np.real(values)) - _KEPT
    noise = np.abs(left @ model.E) @ design.noise.half_widths
    reach = np.minimum(design.u_high, -design.u_low)
    rows = np.concatenate([np.abs(vectors) / limits[:, None], np.abs(gain @ vectors) / reach[:, None]])
    rest, unit, sizes = np.zeros(design.n), design.unit[:, : design.n], np.zeros(design.n)
    for _ in range(_ROUNDS):
        found = _sizes(rows, (noise + rest) / room)
        if found is None:
            return None
        sizes = found
        x = (unit * sizes) @ vectors.T
        u = np.clip(x @ gain.T, design.u_low, design.u_high)
        left_out = design.step(design.centre + x, design.rest + u) - design.centre - x @ (model.A + model.B @ gain).T
        rest = _SURPLUS * np.abs(left_out @ left.T).max(axis=0)
    if ((noise + rest) / room > sizes).any():
        return None
    norms = np.linalg.norm(left, axis=1)
    N, d = left / norms[:, None], sizes / norms
    volume = np.log(sizes).sum() + np.log(abs(np.linalg.det(vectors)))
    return volume, np.concatenate([N, -N]), np.concatenate([d, d])


def _sizes(rows: np.ndarray, least: np.ndarray) -> np.ndarray | None:
    """argmax of sum log s over rows s <= 1 and s >= least; None where that is empty."""
    if not (rows @ least).max() < 1:
        return None
    start = np.log(least + 1e-9 + 0.2 * (1 - (rows @ least).max()) / np.maximum(rows.max(axis=0), 1e-9) / least.size)
    inside = {
        "type": "ineq",
        "fun": lambda y: 1 - rows @ np.exp(y),
        "jac": lambda y: -rows * np.exp(y),
    }
    enough = {
        "type": "ineq",
        "fun": lambda y: np.exp(y) - least,
        "jac": lambda y: np.diag(np.exp(y)),
    }
    found = scipy.optimize.minimize(
        lambda y: -y.sum(), start, jac=lambda y: -np.ones_like(y), constraints=[inside, enough], method="SLSQP"
    )
    return np.exp(found.x) if found.success else None
