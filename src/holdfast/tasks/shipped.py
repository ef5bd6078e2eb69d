"""Robust control invariant sets that come with the library, as `tasks/data/NAME.json`."""

import importlib.resources
import json

import numpy as np

from holdfast.sets import Box, Polytope
from holdfast.systems import ClippedFeedback
from holdfast.tasks.base import RobustSafety

_PARTS = ("normals", "offsets", "centre", "gain", "centre_input", "made_by")


class DamagedSet(ValueError):
    """A file of a shipped set is missing or does not say what it should."""


def shipped_safety(name: str, input_box: Box) -> RobustSafety:
    """The polytope and the clipped feedback of the file called `name`. It is a claim, as any `RobustSafety` is.

    Raises:
        DamagedSet: with the file, the field, and what it should hold.
    """
    file = importlib.resources.files("holdfast.tasks") / "data" / f"{name}.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedSet(f"set {name!r}: {name}.json is not there or no JSON ({error}); reinstall holdfast") from error
    return read_safety(document, name, input_box)


def read_safety(document: object, name: str, input_box: Box) -> RobustSafety:
    """The same from a document that is read already.

    Raises:
        DamagedSet: as `shipped_safety` does.
    """
    if not isinstance(document, dict) or set(_PARTS) - set(document):
        lacking = set(_PARTS) - set(document if isinstance(document, dict) else ())
        raise DamagedSet(f"set {name!r}: lacks {', '.join(sorted(lacking))}; give an object with {', '.join(_PARTS)}")
    parts = {part: _numbers(name, part, document[part], 1 + (part in ("normals", "gain"))) for part in _PARTS[:-1]}
    region_size, n, m = len(parts["offsets"]), len(parts["centre"]), input_box.dimension
    shapes = {"normals": (region_size, n), "gain": (m, n), "centre_input": (m,)}
    for part, shape in shapes.items():
        if parts[part].shape != shape:
            raise DamagedSet(f"set {name!r}: {part} has shape {parts[part].shape}; it must be {shape}")
    region = Polytope(parts["normals"], parts["offsets"])
    if not np.all(parts["offsets"] - parts["normals"] @ parts["centre"] > 0):
        raise DamagedSet(f"set {name!r}: centre lies outside normals x <= offsets; it must lie inside")
    return RobustSafety(region, ClippedFeedback(parts["gain"], parts["centre"], parts["centre_input"], input_box))


def _numbers(name: str, part: str, value: object, dimensions: int) -> np.ndarray:
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise DamagedSet(f"set {name!r}: {part} is no array of numbers ({error})") from error
    if numbers.ndim != dimensions or numbers.size == 0 or not np.isfinite(numbers).all():
        seen = f"shape {numbers.shape}" if numbers.ndim != dimensions else "an entry that is not finite, or none"
        raise DamagedSet(f"set {name!r}: {part} has {seen}; give finite numbers in {dimensions} dimension(s)")
    return numbers
