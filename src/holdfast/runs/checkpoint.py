"""Checkpoints: arrays and a JSON header in one safetensors file. No pickle, so a checkpoint can be opened safely."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from holdfast.runs.files import RunError, atomic_write, from_json, to_json, write_json

FORMAT = "holdfast-checkpoint"
VERSION = 1
STATE = "state.safetensors"
_SCALARS = {"bool": (bool, np.bool_), "int": (int, np.int64), "float": (float, np.float64)}


class CheckpointMismatch(RunError):
    """A checkpoint does not fit what it is loaded into.

    Attributes:
        field: what differs, a header entry or the path of a leaf.
        seen: the value in the checkpoint.
        expected: the value asked for.
        remedy: what to do about it.
    """

    def __init__(self, directory: Path, field: str, seen: Any, expected: Any, remedy: str):
        super().__init__(f"{directory}: {field} is {seen!r}, expected {expected!r}; {remedy}")
        self.field, self.seen, self.expected, self.remedy = field, seen, expected, remedy


def save_checkpoint(directory: str | Path, tree: Any, header: Mapping[str, Any]) -> None:
    """Write `tree` to directory/state.safetensors, replacing it in one step; header.json is a copy to read by eye.

    Leaves may be arrays of any shape, typed PRNG keys, Python bools, ints, floats and words. Functions (activations)
    are not stored, only that one was there. None belongs to the tree's structure.

    Args:
        directory: made if it is missing.
        tree: any pytree.
        header: what identifies the state; at least the entries that loading will check, as task, physics, iteration.

    Raises:
        RunError: if a leaf or a header entry cannot be stored.
    """
    arrays, leaves = {}, {}
    for name, leaf in _named_leaves(tree):
        entry, array = _store(leaf, name)
        leaves[name] = entry
        if array is not None:
            arrays[name] = array
    document = {
        "format": FORMAT,
        "version": VERSION,
        "entries": to_json(header, "header"),
        "leaves": leaves,
        "arrays_sha256": _digest(arrays),
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # The header travels inside the file with the arrays, so that a kill between two writes cannot part them.
    atomic_write(directory / STATE, safetensors.numpy.save(arrays, {"header": text}))
    write_json(directory / "header.json", document)


def read_header(directory: str | Path) -> dict[str, Any]:
    """The header entries that were given to `save_checkpoint`, without reading the arrays.

    Raises:
        RunError: if there is no checkpoint, or it is damaged.
    """
    return from_json(_read(Path(directory), arrays=False)[0]["entries"])


def load_checkpoint(directory: str | Path, like: Any, expect: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The tree that was saved, in the structure of `like`, and its header entries.

    Args:
        like: a tree of the same structure, shapes and dtypes; its values do not matter (functions and words are taken
            from it). Array leaves may be `jax.ShapeDtypeStruct`; NumPy arrays come back as NumPy arrays.
        expect: header entries that must be equal, as task and physics.

    Raises:
        CheckpointMismatch: if an entry of `expect`, a path, a shape, a dtype or a kind differs.
        RunError: if there is no checkpoint, or it is damaged.
    """
    directory = Path(directory)
    document, arrays = _read(directory, arrays=True)
    entries = from_json(document["entries"])
    for field, expected in expect.items():
        seen, expected = entries.get(field), from_json(to_json(expected, field))
        if seen != expected:
            raise CheckpointMismatch(directory, field, seen, expected, _remedy(field))
    wanted, stored = _named_leaves(like), document["leaves"]
    for name, leaf in wanted:
        if name not in stored:
            raise CheckpointMismatch(directory, f"leaf {name}", None, _describe(leaf, name), _remedy("leaf"))
    extra = sorted(set(stored) - {name for name, _ in wanted})
    if extra:
        raise CheckpointMismatch(directory, f"leaf {extra[0]}", stored[extra[0]], None, _remedy("leaf"))
    leaves = [_restore(directory, name, leaf, stored[name], arrays.get(name)) for name, leaf in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), entries


def _remedy(field: str) -> str:
    if field == "physics":
        return "the system's equations or numbers changed after it was saved; restore them, or verify and train again"
    if field == "leaf":
        return "build the networks with the run's own config (config.json)"
    return f"load it with the {field} it was saved with, or train again"


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    named = [(jax.tree_util.keystr(path) or ".", leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    seen = set()
    for name, _ in named:
        if name in seen:
            raise RunError(f"two leaves of the tree are both called {name}; register its class with keys")
        seen.add(name)
    return named


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _describe(leaf: Any, name: str) -> dict[str, Any]:
    """What the header says about a leaf: its kind and whatever must agree on loading."""
    if _is_key(leaf):
        return {"kind": "key", "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    if isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return {"kind": "array", "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    for kind, (python_type, _) in _SCALARS.items():
        if type(leaf) is python_type:
            return {"kind": kind}
    if isinstance(leaf, str):
        return {"kind": "word", "value": leaf}
    if callable(leaf):
        return {"kind": "function"}
    raise RunError(f"leaf {name} is a {type(leaf).__name__}; checkpoints hold arrays, numbers, words and functions")


def _store(leaf: Any, name: str) -> tuple[dict[str, Any], np.ndarray | None]:
    entry = _describe(leaf, name)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise RunError(f"leaf {name} is a shape without values; save the arrays themselves")
    if entry["kind"] == "key":
        return entry | {"impl": str(jax.random.key_impl(leaf))}, np.array(jax.random.key_data(leaf), order="C")
    if entry["kind"] == "array":
        array = np.array(leaf, order="C")
        if array.dtype.kind not in "biufc":
            raise RunError(f"leaf {name} has dtype {array.dtype}, which cannot be stored; cast it to float32 first")
        return entry, array
    if entry["kind"] in _SCALARS:
        try:
            return entry, np.array(leaf, _SCALARS[entry["kind"]][1])
        except OverflowError:
            raise RunError(f"leaf {name} = {leaf} does not fit 64 bits; use an array") from None
    return entry, None


def _restore(directory: Path, name: str, like: Any, entry: dict[str, Any], array: np.ndarray | None) -> Any:
    wanted = _describe(like, name)
    for aspect, expected in wanted.items():
        seen = entry.get(aspect)
        if seen != expected:
            remedy = _remedy("leaf")
            if aspect == "dtype":
                remedy = "load it in the precision it was saved in (64-bit on or off), or convert `like` first"
            raise CheckpointMismatch(directory, f"{aspect} of leaf {name}", seen, expected, remedy)
    if entry["kind"] in ("word", "function"):
        return like
    if array is None:
        raise RunError(f"{directory / STATE}: the array of leaf {name} is missing; the file was edited, restore it")
    if entry["kind"] in _SCALARS:
        return _SCALARS[entry["kind"]][0](array)
    if isinstance(like, np.ndarray | np.generic):
        return array if isinstance(like, np.ndarray) else array[()]
    with jax.enable_x64(True):  # else 64-bit arrays would be narrowed on the way in
        restored = jnp.asarray(array)
        return jax.random.wrap_key_data(restored, impl=entry["impl"]) if entry["kind"] == "key" else restored


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(directory: Path, *, arrays: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    file = directory / STATE
    if not file.is_file():
        raise RunError(f"{file} does not exist; the run was stopped before its first checkpoint: train again")
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get("header")
            found = {name: opened.get_tensor(name) for name in opened.keys()} if arrays else {}  # noqa: SIM118
        document = json.loads(text) if text else None
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        raise RunError(f"{file} is damaged ({error}); restore it from a copy, or train again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RunError(f"{file} is not a holdfast checkpoint; give the checkpoint directory of a run")
    if document.get("version") != VERSION:
        raise RunError(
            f"{file} has format version {document.get('version')!r}, this holdfast reads {VERSION}; use the holdfast "
            "that wrote it, or train again"
        )
    if arrays and _digest(found) != document.get("arrays_sha256"):
        raise RunError(f"{file} is damaged: its arrays do not match its hash; restore it from a copy, or train again")
    return document, found
