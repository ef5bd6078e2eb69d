"""Proofs by interval arithmetic, and certificates that say what was proved, checked, sampled and assumed."""

from holdfast.certify.acceptance import Acceptance, acceptance_margins
from holdfast.certify.base_set import CertifiedBaseSet, NotProvable, certify_base_set
from holdfast.certify.certificate import MEANING, Certificate, Obligation
from holdfast.certify.containment import inside, largest_inside_level
from holdfast.certify.defaults import Defaults, derive_defaults, safe_bounds
from holdfast.certify.interpreter import UnsupportedPrimitive, interval_eval
from holdfast.certify.interval import Interval
from holdfast.certify.invariance import largest_invariant_level, prove_invariance
from holdfast.certify.invariant_set import CertifiedInvariantSet, certify_invariant_set
from holdfast.certify.own_set import verify_zonotope, zonotope_polytope
from holdfast.certify.proof import InvarianceProof, invariance_robustness
from holdfast.certify.refutation import Refutation, no_action_keeps
from holdfast.certify.robust_invariance import RobustProof, prove_robust_invariance
from holdfast.certify.rounding import flow_deviation, rounding_error
from holdfast.certify.sampled import sample_base_set
from holdfast.certify.slope import interval_jacobian
from holdfast.certify.synthesis import NotSynthesised, synthesise_invariant_set
from holdfast.certify.vertex_test import largest_contractive_level, prove_contraction

__all__ = [
    "MEANING",
    "Acceptance",
    "Certificate",
    "CertifiedBaseSet",
    "CertifiedInvariantSet",
    "Defaults",
    "Interval",
    "InvarianceProof",
    "NotProvable",
    "NotSynthesised",
    "Obligation",
    "Refutation",
    "RobustProof",
    "UnsupportedPrimitive",
    "acceptance_margins",
    "certify_base_set",
    "certify_invariant_set",
    "derive_defaults",
    "flow_deviation",
    "inside",
    "interval_eval",
    "interval_jacobian",
    "invariance_robustness",
    "largest_contractive_level",
    "largest_inside_level",
    "largest_invariant_level",
    "no_action_keeps",
    "prove_contraction",
    "prove_invariance",
    "prove_robust_invariance",
    "rounding_error",
    "safe_bounds",
    "sample_base_set",
    "synthesise_invariant_set",
    "verify_zonotope",
    "zonotope_polytope",
]
