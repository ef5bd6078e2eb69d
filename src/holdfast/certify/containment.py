"""Proofs that an ellipsoid {e'Pe <= c} lies inside a safe set {margin >= 0}."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.certify import linear
from holdfast.certify.branch_and_bound import Budget, Judgement, search
from holdfast.certify.coordinates import normal_coordinates
from holdfast.certify.interpreter import IntervalDomain, Program
from holdfast.certify.interval import Interval
from holdfast.certify.proof import InvarianceProof, bisect_level, with_seconds
from holdfast.certify.slope import run_slopes

_EPS = float(np.finfo(np.float64).eps)


class _Margin:
    """A vector of margins, traced once, over ellipsoids {e'Pe <= c}."""

    def __init__(self, margin: Callable, P):
        self.P = np.asarray(P, np.float64)
        self.n = self.P.shape[0]
        self.coordinates = normal_coordinates(lambda e: jnp.zeros_like(e), self.P)
        S = self.coordinates.S

        def flat_margin(e):
            return jnp.ravel(margin(e))

        def normal_margin(y):
            return flat_margin(jnp.asarray(S) @ y)

        flat_margin.__name__ = normal_margin.__name__ = getattr(margin, "__name__", "margin")
        example = jax.ShapeDtypeStruct((self.n,), np.float64)
        self.program, self.normal_program = Program(flat_margin, example), Program(normal_margin, example)

    def witness(self, y: np.ndarray, level: float) -> tuple[np.ndarray, float, float] | None:
        """A state of the set near y whose worst margin is negative, both verified by intervals."""
        e = self.coordinates.S @ y
        for _ in range(2):
            before = float(linear.quadratic_form(self.P, Interval.constant(e)).hi[0])
            if before <= level:
                break
            e = e * np.sqrt(level / before) * (1 - 1e-12)
        else:
            return None
        (margins,) = self.program(IntervalDomain(), Interval.constant(e))
        worst = float(np.nan_to_num(margins.hi, nan=np.inf).min())
        return (e, before, worst) if worst < 0 else None

    def judge(self, level: float, lo: np.ndarray, hi: np.ndarray) -> Judgement:
        with np.errstate(all="ignore"):
            return self._judge(level, lo, hi)

    def _judge(self, level, lo, hi) -> Judgement:
        ball = self.coordinates.ball(level)
        settled, score = np.ones(lo.shape[1], bool), np.zeros(lo.shape)
        alive, Y, C = linear.boxes_meeting_ball(lo, hi, ball)
        if alive.size == 0:
            return Judgement(settled, score)
        lo, centre, hi = Y.lo, C.lo, Y.hi
        (at_centre,) = self.normal_program(IntervalDomain(), C)
        natural, slopes, jump = run_slopes(self.normal_program, Y)

        # Each margin over the box by the mean value form, and over the ball by its nearly constant gradient: the
        # minimum of b.y over |y| <= R is -R |b|, which makes linear margins exact.
        jumps = Interval(-jump, jump)
        in_box = at_centre + linear.matvec(slopes, Y - C) + jumps
        gradient = np.broadcast_to(slopes.midpoint, (*slopes.magnitude.shape[:2], alive.size))
        B = Interval(gradient, gradient)
        radius = np.sqrt(ball) * (1 + 2 * _EPS)
        length = np.sqrt((gradient**2).sum(1)) * (1 + (self.n + 4) * _EPS)
        in_ball = at_centre - linear.matvec(B, C) + linear.matvec(slopes - B, Y - C) + jumps
        lower = np.fmax(np.fmax(in_box.lo, in_ball.lo - radius * length * (1 + 4 * _EPS)), -np.inf)
        # fl(a - b) >= 0 exactly when a >= b, so the sign of the difference is right.
        lower = np.where(np.isnan(natural.lo), np.nan, np.fmax(lower, natural.lo))
        good = (lower >= 0).all(0)

        worst = np.argmin(np.where(np.isnan(lower), -np.inf, lower), axis=0)
        columns = np.arange(alive.size)
        if not good.all():
            box = int(np.argmin(np.where(good, np.inf, np.nan_to_num(lower.min(0), nan=-np.inf))))
            steepest = gradient[worst[box], :, box]
            candidates = [centre[:, box], -np.sqrt(level) * steepest / max(np.linalg.norm(steepest), 1e-300)]
            inside = (centre**2).sum(0) <= level
            candidates.append(centre[:, int(np.argmin(np.where(inside, at_centre.hi.min(0), np.inf)))])
            for y in candidates:
                witness = self.witness(y, level) if np.isfinite(y).all() else None
                if witness is not None:
                    return Judgement(settled, score, witness)
        settled[alive] = good
        # Slopes of linear margins are the same on every box, and come as one column.
        magnitude = np.broadcast_to(slopes.magnitude, (*slopes.magnitude.shape[:2], alive.size))
        score[:, alive] = (magnitude[worst, :, columns].T) * (hi - lo)
        return Judgement(settled, score)

    def prove(self, level: float, budget: Budget) -> InvarianceProof:
        start = time.monotonic()
        radius = np.sqrt(self.coordinates.ball(level)) * (1 + 4 * _EPS)
        outcome = search(partial(self.judge, level), np.full(self.n, -radius), np.full(self.n, radius), budget)
        seconds = time.monotonic() - start
        if outcome.witness is not None:
            e, before, worst = outcome.witness
            witness = {"state": e, "before": before, "margin": worst}
            reason = f"a state of the set has margin {worst:.6g}"
            return InvarianceProof("refuted", level, 0.0, outcome.boxes, seconds, witness, reason)
        if outcome.complete:
            reason = "on every box of a cover of the set, every margin is non-negative"
            return InvarianceProof("proved", level, 0.0, outcome.boxes, seconds, None, reason)
        reason = outcome.reason + "; nothing is known about containment"
        return InvarianceProof("not_proved", level, 0.0, outcome.boxes, seconds, None, reason)


def inside(
    margin: Callable, P, level: float, *, max_boxes: int = 500_000, max_seconds: float = 60.0
) -> InvarianceProof:
    """Prove that margin(e) >= 0 for every e with e'Pe <= level.

    Args:
        margin: JAX function of the error, [n] -> [...]; non-negative means inside.
        P: positive definite matrix [n, n]. level: c > 0.
        max_boxes, max_seconds: the budget; spent means "not_proved".

    Returns: `InvarianceProof` with delta 0; linear margins take one box.
    Errors: ValueError for bad arguments, `UnsupportedPrimitive`.
    """
    if not (level > 0 and np.isfinite(level)):
        raise ValueError("inside needs a finite level > 0")
    start = time.monotonic()
    return with_seconds(_Margin(margin, P).prove(float(level), Budget.of(max_boxes, max_seconds)), start)


def largest_inside_level(
    margin: Callable, P, upper: float, *, rtol: float = 1e-6, max_boxes: int = 100_000, max_seconds: float = 60.0
) -> InvarianceProof:
    """The proof at the largest level in (0, upper] found by bisection; look at `result`: perhaps nothing was proved."""
    start = time.monotonic()
    loop = _Margin(margin, P)
    deadline = start + max_seconds
    best = bisect_level(lambda c: loop.prove(c, Budget(max_boxes, deadline)), upper, rtol, deadline)
    return with_seconds(best, start)
