"""Files that are whole or absent, and JSON that any reader accepts."""

import contextlib
import dataclasses
import enum
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TEMPORARY_PREFIX = ".unfinished-"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RunError(ValueError):
    """A run's files are not what was asked for. The text names the path, what was found there, and the remedy."""


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data` in one step: whoever reads, whenever we are killed, sees all or nothing."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; a report is there to be shown.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    # The rename itself is on disk only when the directory is. Some systems cannot open directories; then we skip it.
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def to_json(value: Any, where: str = "value") -> Any:
    """`value` in JSON's own types: arrays become nested lists, NaN and infinities the strings "NaN", "Infinity",
    "-Infinity" (strict JSON has no word for them), tuples lists, dataclasses objects, enums their names.

    Raises:
        RunError: if a value has no JSON form; names where it sits.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        value = float(value)
        return value if math.isfinite(value) else ("NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity")
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise RunError(f"{where} is a PRNG key; write the seed instead")
        return to_json(np.asarray(value).tolist(), where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RunError(f"{where} has the key {key!r}; JSON keys are strings")
        return {key: to_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise RunError(
        f"{where} = {value!r} is a {type(value).__name__}, which has no JSON form; use numbers, words, lists"
    )


def from_json(value: Any) -> Any:
    """What `to_json` wrote, with "NaN", "Infinity" and "-Infinity" as floats again."""
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented strict JSON, atomically; see `to_json`."""
    text = json.dumps(to_json(value, Path(path).name), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        RunError: if the file is missing or not JSON.
    """
    try:
        return from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; the step that writes it has not run, or the path is wrong") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(
            f"{path} is not JSON ({error}); holdfast never leaves it half-written, so it was edited: restore it"
        ) from None
