"""Tasks that are kept by a robust control invariant set instead of a backup: what their certificate says."""

import jax.numpy as jnp
import numpy as np

from holdfast.backup import InvariantSet
from holdfast.certify import CertifiedInvariantSet, Interval, Obligation, certify_invariant_set, interval_eval
from holdfast.sets import FreeSpace, Polytope
from holdfast.tasks import RobustSafety, Task


def is_robust(task: Task) -> bool:
    """Whether the task brings an invariant set, and so needs no backup and no phase 1."""
    return isinstance(task.safety, RobustSafety)


def certify_robust_task(task: Task, *, physics: str, max_seconds: float = 60.0) -> CertifiedInvariantSet:
    """The proof that the task's set is invariant, whatever the disturbance, and holds safe states only."""
    invariant = InvariantSet(task.system, task.safety.region, task.safety.controller)
    certified = certify_invariant_set(
        invariant, task.state_box, physics=physics, max_seconds=max_seconds, proof=task.safety.proof
    )
    certificate = certified.certificate.with_obligation(_safe(task))
    return CertifiedInvariantSet(certified.invariant, certified.acceptance, certificate)


def _safe(task: Task) -> Obligation:
    """That the region lies in the safe set: by intervals over the region's bounding box, or because it is the safe set."""
    region, names = task.safety.region, task.safe_set.names
    claim = "Every state of the set satisfies the task's constraints: " + ", ".join(names) + "."
    if isinstance(region, FreeSpace):
        x = np.asarray(region.walls.centre)
        same = np.array_equal(task.safe_set.margin(jnp.asarray(x)), region.margin(jnp.asarray(x)))
        words = "the constraints are the region's own margins"
        return Obligation("safe", claim, "proved" if same else "not proved", words, {})
    box = region.bounding_box() if isinstance(region, Polytope) else region
    lowest = np.asarray(interval_eval(task.safe_set.margin, Interval.box(box.lower, box.upper)).lo)
    numbers = {"least_margins": dict(zip(names, lowest.tolist()))}
    discharge = "proved" if np.all(lowest >= 0) else "not proved"
    return Obligation("safe", claim, discharge, "interval arithmetic over the bounding box of the set", numbers)
