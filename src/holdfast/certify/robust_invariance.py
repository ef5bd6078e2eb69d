"""Proof that a polytope is invariant under a clipped feedback, whatever the disturbance: cells, each with linear programs.

S = {N x <= d} is cut into cells: where each input is clipped low, free or clipped high, and boxes in the coordinates and
inputs that make the step nonlinear. On a cell with boxes X, U, W around z0 = (x0, u0, w0) the mean value theorem gives

    n_i F(z) <= n_i F(z0) + M_i (z - z0) + R_i |z - z0|,    n_i J(X, U, W) inside M_i +- R_i,

with J the interval Jacobian. A free input is linear in x and goes into the linear part, whose maximum over the cell is
bounded by dual multipliers (`holdfast.certify.duality`). A facet is proved on a cell if the bound stays below d_i - s_i,
with s_i what rounding needs; a cell with a facet left is halved where that shrinks the remainder most.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from holdfast.certify import interval as iv
from holdfast.certify.duality import bounding_box, corner_basis, maximise, upper_bound
from holdfast.certify.interpreter import IntervalDomain, Program
from holdfast.certify.interval import Interval
from holdfast.certify.linear import matmul, total
from holdfast.certify.slope import run_slopes
from holdfast.sets import Polytope
from holdfast.systems import ClippedFeedback, System

_CELLS_AT_ONCE, _PROBLEMS_AT_ONCE = 64, 6000


@dataclass(frozen=True)
class RobustProof:
    """Outcome of a proof that a polytope is robustly invariant under its controller.

    result: "proved" - for every x in S and every w, N F(x, k(x), w) <= d - slack;
        "refuted" - `witness` leaves S under the controller, verified by intervals;
        "not_proved" - neither: the budget is spent, or `witness` comes closer to a facet than the slack allows.
    cells, programs, seconds: the work done.
    witness: x [n], w [d], facet, margin (upper bound of the facet's margin after the step), or None.
    reason: plain words.
    """

    result: Literal["proved", "refuted", "not_proved"]
    cells: int
    programs: int
    seconds: float
    witness: dict | None
    reason: str


class ClosedLoop:
    """F(x, k(x), w) of a system under a clipped feedback, with what a proof needs of it."""

    def __init__(self, system: System, controller: ClippedFeedback):
        self.disturbance = system.noise_box
        self.system, self.controller = system, controller
        self.n, self.m, self.d = system.state_size, system.input_size, self.disturbance.dimension
        n, m = self.n, self.m

        def step(z):
            return system.disturbed_step(z[:n], z[n : n + m], z[n + m :])

        self.program = Program(step, jax.ShapeDtypeStruct((n + m + self.d,), np.float64))
        self.lower, self.upper = controller.input_box.lower, controller.input_box.upper

    def at(self, z: np.ndarray) -> Interval:
        """F at points z = (x, u, w) [n + m + d, b], shape [n, b]."""
        return self.program(IntervalDomain(), Interval(z, z))[0]

    def affine_part(self, j: int) -> tuple[np.ndarray, float, float]:
        """Input j where it is free is K_j x + t: the row K_j, and bounds of t."""
        control = self.controller
        products = iv.mul(Interval.constant(control.gain[j]), Interval.constant(control.centre))
        t = iv.sub(Interval.constant(control.centre_input[j]), total(products))
        return control.gain[j], float(t.lo[0]), float(t.hi[0])

    def inputs(self, x: np.ndarray) -> np.ndarray:
        """k(x) in float64 for states [n, b], shape [m, b]: near enough to look for witnesses."""
        control = self.controller
        free = control.centre_input[:, None] + control.gain @ (x - control.centre[:, None])
        return np.clip(free, self.lower[:, None], self.upper[:, None])


class _Cells:
    """Boxes of x [n, b] and u [m, b], how each input is clipped [m, b] (-1, 0, 1), and facets to prove [p, b]."""

    def __init__(self, x: Interval, u: Interval, clipped: np.ndarray, todo: np.ndarray, basis: np.ndarray):
        self.x, self.u, self.clipped, self.todo, self.basis = x, u, clipped, todo, basis

    def __len__(self):
        return self.clipped.shape[1]

    def take(self, which) -> _Cells:
        x, u = (Interval(v.lo[:, which], v.hi[:, which]) for v in (self.x, self.u))
        return _Cells(x, u, self.clipped[:, which], self.todo[:, which], self.basis[:, which])

    @staticmethod
    def join(parts: list[_Cells]) -> _Cells:
        def along(values):
            return np.concatenate(values, axis=1)

        x, u = (
            Interval(along([getattr(c, name).lo for c in parts]), along([getattr(c, name).hi for c in parts]))
            for name in ("x", "u")
        )
        rest = (along([getattr(c, name) for c in parts]) for name in ("clipped", "todo", "basis"))
        return _Cells(x, u, *rest)


class InvarianceProver:
    """The proof for one polytope, closed loop and slack."""

    def __init__(self, loop: ClosedLoop, region: Polytope, slack: np.ndarray):
        self.loop, self.normals, self.offsets = loop, region.normals, region.offsets
        self.target = np.nextafter(region.offsets - slack, -np.inf)
        lower, upper = bounding_box(region.normals, region.offsets)
        self.box = Interval.box(lower, upper)
        self.inner = inner_point(region)
        eye = np.eye(loop.n)
        self.affine = [loop.affine_part(j) for j in range(loop.m)]
        self.moving = [j for j in range(loop.m) if np.any(loop.controller.gain[j])]
        gains = [sign * self.affine[j][0] for j in self.moving for sign in (1.0, -1.0)]
        self.rows = np.concatenate([self.normals, eye, -eye, np.asarray(gains).reshape(-1, loop.n)])

    # --- cells ---

    def start(self) -> _Cells:
        loop, p = self.loop, len(self.offsets)
        choices = [(-1, 0, 1) if j in self.moving else (0,) for j in range(loop.m)]
        clipped = np.array(list(itertools.product(*choices))).T
        b = clipped.shape[1]
        x = Interval(np.repeat(self.box.lo, b, 1), np.repeat(self.box.hi, b, 1))
        low, high = (np.repeat(side[:, None], b, 1) for side in (loop.lower, loop.upper))
        rest = np.clip(loop.controller.centre_input, loop.lower, loop.upper)[:, None]
        still = np.array([j not in self.moving for j in range(loop.m)])[:, None]
        u_lo = np.where(still, rest, np.where(clipped > 0, high, low))
        u_hi = np.where(still, rest, np.where(clipped < 0, low, high))
        basis = np.full((p, b, loop.n), -1)
        return _Cells(x, Interval(u_lo, u_hi), clipped, np.ones((p, b), bool), basis)

    def free(self, cells: _Cells, j: int) -> np.ndarray:
        return (cells.clipped[j] == 0) & (j in self.moving)

    def heights(self, cells: _Cells) -> np.ndarray:
        """Offsets of `rows` for each cell, rounded up, shape [b, q]."""
        b = len(cells)
        parts = [np.repeat(self.offsets[:, None], b, 1), cells.x.hi, -cells.x.lo]
        for j in self.moving:
            gain, t_lo, t_hi = self.affine[j]
            whole = total(iv.mul(Interval.constant(gain), cells.x))
            below = np.where(cells.clipped[j] < 0, self.loop.lower[j], cells.u.hi[j])
            above = np.where(cells.clipped[j] > 0, self.loop.upper[j], cells.u.lo[j])
            at_most = np.nextafter(below - t_lo, np.inf)
            at_least = np.nextafter(t_hi - above, np.inf)
            parts.append(np.where(cells.clipped[j] > 0, whole.hi, np.minimum(at_most, whole.hi))[None])
            parts.append(np.where(cells.clipped[j] < 0, -whole.lo, np.minimum(at_least, -whole.lo))[None])
        return np.concatenate(parts).T

    def joint(self, cells: _Cells) -> tuple[Interval, np.ndarray]:
        """Boxes of z = (x, u, w) [n + m + d, b] and a point in each."""
        w, b = self.loop.disturbance, len(cells)
        low = np.concatenate([cells.x.lo, cells.u.lo, np.repeat(w.lower[:, None], b, 1)])
        high = np.concatenate([cells.x.hi, cells.u.hi, np.repeat(w.upper[:, None], b, 1)])
        return Interval(low, high), low + 0.5 * (high - low)

    def expansion(self, cells: _Cells):
        """N F(z0) [p, b], linear parts M [p, z, b] as thin intervals, remainders for each coordinate [p, z, b], z0."""
        z, z0 = self.joint(cells)
        _, slopes, jumps = run_slopes(self.loop.program, z)
        shape = (slopes.lo.shape[0], slopes.lo.shape[1], len(cells))
        slopes = Interval(np.broadcast_to(slopes.lo, shape), np.broadcast_to(slopes.hi, shape))
        jumps = np.broadcast_to(jumps, (shape[0], shape[2]))
        N = Interval.constant(self.normals)
        at = matmul(N, self.loop.at(z0)[:, None])[:, 0]
        sloped = matmul(N, slopes)
        middle = sloped.midpoint
        radius = np.maximum(_up(sloped.hi - middle), _up(middle - sloped.lo))
        reach = np.maximum(_up(z.hi - z0), _up(z0 - z.lo))
        remainder = np.where(reach == 0, 0.0, _up(radius * reach))
        jump = _up(matmul(Interval.constant(np.abs(self.normals)), Interval(jumps, jumps)[:, None]).hi[:, 0])
        return iv.add(at, Interval(-jump, jump)), middle, remainder, reach, z0

    def judge(self, cells: _Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple | None]:
        """Bounds: which facets of which cells are proved [p, b], remainders [p, z, b], how much is missing [p, b], and a
        witness (x, facet) at which a facet cannot be proved however cells are cut."""
        loop, n, m = self.loop, self.loop.n, self.loop.m
        at, middle, remainder, reach, z0 = self.expansion(cells)
        heights = self.heights(cells)
        i, k = np.nonzero(cells.todo)
        proved, missing, witness = ~cells.todo, np.zeros(cells.todo.shape), None
        for part in range(0, i.size, _PROBLEMS_AT_ONCE):
            rows, cols = i[part : part + _PROBLEMS_AT_ONCE], k[part : part + _PROBLEMS_AT_ONCE]
            M = Interval(middle[rows, :, cols].T, middle[rows, :, cols].T)  # [z, b']
            own, centre = remainder[rows, :, cols].T, z0[:, cols]
            c = Interval(M.lo[:n], M.lo[:n])
            rest = iv.sub(at[rows, cols], total(iv.mul(c, Interval(centre[:n], centre[:n]))))
            for j in range(m):
                free = self.free(cells, j)[cols]
                gain, t_lo, t_hi = self.affine[j]
                slope = Interval(np.where(free, M.lo[n + j], 0.0), np.where(free, M.lo[n + j], 0.0))
                c = iv.add(c, iv.mul(slope[None], Interval.constant(gain)))
                t = Interval(np.array([t_lo]), np.array([t_hi]))
                rest = iv.add(rest, iv.mul(slope, iv.sub(t, Interval(centre[n + j], centre[n + j]))))
            # Where an input is clipped its box is a point; the disturbance takes its worst corner.
            swing = Interval(np.abs(M.lo[n + m :]), np.abs(M.lo[n + m :]))
            reached = Interval(reach[n + m :, cols], reach[n + m :, cols])
            terms = [iv.mul(swing, reached)] if loop.d else []
            for term in [*terms, Interval(own, own)]:
                rest = iv.add(rest, total(term))
            objective = c.midpoint.T
            basis = cells.basis[rows, cols]
            corner = corner_basis(objective, len(self.offsets))
            basis = corner if (basis < 0).any() else self._still_feasible(objective, basis, corner)
            target = self.target[rows] - rest.hi
            found = maximise(objective, self.rows, heights[cols], basis, target - 1e-12 * (1 + np.abs(target)))
            box = Interval(cells.x.lo[:, cols], cells.x.hi[:, cols])
            bound = upper_bound(c, self.rows, heights[cols], found, box)
            over = iv.sub(iv.add(Interval(bound, bound), rest), Interval(self.target[rows], self.target[rows])).hi
            proved[rows, cols] = over <= 0
            missing[rows, cols] = np.where(over <= 0, 0.0, np.nan_to_num(over, nan=1e30, posinf=1e30))
            cells.basis[rows, cols] = found.rows[:, :n]
            witness = witness or self._witness(found, over, rows)
        return proved, remainder, missing, witness

    def _still_feasible(self, c, basis, corner):
        """Bases of the cell that this one was cut from, where they are dual feasible for the new objective."""
        own = self.rows[basis]
        with np.errstate(all="ignore"):
            try:
                weights = np.linalg.solve(own.transpose(0, 2, 1), c[..., None])[..., 0]
            except np.linalg.LinAlgError:
                return corner
        good = np.isfinite(weights).all(1) & (weights >= 0).all(1)
        return np.where(good[:, None], basis, corner)

    def _witness(self, found, over, rows):
        """The program's maximiser with the largest excess, if the step itself goes beyond the target there."""
        candidates = np.flatnonzero((over > 0) & found.optimal)
        if not candidates.size:
            return None
        candidates = candidates[np.argsort(-over[candidates])[:8]]
        # A maximiser lies on facets, perhaps a rounding outside: a hair further in will do as well.
        x, facets = found.x[candidates].T, rows[candidates]
        x = x + 1e-9 * (self.inner[:, None] - x)
        inside = (self.normals @ x <= self.offsets[:, None]).all(0)
        w = self.worst(x, facets)
        after = np.einsum(
            "bi,ib->b", self.normals[facets], self.loop.at(np.concatenate([x, self.loop.inputs(x), w])).lo
        )
        beyond = inside & (after > self.target[facets])
        best = np.argmax(np.where(beyond, after - self.target[facets], -np.inf))
        return (x[:, best], w[:, best], int(facets[best])) if beyond.any() else None

    def worst(self, x: np.ndarray, facets: np.ndarray) -> np.ndarray:
        """The corner of the disturbance box that drives n_i F(x, k(x), .) up, for states [n, b]; shape [d, b]."""
        box, b = self.loop.disturbance, x.shape[1]
        centre = np.repeat(box.centre[:, None], b, 1)
        z = np.concatenate([x, self.loop.inputs(x), centre])
        _, slopes, _ = run_slopes(self.loop.program, Interval(z, z))
        pull = np.einsum("bi,idb->db", self.normals[facets], slopes.midpoint[:, self.loop.n + self.loop.m :])
        return np.where(pull >= 0, box.upper[:, None], box.lower[:, None])

    # --- splitting ---

    def split(self, cells: _Cells, remainder: np.ndarray, missing: np.ndarray) -> _Cells:
        """Halves of every cell, along the coordinate or free input whose halving shrinks the remainder most."""
        n, m, b = self.loop.n, self.loop.m, len(cells)
        before = np.where(cells.todo, remainder.sum(1), 0.0)
        gain = np.full((n + m, b), -np.inf)
        for j in range(n + m):
            low, high = self.halves(cells, j)
            if low is None or high is None:
                continue
            after = np.maximum(self.expansion(low)[2].sum(1), self.expansion(high)[2].sum(1))
            shrunk = np.where(cells.todo, before - after, 0.0)
            gain[j] = np.nan_to_num(np.max(shrunk / (missing + 1e-12), axis=0), nan=np.inf)
            wide = (cells.x.hi - cells.x.lo)[j] if j < n else np.where(self.free(cells, j - n), 1.0, 0.0)
            gain[j] = np.where(wide > 0, gain[j], -np.inf)
        choice = np.argmax(gain, axis=0)
        parts = []
        for j in np.unique(choice):
            parts += list(self.halves(cells.take(np.flatnonzero(choice == j)), j))
        return _Cells.join(parts)

    def halves(self, cells: _Cells, j: int):
        n = self.loop.n
        if j >= n and not self.free(cells, j - n).any():
            return None, None
        box = cells.x if j < n else cells.u
        row = j if j < n else j - n
        middle = box.midpoint[row]
        low_hi, high_lo = box.hi.copy(), box.lo.copy()
        low_hi[row] = high_lo[row] = middle
        low, high = Interval(box.lo, low_hi), Interval(high_lo, box.hi)
        rest = (cells.clipped, cells.todo)
        if j < n:
            return tuple(_Cells(v, cells.u, *rest, cells.basis.copy()) for v in (low, high))
        return tuple(_Cells(cells.x, v, *rest, cells.basis.copy()) for v in (low, high))


def inner_point(region: Polytope) -> np.ndarray:
    """A point inside, the mean of the points furthest in each direction of the axes and facets, shape [n]."""
    n = region.normals.shape[1]
    directions = np.concatenate([np.eye(n), -np.eye(n), region.normals])
    box = np.concatenate([np.eye(n), -np.eye(n)])
    lower, upper = bounding_box(region.normals, region.offsets)
    h = np.concatenate([region.offsets, upper, -lower])
    rows = np.concatenate([region.normals, box])
    found = maximise(
        directions, rows, np.broadcast_to(h, (len(directions), h.size)), corner_basis(directions, len(region.offsets))
    )
    return found.x.mean(axis=0)


def _up(x: np.ndarray) -> np.ndarray:
    return np.nextafter(x, np.inf)


def prove_robust_invariance(
    system: System,
    region: Polytope,
    controller: ClippedFeedback,
    *,
    slack: np.ndarray | float = 0.0,
    max_cells: int = 20_000,
    max_seconds: float = 60.0,
    stop_at_witness: bool = True,
) -> RobustProof:
    """Prove that N F(x, k(x), w) <= d - slack for every x of the region and every w of the disturbance box.

    Args:
        system: what moves; its step may be nonlinear.
        region: S, bounded.
        controller: k.
        slack: s [p] or a number >= 0, in the units of the facets.
        max_cells, max_seconds: budget; spent means "not proved".
        stop_at_witness: give up at the first state that shows that there is no such proof.

    Raises:
        Unbounded: if the region is empty or unbounded.
        UnsupportedPrimitive: if the step uses an operation that intervals do not know.
    """
    start = time.monotonic()
    loop = ClosedLoop(system, controller)
    slack = np.broadcast_to(np.asarray(slack, np.float64), region.offsets.shape)
    prover = InvarianceProver(loop, region, slack)
    stack, judged, programs = [prover.start()], 0, 0
    witness = None
    while stack:
        cells = stack.pop()
        if len(cells) > _CELLS_AT_ONCE:
            stack.append(cells.take(np.arange(_CELLS_AT_ONCE, len(cells))))
            cells = cells.take(np.arange(_CELLS_AT_ONCE))
        programs += int(cells.todo.sum())
        proved, remainder, missing, found = prover.judge(cells)
        judged += len(cells)
        witness = witness or found
        if found is not None and stop_at_witness:
            return _with_witness(prover, witness, judged, programs, time.monotonic() - start)
        left = np.flatnonzero(~proved.all(axis=0))
        if not left.size:
            continue
        if judged >= max_cells or time.monotonic() - start > max_seconds:
            reason = f"budget spent after {judged} cells; nothing is known about the rest"
            return RobustProof("not_proved", judged, programs, time.monotonic() - start, None, reason)
        cells.todo = ~proved
        stack.append(prover.split(cells.take(left), remainder[:, :, left], missing[:, left]))
    seconds = time.monotonic() - start
    reason = f"{judged} cells, {programs} linear programs, every bound by dual multipliers in interval arithmetic"
    return RobustProof("proved", judged, programs, seconds, None, reason)


def _with_witness(prover: InvarianceProver, found, cells: int, programs: int, seconds: float) -> RobustProof:
    """Refuted where intervals show that the witness is in S and its successor is not; else merely not proved."""
    x, w, facet = found
    margin = leaving_margin(prover.loop, Polytope(prover.normals, prover.offsets), x, w, facet)
    witness = {"state": x, "disturbance": w, "facet": facet, "margin": margin}
    if margin < 0:
        reason = "the controller leaves the set"
        return RobustProof("refuted", cells, programs, seconds, witness, reason)
    needed = float(prover.offsets[facet] - prover.target[facet])
    reason = (
        f"from x = {np.round(x, 6).tolist()} the controller comes within {margin:.3g} of facet {facet}, "
        f"closer than the {needed:.3g} that rounding needs"
    )
    return RobustProof("not_proved", cells, programs, seconds, witness, reason)


def leaving_margin(loop: ClosedLoop, region: Polytope, x: np.ndarray, w: np.ndarray, facet: int) -> float:
    """Upper bound of d_i - n_i F(x, k(x), w), infinite unless x certainly lies in the region."""
    point = Interval(x[:, None], x[:, None])
    inside = iv.sub(Interval.constant(region.offsets), matmul(Interval.constant(region.normals), point[:, None])[:, 0])
    if not (inside.lo >= 0).all():
        return np.inf
    u = []
    for j in range(loop.m):
        gain, t_lo, t_hi = loop.affine_part(j)
        free = iv.add(total(iv.mul(Interval.constant(gain), point)), Interval(np.array([t_lo]), np.array([t_hi])))
        low, high = Interval.constant(loop.lower[j]), Interval.constant(loop.upper[j])
        u.append(iv.minimum(iv.maximum(free, low), high))
    lo = np.concatenate([x[:, None], np.stack([v.lo for v in u]), w[:, None]])
    hi = np.concatenate([x[:, None], np.stack([v.hi for v in u]), w[:, None]])
    after = loop.program(IntervalDomain(), Interval(lo, hi))[0]
    row = total(iv.mul(Interval.constant(region.normals[facet]), after))
    return float(iv.sub(Interval.constant(region.offsets[facet]), row).hi[0])
