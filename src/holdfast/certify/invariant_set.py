"""The certificate of a robust control invariant set, and with it of every safeguard built on it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.certify import interval as iv
from holdfast.certify.certificate import ARITHMETIC, Certificate, Obligation
from holdfast.certify.duality import bounding_box, corner_basis, maximise, upper_bound
from holdfast.certify.free_space import free_cells, free_space_obligation
from holdfast.certify.interpreter import interval_eval
from holdfast.certify.interval import Interval
from holdfast.certify.linear import matmul
from holdfast.certify.refutation import no_action_keeps
from holdfast.certify.robust_invariance import RobustProof, prove_robust_invariance
from holdfast.certify.rounding import rounding_error
from holdfast.certify.slope import interval_jacobian
from holdfast.sets import Box, FreeSpace, Polytope
from holdfast.systems import ClippedFeedback, Retreat, System

#: Rounding bounds are multiplied by this, so that the proof does not hang on the last digit.
_SURPLUS = 1.25
#: What a function may say of its own derivative, which no rule here checks.
_DECLARED = ("stop_gradient", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin")


class CertifiedInvariantSet(eqx.Module):
    """A robust control invariant set, the margins that actions must show, and what was shown.

    Attributes:
        invariant: S and its controller.
        acceptance: margins for rounding; infinite where the certificate does not hold, so that nothing is accepted.
        certificate: what was shown, and how.
    """

    invariant: InvariantSet
    acceptance: RobustMargins
    certificate: Certificate = eqx.field(static=True)


def certify_invariant_set(
    invariant: InvariantSet,
    feasible: Box | Polytope,
    *,
    physics: str,
    dtype=np.float32,
    max_seconds: float = 60.0,
) -> CertifiedInvariantSet:
    """Proves that a set is invariant under its controller for every disturbance, and derives the margins.

    Args:
        invariant: the set, a `Polytope` with a `ClippedFeedback`, or a `FreeSpace` with a `Retreat`.
        feasible: where the state has to stay.
        physics: hash of the physics, noted in the certificate.
        dtype: precision of the run.
        max_seconds: budget; spent means "not proved", never "safe".

    Returns: the certified set. If the certificate does not hold, the margins are infinite.

    Raises:
        Unbounded: if the region is empty or unbounded.
        TypeError: if region or controller are of another kind.
        ValueError: if the shapes of region, feasible set and system do not fit.
    """
    system, region = invariant.system, invariant.region
    subject = f"{type(system).__name__}: a robust control invariant set"
    if not isinstance(region, Polytope) or not isinstance(invariant.controller, ClippedFeedback):
        return _free_space(invariant, feasible, subject, physics, dtype)
    _require_shapes(system, region, feasible)
    inside = _containment(region, feasible, system)
    affine, remainder = _affinity(system, region)
    bounds = _Rounding(invariant, dtype)
    margins = RobustMargins(bounds.inside, bounds.successor, remainder, np.dtype(dtype).name)
    # A check that linearises in w may see twice the remainder less than there is.
    slack = bounds.needed + 2 * remainder
    if np.isfinite(slack).all():
        found = prove_robust_invariance(system, region, invariant.controller, slack=slack, max_seconds=max_seconds)
    else:
        found = RobustProof("not_proved", 0, 0, 0.0, None, "rounding of a step cannot be bounded over the set")
    obligations = [inside, *_invariance(invariant, found, slack), _admissible(invariant), affine]
    obligations.append(_rounding_obligation(margins, slack, found.result == "proved", dtype))
    certificate = Certificate(subject, physics, (*obligations, *_standing(system)))
    if not certificate.holds:
        margins = _nothing(len(region.offsets))
    return CertifiedInvariantSet(invariant, margins, certificate)


def _nothing(facets: int) -> RobustMargins:
    never = np.full(facets, np.inf)
    return RobustMargins(never, never, np.zeros(facets))


def _require_shapes(system: System, region: Polytope, feasible) -> None:
    n = system.state_size
    size = feasible.dimension if isinstance(feasible, Box) else feasible.normals.shape[1]
    if region.normals.shape[1] != n or size != n:
        raise ValueError(
            f"{type(system).__name__} has {n} states, the region {region.normals.shape[1]} and the feasible set {size}; "
            "give both in coordinates of the state"
        )


# --- inside the feasible set ---------------------------------------------------------------------------------------


def _rows(feasible: Box | Polytope) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(feasible, Polytope):
        return feasible.normals, feasible.offsets
    eye = np.eye(feasible.dimension)
    keep = np.isfinite(np.concatenate([feasible.upper, feasible.lower]))
    return np.concatenate([eye, -eye])[keep], np.concatenate([feasible.upper, -feasible.lower])[keep]


def _containment(region: Polytope, feasible: Box | Polytope, system: System) -> Obligation:
    normals, limits = _rows(feasible)
    lower, upper = bounding_box(region.normals, region.offsets)
    n, k = len(lower), len(limits)
    G = np.concatenate([region.normals, np.eye(n), -np.eye(n)])
    h = np.broadcast_to(np.concatenate([region.offsets, upper, -lower]), (k, len(G)))
    found = maximise(normals, G, h, corner_basis(normals, len(region.offsets)))
    c, box = Interval(normals.T, normals.T), Interval(np.repeat(lower[:, None], k, 1), np.repeat(upper[:, None], k, 1))
    bound = upper_bound(c, G, h, found, box)
    # A facet of the feasible set that is a facet of the region says it all, to the last bit.
    shared = (np.abs(normals[:, None] - region.normals[None]).max(-1) == 0) & (region.offsets <= limits[:, None])
    over = np.where(shared.any(1), -1.0, bound - limits)
    numbers: dict = {"facets": len(region.offsets), "lower": lower.tolist(), "upper": upper.tolist()}
    discharge = "proved"
    if not (over <= 0).all():
        worst = int(np.argmax(np.nan_to_num(over, nan=np.inf)))
        middle = found.x.mean(axis=0)
        x = found.x[worst] + 1e-9 * (middle - found.x[worst])
        point = Interval(x[:, None], x[:, None])
        margins = iv.sub(
            Interval.constant(region.offsets), matmul(Interval.constant(region.normals), point[:, None])[:, 0]
        )
        beyond = matmul(Interval.constant(normals[worst][None]), point[:, None])[0, 0]
        refuted = (margins.lo >= 0).all() and beyond.lo[0] > limits[worst]
        discharge = "refuted" if refuted else "not proved"
        coordinate = int(np.argmax(np.abs(normals[worst])))
        numbers |= {"state": x.tolist(), "limit": float(limits[worst]), "coordinate": system.state_names[coordinate]}
    method = "dual multipliers of linear programs, evaluated in interval arithmetic"
    if discharge == "refuted":
        method = f"the state x = {np.round(numbers['state'], 6).tolist()} lies in the set and outside the feasible one"
    return Obligation(
        "inside the feasible set", "Every state of the set lies in the feasible set.", discharge, method, numbers
    )


# --- invariance ----------------------------------------------------------------------------------------------------


def _invariance(invariant: InvariantSet, found: RobustProof, slack: np.ndarray) -> list[Obligation]:
    region = invariant.polytope
    claim = (
        "From every state of the set, and for every disturbance of the box, one step of the true nonlinear system under the "
        "controller leads back into the set, further inside than rounding can undo."
    )
    numbers = {
        "facets": len(region.offsets),
        "cells": found.cells,
        "programs": found.programs,
        "seconds": round(found.seconds, 3),
        "largest_slack": float(slack.max()),
    }
    discharge = "not proved" if found.result == "not_proved" else found.result
    if found.witness is not None:
        numbers["witness"] = {k: np.asarray(v).tolist() for k, v in found.witness.items()}
    method = f"cells with mean value forms, {found.reason}"
    obligations = [Obligation("invariant under its controller", claim, discharge, method, numbers)]
    if found.result != "proved":
        start = None if found.witness is None else found.witness["state"]
        refutation = no_action_keeps(invariant.system, region, start)
        if refutation is not None:
            numbers = refutation.numbers()
            text = "From every state of the set some admissible action keeps every successor in the set."
            obligations.append(Obligation("some action keeps the set", text, "refuted", refutation.reason, numbers))
    return obligations


def _admissible(invariant: InvariantSet) -> Obligation:
    box, own = invariant.system.input_box, invariant.feedback.input_box
    within = bool(np.all(own.lower >= box.lower) and np.all(own.upper <= box.upper))
    return Obligation(
        "admissible controller",
        "Whatever the state, the controller's action lies in the input box.",
        "proved" if within else "refuted",
        "algebra: the last thing it does is to clip to that box" if within else "it clips to another box",
        {"lower": box.lower.tolist(), "upper": box.upper.tolist()},
    )


# --- the disturbance -----------------------------------------------------------------------------------------------


def _opaque(system: System) -> list[str]:
    """Primitives in the step whose derivative is declared, not derived, by name."""
    floats = [jnp.zeros(k) for k in (system.state_size, system.input_size, system.noise_box.dimension)]
    found: set[str] = set()

    def look(jaxpr) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name in _DECLARED:
                found.add(equation.primitive.name)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
                look(getattr(inner, "jaxpr", inner)) if hasattr(getattr(inner, "jaxpr", inner), "eqns") else None

    look(jax.make_jaxpr(system.step)(*floats).jaxpr)
    return sorted(found)


def _affinity(system: System, region: Polytope) -> tuple[Obligation, np.ndarray]:
    """That F is affine in w, from the interval slope of dF/dw in w; else a bound of what its linearisation leaves."""
    facets, box = len(region.offsets), system.disturbance_box
    name, claim = (
        "affine in the disturbance",
        "The step is affine in the disturbance, whose corners therefore are the worst.",
    )
    if box is None or not box.dimension:
        return Obligation(name, "Nothing disturbs the step.", "assumed", "declared by the system"), np.zeros(facets)
    n, m = system.state_size, system.input_size
    lower, upper = bounding_box(region.normals, region.offsets)

    def by_disturbance(z):
        return jax.jacfwd(lambda w: system.step(z[:n], z[n : n + m], w))(z[n + m :])

    low = np.concatenate([lower, system.input_box.lower, box.lower])
    high = np.concatenate([upper, system.input_box.upper, box.upper])
    opaque = _opaque(system)
    _, broken = interval_jacobian(lambda z: system.step(z[:n], z[n : n + m], z[n + m :]), Interval.box(low, high))
    if opaque or np.any(broken):
        words = (
            f"the step uses {', '.join(opaque)}, whose derivative is somebody's word" if opaque else "the step jumps"
        )
        return Obligation(name, claim, "not proved", words), np.full(facets, np.inf)
    slopes, jumps = interval_jacobian(by_disturbance, Interval.box(low, high))
    half = box.half_widths * (1 + 1e-12)
    # A derivative that bends leaves half its change, one that jumps may leave all of it.
    bends = 0.5 * np.einsum("nij,i,j->n", slopes.magnitude[:, :, n + m :, 0], half, half)
    remainder = np.abs(region.normals) @ (bends + jumps[..., 0] @ half) * (1 + 1e-9)
    if not np.any(remainder):
        return Obligation(name, claim, "proved", "interval second derivatives over the set are zero"), np.zeros(facets)
    claim = "What is left of the step after its linearisation in the disturbance is bounded and added to the margins."
    discharge = "proved" if np.isfinite(remainder).all() else "not proved"
    method = "interval second derivatives over the set"
    return Obligation(name, claim, discharge, method, {"remainder": remainder.tolist()}), remainder


# --- rounding ------------------------------------------------------------------------------------------------------


class _Rounding:
    """Bounds, for each facet, on what the running precision does to margins, check and controller.

    Attributes:
        inside: of d - N x. successor: of the check's rows, the plant's step and the next state's margins. needed: that, and
            the rounding of the check and of the controller's action once more, so that the controller passes the check.
    """

    def __init__(self, invariant: InvariantSet, dtype):
        system, region, control = invariant.system, invariant.polytope, invariant.feedback
        N, p = region.normals, len(region.offsets)
        lower, upper = bounding_box(N, region.offsets)
        box, actions = (lower, upper), (system.input_box.lower, system.input_box.upper)
        noise = (system.noise_box.lower, system.noise_box.upper)
        moved = interval_eval(system.disturbed_step, *(Interval.box(*b) for b in (box, actions, noise)))
        wide = Interval.box(np.minimum(moved.lo[:, 0], lower), np.maximum(moved.hi[:, 0], upper))

        def bound(function, *boxes):
            return np.asarray(rounding_error(function, *boxes, dtype=dtype), np.float64)

        margin = np.maximum(bound(region.margin, wide)[:, 0], bound(region.margin, box))
        # Remainder and margins are subtracted from the rows as well: two roundings of their size, and of the half-widths.
        unit = np.finfo(dtype).eps
        check = bound(invariant.robust_margins, box, actions) + 4 * unit * np.abs(region.offsets)
        plant = bound(system.disturbed_step, box, actions, noise)
        ulp = np.spacing(wide.magnitude[:, 0].astype(dtype)).astype(np.float64)
        moved_by = np.abs(N) @ (plant + ulp)
        # What the controller does to finite states.
        action = bound(lambda x: control.input_box.clip(control.unclipped(x)), box)
        action = action + np.spacing(np.abs(np.stack(actions)).max(0).astype(dtype))
        n, m = system.state_size, system.input_size
        z = Interval.box(*(np.concatenate([b, a]) for b, a in zip(box, actions)))
        at = system.noise_box.centre
        slopes, jumps = interval_jacobian(lambda z: system.disturbed_step(z[:n], z[n : n + m], jnp.asarray(at)), z)
        pushed = np.abs(N) @ (slopes.magnitude[:, n : n + m, 0] @ action + jumps[:, 0])
        self.inside = _single(_SURPLUS * margin, dtype)
        self.successor = _single(_SURPLUS * (check + moved_by + 2 * margin) + self.inside, dtype)
        self.needed = _SURPLUS * (self.successor + check + pushed)
        assert self.inside.shape == self.needed.shape == (p,)


def _single(value: np.ndarray, dtype) -> np.ndarray:
    """Rounded up to numbers of the running precision."""
    return np.nextafter(value.astype(dtype), np.asarray(np.inf, dtype)).astype(np.float64)


def _rounding_obligation(margins: RobustMargins, slack: np.ndarray, proved: bool, dtype) -> Obligation:
    return Obligation(
        f"rounding ({np.dtype(dtype).name})",
        "What the check accepts in this precision leads to a state that shows it is in the set, and the controller's own "
        "action is always accepted.",
        "proved" if proved and np.isfinite(slack).all() else "not proved",
        "running error analysis of margins, check, controller and step, against the slack of the invariance proof",
        {name: float(np.max(getattr(margins, name))) for name in ("inside", "successor", "remainder")}
        | {"slack": float(slack.max())},
    )


def _standing(system: System) -> list[Obligation]:
    box = system.disturbance_box
    bound = "nothing" if box is None else f"w in [{box.lower.tolist()}, {box.upper.tolist()}]"
    return [
        Obligation(
            "every action",
            "Before an action is accepted, its worst successor must lie in the set by more than rounding can undo; otherwise "
            "the controller acts.",
            "checked",
            "at run time, in the program that acts",
        ),
        Obligation(
            "model",
            f"The plant is the model, disturbed by {bound}, and its state is computed to one unit in the last place.",
            "assumed",
            "",
        ),
        ARITHMETIC,
    ]


# --- other regions -------------------------------------------------------------------------------------------------


def _walls_inside(region: FreeSpace, feasible: Box) -> tuple[Obligation]:
    within = bool(np.all(region.walls.lower >= feasible.lower) and np.all(region.walls.upper <= feasible.upper))
    claim = "Every state of the set lies in the feasible set."
    walls = {"lower": region.walls.lower.tolist(), "upper": region.walls.upper.tolist()}
    discharge = "proved" if within else "refuted"
    return (Obligation("inside the feasible set", claim, discharge, "the walls are compared with its bounds", walls),)


def _free_space(invariant: InvariantSet, feasible, subject: str, physics: str, dtype):
    """Free space among obstacles: invariance by its gaps, rounding over cells that cover it."""
    if not isinstance(invariant.region, FreeSpace) or not isinstance(invariant.controller, Retreat):
        raise TypeError(
            f"certify_invariant_set: a {type(invariant.region).__name__} with a {type(invariant.controller).__name__} cannot be "
            "proved; give a Polytope with a ClippedFeedback, or a FreeSpace with a Retreat"
        )
    if not isinstance(feasible, Box):
        raise TypeError(f"certify_invariant_set: feasible = {feasible!r}; give a Box around free space")
    system, region = invariant.system, invariant.region
    actions = (system.input_box.lower, system.input_box.upper)
    noise = (system.noise_box.lower, system.noise_box.upper)
    cells = free_cells(region)
    inputs = Interval.boxes(*(np.repeat(side[:, None], cells.lo.shape[1], axis=1) for side in actions))
    inside = np.asarray(rounding_error(invariant.margins, cells, dtype=dtype)).max(axis=1)
    check = np.asarray(rounding_error(invariant.robust_margins, cells, inputs, dtype=dtype)).max(axis=1)
    # The next state's own tangents are shortened like these, so that it sees itself a little closer.
    across = np.linalg.norm(region.walls.upper - region.walls.lower)
    check = check + 16 * np.finfo(dtype).eps * across
    walls = (region.walls.lower, region.walls.upper)
    plant = rounding_error(system.disturbed_step, walls, actions, noise, dtype=dtype)
    ulp = np.spacing(np.abs(np.stack(walls)).max(0).astype(dtype)).astype(np.float64)
    # Normals are unit vectors: a component is at most one.
    moved = np.sum(np.asarray(plant) + 2 * ulp)
    margins = RobustMargins(
        _single(_SURPLUS * inside, dtype),
        _single(_SURPLUS * (check + moved + 3 * inside), dtype),
        np.zeros(len(inside)),
        np.dtype(dtype).name,
    )
    finite = bool(np.isfinite(margins.successor).all())
    argued = free_space_obligation(invariant, float(np.max(_SURPLUS * (margins.successor + 2 * check))))
    rounding = Obligation(
        f"rounding ({np.dtype(dtype).name})",
        "What the check accepts in this precision leads to a state that shows it is in the set.",
        "proved" if finite else "not proved",
        "running error analysis of margins, check and step over cells that cover free space",
        {"inside": float(margins.inside.max()), "successor": float(margins.successor.max())},
    )
    obligations = (*_walls_inside(region, feasible), argued, rounding, *_standing(system))
    certificate = Certificate(subject, physics, obligations)
    return CertifiedInvariantSet(invariant, margins if certificate.holds else _nothing(len(inside)), certificate)
