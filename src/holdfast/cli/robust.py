"""Tasks that are kept by a robust control invariant set instead of a backup: what their certificate says."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.certify import (
    CertifiedInvariantSet,
    Interval,
    Obligation,
    certify_invariant_set,
    interval_eval,
    verify_zonotope,
)
from holdfast.certify.duality import bounding_box
from holdfast.runs import physics_hash
from holdfast.sets import LocallyConvex, Polytope, Zonotope
from holdfast.systems import ClippedFeedback
from holdfast.tasks import RobustSafety, Task, read_safety


def is_robust(task: Task) -> bool:
    """Whether the task brings an invariant set, and so needs no backup and no phase 1."""
    return isinstance(task.safety, RobustSafety)


def robust_safety(task: Task) -> RobustSafety:
    """The task's invariant set.

    Raises:
        TypeError: if it brings none (`is_robust`).
    """
    if not isinstance(task.safety, RobustSafety):
        raise TypeError(f"task {task.name!r} is kept by a backup: its safety is a {type(task.safety).__name__}")
    return task.safety


def certify_robust_task(task: Task, *, physics: str, max_seconds: float = 60.0) -> CertifiedInvariantSet:
    """The proof that the task's set is invariant, whatever the disturbance, and holds safe states only."""
    safety = robust_safety(task)
    region = safety.region.polytope() if isinstance(safety.region, Zonotope) else safety.region
    invariant = InvariantSet(task.system, region, safety.controller)
    certified = certify_invariant_set(invariant, task.state_box, physics=physics, max_seconds=max_seconds)
    return _with_safety(task, certified)


def certify_own_set(task: Task, file: Path, *, physics: str, max_seconds: float = 60.0) -> CertifiedInvariantSet:
    """The same for a set from a JSON file, in place of the task's own: a zonotope as {"centre": [n], "generators": [n, g]},
    or a polytope as `holdfast synthesise` writes it. A zonotope without a controller ("gain" [m, n], "centre_input" [m])
    gets one, if an affine one is found.

    Raises:
        ValueError: if the file lacks something, or holds no set; names what.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"set = {str(file)!r} is not there, or no JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"set = {str(file)!r} holds no object; give centre and generators, or normals and offsets")
    if document.get("normals") is not None:
        safety = read_safety({"made_by": str(file)} | document, str(file), task.system.input_box)
        return certify_robust_task(task.completed(safety=safety), physics=physics, max_seconds=max_seconds)
    centre, generators = (_numbers(document, name, file) for name in ("centre", "generators"))
    controller = None
    if document.get("gain") is not None:
        gain, rest = (_numbers(document, name, file) for name in ("gain", "centre_input"))
        controller = ClippedFeedback(gain, centre, rest, task.system.input_box)
    certified = verify_zonotope(
        task.system, centre, generators, task.state_box, controller=controller, physics=physics, max_seconds=max_seconds
    )
    return _with_safety(task, certified)


def _numbers(document: dict, name: str, file: Path) -> np.ndarray:
    try:
        return np.asarray(document[name], np.float64)
    except (KeyError, TypeError, ValueError):
        seen = "is missing" if name not in document else "is no array of numbers"
        raise ValueError(f"set = {str(file)!r}: {name} {seen}; give it as a list, or a list of rows") from None


def _with_safety(task: Task, certified: CertifiedInvariantSet) -> CertifiedInvariantSet:
    """With the obligation that its states satisfy the task's constraints; nothing is accepted where that is not shown."""
    certificate = certified.certificate.with_obligation(_safe(task, certified.invariant.region))
    acceptance = certified.acceptance
    if not certificate.holds:
        never = np.full_like(acceptance.inside, np.inf)
        acceptance = RobustMargins(never, never, np.zeros_like(never), acceptance.dtype)
    return CertifiedInvariantSet(certified.invariant, acceptance, certificate)


def _safe(task: Task, region: LocallyConvex) -> Obligation:
    """That the region lies in the safe set: by intervals over a box around it, or because the two are the same program."""
    names = task.safe_set.names
    claim = "Every state of the set satisfies the task's constraints: " + ", ".join(names) + "."
    if not isinstance(region, Polytope):
        x = jax.ShapeDtypeStruct((task.system.state_size,), jnp.float64)
        same = _program(task.safe_set.margin, x) == _program(region.margin, x)
        method = "the constraints and the margins of the set are the same program" if same else "they are two programs"
        return Obligation("safe", claim, "proved" if same else "not proved", method, {})
    lower, upper = bounding_box(region.normals, region.offsets)
    lowest = np.asarray(interval_eval(task.safe_set.margin, Interval.box(lower, upper)).lo).reshape(-1)
    numbers = {"least_margins": dict(zip(names, lowest.tolist()))}
    discharge = "proved" if np.all(lowest >= 0) else "not proved"
    return Obligation("safe", claim, discharge, "interval arithmetic over a box around the set", numbers)


def _program(function, x) -> str:
    return physics_hash({"margin": (function, (x,))})
