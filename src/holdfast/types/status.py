"""What a safeguard did with a proposed action, and why."""

import enum


class Status(enum.IntEnum):
    """Outcome of one safeguard step. Every status but `uncertified` and `unguarded` keeps the guarantee."""

    accepted = 0
    corrected = 1
    fell_back = 2
    bad_action = 3
    bad_state = 4
    uncertified = 5
    unguarded = 6

    @property
    def cause(self) -> str:
        """One sentence: why this status came out."""
        return _TEXT[self][0]

    @property
    def remedy(self) -> str:
        """One sentence: what the user can do about it."""
        return _TEXT[self][1]


_TEXT = {
    Status.accepted: (
        "The backup plan from the next state arrives safely, so the proposed action was applied bit for bit.",
        "Nothing to do.",
    ),
    Status.corrected: (
        "The proposed action left the certified set or the input box; the nearest verified candidate was applied.",
        "Frequent corrections mean that the policy works against its limits: penalise interventions in training.",
    ),
    Status.fell_back: (
        "Neither the proposed action nor any candidate could be verified; the committed plan was replayed.",
        "Frequent fall-backs mean that the candidates are poor: use more maps or a longer horizon.",
    ),
    Status.bad_action: (
        "The proposed action held NaN or infinity; the committed plan was replayed.",
        "Look for a diverged policy, a normalisation by zero, or an unscaled observation.",
    ),
    Status.bad_state: (
        "The measured state held NaN or infinity; the committed plan was replayed blindly, after its arrival by the model.",
        "Look at the sensor, the estimator or the simulator: the safeguard cannot certify what it cannot see.",
    ),
    Status.uncertified: (
        "No plan is committed, and none could be: neither the action nor a candidate was verified to arrive safely.",
        "Start where `safeguard.init(x).certified` holds, or train a better backup policy; look at the model if it held before.",
    ),
    Status.unguarded: (
        "No safeguard is in the loop; the action was only clipped to the input box.",
        "Put a `Safeguard` around the policy if constraints matter.",
    ),
}
