"""JSON without NaN and infinity that loses nothing: such numbers are null, and an entry says which they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

NON_FINITE = "non_finite"


def encode(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object for `json.dumps(..., allow_nan=False)`.

    Numbers that are not finite become null, and the entry `non_finite` maps their JSON pointers (RFC 6901) to "nan",
    "inf" or "-inf". Arrays become lists, tuples too.
    """
    non_finite: dict[str, str] = {}
    data = _strict(plain(value), "", non_finite)
    return data | ({NON_FINITE: non_finite} if non_finite else {})


def decode(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `encode`; `data` is not changed."""
    copy: dict[str, Any] = json.loads(json.dumps(data))
    for path, name in copy.pop(NON_FINITE, {}).items():
        _put(copy, path, float(name))
    return copy


def plain(value):
    """The value in JSON's types (dictionaries, lists, numbers, words); NaN and infinity stay."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    return value


def _strict(value, path: str, non_finite: dict[str, str]):
    if isinstance(value, dict):
        return {key: _strict(entry, f"{path}/{_escape(key)}", non_finite) for key, entry in value.items()}
    if isinstance(value, list):
        return [_strict(entry, f"{path}/{i}", non_finite) for i, entry in enumerate(value)]
    if isinstance(value, float) and not np.isfinite(value):
        non_finite[path] = str(value)
        return None
    return value


def _put(data, path: str, value: float) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    for part in parents:
        data = data[int(part)] if isinstance(data, list) else data[part]
    data[int(last) if isinstance(data, list) else last] = value


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
