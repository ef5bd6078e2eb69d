"""A second proof that an ellipsoid {e'Pe <= c} is invariant: one matrix inequality for each box, few coordinates split.

With g the closed loop, g(e) = g(0) + S e, where the interval matrix S holds for all e of a box (`holdfast.certify.anchored`).
In coordinates e = S_y y, T S_y = I, in which V(e) = |y|^2, the set is a ball and N = T S S_y moves it:

    sqrt(V(g(e))) <= |N| sqrt(c) + |T g(0)|.

|N|^2 <= theta is asked for in the form theta I - N'N >= 0, in the eigenvectors of the centre's N'N: what the intervals
leave open may be large among directions that contract well and must be small only where the loop is slow.

Over the whole set at once this is the vertex test of a linear difference inclusion. Cutting the set into boxes makes it
sharp, and only coordinates on which S depends need to be cut: where the loop is linear in the others once those are known,
as in the velocities of a flying body, a proof in 9 dimensions is a search in 3 to 5. Branch and bound on V itself
(`holdfast.certify.invariance`) cuts all of them, but it is sharp without this structure, and where inputs saturate.

Sources: difference inclusions (Boyd et al. 1994, chapter 5); error bounds of matrix products (Higham 2002, chapter 3).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from holdfast.certify import linear
from holdfast.certify.anchored import run_anchored
from holdfast.certify.branch_and_bound import Budget, Judgement, search
from holdfast.certify.coordinates import RotationSymmetry
from holdfast.certify.interval import Interval
from holdfast.certify.invariance import ClosedLoop, traced_loop
from holdfast.certify.proof import InvarianceProof, bisect_level, with_seconds

_METHOD = "interval vertex test, box by box,"
_BATCH, _POINTS = 1024, 512
_EPS = float(np.finfo(np.float64).eps)


def _radius(matrix: np.ndarray) -> np.ndarray:
    """Upper bound of the spectral radii of non-negative matrices [b, n, n] -> [b].

    max (X v)_i / v_i for any positive v; a few power steps make a good one (Collatz and Wielandt).
    """
    v = np.ones(matrix.shape[:-1])
    for _ in range(4):
        v = (matrix @ v[..., None])[..., 0]
        v = v / np.maximum(v.max(-1, keepdims=True), 1e-300) + 1e-3
    return ((matrix @ v[..., None])[..., 0] / v).max(-1) * (1 + 1e-13)


def _excess(centre: np.ndarray, radii: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number [b] that is at most 1 only where |N|^2 <= theta for every N within radii of the centre, both [b, n, n].

    With B = centre V for the float eigenvectors V, V'(theta I - N'N)V is diag(theta - (B'B)_ii) up to a symmetric rest X;
    it is positive where the spectral radius of X, scaled by that diagonal, is below 1. An eigenvalue solver finds V and is
    not trusted. Rounding of a product is at most 4 n eps times that of the absolute values.

    Returns: that number, infinite where the diagonal is not positive; and the largest eigenvalue of the centre's N'N.
    """
    n = centre.shape[-1]
    theta = theta[:, None]
    w, V = np.linalg.eigh(centre.swapaxes(1, 2) @ centre)
    V_size, unit = np.abs(V), 4 * n * _EPS
    B = centre @ V
    off = radii @ V_size * (1 + unit) + unit * (np.abs(centre) @ V_size)
    size = np.abs(B)
    gram = B.swapaxes(1, 2) @ B
    cross = size.swapaxes(1, 2) @ off
    rest = cross + cross.swapaxes(1, 2) + off.swapaxes(1, 2) @ off
    rest = rest + theta[..., None] * np.abs(V.swapaxes(1, 2) @ V - np.eye(n))
    rest = rest + unit * (rest + size.swapaxes(1, 2) @ size + theta[..., None] * (V_size.swapaxes(1, 2) @ V_size))
    diagonal = np.einsum("bii->bi", gram)
    rest = rest + np.abs(gram - diagonal[..., None] * np.eye(n))
    room = (theta - diagonal) * (1 - _EPS)
    scale = 1 / np.sqrt(np.maximum(room, 1e-300))
    scaled = _radius(scale[..., None] * rest * scale[:, None, :] * (1 + 1e-13))
    return np.where((room > 0).all(1), scaled, np.inf), w[:, -1]


class _VertexTest:
    """The test of one closed loop at one level."""

    def __init__(self, loop: ClosedLoop, level: float, delta: float):
        self.loop, self.level, c = loop, level, loop.coordinates
        self.n = loop.n
        self.radius = np.sqrt(c.ball(level)) * (1 + 2 * _EPS)
        self.allowed = np.sqrt(c.target(level * (1 - delta))) * (1 - 2 * _EPS)
        # |e_i| <= |row i of S_y| radius on the set.
        reach = self.radius * np.sqrt((c.S**2).sum(1)) * (1 + (self.n + 4) * _EPS)
        self.lo, self.hi = -reach, reach.copy()
        if loop.symmetry is not None:
            loop.symmetry.cut(self.lo, self.hi)
        self.influence = self._influence()
        self.split = np.flatnonzero(self.influence > 0)

    def matrix(self, box: Interval) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre and radii of N = T S S_y, both [b, n, n], and the largest |N|^2 that is good enough [b]; boxes [n, b]."""
        start, slopes, jump = run_anchored(self.loop.program, box)
        c, shape = self.loop.coordinates, (box.lo.shape[1], self.n, self.n)
        middle = np.broadcast_to(np.moveaxis(slopes.midpoint, -1, 0), shape)
        # A float between the ends, and how far the ends are from it, rounded up.
        far = np.maximum(slopes.hi - slopes.midpoint, slopes.midpoint - slopes.lo) * (1 + 2 * _EPS)
        far = np.broadcast_to(np.moveaxis(far, -1, 0), shape) + 8 * self.n * _EPS * np.abs(middle)
        T_size, S_size = np.abs(c.T), np.abs(c.S)
        radii = T_size @ far @ S_size * (1 + 8 * self.n * _EPS)
        offset = T_size @ (start.magnitude + jump) * (1 + 4 * self.n * _EPS)
        root = (self.allowed - np.sqrt((offset**2).sum(0)) * (1 + 4 * self.n * _EPS)) / self.radius
        theta = np.broadcast_to(np.where(root > 0, root, 0.0) ** 2 * (1 - 8 * _EPS), shape[:1])
        return c.T @ middle @ c.S, radii, theta

    def at_points(self) -> Judgement:
        """The test at random points of the set's border: a witness there saves the search."""
        y = np.random.default_rng(0).normal(size=(self.n, _POINTS))
        e = self.loop.coordinates.S @ (self.radius * (1 - 1e-6) * y / np.linalg.norm(y, axis=0))
        return self.judge(e, e)

    def judge(self, lo: np.ndarray, hi: np.ndarray) -> Judgement:
        with np.errstate(all="ignore"):
            return self._judge(lo, hi)

    def _judge(self, lo, hi) -> Judgement:
        settled = self._least(lo, hi) > self.level
        score = self.influence[:, None] * (hi - lo)
        alive = np.flatnonzero(~settled)
        if alive.size == 0:
            return Judgement(settled, score)
        centre, radii, theta = self.matrix(Interval(lo[:, alive], hi[:, alive]))
        finite = np.isfinite(centre).all((1, 2)) & np.isfinite(radii).all((1, 2))
        alive, centre, radii, theta = alive[finite], centre[finite], radii[finite], theta[finite]
        excess, largest = _excess(centre, radii, theta)
        settled[alive] = excess <= 1
        # Here every matrix of the enclosure fails, so do its parts: no use to go on.
        hopeless = np.sqrt(largest) * (1 - 1e-9) - np.sqrt((radii**2).sum((1, 2))) > np.sqrt(theta)
        if hopeless.any():
            box = alive[np.flatnonzero(hopeless)[0]]
            return Judgement(settled, score, witness=lo[:, box] + 0.5 * (hi[:, box] - lo[:, box]))
        return Judgement(settled, score)

    def _least(self, lo, hi) -> np.ndarray:
        """Lower bound of V over boxes, [boxes]: V is convex, so it lies above its tangent at any point e0.

        The best e0 has the box's centre in the coordinates that are cut, and in the others what makes V least.
        """
        P, cut = self.loop.P, self.split
        rest = np.setdiff1d(np.arange(self.n), cut)
        middle = lo + 0.5 * (hi - lo)
        if rest.size:
            middle[rest] = -np.linalg.solve(P[np.ix_(rest, rest)], P[np.ix_(rest, cut)] @ middle[cut])
        at = Interval(middle, middle)
        half = linear.matvec(Interval.constant(0.5 * (P + P.T)), at) * (Interval(lo, hi) - at)
        tangent = linear.quadratic_form(P, at) + linear.total(half + half)
        return np.nan_to_num(tangent.lo, nan=-np.inf)

    def _influence(self) -> np.ndarray:
        """How much of what S leaves open over the whole set each coordinate causes, for each unit of its width, [n].

        Weighted as at the origin: slow directions count most.
        """
        width = self.hi - self.lo
        everything = np.where(width > 0, 1 / np.where(width > 0, width, 1.0), 0.0)
        lo, hi = (np.repeat(side[:, None], self.n + 2, axis=1) for side in (self.lo, self.hi))
        for i in range(self.n):
            lo[i, i + 1] = hi[i, i + 1] = 0.5 * (lo[i, i + 1] + hi[i, i + 1])
        lo[:, -1] = hi[:, -1] = 0.0
        with np.errstate(all="ignore"):
            centre, radii, theta = self.matrix(Interval(lo, hi))
        if not np.isfinite(radii).all():  # unbounded on the whole set
            return everything
        w, V = np.linalg.eigh(centre[-1].T @ centre[-1])
        scale = 1 / np.sqrt(np.maximum(theta[-1] - w, 1e-12))
        weighted = scale[:, None] * (np.abs(V.T) @ radii[:-1] @ np.abs(V)) * scale
        size = _radius(weighted + weighted.swapaxes(1, 2))
        caused = size[0] - size[1:]
        return np.where(caused > 1e-9 * size[0], caused * everything, 0.0)


def _prove(loop: ClosedLoop, level: float, delta: float, budget: Budget) -> InvarianceProof:
    start = time.monotonic()

    def report(result, boxes, reason):
        seconds = time.monotonic() - start
        return InvarianceProof(result, level, delta, boxes, seconds, None, reason, method=_METHOD)

    def fail(boxes, e):
        at = np.array2string(e, precision=3, suppress_small=True)
        reason = f"with the slopes seen from e = {at} some state does not contract; nothing is known about invariance"
        return report("not_proved", boxes, reason)

    test = _VertexTest(loop, level, delta)
    hopeless = test.at_points().witness
    if hopeless is not None:
        return fail(_POINTS, hopeless)
    outcome = search(test.judge, test.lo, test.hi, budget, _BATCH)
    if outcome.complete:
        reason = f"on every box of a cover of the set, sqrt(V) after one step is at most sqrt(1 - {delta:g}) sqrt(c)"
        if loop.symmetry is not None:
            reason += " (reduced by the declared symmetry, an obligation of its own)"
        return report("proved", outcome.boxes, reason)
    if outcome.witness is not None:
        return fail(outcome.boxes, outcome.witness)
    return report("not_proved", outcome.boxes, outcome.reason + "; nothing is known about invariance")


def prove_contraction(
    step: Callable,
    P,
    level: float,
    *,
    delta: float = 1e-4,
    max_boxes: int = 50_000,
    max_seconds: float = 60.0,
    symmetry: RotationSymmetry | None = None,
) -> InvarianceProof:
    """Prove by the vertex test that V after one step from {e'Pe <= level} is at most (1 - delta) level.

    Arguments as in `holdfast.certify.prove_invariance`. Below the level at which inputs saturate, give the loop without the
    clip: over boxes a clip looks as if it might act.

    Returns: `InvarianceProof`, "proved" or "not_proved": the test asks for more than invariance, so it refutes nothing.
    Errors: `UnsupportedPrimitive`.
    """
    start = time.monotonic()
    budget = Budget.of(max_boxes, max_seconds)
    return with_seconds(_prove(traced_loop(step, P, symmetry, level), float(level), delta, budget), start)


def largest_contractive_level(
    step: Callable,
    P,
    upper: float,
    *,
    rtol: float = 0.01,
    delta: float = 1e-4,
    max_boxes: int = 50_000,
    max_seconds: float = 60.0,
    symmetry: RotationSymmetry | None = None,
) -> InvarianceProof:
    """The proof at the largest level in (0, upper] found by bisection; look at `result`: perhaps nothing was proved.

    Arguments as in `prove_contraction`; `max_boxes` is for each level tried, `max_seconds` for all together.
    """
    start = time.monotonic()
    loop, deadline = traced_loop(step, P, symmetry, upper), start + max_seconds
    best = bisect_level(partial(_with_budget, loop, delta, max_boxes, deadline), upper, rtol, deadline)
    return with_seconds(best, start)


def _with_budget(loop: ClosedLoop, delta: float, max_boxes: int, deadline: float, level: float) -> InvarianceProof:
    return _prove(loop, level, delta, Budget(max_boxes, deadline))
