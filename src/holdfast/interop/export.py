"""Exporting a safe controller: policy and safeguard with fixed parameters, as StableHLO programs beside a JSON header.

What is written needs no holdfast to run; see `holdfast.interop.controller`.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from holdfast.certify import Certificate
from holdfast.interop.controller import FORMAT, HEADER, VERSION, Controller, header_digest
from holdfast.runs.files import atomic_write
from holdfast.safeguards import Safeguard
from holdfast.tasks import Task
from holdfast.types import Status

PolicyFunction = Callable[[Any], Any]


class NotExportable(ValueError):
    """There is nothing safe to export; the text says why, and what to do."""


@dataclass(frozen=True)
class Agreement:
    """How an exported controller compares with the original, state by state.

    Attributes:
        states: how many were compared.
        equal: with equal status and bit-equal action.
        both_pass: not equal, but both actions pass the source's check in float64: rounding decided.
        differ: the rest.
        largest: distance of two actions, in half-widths of the input box.
        statuses: how often the original said what, by name.
    """

    states: int
    equal: int
    both_pass: int
    differ: int
    largest: float
    statuses: dict[str, int]


def export_controller(
    directory: str | Path,
    *,
    task: Task,
    guard: Safeguard,
    policy: PolicyFunction | None,
    certificate: Certificate,
    physics: str | None = None,
    dtype: Any = np.float32,
    platforms: tuple[str, ...] = ("cpu",),
) -> Path:
    """Writes `init`, `step` and, where they depend on nothing but state and time, the task's observations.

    Args:
        directory: made if it is missing; a controller that is there is replaced.
        task: gives names, units, shapes and observations.
        guard: the safeguard.
        policy: observation [o] -> action [m]; None exports the safeguard alone, whose `step` takes the proposed action.
        certificate: what the promise rests on; goes into the header.
        physics: hash of the physics of today's code, to be compared with the certificate's; None: it is believed.
        dtype: float32 or float64, of everything.
        platforms: on which the programs are to run: "cpu", "cuda".

    Raises:
        NotExportable: without the extra `export`, if there is no safeguard, the certificate does not hold, or it is about
            other physics.
    """
    _require_promise(guard, certificate, physics)
    dtype, directory = np.dtype(dtype), Path(directory)
    # In its own precision, whatever the process has: the programs must not hold 64-bit integers that a 32-bit one refuses.
    with jax.enable_x64(dtype == np.float64):
        functions, header = _functions(task, _in_precision(guard, dtype), _in_precision(policy, dtype), dtype)
        programs = {
            name: _serialised(export.export(jax.jit(function), platforms=platforms)(*arguments))
            for name, (function, arguments) in functions.items()
        }
    header |= {
        "certificate": certificate.to_json(),
        "platforms": list(platforms),
        "versions": {name: importlib.metadata.version(name) for name in ("holdfast", "jax", "jaxlib")},
        "programs": {
            name: {"file": f"{name}.stablehlo", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in programs.items()
        },
    }
    header = _strict(header)
    header["sha256"] = header_digest(header)
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in programs.items():
        atomic_write(directory / header["programs"][name]["file"], bytes(data))
    # Last, so that a directory with a header is whole.
    text = json.dumps(header, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(directory / HEADER, (text + "\n").encode())
    return directory


def _require_promise(guard: Any, certificate: Certificate, physics: str | None) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise NotExportable(
            "a program is written with flatbuffers, which is not installed: pip install holdfast[export]"
        )
    if not isinstance(guard, Safeguard):
        raise NotExportable(
            f"guard is a {type(guard).__name__}, so there is no safeguard to export; train with --safeguard ray (or another)"
        )
    broken = [o.name for o in certificate.open]
    if broken:
        raise NotExportable(
            f"the certificate does not hold ({', '.join(broken)}); a run must be verified before it is exported"
        )
    if not certificate.physics:
        raise NotExportable("the certificate names no physics; certify with physics=, the hash of what it is about")
    if physics is not None and physics != certificate.physics:
        raise NotExportable(
            f"the certificate is about the physics {certificate.physics[:12]}, but the task's are {physics[:12]} today; restore "
            "its equations and bounds, or verify and train again"
        )


def _serialised(program: export.Exported) -> bytearray:
    try:
        return program.serialize()
    except ImportError as error:
        raise ImportError(f"a program is written with FlatBuffers: pip install holdfast[export] ({error})") from error


def _in_precision(tree: Any, dtype: np.dtype) -> Any:
    """Learned numbers in the precision of the program; NumPy constants stay, as each use rounds them its own way."""

    def convert(leaf):
        is_real = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(np.asarray(leaf), dtype) if is_real else leaf

    return jax.tree.map(convert, tree)


def _functions(task: Task, guard: Safeguard, policy: PolicyFunction | None, dtype: np.dtype):
    """name -> (function of arrays, example arguments), and what the header says of them."""
    system = task.system
    x = jax.ShapeDtypeStruct((system.state_size,), dtype)
    proposed = jax.ShapeDtypeStruct((system.input_size,), dtype)
    commitment = jax.eval_shape(guard.init, x)
    leaves, structure = jax.tree.flatten(commitment)
    context = jax.eval_shape(task.sample_context, jax.random.key(0))
    t = jax.ShapeDtypeStruct((), jnp.int32)
    observed = jax.eval_shape(task.observe, x, t, context).shape
    given = proposed if policy is None else jax.ShapeDtypeStruct(observed, dtype)

    def init(x):
        return tuple(jax.tree.leaves(guard.init(x)))

    def step(leaves, x, given):
        u = given if policy is None else policy(given).astype(dtype)
        answer, following = guard.step(jax.tree.unflatten(structure, leaves), x, u)
        return answer.action, answer.status, answer.margin, tuple(jax.tree.leaves(following))

    functions: dict[str, Any] = {"init": (init, (x,)), "step": (step, (tuple(leaves), x, given))}
    if policy is not None and not jax.tree.leaves(context):
        functions["observe"] = (lambda x, t: task.observe(x, t, context).astype(dtype), (x, t))
    lower, upper = (np.asarray(bound).tolist() for bound in guard.source.input_box.bounds(dtype))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(commitment)]
    header = {
        "format": FORMAT,
        "version": VERSION,
        "task": task.name,
        "dt": system.dt,
        "state": {"names": system.state_names, "units": system.state_units, **_described(x)},
        "input": {"kind": "action" if policy is None else "observation", **_described(given)},
        "action": {
            "names": system.input_names,
            "units": system.input_units,
            "lower": lower,
            "upper": upper,
            **_described(proposed),
        },
        "commitment": [{"name": path, **_described(leaf)} for path, leaf in zip(paths, leaves)],
        "statuses": {str(int(s)): {"name": s.name, "cause": s.cause, "remedy": s.remedy} for s in Status},
    }
    return functions, header


def _described(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _strict(value: Any) -> Any:
    """What JSON gives back when it is read: lists for tuples, words for numbers that are none."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def agreement(
    controller: Controller,
    *,
    task: Task,
    guard: Safeguard,
    policy: PolicyFunction | None,
    states: int = 10_000,
    seed: int = 0,
) -> Agreement:
    """Compares an exported controller with the original, each for one state at a time as in deployment.

    States are drawn from `task.sample_state`, more than needed, and certified ones are taken first. The policy sees them
    at a random time; for every other state it sees something distorted, so that the safeguard has something to correct.
    """
    dtype = np.dtype(controller.header["state"]["dtype"])
    with jax.enable_x64(dtype == np.float64):
        guard, policy = _in_precision(guard, dtype), _in_precision(policy, dtype)
        x, given = (np.asarray(each) for each in _situations(task, guard, policy, states, seed, dtype))

        @jax.jit
        def original(x, given):
            u = given if policy is None else policy(given).astype(dtype)
            answer = guard.guard(x, u)
            return answer.action, answer.status

        pairs = []
        for state, seen in zip(x, given):
            action, status = original(state, seen)
            answer = controller.step(controller.init(state), state, seen)
            pairs.append((np.asarray(action), int(status), answer.action, answer.status))
    actions, statuses, exported, exported_statuses = (np.array(each) for each in zip(*pairs))
    equal = (statuses == exported_statuses) & np.all(actions == exported, axis=1)
    rows = np.flatnonzero(~equal)
    apart = np.abs(actions - exported) / guard.source.input_box.half_widths
    passed = _pass_in_float64(guard, x[rows], actions[rows]) & _pass_in_float64(guard, x[rows], exported[rows])
    counts = {status.name: int(np.sum(statuses == status)) for status in Status}
    return Agreement(len(x), int(equal.sum()), int(passed.sum()), int((~passed).sum()), float(apart.max()), counts)


def _situations(task: Task, guard: Safeguard, policy: Any, states: int, seed: int, dtype: np.dtype):
    """States [S, n] and what is given at them, [S, o] or [S, m]."""

    def one(key, index):
        state_key, time_key, context_key, noise_key = jax.random.split(key, 4)
        x = task.sample_state(state_key).astype(dtype)
        if policy is None:
            box = guard.source.input_box
            half = jnp.asarray(box.half_widths, dtype)
            return x, jnp.asarray(box.centre, dtype) + 1.3 * half * jax.random.uniform(
                noise_key, half.shape, dtype, -1, 1
            )
        t = jax.random.randint(time_key, (), 0, max(task.episode_steps, 1), jnp.int32)
        seen = task.observe(x, t, task.sample_context(context_key)).astype(dtype)
        distorted = seen * (1 + 3 * jax.random.normal(noise_key, seen.shape, dtype))
        return x, jnp.where(index % 2 == 0, seen, distorted)

    def certified_first(keys):
        x, given = jax.vmap(one)(keys, jnp.arange(len(keys), dtype=jnp.int32))
        chosen = jnp.argsort(~jax.vmap(guard.init)(x).certified, stable=True)[:states]
        return x[chosen], given[chosen]

    return jax.jit(certified_first)(jax.random.split(jax.random.key(seed), 4 * states))


def _pass_in_float64(guard: Safeguard, x: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Whether the source's check accepts actions [S, m] at states [S, n], shape [S]."""
    if not len(x):
        return np.zeros(0, bool)
    with jax.enable_x64(True):
        check = jax.jit(jax.vmap(lambda x, u: guard.source.check(x, u).certified))
        return np.asarray(check(jnp.asarray(x, jnp.float64), jnp.asarray(actions, jnp.float64)))
