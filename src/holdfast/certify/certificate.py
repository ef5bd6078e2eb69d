"""Certificates: what is promised, obligation by obligation, and how each was discharged."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Discharge = Literal["proved", "checked", "sampled", "assumed", "not proved", "refuted"]

MEANING: dict[str, str] = {
    "proved": "by interval arithmetic with outward rounding, or by algebra",
    "checked": "exhaustively, at run time, before every action",
    "sampled": "on random samples; not a proof",
    "assumed": "not shown here; the promise rests on it",
    "not proved": "the attempt ran out of budget; this is not a proof",
    "refuted": "false: a counterexample was found",
}


#: Obligations whose proof is the promise: with one of these only sampled a certificate does not hold.
NEED_A_PROOF = (
    "base set invariant",
    "base set safe",
    "rounding along a plan",
    "rounding inside the base set",
    "recursive feasibility",
)


@dataclass(frozen=True)
class Obligation:
    """One thing that must hold for the promise to hold.

    Attributes:
        name: short name, unique within a certificate.
        claim: the claim in plain words.
        discharge: how it was discharged; see `MEANING`.
        method: by what means, in plain words.
        numbers: the numbers behind it (levels, boxes, bounds, counterexamples), JSON values.
    """

    name: str
    claim: str
    discharge: Discharge
    method: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Certificate:
    """All obligations behind the safety promise of one system, safe set and base set.

    Attributes:
        subject: what it is about, in words.
        physics: hash of the physics for which it holds.
        obligations: in the order in which the argument needs them.
    """

    subject: str
    physics: str
    obligations: tuple[Obligation, ...]

    @property
    def holds(self) -> bool:
        """Whether every obligation is proved, checked or assumed, or sampled where sampling decides nothing."""
        return not self.open

    @property
    def open(self) -> tuple[Obligation, ...]:
        """What keeps the certificate from holding: refuted, not proved, or sampled where the promise rests on it."""
        return tuple(
            o
            for o in self.obligations
            if o.discharge in ("not proved", "refuted") or (o.discharge == "sampled" and o.name in NEED_A_PROOF)
        )

    def __getitem__(self, name: str) -> Obligation:
        for obligation in self.obligations:
            if obligation.name == name:
                return obligation
        raise KeyError(f"no obligation {name!r}; there are {[o.name for o in self.obligations]}")

    def with_obligation(self, obligation: Obligation) -> "Certificate":
        """The certificate with one more obligation, or with the one of that name replaced."""
        others = tuple(o for o in self.obligations if o.name != obligation.name)
        return Certificate(self.subject, self.physics, (*others, obligation))

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"subject": self.subject, "physics": self.physics, "holds": self.holds} | {
            "obligations": [asdict(o) for o in self.obligations]
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Certificate":
        """The inverse of `to_json`."""
        return Certificate(data["subject"], data["physics"], tuple(Obligation(**o) for o in data["obligations"]))


#: What every proof by intervals and every bound of rounding rests on.
ARITHMETIC = Obligation(
    "arithmetic",
    "sin, cos, exp, tanh and the like are accurate to 4 ulp in XLA and in the C library; basic operations follow "
    "IEEE 754, matrix products in the full precision of their type (set that on GPUs).",
    "assumed",
    "measured by others, tested here on samples",
)
