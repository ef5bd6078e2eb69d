"""Synthesis of robust control invariant polytopes with a clipped feedback.

The step is fitted by a linear model over a region, x+ = A x + B u + E w + r, with a gain K from a sweep of LQR weights.
The maximal invariant polytope under that gain is cut out facet by facet (`holdfast.certify.cutting`). Where that takes too
many facets, two families have few: boxes of modes (`holdfast.certify.modal`) and slabs about sliding surfaces
(`holdfast.certify.sliding`). What comes out is a proposal in floating point; `certify_invariant_set` proves it on the
nonlinear step.
"""

from __future__ import annotations

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from holdfast.backup import InvariantSet
from holdfast.certify.cutting import Model, invariant_polytope, most
from holdfast.certify.invariant_set import certify_invariant_set
from holdfast.certify.modal import modal_candidates
from holdfast.certify.robust_invariance import prove_robust_invariance
from holdfast.certify.sliding import sliding_candidates
from holdfast.sets import Box, Polytope
from holdfast.systems import ClippedFeedback, System

_SAMPLES = 4000
#: By how much a round of growth moves facets outwards.
_GROWTH = 1.1


class NotSynthesised(ValueError):
    """No set was found; the message says what was tried and what to give."""


class Designer:
    """What all candidates share: the step on batches, the centre, the feasible box about it."""

    def __init__(self, system: System, feasible: Box, centre=None, centre_input=None):
        self.system, self.feasible = system, feasible
        self.noise = system.noise_box
        with jax.enable_x64(True):
            self._step = jax.jit(jax.vmap(system.disturbed_step))
            x, u = (np.asarray(v, np.float64) for v in system.equilibrium())
        self.centre, self.rest = (x, u) if centre is None else (np.asarray(centre), np.asarray(centre_input))
        self.n, self.m = x.size, u.size
        self.random = np.random.default_rng(0)
        self.unit = self.random.uniform(-1, 1, (_SAMPLES, self.n + self.m))
        extreme = self.random.random(self.unit.shape) < 0.3
        # With every sample its mirror image: what is symmetric stays so.
        self.unit = np.where(extreme, np.sign(self.unit), self.unit)[: _SAMPLES // 2]
        self.unit = np.concatenate([self.unit, -self.unit])
        if centre is None:
            self._settle()
        self.low, self.high = feasible.lower - self.centre, feasible.upper - self.centre
        self.u_low, self.u_high = system.input_box.lower - self.rest, system.input_box.upper - self.rest
        if not ((self.low < 0) & (self.high > 0)).all():
            raise NotSynthesised(
                f"the centre {self.centre} is not strictly inside the feasible box [{feasible.lower}, {feasible.upper}]"
            )

    def step(self, x, u, w=None) -> np.ndarray:
        """F on batches [b, n], [b, m], with the disturbance at its box's centre unless given."""
        w = np.broadcast_to(self.noise.centre, (len(x), self.noise.dimension)) if w is None else w
        with jax.enable_x64(True):
            return np.asarray(self._step(jnp.asarray(x), jnp.asarray(u), jnp.asarray(w)))

    def _settle(self) -> None:
        """Moves the equilibrium to the centre of the disturbances: the nearest solution of F(x, u, w_c) = x."""
        size = np.concatenate([self.feasible.half_widths, self.system.input_box.half_widths])
        for _ in range(20):
            z = np.concatenate([self.centre, self.rest])
            lost = self.step(z[None, : self.n], z[None, self.n :])[0] - self.centre
            h = 1e-6 * size
            shifted = z + np.diag(h)
            slope = self.step(shifted[:, : self.n], shifted[:, self.n :]) - shifted[:, : self.n] - lost + self.centre
            slope = ((slope - self.centre) / h[:, None]).T
            move = -size * (np.linalg.pinv(slope * size) @ lost)
            self.centre, self.rest = self.centre + move[: self.n], self.rest + move[self.n :]
            if np.abs(move / size).max() < 1e-12:
                break

    def fit(self, low, high) -> Model:
        """Least squares over a region about the centre, inputs over their box."""
        n = self.n
        x = np.where(self.unit[:, :n] > 0, high, -low) * self.unit[:, :n]
        u = np.where(self.unit[:, n:] > 0, self.u_high, -self.u_low) * self.unit[:, n:]
        value = self.step(self.centre + x, self.rest + u) - self.centre
        z = np.concatenate([x, u], axis=1)
        solution = np.linalg.lstsq(z, value, rcond=None)[0].T
        solution = np.where(np.abs(solution) < 1e-9, 0.0, solution)
        columns = []
        for j in range(self.noise.dimension):
            w = np.repeat(self.noise.centre[None], len(x), 0)
            w[:, j] = self.noise.upper[j]
            half = max(self.noise.half_widths[j], 1e-12)
            columns.append(((self.step(self.centre + x, self.rest + u, w) - self.centre - value) / half).mean(0))
        E = np.array(columns).T.reshape(n, -1)
        # A sampled fit couples what is not coupled by a little; what is that small belongs to the rest.
        size = np.concatenate([np.maximum(high, -low), np.maximum(self.u_high, -self.u_low)])
        share = np.abs(solution) * size / np.maximum(high, -low)[:, None]
        solution = np.where(share < 2e-3, 0.0, solution)
        return Model(solution[:, :n], solution[:, n:], E)

    def nonlinear(self) -> np.ndarray:
        """Which coordinates bend the step when they alone move, [n]."""
        bends = np.zeros(self.n, bool)
        for j in range(self.n):
            x = np.zeros((9, self.n))
            x[:, j] = np.linspace(self.low[j], self.high[j], 9)
            value = self.step(self.centre + x, np.repeat(self.rest[None], 9, 0))
            straight = value[0] + np.linspace(0, 1, 9)[:, None] * (value[-1] - value[0])
            bends[j] = np.abs(value - straight).max() > 1e-6
        return bends

    def gain(self, model: Model, weights: np.ndarray, cost: float) -> np.ndarray | None:
        """K of u = u_c + K (x - c) from LQR, in float32 numbers."""
        R = np.diag(cost / self.system.input_box.half_widths**2)
        try:
            P = scipy.linalg.solve_discrete_are(model.A, model.B, np.diag(weights), R)
            K = -np.linalg.solve(R + model.B.T @ P @ model.B, model.B.T @ P @ model.A)
        except (np.linalg.LinAlgError, ValueError):
            return None
        K = np.where(np.abs(K) < 1e-9 * np.abs(K).max(), 0.0, K)
        return K.astype(np.float32).astype(np.float64) if np.isfinite(K).all() else None

    def residuals(self, model: Model, K, N, d, low, high) -> tuple[np.ndarray, np.ndarray]:
        """Samples x [s, n] of the polytope, about the centre, and F(x, k(x), w_c) - c - A x - B k(x) there."""
        x = np.where(self.unit[:, : self.n] > 0, high, -low) * self.unit[:, : self.n]
        if len(N):
            reach = np.max(x @ N.T / d, axis=1)
            x = np.where((reach > 1)[:, None], x / np.maximum(reach, 1e-12)[:, None], x)
        u = np.clip(x @ K.T, self.u_low, self.u_high)
        return x, self.step(self.centre + x, self.rest + u) - self.centre - x @ model.A.T - u @ model.B.T


def synthesise_invariant_set(
    system: System,
    feasible: Box,
    *,
    centre: np.ndarray | None = None,
    centre_input: np.ndarray | None = None,
    scales: tuple[float, ...] = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15),
    costs: tuple[float, ...] = (1e-3, 1e-2, 0.1, 1.0, 10.0),
    emphases: tuple[float, ...] = (0.1, 1.0, 10.0),
    time_constants: tuple[tuple[float, ...], ...] | None = None,
    surfaces: tuple[tuple[float, ...], ...] | None = None,
    thicknesses: tuple[float, ...] = (),
    growth: int = 0,
    max_facets: int = 200,
    max_seconds: float = 240.0,
) -> InvariantSet:
    """Looks for a large robust control invariant polytope with a clipped linear feedback, and proves it.

    Args:
        system, feasible: what moves, and where it has to stay.
        centre, centre_input: an equilibrium with the disturbance at its box's centre; None: found from the system's.
        scales: shares of the feasible box to try for the coordinates that bend the step.
        costs: LQR input costs, relative to Bryson's rule. emphases: weights of coordinates that inputs reach later over
            those that they reach at once.
        time_constants: for each coordinate the time constants in s of closed-loop poles to try; then the set is a box in
            modal coordinates (`holdfast.certify.modal`), smaller than what the sweep finds, but found where it fails.
        surfaces, thicknesses: LQR weights [n] of states to try, and half-widths; then the set is a slab about a sliding
            surface (`holdfast.certify.sliding`), in which the LQR of those weights is not held back. For one input.
        growth: how often to try to enlarge what was proved, by a tenth each time.
        max_facets: most facets.
        max_seconds: for the search; the proof of each candidate takes its own seconds.

    Raises:
        NotSynthesised: if nothing was found, with the noise that could be absorbed where that is the reason.
    """
    start = time.monotonic()
    design = Designer(system, feasible, centre, centre_input)
    if surfaces is not None:
        found = sliding_candidates(design, scales, surfaces, thicknesses, max_facets)
    elif time_constants is not None:
        found = modal_candidates(design, scales, time_constants)
    else:
        found = _candidates(design, scales, costs, emphases, max_facets, start + max_seconds)
    for _, N, d, K in sorted(found, key=lambda each: -each[0]):
        invariant = _rounded(design, N, d, K)
        proof = prove_robust_invariance(
            system, invariant.polytope, invariant.feedback, slack=1e-5 * np.abs(d), max_seconds=30.0
        )
        if proof.result == "proved":
            invariant = _grown(design, N, d, K, max_facets, growth)
            if certify_invariant_set(invariant, feasible, physics="").certificate.holds:
                return invariant
    raise NotSynthesised(_why_not(design, scales, costs, emphases, max_facets, bool(found)))


def _grown(design: Designer, N, d, K, limit: int, rounds: int) -> InvariantSet:
    """The largest proved set among those that start from the facets of a proved one, moved outwards round after round."""
    best = _rounded(design, N, d, K)
    for _ in range(rounds):
        wide = _GROWTH * np.minimum(most(np.eye(design.n), N, d, design.low, design.high), design.high)
        low, high = np.maximum(design.low, -wide), np.minimum(design.high, wide)
        model = design.fit(0.5 * low, 0.5 * high)
        _, rest = design.residuals(model, K, N, _GROWTH * d, low, high)
        made = invariant_polytope(design, model, K, rest, low, high, limit, (N, _GROWTH * d))
        if made is None or _score(design, *made) <= _score(design, N, d):
            return best
        larger = _rounded(design, *made, K)
        slack = 1e-5 * np.abs(larger.polytope.offsets)
        proof = prove_robust_invariance(design.system, larger.polytope, larger.feedback, slack=slack, max_seconds=15.0)
        if proof.result != "proved":
            return best
        best, (N, d) = larger, made
    return best


def _why_not(design, scales, costs, emphases, limit, some: bool) -> str:
    name = type(design.system).__name__
    if some:
        return f"{name}: sets were found, but none was proved; give a smaller feasible box or other weights"
    noise = design.noise
    full = noise.half_widths
    for share in (0.5, 0.2, 0.1, 0.05, 0.01):
        design.noise = Box(noise.centre - share * full, noise.centre + share * full)
        if _candidates(design, scales, costs, emphases, limit, time.monotonic() + 20.0):
            return (
                f"{name}: no set absorbs disturbances of +-{full} about {noise.centre} within the feasible box and the "
                f"inputs [{design.system.input_box.lower}, {design.system.input_box.upper}]; +-{share * full} can be "
                "absorbed. Give less noise, more input or a larger feasible box"
            )
    return f"{name}: no set was found, not even for a hundredth of the disturbances +-{full}; give other weights or a centre"


def _candidates(design: Designer, scales, costs, emphases, limit: int, deadline: float) -> list[tuple]:
    bends = design.nonlinear()
    scales = scales if bends.any() else (1.0,)
    found = []
    for scale, cost, emphasis in itertools.product(scales, costs, emphases):
        if time.monotonic() > deadline:
            break
        shrink = np.where(bends, scale, 1.0)
        low, high = shrink * design.low, shrink * design.high
        made = _refined(design, low, high, cost, emphasis, limit)
        if made is not None:
            found.append((_score(design, *made[:2]), *made))
    return found


def _refined(design: Designer, low, high, cost: float, emphasis: float, limit: int):
    """A set for one choice of weights, refitted over the region that it really takes up: (N, d, K) or None."""
    result, N, d = None, np.zeros((0, design.n)), np.zeros(0)
    reached_low, reached_high = low, high
    for _ in range(2):
        model = design.fit(reached_low, reached_high)
        direct = np.abs(model.B) @ design.system.input_box.half_widths > 1e-2 * np.maximum(high, -low)
        weights = np.where(direct, 1.0, emphasis) / np.maximum(high, -low) ** 2
        K = design.gain(model, weights, cost)
        if K is None:
            return result
        _, rest = design.residuals(model, K, N, d, reached_low, reached_high)
        made = invariant_polytope(design, model, K, rest, low, high, limit)
        if made is None:
            return result
        N, d = made
        result = (N, d, K)
        eye = np.eye(design.n)
        reached_high, reached_low = most(eye, N, d, low, high), -most(-eye, N, d, low, high)
    return result


def _score(design: Designer, N, d) -> float:
    """Mean logarithm of the extents plus the share of the bounding box that is filled."""
    eye = np.eye(design.n)
    high, low = most(eye, N, d, design.low, design.high), -most(-eye, N, d, design.low, design.high)
    unit = 0.5 * (1 + np.random.default_rng(1).uniform(-1, 1, (20000, design.n)))
    filled = np.mean(((low + unit * (high - low)) @ N.T <= d).all(axis=1))
    return float(np.log((high - low) / (design.high - design.low)).sum() + np.log(filled + 1e-4))


def _rounded(design: Designer, N, d, K) -> InvariantSet:
    """In coordinates of the state and in float32 numbers."""

    def single(v):
        return np.asarray(v, np.float32).astype(np.float64)

    centre, rest = single(design.centre), single(design.rest)
    N = single(N)
    N = np.where(np.abs(N) < 1e-7, 0.0, N)
    offsets = d + N @ centre
    rounded = np.asarray(offsets, np.float32)
    # Downwards, so that a facet of the feasible box stays inside it.
    rounded = np.where(rounded > offsets - 1e-9, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    region = Polytope(N, single(rounded))
    return InvariantSet(design.system, region, ClippedFeedback(K, centre, rest, design.system.input_box))
