"""The certificate of a base set, and with it of every safeguard built on it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import AcceptanceMargins, BaseSet, design_base_controller
from holdfast.certify.acceptance import Acceptance, acceptance_margins, step_deviation
from holdfast.certify.certificate import ARITHMETIC, Certificate, Obligation
from holdfast.certify.containment import inside, largest_inside_level
from holdfast.certify.coordinates import RotationSymmetry
from holdfast.certify.declared import angle_obligations, constraint_obligations, declared_obligations
from holdfast.certify.invariance import largest_invariant_level, prove_invariance
from holdfast.certify.proof import InvarianceProof, deviation_norm, invariance_robustness
from holdfast.certify.vertex_test import largest_contractive_level, prove_contraction
from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import System

#: No level beyond this multiple of the smallest at which an input saturates is tried.
_LARGEST_MULTIPLE = 100.0
#: Accuracy of the level that just fits into the safe set, and the share of it that is taken where that is hard to prove.
_CONTAINMENT_RTOL, _STEP_BACK = 1e-4, 0.98
#: Contraction V+ <= (1 - delta) c asked for: at least, and at most.
_LEAST_CONTRACTION, _MOST_CONTRACTION = 1e-4, 1e-2


class NotProvable(ValueError):
    """No base set could be proved; the message says which step failed and what to give."""


@dataclass(frozen=True)
class CertifiedBaseSet:
    """A base set at its certified level, with the acceptance margins that plans ending in it must clear.

    Attributes:
        base_set: B and its controller.
        acceptance: eps_h, eps_B.
        certificate: what was shown, and how.
    """

    base_set: BaseSet
    acceptance: AcceptanceMargins
    certificate: Certificate


def certify_base_set(
    system: System,
    safe_set: SuperlevelSet,
    state_box: Box,
    *,
    state_cost,
    input_cost,
    horizon: int,
    level: float | None = None,
    physics: str = "",
    max_boxes: int = 60_000,
    max_seconds: float = 60.0,
) -> CertifiedBaseSet:
    """Designs the base controller, proves its base set, and derives the acceptance margins.

    Args:
        system, safe_set, state_box: what moves, C, and the region in which plans live.
        state_cost, input_cost: LQR weights.
        horizon: N of the backup flow.
        level: c; None looks for the largest provable one by bisection (for a symmetric system up to the level at which
            an input first saturates, as the clip to a box knows no rotation).
        physics: hash of the physics, noted in the certificate.
        max_boxes, max_seconds: budget of each search; spent means "not proved", never "safe".

    Returns: the certified base set. With a given `level` that is refuted or not proved the certificate says so
        (`certificate.holds` is false). Whenever it does not hold, the acceptance margins are infinite, so that no plan is
        ever accepted.

    Raises:
        NotProvable: if no level at all could be proved, or the equilibrium violates the safe set.
        ValueError: if the equilibrium or the linearisation is unusable (`design_base_controller`).
    """
    base = design_base_controller(system, state_cost, input_cost)
    require_safe_equilibrium(base, safe_set)
    subject = f"{type(system).__name__} in {{{', '.join(safe_set.names) or 'h >= 0'}}}"
    if level is None:
        invariance, containment = _largest(base, safe_set, state_box, max_boxes, max_seconds)
    else:
        invariance = _prove_level(base, float(np.float32(level)), state_box, max_boxes, max_seconds)
        containment = _contain(base, safe_set, invariance.level, max_boxes, max_seconds)
    base = base.at_level(invariance.level)
    obligations = [
        _invariance_obligation(invariance, system),
        _containment_obligation(containment, safe_set, system),
    ]
    obligations += constraint_obligations(base, safe_set, state_box)
    obligations += declared_obligations(base, state_box) + angle_obligations(base, safe_set, state_box)
    proved = invariance.result == "proved" and containment.result == "proved"
    if proved:
        acceptance = acceptance_margins(base, safe_set, state_box, horizon)
        obligations += _rounding_obligations(base, safe_set, acceptance, invariance, horizon)
        margins = acceptance.margins
    proved = all(o.discharge not in ("not proved", "refuted") for o in obligations)
    certificate = Certificate(subject, physics, (*obligations, *_standing_obligations(horizon, proved)))
    if not certificate.holds:
        rows = safe_set.margin(system.equilibrium()[0]).shape[0]
        margins = AcceptanceMargins(np.full(rows, np.inf), np.inf)
    return CertifiedBaseSet(base, margins, certificate)


def require_safe_equilibrium(base: BaseSet, safe_set: SuperlevelSet) -> None:
    margin = np.atleast_1d(np.asarray(safe_set.margin(base.system.equilibrium()[0])))
    if not np.all(margin > 0):
        row = int(np.argmin(np.where(np.isfinite(margin), margin, -np.inf)))
        name = safe_set.names[row] if safe_set.names else f"row {row}"
        raise NotProvable(
            f"safe set: the equilibrium has margin {margin[row]:.4g} on '{name}', but a base set around it needs a "
            "positive margin. Move the equilibrium inside the safe set, or relax that constraint"
        )


def _unsaturated(base: BaseSet) -> float:
    return base.unsaturated_level()


def _symmetry(base: BaseSet, level: float) -> RotationSymmetry | None:
    declared = base.system.symmetry
    if declared is None or level > _unsaturated(base):
        return None
    return RotationSymmetry(declared.pairs, declared.mirror, declared.mirrored_errors)


def _contraction(base: BaseSet, level: float, region: Box) -> float:
    """How much contraction to prove: what rounding inside the base set will need, with room to spare."""
    at_level = base.at_level(level)
    needed = deviation_norm(at_level.ellipsoid.shape_matrix, step_deviation(at_level, region)) / np.sqrt(level)
    wanted = float(3.0 * needed)
    return wanted if _LEAST_CONTRACTION < wanted < _MOST_CONTRACTION else _LEAST_CONTRACTION


def _below(level: float) -> float:
    """A float32 number below the level: the controller runs with it, so the proof is about exactly that number."""
    return float(np.nextafter(np.float32(level), np.float32(0)))


def _largest(base: BaseSet, safe_set: SuperlevelSet, region: Box, max_boxes: int, max_seconds: float):
    P = base.ellipsoid.shape_matrix
    unsaturated = _unsaturated(base)
    containment = largest_inside_level(
        lambda e: safe_set.margin(base.system.lift(e)),
        P,
        _LARGEST_MULTIPLE * unsaturated,
        rtol=_CONTAINMENT_RTOL,
        max_seconds=max_seconds,
    )
    if containment.result != "proved":
        raise NotProvable(
            f"base set: that it lies in the safe set is not proved for any level c of e'Pe <= c ({containment.reason}). "
            f"Give more time than max_seconds = {max_seconds:g}; if that does not help, the safe set has too little room "
            "around the equilibrium, or its function cannot be bounded: enlarge it, or write it with the supported operations"
        )
    upper = containment.level if base.system.symmetry is None else min(containment.level, unsaturated)
    upper = _below(upper)
    invariance = _vertex_test(prove_contraction, base, upper, region, max_boxes, max_seconds)
    if invariance is None or invariance.result != "proved":
        budget = (max_boxes, max_seconds)
        invariance = _search(largest_invariant_level, base.closed_loop, base, upper, region, *budget, rtol=0.01)
    if invariance.result != "proved":
        unclipped = min(upper, _below(unsaturated))
        contracted = _vertex_test(largest_contractive_level, base, unclipped, region, max_boxes, max_seconds)
        invariance = invariance if contracted is None else contracted
    if invariance.result != "proved":
        raise NotProvable(
            f"base set: that it is invariant is not proved for any level (last try c = {invariance.level:.4g}: "
            f"{invariance.reason}). Give more time than max_seconds = {max_seconds:g}; if that does not help, give LQR "
            "weights with more input cost, an equilibrium with more room in the input box, or error coordinates without a "
            "singularity nearby"
        )
    if invariance.level != upper:
        invariance = _prove_level(base, _below(invariance.level), region, max_boxes, max_seconds)
    contained = _contain(base, safe_set, invariance.level, max_boxes, max_seconds)
    if contained.result != "proved":
        # Next to a curved constraint the last thousandth costs more boxes than whoever verifies this again will spend.
        invariance = _prove_level(base, _below(_STEP_BACK * invariance.level), region, max_boxes, max_seconds)
        contained = _contain(base, safe_set, invariance.level, max_boxes, max_seconds)
    return invariance, contained


def _vertex_test(
    prove, base: BaseSet, level: float, region: Box, max_boxes: int, max_seconds: float
) -> InvarianceProof | None:
    """The vertex test, tried first as it is soon over where it does not help; None where the clip may act."""
    if level > _unsaturated(base) * (1 - 1e-9):
        return None

    def unclipped(e):
        return base.system.error_step(e, base.controller.unclipped(e))

    return _search(prove, unclipped, base, level, region, max_boxes, max_seconds)


def _prove_level(base: BaseSet, level: float, region: Box, max_boxes: int, max_seconds: float) -> InvarianceProof:
    found = _vertex_test(prove_contraction, base, level, region, max_boxes, max_seconds)
    if found is not None and found.result == "proved":
        return found
    return _search(prove_invariance, base.closed_loop, base, level, region, max_boxes, max_seconds)


def _search(
    prove, step, base: BaseSet, level: float, region: Box, max_boxes: int, max_seconds: float, **options
) -> InvarianceProof:
    """`prove` of one closed loop, with the contraction that rounding will need and the declared symmetry."""
    return prove(
        step,
        base.ellipsoid.shape_matrix,
        level,
        delta=_contraction(base, level, region),
        max_boxes=max_boxes,
        max_seconds=max_seconds,
        symmetry=_symmetry(base, level),
        **options,
    )


def _contain(base: BaseSet, safe_set: SuperlevelSet, level: float, max_boxes: int, max_seconds: float):
    P = base.ellipsoid.shape_matrix
    margin = lambda e: safe_set.margin(base.system.lift(e))  # noqa: E731
    return inside(margin, P, level, max_boxes=max_boxes, max_seconds=max_seconds)


def _plain(value):
    return np.asarray(value).tolist()


def _numbers(proof: InvarianceProof, system: System) -> dict:
    numbers = {"level": proof.level, "boxes": proof.boxes, "seconds": round(proof.seconds, 3)}
    if proof.counterexample is not None:
        found = {name: _plain(value) for name, value in proof.counterexample.items()}
        error = found.pop("state")
        with jax.enable_x64(True):
            state = _plain(system.lift(jnp.asarray(error)))
        numbers["counterexample"] = {"error": error, "state": state, **found}
    return numbers


def _discharge(proof: InvarianceProof):
    return "not proved" if proof.result == "not_proved" else proof.result


def _invariance_obligation(proof: InvarianceProof, system: System) -> Obligation:
    return Obligation(
        "base set invariant",
        f"Whenever V(e) = e'Pe <= {proof.level:.6g}, one step of the true nonlinear system under the clipped base "
        f"controller gives V <= {1 - proof.delta:.6g} * {proof.level:.6g}.",
        _discharge(proof),
        f"{proof.method} on the sampled closed loop: {proof.reason}",
        _numbers(proof, system) | {"delta": proof.delta},
    )


def _containment_obligation(proof: InvarianceProof, safe_set: SuperlevelSet, system: System) -> Obligation:
    names = ", ".join(safe_set.names) or "all constraints"
    return Obligation(
        "base set safe",
        f"Every state with V(e) <= {proof.level:.6g} satisfies {names}.",
        _discharge(proof),
        f"interval branch and bound on the margins: {proof.reason}",
        _numbers(proof, system),
    )


def _rounding_obligations(
    base: BaseSet, safe_set: SuperlevelSet, acceptance: Acceptance, invariance: InvarianceProof, horizon: int
) -> list[Obligation]:
    absorbed = invariance_robustness(invariance, base.ellipsoid.shape_matrix)
    needed = deviation_norm(base.ellipsoid.shape_matrix, acceptance.step_deviation)
    margins = acceptance.margins
    names = safe_set.names or [f"row {i}" for i in range(margins.path.shape[1])]
    path = {name: _first_middle_last(column) for name, column in zip(names, margins.path.T)}
    return [
        *_spread_obligations(base),
        *_dropped_obligations(base),
        Obligation(
            "rounding along a plan",
            f"Two float32 programs that replay one plan of {horizon} steps, with one ulp of state noise a step, stay so "
            "close that no margin differs by more than the acceptance margin a plan has to clear.",
            "proved",
            f"running error analysis and {_spread_method(base)} over the state box, which no accepted plan leaves; numbers "
            "at the first, the middle and the last node of a plan",
            {
                "deviation": _plain(acceptance.deviation[-1]),
                "path_margins": path,
                "base_margin": _first_middle_last(np.asarray(margins.base)),
            },
        ),
        Obligation(
            "rounding inside the base set",
            "The contraction of the base controller is larger than the rounding of a float32 step, so rounding never "
            "leads out of the base set.",
            "proved" if needed <= absorbed else "not proved",
            "running error analysis against the disturbance that the proved contraction absorbs, in the norm sqrt(w'Pw)",
            {"absorbed": absorbed, "needed": needed},
        ),
    ]


def _spread_obligations(base: BaseSet) -> list[Obligation]:
    """What the rounding bounds take from the system's own word, where it declares how a step spreads distances."""
    spread = base.system.spread
    if spread is None:
        return []
    claim = "One step, and the error coordinates, spread distances between states by no more than the system declares."
    return [Obligation("spread of a step", claim, "assumed", f"declared by the system: {spread.shown_by}")]


def _dropped_obligations(base: BaseSet) -> list[Obligation]:
    """That rounding inside the base set was bounded for the state box only, where the error drops coordinates."""
    e, n = base.ellipsoid.shape_matrix.shape[0], base.system.state_size
    if e == n or base.system.fibre_box.dimension:
        return []
    claim = (
        f"While the base controller is at work, the {n - e} coordinate(s) that the error drops stay in the state box, for "
        "which its rounding was bounded."
    )
    method = "a plan that leaves the box is not accepted; after its arrival nothing watches it"
    return [Obligation("dropped coordinates stay in the box", claim, "assumed", method)]


def _spread_method(base: BaseSet) -> str:
    return (
        "interval Jacobians"
        if base.system.spread is None
        else "the declared spread of a step (an assumption, see there)"
    )


def _first_middle_last(values: np.ndarray) -> list[float]:
    return [float(values[k]) for k in (0, len(values) // 2, -1)]


def _standing_obligations(horizon: int, proved: bool) -> list[Obligation]:
    return [
        Obligation(
            "recursive feasibility",
            "A committed plan can always be carried on: after one of its actions the rest of it is a safe plan, and at its "
            "end the base controller goes on for ever.",
            "proved" if proved else "not proved",
            "algebra: the flow of the next state is the flow of this state shifted by one, and the base set is invariant"
            + ("" if proved else ", which is what is not shown here"),
        ),
        Obligation(
            "every action",
            f"Before an action is accepted or corrected to, the backup flow from the state it leads to is rolled out for up "
            f"to {horizon} steps: every margin must exceed the acceptance margin, and the flow must arrive in the base set. "
            "Otherwise a plan that passed this check earlier is replayed.",
            "checked",
            "at run time, in the program that acts",
        ),
        Obligation(
            "model",
            "The plant is the model: x+ = F(x, u), the state is measured to one ulp, and nothing disturbs it.",
            "assumed",
            "`attack --model-error`, `--noise` and `--delay` show what happens outside this assumption",
        ),
        ARITHMETIC,
    ]
