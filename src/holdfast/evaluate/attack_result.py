"""What an attack achieved, and under what conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.evaluate.disturbances import invariant_region
from holdfast.evaluate.strict_json import encode
from holdfast.safeguards import BackupCBF
from holdfast.tasks import Task
from holdfast.types import Guard


@dataclass(frozen=True)
class AttackResult:
    """What the adversaries achieved. `to_json` gives plain values.

    Attributes:
        task: its name.
        seed: of starts, adversaries and noise.
        steps: attacked plant steps, all plants together.
        plants: closed loops that ran side by side, `steps / plants` steps each, without resets unless diverged.
        violations: samples with a margin < 0 (no tolerance) or a number that is not finite.
        violating_plants: closed loops with at least one violation.
        worst_margin: smallest margin of each constraint by name; -inf where a state was not finite.
        statuses: steps by the name of their `Status`.
        certified_steps: steps after which the guard held a committed certified plan; where it keeps an invariant set, those
            after which the new state was certified anew as well; for a layer that keeps nothing, those after which the
            new state lay in the implicit set.
        uncertified_starts: task starts that the guard could not certify; a certified state took their place.
        diverged: steps whose successor was not finite; that plant was set back to its start.
        adversaries: by name, {plants, steps, violations, violating_plants, certified_steps, worst_margin}.
        disturbances: the same by who chose the disturbance; empty where the system is undisturbed.
        examples: first violations of some plants, at least one of each adversary that succeeded, as {adversary, step,
            x, proposed, applied, x_next}, and where the system is disturbed {noise, disturbance}: who chose what.
        outside_certificate: whether the attack went beyond what any certificate covers (model error, noise, delay).
        conditions: in plain words, under what conditions this was measured.
        precision: float type of plant and safeguard.
        seconds, compile_seconds: wall time.
    """

    task: str
    seed: int
    steps: int
    plants: int
    violations: int
    violating_plants: int
    worst_margin: dict[str, float]
    statuses: dict[str, int]
    certified_steps: int
    uncertified_starts: int
    diverged: int
    adversaries: dict[str, dict]
    disturbances: dict[str, dict]
    examples: list[dict]
    outside_certificate: bool
    conditions: str
    precision: str
    seconds: float
    compile_seconds: float

    @property
    def microseconds_per_step(self) -> float:
        """Wall time of one attacked step of one plant, us."""
        return 1e6 * self.seconds / self.steps

    def to_json(self) -> dict[str, Any]:
        """A JSON object; a number that is not finite is null, and `non_finite` says where and which."""
        return encode(asdict(self) | {"microseconds_per_step": self.microseconds_per_step})


def names_of(adversaries: Sequence[Any]) -> list[str]:
    """One name each, primed where it was taken."""
    found: list[str] = []
    for adversary in adversaries:
        name = getattr(adversary, "name", type(adversary).__name__)
        while name in found:
            name += "'"
        found.append(name)
    return found


def conditions_of(
    task: Task, guard: Guard, disturbances: Sequence[Any], model_error: float, noise: float, delay: int
) -> tuple[bool, str]:
    """Whether an attack went beyond what the guard's certificate covers, and in plain words how it was done."""
    said, beyond = [], []
    guarded = hasattr(guard, "source")
    if isinstance(guard, BackupCBF):
        said.append(
            "The published layer was in the loop, which no certificate covers: nothing was verified, and 'certified' steps are "
            "those after which the state lay in the implicit set, looked at from outside."
        )
    elif not guarded:
        said.append("No safeguard was in the loop.")
    said.append(
        "Plant and safeguard ran as separate programs, with noise of one unit in the last place on every state."
    )
    if disturbances:
        said.append(f"Disturbances within their box were chosen by: {', '.join(names_of(disturbances))}.")
    if disturbances and invariant_region(guard) is not None:
        said.append("Noise within the box is inside the certificate, whoever chooses it.")
    elif disturbances and guarded:
        beyond.append("disturbances, which the backup's set does not allow for")
    if model_error:
        beyond.append(f"inputs off by {model_error:.3g} of their value")
    if noise:
        beyond.append(f"measured states off by up to {noise:.3g} of the state box's half-widths")
    if delay:
        beyond.append(f"actions {delay} step(s) ({delay * task.system.dt:.3g} s) late")
    return bool(beyond), " ".join([*said, *_sentence(beyond)])


def _sentence(beyond: list[str]) -> list[str]:
    if not beyond:
        return []
    return [f"Outside the certificate, which promises nothing here: {', '.join(beyond)}."]
