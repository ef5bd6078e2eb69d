"""Small dense optimisation: the projection QP and the LP of safeguards, with status, residual and exact gradients."""

from holdfast.solvers.coefficients import bounded_coefficients
from holdfast.solvers.inscribed import InscribedZonotope, inscribed_zonotope
from holdfast.solvers.line import stretch
from holdfast.solvers.lp import ChebyshevBall, chebyshev_centre, maximise
from holdfast.solvers.qp import Solution, SolverStatus, project

__all__ = [
    "ChebyshevBall",
    "InscribedZonotope",
    "Solution",
    "SolverStatus",
    "bounded_coefficients",
    "chebyshev_centre",
    "inscribed_zonotope",
    "maximise",
    "project",
    "stretch",
]
