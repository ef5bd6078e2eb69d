"""A task's safeguard with nothing trained: the base controller is the backup."""

from collections.abc import Sequence

import jax
import numpy as np

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.certify import CertifiedBaseSet, certify_base_set
from holdfast.interop.program import task_named
from holdfast.safeguards import MAPS, BackupSource, Safeguard
from holdfast.tasks import SafetySettings, Task


def analytic_safeguard(task: Task | str, maps: Sequence[str] = ("ray",), max_seconds: float = 60.0) -> Safeguard:
    """The safeguard of a task whose backup is its base controller (LQR), proved here and now: seconds, no training.

    It certifies fewer states than one with a learned backup (`holdfast train`), and promises the same of those.

    Args:
        task: one with settings of its safety, as all that come with holdfast; or its name.
        maps: names of `holdfast.safeguards.MAPS`.
        max_seconds: for the proof.

    Raises:
        ValueError: for a task without such settings, an unknown map, or a base set that is not proved.
        NotProvable: if no level can be proved.
    """
    task = task_named(task) if isinstance(task, str) else task
    settings = task.safety
    if not isinstance(settings, SafetySettings) or not settings.horizon:
        raise ValueError(
            f"analytic_safeguard: {task.name or type(task).__name__} has no settings for a base set and a backup horizon; "
            "give its `safety` (SafetySettings with state_cost, input_cost, horizon), or build the Safeguard yourself"
        )
    for name in maps:
        if name not in MAPS:
            raise ValueError(f"analytic_safeguard: maps holds {name!r}; the maps are {', '.join(MAPS)}")
    with jax.enable_x64(True):  # a proof is made in float64, whatever the program runs in
        certified = certify_base_set(
            task.system,
            task.safe_set,
            task.state_box,
            state_cost=np.asarray(settings.state_cost),
            input_cost=np.asarray(settings.input_cost),
            horizon=settings.horizon,
            level=settings.level,
            max_seconds=max_seconds,
        )
    return _safeguard(task, certified, maps)


def _safeguard(task: Task, certified: CertifiedBaseSet, maps: Sequence[str]) -> Safeguard:
    wrong = [o.name for o in certified.certificate.obligations if o.discharge in ("not proved", "refuted")]
    if wrong:
        raise ValueError(
            f"analytic_safeguard: of {task.name} not proved: {', '.join(wrong)}. `holdfast verify` tells more; a safeguard "
            "on an unproved set would promise nothing"
        )
    implicit = ImplicitInvariantSet(BackupPolicy(certified.base_set), task.safe_set, task.safety.horizon)
    return Safeguard(BackupSource(implicit, certified.acceptance), tuple(MAPS[name]() for name in maps))
