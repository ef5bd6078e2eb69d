"""The outcome of a proof about an ellipsoid, the disturbance it absorbs, and the search for the largest level."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class InvarianceProof:
    """Outcome of a proof about B = {e'Pe <= level}.

    result: "proved" - for every e in B, V(step(e)) <= (1 - delta) level (so B is invariant), or margin(e) >= 0;
        "refuted" - `counterexample` breaks invariance (V after > level) or the margin (< 0), verified by intervals;
        "not_proved" - neither; the set must not be used as if it were safe.
    level: c. delta: contraction proved beyond invariance (0 for containment in a safe set).
    boxes, seconds: the work done. reason, method: plain words.
    counterexample: "state" [n], "before" (upper bound of V there, at most c), and "after" (lower bound of V one step
        later) or "margin" (upper bound of the worst margin).
    """

    result: Literal["proved", "refuted", "not_proved"]
    level: float
    delta: float
    boxes: int
    seconds: float
    counterexample: dict | None
    reason: str
    method: str = "interval branch and bound"

    def __bool__(self) -> bool:
        raise TypeError("an InvarianceProof has three outcomes: compare proof.result with 'proved'")


def with_seconds(proof: InvarianceProof, start: float) -> InvarianceProof:
    """The same proof with the whole time, tracing and compiling included."""
    return replace(proof, seconds=time.monotonic() - start)


def bisect_level(
    prove: Callable[[float], InvarianceProof], upper: float, rtol: float, deadline: float
) -> InvarianceProof:
    """Bisection: the largest level in (0, upper] found provable, else the last failure."""
    if not (upper > 0 and np.isfinite(upper)):
        raise ValueError("the search for a level needs a finite upper bound > 0")
    trial = prove(float(upper))
    best, low, high = None, 0.0, float(upper)
    if trial.result == "proved":
        return trial
    while high - low > rtol * high and high > 1e-9 * upper and time.monotonic() < deadline:
        middle = 0.5 * (low + high)
        trial = prove(middle)
        if trial.result == "proved":
            best, low = trial, middle
        else:
            high = middle
    return best if best is not None else trial


def invariance_robustness(proof: InvarianceProof, P) -> float:
    """The disturbance that a proved set absorbs: it stays invariant under step(e) + w for |w|_P up to this.

    |w|_P = sqrt(w'Pw), in the units of sqrt(V). By the triangle inequality sqrt(V(step(e) + w)) <= sqrt((1 - delta)
    c) + |w|_P, so |w|_P <= (1 - sqrt(1 - delta)) sqrt(c) suffices. Zero for anything not proved.
    """
    if np.linalg.eigvalsh(np.asarray(P, np.float64)).min() <= 0:
        raise ValueError("P must be positive definite to define a norm")
    if proof.result != "proved":
        return 0.0
    shrink = proof.delta / (1 + np.sqrt(1 - proof.delta))  # 1 - sqrt(1 - delta) without cancellation
    return float(shrink * np.sqrt(proof.level) * (1 - 1e-14))


def deviation_norm(P, deviation) -> float:
    """Upper bound of |w|_P over the box |w_i| <= deviation_i [n]; compare with `invariance_robustness`."""
    deviation = np.abs(np.asarray(deviation, np.float64))
    return float(np.sqrt(deviation @ np.abs(np.asarray(P, np.float64)) @ deviation) * (1 + 1e-12))
