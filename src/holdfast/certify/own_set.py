"""Sets of the user's own: a zonotope by centre and generators, verified or refuted."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import linprog

from holdfast.backup import InvariantSet
from holdfast.certify.invariant_set import CertifiedInvariantSet, certify_invariant_set
from holdfast.certify.synthesis import Designer
from holdfast.sets import Box, Polytope, Zonotope
from holdfast.sets.zonotope import facet_bound
from holdfast.systems import ClippedFeedback, System

#: More half-spaces than these are refused: the proof and the check at run time go through all of them.
_MOST_FACETS = 3000


def zonotope_polytope(centre: np.ndarray, generators: np.ndarray) -> Polytope:
    """The half-spaces of {c + G b : |b| <= 1}, in float32 numbers.

    Args:
        centre: c, shape [n].
        generators: G, shape [n, g], of rank n.

    Raises:
        ValueError: if shapes do not fit, a number is not finite, the set is flat, or there are too many facets.
    """
    zonotope = Zonotope(centre, generators)
    n, g = zonotope.generators.shape
    if np.linalg.matrix_rank(zonotope.generators) < n:
        raise ValueError(
            f"Zonotope: its {g} generators span fewer than {n} dimensions, so it is flat, and every disturbance leads out; "
            f"give at least {n} independent ones"
        )
    if zonotope.facets is None or len(zonotope.facets.offsets) > _MOST_FACETS:
        raise ValueError(
            f"Zonotope: {g} generators in {n} dimensions make up to {facet_bound(zonotope.generators)} half-spaces, more than "
            f"a check at run time can go through ({_MOST_FACETS}); give fewer generators, or a polytope of your own"
        )
    # In float32 numbers: whatever the rounding of a normal, its offset is the support function.
    normals = zonotope.facets.normals.astype(np.float32).astype(np.float64)
    centre, generators = zonotope.centre, zonotope.generators
    offsets = normals @ centre + np.abs(normals @ generators).sum(axis=1)
    # Downwards, so that no state is in the polytope that is not in the zonotope; by less than float32 tells apart.
    rounded = offsets.astype(np.float32)
    rounded = np.where(rounded > offsets, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    return Polytope(normals, rounded.astype(np.float64))


def affine_controller(system: System, region: Polytope, generators: np.ndarray, centre: np.ndarray) -> ClippedFeedback:
    """A feedback that keeps the linear model of the step best in a zonotope; LQR where the linear program has no answer.

    With u = u_c + K (x - c) and normals N, facet i is kept by t if |n_i (A + B K) G| 1 + |n_i E| h + t d_i <= d_i; the
    largest t is a linear program in K, with |K_j G| 1 within the inputs' range. For one and the same feedback at every
    state that is exact for the linear model; where it has no t > 0, a clipped or a nonlinear feedback may still exist.
    """
    extent = np.abs(generators).sum(axis=1)
    box = system.input_box
    design = Designer(system, Box(centre - extent, centre + extent), centre, _holding_input(system, centre))
    model = design.fit(-extent, extent)
    n, m, g = system.state_size, system.input_size, generators.shape[1]
    half = len(region.offsets) // 2
    N = region.normals[:half]
    d = np.abs(N @ generators).sum(axis=1)
    swing = np.abs(N @ model.E) @ design.noise.half_widths
    # Unknowns: K (m n), S (half g) >= |N (A + B K) G|, P (m g) >= |K G|, t.
    size = m * n + half * g + m * g + 1
    rows, bounds = [], []

    def add(row, bound):
        rows.append(row)
        bounds.append(bound)

    fixed, pushed = N @ model.A @ generators, N @ model.B
    for i, k in itertools.product(range(half), range(g)):
        for sign in (1.0, -1.0):
            row = np.zeros(size)
            row[: m * n] = sign * np.outer(pushed[i], generators[:, k]).ravel()
            row[m * n + i * g + k] = -1.0
            add(row, -sign * fixed[i, k])
    for j, k in itertools.product(range(m), range(g)):
        for sign in (1.0, -1.0):
            row = np.zeros(size)
            row[j * n : (j + 1) * n] = sign * generators[:, k]
            row[m * n + half * g + j * g + k] = -1.0
            add(row, 0.0)
    for i in range(half):
        row = np.zeros(size)
        row[m * n + i * g : m * n + (i + 1) * g], row[-1] = 1.0, d[i]
        add(row, d[i] - swing[i])
    reach = np.minimum(design.u_high, -design.u_low)
    for j in range(m):
        row = np.zeros(size)
        row[m * n + half * g + j * g : m * n + half * g + (j + 1) * g] = 1.0
        add(row, reach[j])
    cost = np.zeros(size)
    cost[-1] = -1.0
    free = [(None, None)] * (m * n) + [(0, None)] * (size - m * n - 1) + [(None, 1.0)]
    found = linprog(cost, np.array(rows), np.array(bounds), bounds=free)
    if found.status == 0:
        gain = found.x[: m * n].reshape(m, n)
    else:
        gain = design.gain(model, 1 / extent**2, 0.1)
        gain = np.zeros((m, n)) if gain is None else gain
    gain = gain.astype(np.float32).astype(np.float64)
    return ClippedFeedback(gain, np.asarray(design.centre, np.float32), np.asarray(design.rest, np.float32), box)


def _holding_input(system: System, centre: np.ndarray) -> np.ndarray:
    """The admissible input that comes closest to holding the centre: that of the equilibrium, corrected once."""
    return np.clip(np.asarray(system.equilibrium()[1], np.float64), system.input_box.lower, system.input_box.upper)


def verify_zonotope(
    system: System,
    centre: np.ndarray,
    generators: np.ndarray,
    feasible: Box | Polytope,
    *,
    controller: ClippedFeedback | None = None,
    physics: str = "",
    dtype=np.float32,
    max_seconds: float = 60.0,
) -> CertifiedInvariantSet:
    """Verifies that a zonotope is robustly control invariant, or refutes it.

    Args:
        system: what moves, with its disturbances.
        centre, generators: the set {c + G b : |b| <= 1}, shapes [n] and [n, g].
        feasible: where the state has to stay.
        controller: the feedback that is said to keep it; None: one is looked for.
        physics, dtype, max_seconds: as in `certify_invariant_set`.

    Returns: the set with its controller and certificate. If that holds, the set is invariant. Refuted are a set that
        leaves the feasible one (with the state), one from which no action keeps every successor ("some action keeps the
        set", with state, actions and disturbances), and one that merely its controller leaves ("invariant under its
        controller"); with no controller given, another may exist.

    Raises:
        ValueError: if the zonotope is of the wrong shape, flat, or has too many facets.
    """
    region = zonotope_polytope(centre, generators)
    if region.normals.shape[1] != system.state_size:
        raise ValueError(
            f"zonotope: {region.normals.shape[1]} dimensions, but {type(system).__name__} has {system.state_size} states "
            f"({', '.join(system.state_names)})"
        )
    if controller is None:
        controller = affine_controller(
            system, region, np.asarray(generators, np.float64), np.asarray(centre, np.float64)
        )
    invariant = InvariantSet(system, region, controller)
    return certify_invariant_set(invariant, feasible, physics=physics, dtype=dtype, max_seconds=max_seconds)
