"""What a safeguard did with a proposed action, and why."""

import enum


class Status(enum.IntEnum):
    """Outcome of one step of a guard. Where the guard is a `Safeguard`, every status but `uncertified` and `unguarded` keeps
    the guarantee. Other guards use the same words for what they did, and their certificate says what follows from it: a
    `BackupCBF` tests its rows, and promises nothing."""

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
        "The proposed action passed the guard's test (a safeguard's: the state stays certified), so it was applied bit for bit.",
        "Nothing to do.",
    ),
    Status.corrected: (
        "The proposed action did not pass the guard's test, or a mask moved it; an action that passes was applied instead.",
        "Frequent corrections without a mask mean that the policy works against its limits: penalise interventions.",
    ),
    Status.fell_back: (
        "Neither the proposed action nor any candidate could be verified; the action that keeps the promise was applied.",
        "Frequent fall-backs mean that candidates are poor or safe actions few: use more maps, a longer horizon or a larger set.",
    ),
    Status.bad_action: (
        "The proposed action held NaN or infinity; the action that keeps the promise (without one, the backup's) was applied.",
        "Look for a diverged policy, a normalisation by zero, or an unscaled observation.",
    ),
    Status.bad_state: (
        "The measured state held NaN or infinity; the committed plan was replayed blindly, after its arrival by the model.",
        "Look at the sensor, the estimator or the simulator: the safeguard cannot certify what it cannot see.",
    ),
    Status.uncertified: (
        "Nothing is promised: the state is outside, or cannot be read by a set that needs it, and no action passed the test.",
        "Start where `safeguard.init(x).certified` holds, or train a better backup policy; look at model and sensor if it held.",
    ),
    Status.unguarded: (
        "No safeguard is in the loop; the action was only clipped to the input box.",
        "Put a `Safeguard` around the policy if constraints matter.",
    ),
}
