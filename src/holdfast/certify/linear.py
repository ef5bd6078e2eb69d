"""Linear algebra of intervals: matrices [m, n, boxes] and vectors [n, boxes]."""

from __future__ import annotations

import numpy as np

from holdfast.certify.interval import Interval, add, mul, square


def quadratic_form(matrix: np.ndarray, x: Interval) -> Interval:
    """x' M x for a float matrix [n, n] and x [n, boxes] -> [boxes]; the two off-diagonal terms are joined."""
    n = matrix.shape[0]
    total = Interval(np.zeros(1), np.zeros(1))
    for i in range(n):
        total = add(total, mul(Interval.constant(matrix[i, i]), square(x[i])))
        for j in range(i):
            weight = add(Interval.constant(matrix[i, j]), Interval.constant(matrix[j, i]))
            total = add(total, mul(weight, mul(x[i], x[j])))
    return total


def matmul(a: Interval, b: Interval) -> Interval:
    """Product of interval matrices a [m, k, boxes] and b [k, n, boxes] -> [m, n, boxes]."""
    total = mul(a[:, 0, None], b[None, 0])
    for k in range(1, a.shape[1]):
        total = add(total, mul(a[:, k, None], b[None, k]))
    return total


def total(x: Interval) -> Interval:
    """Sum over the first axis."""
    result = x[0]
    for row in range(1, x.lo.shape[0]):
        result = add(result, x[row])
    return result


def matvec(matrix: Interval, vector: Interval) -> Interval:
    """[m, n, boxes] times [n, boxes] -> [m, boxes]."""
    result = mul(matrix[:, 0], vector[0][None])
    for k in range(1, matrix.lo.shape[1]):
        result = add(result, mul(matrix[:, k], vector[k][None]))
    return result


def transposed(matrix: Interval) -> Interval:
    lo = matrix.lo.swapaxes(0, 1)
    return Interval(lo, lo if matrix.is_thin else matrix.hi.swapaxes(0, 1))


def boxes_meeting_ball(lo: np.ndarray, hi: np.ndarray, ball: float) -> tuple[np.ndarray, Interval, Interval]:
    """Which of the boxes lo..hi [n, boxes] may hold a point with |y|^2 <= ball: indices, the boxes, their centres."""
    kept = np.flatnonzero(~(total(square(Interval(lo, hi))).lo > ball))
    lo, hi = lo[:, kept], hi[:, kept]
    centre = lo + 0.5 * (hi - lo)
    return kept, Interval(lo, hi), Interval(centre, centre)
