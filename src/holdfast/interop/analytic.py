"""The proved safeguard of a task, with nothing trained."""

from collections.abc import Sequence

import jax

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.certify import CertifiedInvariantSet
from holdfast.interop.completion import complete_task
from holdfast.interop.program import task_named
from holdfast.interop.task_proof import certify_task
from holdfast.safeguards import MAPS, BackupSource, InvariantSource, Safeguard
from holdfast.tasks import RobustSafety, SafetySettings, Task


def analytic_safeguard(task: Task | str, maps: Sequence[str] = ("ray",), max_seconds: float = 60.0) -> Safeguard:
    """The safeguard of a task whose certificate is made here and now: seconds, no training. For anybody's pipeline.

    Where the task is kept by a backup, that is its base controller (LQR) on a base set: it certifies fewer states than a
    learned backup (`holdfast train`), and promises the same of those. Where it comes with a robust control invariant set
    (`RobustSafety`), that set and its controller are all there is, and nothing better is to be learned.

    Args:
        task: its name, or a task of one's own; settings that it leaves out are derived (`complete_task`).
        maps: names of `holdfast.safeguards.MAPS`. For a mask, put `holdfast.safeguards.RayMask` in front of the same
            source: `Safeguard(safeguard.source, safeguard.maps, mask=RayMask())`.
        max_seconds: for each search of the proof.

    Raises:
        ValueError: for a task without settings for its safety, an unknown map, or a set that is not proved (one that is
            only sampled, either: build its `Safeguard` yourself, knowing what it rests on).
        NotProvable: if no level of a base set can be proved.
    """
    task = task_named(task) if isinstance(task, str) else task
    if not isinstance(task.safety, SafetySettings | RobustSafety):
        raise ValueError(
            f"analytic_safeguard: {task.name or type(task).__name__} has no settings for its safety; give its `safety` "
            "(SafetySettings with state_cost, input_cost, horizon, or none of them; or RobustSafety with region and "
            "controller), or build the Safeguard yourself"
        )
    for name in maps:
        if name not in MAPS:
            raise ValueError(f"analytic_safeguard: maps holds {name!r}; the maps are {', '.join(MAPS)}")
    with jax.enable_x64(True):  # a proof is made in float64, whatever the program runs in
        task = complete_task(task)
        certified = certify_task(task, max_seconds=max_seconds)
    wrong = [o.name for o in certified.certificate.open]
    if wrong:
        raise ValueError(
            f"analytic_safeguard: of {task.name} not proved: {', '.join(wrong)}. `holdfast verify` tells more; a safeguard "
            "on an unproved set would promise nothing"
        )
    if isinstance(certified, CertifiedInvariantSet):
        source = InvariantSource(certified.invariant, certified.acceptance)
    else:
        implicit = ImplicitInvariantSet(BackupPolicy(certified.base_set), task.safe_set, task.safety.horizon)
        source = BackupSource(implicit, certified.acceptance)
    return Safeguard(source, tuple(MAPS[name]() for name in maps))
