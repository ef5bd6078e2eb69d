"""Branch and bound over boxes: split until every box is judged or the budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_BATCH = 4096  # boxes a call: large enough to hide numpy's overhead, small enough for the cache


@dataclass(frozen=True)
class Judgement:
    """What is known of a batch of boxes: `settled` [boxes]; `score` [n, boxes] says which side is worth splitting; a
    `witness` [n] ends the search."""

    settled: np.ndarray
    score: np.ndarray
    witness: Any = None


@dataclass(frozen=True)
class Outcome:
    complete: bool  #: every box settled
    witness: Any
    boxes: int
    reason: str


@dataclass(frozen=True)
class Budget:
    """Limits of one search; `deadline` on the clock of `time.monotonic`."""

    max_boxes: int
    deadline: float

    @staticmethod
    def of(max_boxes: int, max_seconds: float) -> Budget:
        return Budget(max_boxes, time.monotonic() + max_seconds)


def search(
    judge: Callable[[np.ndarray, np.ndarray], Judgement], lo, hi, budget: Budget, batch: int = _BATCH
) -> Outcome:
    """Judge the box lo..hi [n], splitting what is not settled. Depth first, so memory stays small.

    Boxes are kept as bounds and split at a float between them: the two halves share that float, so nothing is lost.
    """
    stack = [(np.asarray(lo, np.float64)[:, None], np.asarray(hi, np.float64)[:, None])]
    smallest = 1e-13 * np.max(np.asarray(hi) - np.asarray(lo))
    boxes = 0
    while stack:
        parts, count = [], 0
        while stack and count < batch:
            parts.append(stack.pop())
            count += parts[-1][0].shape[1]
        lows, highs = (np.concatenate(side, axis=1) for side in zip(*parts))
        if lows.shape[1] > batch:
            stack.append((lows[:, batch:], highs[:, batch:]))
            lows, highs = lows[:, :batch], highs[:, :batch]
        if boxes + lows.shape[1] > budget.max_boxes:
            return Outcome(False, None, boxes, f"the budget of {budget.max_boxes} boxes is spent")
        if time.monotonic() > budget.deadline:
            return Outcome(False, None, boxes, f"the time is up after {boxes} boxes")
        boxes += lows.shape[1]
        judgement = judge(lows, highs)
        if judgement.witness is not None:
            return Outcome(False, judgement.witness, boxes, "a box's centre is a witness")
        keep = ~judgement.settled
        if not keep.any():
            continue
        lows, highs, score = lows[:, keep], highs[:, keep], judgement.score[:, keep]
        width = highs - lows
        # Where the bound is infinite or undefined nothing tells the sides apart: take the widest.
        score = np.where(np.isfinite(score).all(0), score, width)
        side = np.argmax(np.where(width > smallest, score, -np.inf), axis=0)
        columns = np.arange(side.size)
        if not (width[side, columns] > smallest).all():
            return Outcome(False, None, boxes, "a box too small to split is still undecided")
        middle = lows[side, columns] + 0.5 * width[side, columns]
        left, right = highs.copy(), lows.copy()
        left[side, columns] = right[side, columns] = middle
        stack.append((np.concatenate([lows, right], axis=1), np.concatenate([left, highs], axis=1)))
    return Outcome(True, None, boxes, "every box is settled")
