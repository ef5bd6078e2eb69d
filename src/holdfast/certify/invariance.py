"""Proofs that an ellipsoid {e'Pe <= c} is positively invariant, and that it lies inside a safe set.

The closed loop is a JAX function e -> e_next in error coordinates, with everything in it: the lift, the clipped base
controller, the true nonlinear discrete step. The proof is branch and bound over boxes in the coordinates of
`holdfast.certify.coordinates`, where g(y) = T step(S y) and |g|^2 stands for V after the step. With r = g - A y the
nonlinear rest and s = |g|^2 - |A y|^2, the mean value form

    |g(y)|^2 <= s(yc) + sum_i max_d [q_i (yc_i + d_i)^2 + G_i d_i] + small terms,   G = 2 (J_r' g + A' r),

keeps the quadratic part exact and puts only the rest's slope J_r into intervals. A multiple t of |y|^2 <= R^2 may be
added (S-procedure): |g|^2 <= t R^2 + max [...] with q_i - t instead of q_i; t = 1 is the decrease V+ - V itself, t =
0 the bare bound. Proofs hold for the exact real functions of the float constants; see `invariance_robustness` for
rounding.

Sources: interval branch and bound (Moore 1966; Jaulin et al. 2001); S-procedure (Boyd et al. 1994, 2.6.3).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.certify import interval as iv
from holdfast.certify import linear
from holdfast.certify.branch_and_bound import Budget, Judgement, search
from holdfast.certify.coordinates import NormalCoordinates, RotationSymmetry, normal_coordinates
from holdfast.certify.interpreter import IntervalDomain, Program
from holdfast.certify.interval import Interval
from holdfast.certify.proof import InvarianceProof, bisect_level, with_seconds
from holdfast.certify.slope import run_slopes

#: Multiples of |y|^2 <= R^2 tried on every box, beside the slowest contraction rate (which settles a linear loop in one
#: box). A grid around 1 is cheap and saved a factor of 40 in boxes where inputs saturate.
_MULTIPLIERS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.3)
_EPS = float(np.finfo(np.float64).eps)


# --- bounds over boxes ---------------------------------------------------------------------------------------------


def _peak(q: np.ndarray, G: Interval, lo: np.ndarray, centre: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Upper bound on max over y in lo..hi, G in its interval, of q y^2 + G (y - centre), elementwise; q [n, 1]."""

    def side(slope, end):
        # A concave parabola's unconstrained maximum is always a bound; the ends are one where it provably lies outside.
        bend = np.minimum(q, -1e-300)
        vertex = slope / (-2 * bend)
        low, high = np.minimum(centre, end), np.maximum(centre, end)
        outside = (vertex <= low - 1e-12 * np.abs(low)) | (vertex >= high + 1e-12 * np.abs(high)) | (q >= 0)
        free = vertex * slope * 0.5 - slope * centre
        ends = np.maximum(q * centre**2, q * end**2 + slope * (end - centre))
        size = np.abs(q) * np.maximum(centre**2, end**2) + np.abs(slope * (end - centre)) + np.abs(slope * centre)
        size = np.where(outside, size, size + np.abs(vertex * slope))
        return np.where(outside, ends, free) + 16 * _EPS * size + 1e-300

    return np.maximum(side(G.hi, hi), side(G.lo, lo))


class ClosedLoop:
    """A closed loop, traced once: interval programs in both coordinates and a compiled falsifier."""

    def __init__(self, step: Callable, P: np.ndarray, symmetry: RotationSymmetry | None):
        self.step, self.P, self.symmetry = step, np.asarray(P, np.float64), symmetry
        self.coordinates: NormalCoordinates = normal_coordinates(step, P, symmetry)
        self.n = self.P.shape[0]
        S, T = self.coordinates.S, self.coordinates.T

        def normal_step(y):
            return jnp.asarray(T) @ step(jnp.asarray(S) @ y)

        normal_step.__name__ = getattr(step, "__name__", "step")
        example = jax.ShapeDtypeStruct((self.n,), np.float64)
        self.normal_step = normal_step
        self.normal_program = Program(normal_step, example)
        self.program = Program(step, example)
        self._ascend = None

    def values(self, e: np.ndarray) -> tuple[float, float]:
        """Upper bound of V(e), lower bound of V(step(e)) (-inf where undefined)."""
        point = Interval.constant(e)
        (after,) = self.program(IntervalDomain(), point)
        before = linear.quadratic_form(self.P, point).hi[0]
        # An undefined or infinite next state certainly leaves the set, but an enclosure cannot tell it from "unknown".
        return float(before), float(np.nan_to_num(linear.quadratic_form(self.P, after).lo[0], nan=-np.inf))

    def witness(self, y: np.ndarray, level: float) -> tuple[np.ndarray, float, float]:
        """The state at y, pulled into the set if rounding pushed it out, with its verified values of V."""
        e = self.coordinates.S @ y
        before, _ = self.values(e)
        if before > level:
            e = e * np.sqrt(level / before) * (1 - 1e-12)
        return e, *self.values(e)

    def falsify(
        self, level: float, looks: int = 16_384, starts: int = 256, steps: int = 60
    ) -> tuple[np.ndarray, float, float]:
        """Gradient ascent of V after the step, in the ball V <= level; the best state met on the way.

        It starts where V rises most (or falls least) among `looks` random states of the boundary: where a counterexample
        is a small spot of it, random starts find it or not by luck.
        """
        if self._ascend is None:

            def height(y):
                return jnp.sum(self.normal_step(y) ** 2)

            def ranked(y):
                heights = jax.vmap(height)(y)
                return jnp.where(jnp.isfinite(heights), heights, -jnp.inf)

            def ascend(y, radius):
                _, order = jax.lax.top_k(ranked(y), starts)

                def move(carry, rate):
                    y, best, best_height = carry
                    gradient = jax.vmap(jax.grad(height))(y)
                    length = jnp.linalg.norm(gradient, axis=1, keepdims=True)
                    usable = jnp.isfinite(length) & (length > 0)
                    ahead = jnp.where(usable, gradient / jnp.where(usable, length, 1.0), 0.0)
                    y = y + rate * radius * ahead
                    y = y * jnp.minimum(1.0, radius / jnp.linalg.norm(y, axis=1, keepdims=True))
                    heights = ranked(y)
                    at = jnp.argmax(heights)
                    higher = heights[at] > best_height
                    return (y, jnp.where(higher, y[at], best), jnp.maximum(heights[at], best_height)), None

                y = y[order]
                first = (y, y[0], ranked(y[:1])[0])
                (_, best, _), _ = jax.lax.scan(move, first, jnp.geomspace(0.3, 1e-3, steps))
                return best

            self._ascend = jax.jit(ascend)
        rng = np.random.default_rng(0)
        y = rng.normal(size=(looks, self.n))
        y *= np.sqrt(level) / np.linalg.norm(y, axis=1, keepdims=True)
        with jax.enable_x64(True):
            best = np.asarray(self._ascend(y, np.sqrt(level)))
        return self.witness(best, level)

    def root(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """A box around the set, cut down by the declared symmetry."""
        radius = np.sqrt(self.coordinates.ball(level)) * (1 + 1e-15)
        lo, hi = np.full(self.n, -radius), np.full(self.n, radius)
        if self.symmetry is not None:
            self.symmetry.cut(lo, hi)
        return lo, hi

    def judge(self, level: float, delta: float, lo: np.ndarray, hi: np.ndarray) -> Judgement:
        with np.errstate(all="ignore"):
            return self._judge(level, delta, lo, hi)

    def _judge(self, level, delta, lo, hi) -> Judgement:
        c = self.coordinates
        ball, target = c.ball(level), c.target(level * (1 - delta))
        settled = np.ones(lo.shape[1], bool)
        score = np.zeros(lo.shape)
        alive, Y, C = linear.boxes_meeting_ball(lo, hi, ball)
        if alive.size == 0:
            return Judgement(settled, score)
        lo, centre, hi = Y.lo, C.lo, Y.hi

        (at_centre,) = self.normal_program(IntervalDomain(), C)
        witness = self._violation(level, delta, centre, at_centre)
        if witness is not None:
            return Judgement(settled, score, witness)

        g, J, jump = run_slopes(self.normal_program, Y)
        A = Interval.constant(c.A)
        linear_centre = linear.matvec(A, C)
        r_centre = at_centre - linear_centre
        J_r = J - A
        jumps = Interval(-jump, jump)
        r = iv.refine(r_centre + (linear.matvec(J_r, Y - C) + jumps), g - linear.matvec(A, Y))
        g = iv.refine(g, linear.matvec(A, Y) + r)
        s_centre = linear.total(r_centre * (linear_centre + linear_centre + r_centre))
        half = linear.matvec(linear.transposed(J_r), g) + linear.matvec(linear.transposed(A), r)
        G = half + half
        square = np.minimum(linear.total(iv.square(Y)).hi, ball)
        # Everything but the quadratic and the slope: centre, jumps, what the diagonal form leaves out.
        extra = (2 * jump * g.magnitude).sum(0) * (1 + 1e-12) + c.rest * square
        best = np.full(alive.size, np.inf)
        for t in (*_MULTIPLIERS, float(c.q.max())):
            q = (c.q - t)[:, None]
            peaks = _peak(q, G, lo, centre, hi)
            size = np.abs(s_centre.hi) + extra + np.abs(peaks).sum(0) + t * square
            bound = s_centre.hi + extra + peaks.sum(0) + t * square + 8 * (self.n + 4) * _EPS * size
            best = np.fmin(best, bound)
            if t == 1.0:  # split the side that keeps V from decreasing, whichever multiplier was best
                score[:, alive] = peaks - q * centre**2
        proved = (best <= target) | (linear.total(iv.square(g)).hi <= target)
        settled[alive] = proved
        return Judgement(settled, score)

    def _violation(self, level, delta, centre, at_centre):
        """A verified state that breaks the bound (1 - delta) level, if a box's centre gives one."""
        inside = (centre**2).sum(0) * (1 + self.coordinates.mu) <= level
        height = linear.total(iv.square(at_centre)).lo
        worst = int(np.argmax(np.where(inside, height, -np.inf)))
        if not (inside[worst] and height[worst] > level * (1 - delta)):
            return None
        e, before, after = self.witness(centre[:, worst], level)
        return (e, before, after) if before <= level and after > level * (1 - delta) else None


def _prove(loop: ClosedLoop, level: float, delta: float, budget: Budget, falsify: bool) -> InvarianceProof:
    start = time.monotonic()

    def report(result, boxes, counterexample, reason):
        return InvarianceProof(result, level, delta, boxes, time.monotonic() - start, counterexample, reason)

    def fail(boxes, e, before, after):
        witness = {"state": e, "before": before, "after": after}
        if after > level:
            reason = f"V rises from {before:.6g} to {after:.6g}, above the level {level:.6g}"
            return report("refuted", boxes, witness, reason)
        reason = f"V reaches {after:.6g}, above (1 - delta) c: invariance is not refuted, but delta is too large"
        return report("not_proved", boxes, None, reason)

    if falsify:
        e, before, after = loop.falsify(level)
        if before <= level and after > level * (1 - delta):
            return fail(0, e, before, after)
    outcome = search(partial(loop.judge, level, delta), *loop.root(level), budget)
    if outcome.witness is not None:
        return fail(outcome.boxes, *outcome.witness)
    if not outcome.complete:
        return report("not_proved", outcome.boxes, None, outcome.reason + "; nothing is known about invariance")
    reason = f"on every box of a cover of the set, V after one step is at most (1 - {delta:g}) times the level"
    if loop.symmetry is not None:
        reason += " (reduced by the declared symmetry, an obligation of its own)"
    return report("proved", outcome.boxes, None, reason)


def traced_loop(step: Callable, P, symmetry: RotationSymmetry | None, level: float) -> ClosedLoop:
    """The closed loop, traced, after a check at sampled points up to `level` that it has the declared symmetry."""
    if symmetry is not None:
        symmetry.check(step, np.asarray(P, np.float64), level)
    return ClosedLoop(step, P, symmetry)


def prove_invariance(
    step: Callable,
    P,
    level: float,
    *,
    delta: float = 1e-4,
    max_boxes: int = 2_000_000,
    max_seconds: float = 120.0,
    falsify: bool = True,
    symmetry: RotationSymmetry | None = None,
) -> InvarianceProof:
    """Prove that {e'Pe <= level} is invariant under `step`, with V after the step at most (1 - delta) level.

    Args:
        step: JAX function, error [n] -> next error [n]: the closed loop with its clipped inputs.
        P: positive definite matrix [n, n], taken as the floats given.
        level: c > 0, in units of V.
        delta: relative contraction to prove on top of invariance, in [0, 1): room for rounding and disturbance.
        max_boxes, max_seconds: the budget; spent means "not_proved".
        falsify: look for a counterexample by gradient ascent first.
        symmetry: a declared `RotationSymmetry`.

    Returns: `InvarianceProof`.
    Errors: ValueError for bad arguments, `UnsupportedPrimitive`.
    """
    if not (level > 0 and np.isfinite(level) and 0 <= delta < 1):
        raise ValueError("prove_invariance needs a finite level > 0 and 0 <= delta < 1")
    budget = Budget.of(max_boxes, max_seconds)
    start = time.monotonic()
    proof = _prove(traced_loop(step, P, symmetry, level), float(level), delta, budget, falsify)
    return with_seconds(proof, start)


def largest_invariant_level(
    step: Callable,
    P,
    upper: float,
    *,
    rtol: float = 1e-3,
    delta: float = 1e-4,
    max_boxes: int = 200_000,
    max_seconds: float = 300.0,
    symmetry: RotationSymmetry | None = None,
) -> InvarianceProof:
    """The proof at the largest level in (0, upper] found by bisection (to `rtol` between proved and not proved).

    Arguments as in `prove_invariance`; `max_boxes` is for each level tried, `max_seconds` for all together. If nothing
    could be proved the last failure is returned, so look at `result`.
    """
    start = time.monotonic()
    loop = traced_loop(step, P, symmetry, upper)
    deadline = start + max_seconds
    best = bisect_level(lambda c: _prove(loop, c, delta, Budget(max_boxes, deadline), True), upper, rtol, deadline)
    return with_seconds(best, start)
