"""Tasks of one's own: from FILE.py:NAME to a task with every setting, or one sentence about what is wrong."""

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path

import jax
import numpy as np

from holdfast.interop.completion import complete_task
from holdfast.systems import System
from holdfast.tasks import Task, UnknownTask
from holdfast.testing import check_declaration, check_task

__all__ = ["absolute", "complete_task", "load_own"]

#: What a class has to give, and how that is written.
_GIVE = {
    "dt": "the sampling period in s, as `dt = 0.05`",
    "input_box": "the bounds of the inputs, as `input_box = Box([-1.0], [1.0])`",
    "state_names": 'a word for each state, as `state_names = ("p", "v")`',
    "input_names": 'a word for each input, as `input_names = ("a",)`',
    "derivative": "x' as `def derivative(self, x, u, w): return jnp.stack([x[1], u[0]])`",
    "step": "x+ as `def step(self, x, u, w=None)`, or subclass ContinuousSystem and give `derivative`",
    "equilibrium": "(x*, u*) as `def equilibrium(self): return jnp.zeros(2), jnp.zeros(1)`",
    "system": "what moves, as `system = MySystem()`",
    "safe_set": 'the constraints, as `safe_set = SuperlevelSet(lambda x: jnp.stack([1 - x[0]]), ("wall",))`',
    "reward": "a number a step, as `def reward(self, x, u, x_next, t, context): return -x_next[0] ** 2`",
}
_loaded: dict[tuple[str, str, str], Task] = {}


def absolute(spec: str) -> str:
    """FILE.py:NAME with the whole path, so that a run finds its task from everywhere; another name as it is."""
    file, _, name = spec.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if file.endswith(".py") else spec


def load_own(spec: str) -> Task:
    """The task class NAME of FILE.py, made, checked and completed; a file that has not changed is loaded once.

    Raises:
        UnknownTask: if there is no such file or class, the file does not import, or the class cannot be made.
        ConformanceError: if the task or its system breaks a rule; before and after the settings are derived.
        ValueError, NotProvable: if a setting cannot be derived (`derive_defaults`).
    """
    file, _, name = spec.rpartition(":")
    if not file:
        raise UnknownTask(f"task = {spec!r}: name the class as well, as in {spec}:MyTask")
    path = Path(file)
    if not path.is_file():
        raise UnknownTask(f"task = {spec!r}: there is no file {file}")
    key = (str(path.resolve()), name, hashlib.sha256(path.read_bytes()).hexdigest())
    if key not in _loaded:
        task = _make(spec, path, name)
        check_declaration(task)
        # Training tells seeds apart by their JAX arrays; a task's own numbers are shared by all of them.
        task = jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, task)
        task = complete_task(task)
        check_task(task)
        _loaded[key] = task
    return _loaded[key]


def _make(spec: str, path: Path, name: str) -> Task:
    module_spec = importlib.util.spec_from_file_location(f"holdfast_task_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UnknownTask(f"task = {spec!r}: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look up annotations there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        for each in vars(module).values():
            _refuse_lacking(each, spec)
        where = _line(error, path)
        raise UnknownTask(
            f"task = {spec!r}: {path} does not import: {type(error).__name__}: {error}{where}. Mend that line; what the file "
            "imports must be installed beside holdfast"
        ) from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        tasks = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Task) and v is not Task]
        raise UnknownTask(f"task = {spec!r}: {path} has no task {name}; its tasks are: {', '.join(tasks) or 'none'}")
    _refuse_lacking(found, spec)
    try:
        return found()
    except Exception as error:
        raise UnknownTask(
            f"task = {spec!r}: {name}() fails: {type(error).__name__}: {error}{_line(error, path)}. Give every field a "
            "default, so that the class can be made without arguments"
        ) from error


def _refuse_lacking(found: object, spec: str) -> None:
    """Names what a system or task class of the file left abstract."""
    if not (isinstance(found, type) and issubclass(found, System | Task)) or found.__module__.startswith("holdfast."):
        return
    sets = ("__abstractmethods__", "__abstractvars__", "__abstractclassvars__")
    lacking = sorted(set().union(*(getattr(found, each, ()) for each in sets)))
    if lacking:
        words = "; ".join(f"{name}: give {_GIVE.get(name, 'it')}" for name in lacking)
        raise UnknownTask(f"task = {spec!r}: class {found.__name__} lacks {words}")


def _line(error: Exception, path: Path) -> str:
    """Where in the file an exception was raised, in words; empty if it was elsewhere."""
    if isinstance(error, SyntaxError):
        return ""  # its own words say it
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f" (line {lines[-1]})" if lines else ""
