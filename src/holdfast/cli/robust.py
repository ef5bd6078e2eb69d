"""Tasks that are kept by a robust control invariant set instead of a backup, and sets of one's own for them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from holdfast.certify import CertifiedInvariantSet, verify_zonotope
from holdfast.interop.task_proof import certify_robust_task, physics_of, with_safety
from holdfast.systems import ClippedFeedback
from holdfast.tasks import RobustSafety, Task, read_safety


def is_robust(task: Task) -> bool:
    """Whether the task brings an invariant set, and so needs no backup and no phase 1."""
    return isinstance(task.safety, RobustSafety)


def certify_own_set(task: Task, file: Path, *, max_seconds: float = 60.0) -> CertifiedInvariantSet:
    """The proof of `certify_robust_task` for a set from a JSON file, in place of the task's own: a zonotope as
    {"centre": [n], "generators": [n, g]}, or a polytope as `holdfast synthesise` writes it. A zonotope without a controller
    ("gain" [m, n], "centre_input" [m]) gets one, if an affine one is found.

    Raises:
        ValueError: if the file lacks something, or holds no set; names what.
    """
    if not is_robust(task):
        raise ValueError(
            f"set = {str(file)!r}: {task.name} is kept by a backup, not by a robust control invariant set; --set is for "
            "tasks like balance-pendulum, or for one of yours with `safety = RobustSafety(...)`"
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"set = {str(file)!r} cannot be read ({error.strerror}); give the path of a .json") from None
    except ValueError as error:
        raise ValueError(f"set = {str(file)!r} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"set = {str(file)!r} holds no object; give centre and generators, or normals and offsets")
    if document.get("normals") is not None:
        own = task.completed(safety=read_safety({"made_by": str(file)} | document, str(file), task.system.input_box))
        return certify_robust_task(own, physics=physics_of(own), max_seconds=max_seconds)
    centre, generators = (_numbers(document, name, file) for name in ("centre", "generators"))
    controller = None
    if document.get("gain") is not None:
        gain, rest = (_numbers(document, name, file) for name in ("gain", "centre_input"))
        controller = ClippedFeedback(gain, centre, rest, task.system.input_box)
    try:
        certified = verify_zonotope(
            task.system, centre, generators, task.state_box, controller=controller, physics="", max_seconds=max_seconds
        )
    except ValueError as error:
        raise ValueError(f"set = {str(file)!r}: {error}") from None
    found = with_safety(task, certified)
    # Of the set that was verified, and of the controller that was found for it.
    own = task.completed(safety=RobustSafety(found.invariant.region, found.invariant.controller))
    certificate = replace(found.certificate, physics=physics_of(own))
    return CertifiedInvariantSet(found.invariant, found.acceptance, certificate)


def _numbers(document: dict, name: str, file: Path) -> np.ndarray:
    try:
        return np.asarray(document[name], np.float64)
    except (KeyError, TypeError, ValueError):
        seen = "is missing" if name not in document else "is no array of numbers"
        raise ValueError(f"set = {str(file)!r}: {name} {seen}; give it as a list, or a list of rows") from None
