"""States from which no admissible action keeps every disturbed successor in a polytope: what refutes an invariant set.

At a state x the most that an action can leave is the value of a linear program in (u, t): max t with
n_i F(x, u, w_i) + t <= d_i, w_i the worst disturbance of facet i. Where it is negative, Farkas' multipliers on at most
m + 1 facets combine to a function of u that is positive on the whole input box: every action breaks one of those facets
under its disturbance. That is verified by intervals, at a state that certainly lies in the set.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog
from scipy.spatial import HalfspaceIntersection, QhullError

from holdfast.certify import interval as iv
from holdfast.certify.duality import bounding_box, corner_basis, maximise
from holdfast.certify.interpreter import Program
from holdfast.certify.interval import Interval
from holdfast.certify.linear import matmul, total
from holdfast.certify.robust_invariance import inner_point
from holdfast.certify.slope import run_slopes
from holdfast.sets import Polytope
from holdfast.systems import System

_MOST_VERTICES, _CLIMBS = 4000, 5


@dataclass(frozen=True)
class Refutation:
    """A state of the set from which every admissible action may lead out.

    Attributes:
        state: x, shape [n].
        facets: which facets, k <= m + 1. multipliers: their weights, positive, sum 1.
        disturbances: for each of them the disturbance, shape [k, d].
        excess: every action exceeds one of the facets by at least this; > 0, shown by intervals.
        actions: for one input: a list of (facet, "below" or "above", action): it is broken by actions beyond that one.
        absorbed: the share of the disturbances about their centre that some action could absorb at this state.
        reason: plain words.
    """

    state: np.ndarray
    facets: np.ndarray
    multipliers: np.ndarray
    disturbances: np.ndarray
    excess: float
    actions: list
    absorbed: float
    reason: str

    def numbers(self) -> dict:
        """JSON values."""
        lists = {name: getattr(self, name).tolist() for name in ("state", "facets", "multipliers", "disturbances")}
        return lists | {"excess": self.excess, "actions": self.actions, "absorbed": self.absorbed}


class _Search:
    def __init__(self, system: System, region: Polytope):
        self.system, self.N, self.d = system, region.normals, region.offsets
        self.noise = system.noise_box
        self.n, self.m, q = system.state_size, system.input_size, self.noise.dimension

        step = system.disturbed_step

        def local(x):
            u, w = jnp.asarray(system.input_box.centre), jnp.asarray(self.noise.centre)
            return step(x, u, w), jax.jacfwd(step, argnums=(0, 1, 2))(x, u, w)

        with jax.enable_x64(True):
            self._local = jax.jit(jax.vmap(local))
        self.program = Program(
            lambda z: step(z[: self.n], z[self.n : self.n + self.m], z[self.n + self.m :]),
            jax.ShapeDtypeStruct((self.n + self.m + q,), np.float64),
        )
        self.lower, self.upper = bounding_box(self.N, self.d)

    def local(self, x: np.ndarray):
        """F at the boxes' centres [b, n], its derivatives in x, u, w there."""
        padded = 1 << max(len(x) - 1, 0).bit_length()  # few shapes to compile for
        with jax.enable_x64(True):
            out = self._local(jnp.asarray(np.concatenate([x, np.repeat(x[:1], padded - len(x), 0)])))
        value, slopes = jax.tree.map(lambda v: np.asarray(v)[: len(x)], out)
        return value, *slopes

    def programs(self, x: np.ndarray):
        """Room a [b, p] and pull B [b, p, m] of the rows t <= a - B v, with v = u - u_c; gradients [b, p, n]; |N E| h."""
        value, by_x, by_u, by_w = self.local(x)
        swing = np.abs(np.einsum("pn,bnd->bpd", self.N, by_w)) @ self.noise.half_widths
        room = self.d - value @ self.N.T - swing
        return room, np.einsum("pn,bnm->bpm", self.N, by_u), np.einsum("pn,bnk->bpk", self.N, by_x), swing

    def best(self, x: np.ndarray):
        """The most that an action leaves [b], the multipliers [b, p] behind it and the gradient rows."""
        room, pull, slope, _ = self.programs(x)
        b, p, m = pull.shape
        half = self.system.input_box.half_widths
        # Variables (v, t); a box around all of them, so that the dual simplex has a corner to start from.
        G = np.zeros((b, p + 2 * (m + 1), m + 1))
        G[:, :p, :m], G[:, :p, m] = pull, 1.0
        eye = np.eye(m + 1)
        G[:, p : p + m + 1], G[:, p + m + 1 :] = eye, -eye
        large = 1e3 * (1 + np.abs(room).max())
        ends = np.concatenate([half, [large], half, [large]])
        h = np.concatenate([room, np.repeat(ends[None], b, 0)], axis=1)
        c = np.zeros((b, m + 1))
        c[:, m] = 1.0
        found = maximise(c, G, h, corner_basis(c, p))
        weights = np.zeros((b, G.shape[1]))
        np.put_along_axis(weights, found.rows[:, : m + 1], found.values[:, : m + 1], axis=1)
        return np.where(found.optimal, found.x[:, m], np.inf), weights[:, :p], slope

    def furthest(self, directions: np.ndarray) -> np.ndarray:
        """Points of the set furthest in directions [b, n]."""
        eye = np.eye(self.n)
        G = np.concatenate([self.N, eye, -eye])
        h = np.concatenate([self.d, self.upper, -self.lower])
        start = corner_basis(directions, len(self.d))
        return maximise(directions, G, np.broadcast_to(h, (len(directions), h.size)), start).x


def no_action_keeps(
    system: System, region: Polytope, start: np.ndarray | None = None, seed: int = 0
) -> Refutation | None:
    """Looks for a state of the set from which no admissible action keeps every successor in it; None if none is found.

    Tries vertices, `start`, and climbs from the worst by linear programs along the gradient of what the best action leaves.
    None says nothing about the set.
    """
    search = _Search(system, region)
    inner = inner_point(region)
    random = np.random.default_rng(seed)
    points = [search.furthest(np.concatenate([region.normals, random.normal(size=(400, search.n))]))]
    try:
        halfspaces = np.concatenate([region.normals, -region.offsets[:, None]], axis=1)
        corners = HalfspaceIntersection(halfspaces, inner).intersections
        corners = corners[np.isfinite(corners).all(1)]
        points.append(random.permutation(corners)[:_MOST_VERTICES])
    except QhullError:
        pass
    if start is not None:
        points.append(np.asarray(start)[None])
    x = np.concatenate(points)
    for _ in range(_CLIMBS + 1):
        x = x + 1e-9 * (inner - x)
        value, weights, slope = search.best(x)
        order = np.argsort(value)[:64]
        for k in order[:8]:
            if value[k] < 0 and (found := _verified(search, region, x[k], weights[k])) is not None:
                return found
        x = search.furthest(np.einsum("bp,bpn->bn", weights[order], slope[order]))
    return None


def _verified(search: _Search, region: Polytope, x: np.ndarray, weights: np.ndarray) -> Refutation | None:
    """Farkas' combination, by intervals over the whole input box; None if x is not certainly inside or it is not shown."""
    point = Interval(x[:, None], x[:, None])
    margins = iv.sub(Interval.constant(region.offsets), matmul(Interval.constant(region.normals), point[:, None])[:, 0])
    if not (margins.lo >= 0).all():
        return None
    facets = np.flatnonzero(weights > 1e-9)
    multipliers = weights[facets] / weights[facets].sum()
    _, _, _, by_w = search.local(x[None])
    noise, box = search.noise, search.system.input_box
    pull = region.normals[facets] @ by_w[0]
    disturbances = np.where(pull >= 0, noise.upper, noise.lower)
    n, m = search.n, search.m
    excess = Interval(np.zeros(1), np.zeros(1))
    slope = Interval(np.zeros((m, 1)), np.zeros((m, 1)))
    for i, share, w in zip(facets, multipliers, disturbances):
        middle = np.concatenate([x, box.centre, w])
        whole = Interval.box(np.concatenate([x, box.lower, w]), np.concatenate([x, box.upper, w]))
        at = run_slopes(search.program, Interval.box(middle, middle))[0]
        _, slopes, jumps = run_slopes(search.program, whole)
        row, weight = Interval.constant(region.normals[i]), Interval.constant(share)
        jump = np.abs(region.normals[i]) @ jumps * (1 + 1e-12)
        over = iv.sub(total(iv.mul(row, at)), iv.add(Interval.constant(region.offsets[i]), Interval(jump, jump)))
        excess = iv.add(excess, iv.mul(weight, over))
        own = total(iv.mul(Interval(row.lo[:, None], row.lo[:, None]), slopes[:, n : n + m]))
        slope = iv.add(slope, iv.mul(weight[None], own))
    reach = Interval.box(box.lower - box.centre, box.upper - box.centre)
    reach = Interval(np.nextafter(reach.lo, -np.inf), np.nextafter(reach.hi, np.inf))
    excess = iv.add(excess, total(iv.mul(slope, reach)))
    if not excess.lo[0] > 0:
        return None
    return _described(search, x, facets, multipliers, disturbances, float(excess.lo[0]))


def _described(search: _Search, x, facets, multipliers, disturbances, excess: float) -> Refutation:
    room, pull, _, swing = (v[0] for v in search.programs(x[None]))
    names, box = search.system.input_names, search.system.input_box
    actions = []
    if search.m == 1:
        for i in facets:
            if abs(pull[i, 0]) < 1e-12:
                actions.append([int(i), "any", float(box.centre[0])])
                continue
            limit = float(box.centre[0] + room[i] / pull[i, 0])
            actions.append([int(i), "above" if pull[i, 0] > 0 else "below", limit])
    absorbed = _absorbed(search, room + swing, pull, swing)
    noise = search.noise
    each = [f"facet {i} under w = {np.round(w, 6).tolist()}" for i, w in zip(facets, disturbances)]
    reason = (
        f"from x = {np.round(x, 6).tolist()}, in the set, no {' and '.join(names)} within [{box.lower.tolist()}, "
        f"{box.upper.tolist()}] keeps the successor in: every one breaks {' or '.join(each)}, by {excess:.3g} at least"
    )
    if actions and all(kind != "any" for _, kind, _ in actions):
        reason += "; " + ", ".join(f"{kind} {limit:.6g} breaks facet {i}" for i, kind, limit in actions)
    if noise.dimension:
        share = f"{absorbed:.3g} of them" if absorbed > 0 else "none"
        reason += f". Of disturbances +-{noise.half_widths.tolist()} it could absorb {share} there"
    return Refutation(x, facets, multipliers, disturbances, excess, actions, absorbed, reason)


def _absorbed(search: _Search, room, pull, swing) -> float:
    """The largest share s with room - pull v - s swing >= 0 for some action; 0 where there is none."""
    m, half = search.m, search.system.input_box.half_widths
    rows = np.concatenate([pull, swing[:, None]], axis=1)
    bounds = [*((-v, v) for v in half), (0.0, 1.0)]
    found = linprog(np.r_[np.zeros(m), -1.0], rows, room, bounds=bounds)
    return float(found.x[m]) if found.status == 0 else 0.0
