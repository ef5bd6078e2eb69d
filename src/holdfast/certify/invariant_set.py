"""The certificate of a robust control invariant set, and with it of every safeguard built on it."""

from __future__ import annotations

import equinox as eqx
import numpy as np

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.certify.certificate import Certificate
from holdfast.sets import Box, Polytope


class CertifiedInvariantSet(eqx.Module):
    """A robust control invariant set, the margins that actions must show, and what was shown.

    Attributes:
        invariant: S and its controller.
        acceptance: margins for rounding.
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
    proof: str = "",
) -> CertifiedInvariantSet:
    """Proves that a set is invariant under its controller for every disturbance, and derives the margins.

    Args:
        invariant: the set, a `Polytope` region unless `proof` says by what argument it is invariant.
        feasible: where the state has to stay.
        physics: hash of the physics, noted in the certificate.
        dtype: precision of the run.
        max_seconds: budget; spent means "not proved", never "safe".
        proof: for regions that are not polytopes: the argument, noted as assumed.

    Returns: the certified set. If the certificate does not hold, the margins are infinite, so that nothing is accepted.
    """
    raise NotImplementedError
