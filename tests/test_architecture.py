"""The house rules, read from the source: who imports whom, what no file may hold, and what an import may not do."""

import ast
import graphlib
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "holdfast"

# Room: the rooms it may import. `types`, the shared vocabulary, is open to all and left out of the rows.
_TO_CERTIFY = {"backup", "systems", "sets", "solvers"}
_TO_SAFEGUARDS = _TO_CERTIFY | {"certify"}
_TO_EVALUATE = _TO_SAFEGUARDS | {"safeguards", "tasks", "runs"}
_TO_INTEROP = _TO_EVALUATE | {"learn", "evaluate", "plots"}
MAY_IMPORT = {
    "types": set(),
    "solvers": set(),
    "sets": {"solvers"},
    "systems": {"sets"},
    "backup": {"systems", "sets"},
    "certify": _TO_CERTIFY,
    "safeguards": _TO_SAFEGUARDS,
    "tasks": {"systems", "sets"},
    "learn": {"tasks", "backup", "systems", "sets"},
    "runs": set(),
    "evaluate": _TO_EVALUATE,
    "plots": _TO_EVALUATE | {"evaluate"},  # a picture needs names and units of the task, and its sets
    "interop": _TO_INTEROP,
    "cli": _TO_INTEROP | {"interop", "testing", "version"},  # version: `from holdfast import __version__`
    "testing": {"systems", "sets", "tasks"},
    "__main__": {"cli"},
}
LONGEST_FILE = 450
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jax._src", "jaxlib"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "breakpoint"}

#: Modules that need an extra: they import it at once, and whoever imports them has asked for it.
EXTRAS = {
    "holdfast.interop.stable_baselines3": "stable_baselines3",
    "holdfast.interop.torch": "torch",
    "holdfast.interop.mjx": "mujoco",
}

FILES = sorted(SOURCE.rglob("*.py"))


def _module(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str | None:
    """The room of a module of ours; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


MODULES = {_module(file): file for file in FILES}


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of every import at any depth, absolute; `from package import module` gives the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if base == "holdfast" and whole not in MODULES:
                    yield node.lineno, "holdfast.version" if alias.name == "__version__" else whole
                else:
                    yield node.lineno, whole if whole in MODULES else base


def _imports_of(file: Path) -> list[tuple[int, str]]:
    found = _imports(_tree(file), _module(file), file.name == "__init__.py")
    return list(dict.fromkeys(found))  # `from room import a, b` is one import


def _files_of(room: str) -> list[Path]:
    return [file for file in FILES if _room(_module(file)) == room]


def _where(file: Path, line: int) -> str:
    return f"{file.relative_to(SOURCE.parent)}:{line}"


def test_every_room_is_in_the_table():
    rooms = {_room(module) for module in MODULES} - {None}
    assert rooms <= set(MAY_IMPORT), f"rooms without a row: {sorted(rooms - set(MAY_IMPORT))}"


def test_the_table_has_an_order():
    """Rooms can be built one after the other, each from those before it."""
    tuple(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_it_may(room):
    allowed = MAY_IMPORT[room] | {"types", room}
    wrong = [
        f"{_where(file, line)} imports {target}"
        for file in _files_of(room)
        for line, target in _imports_of(file)
        if target.split(".")[0] == "holdfast" and _room(target) not in allowed
    ]
    assert not wrong, f"{room} may import {sorted(allowed)}:\n" + "\n".join(wrong)


def test_the_checker_sees_every_way_to_import():
    ways = ast.parse(
        "import holdfast.learn\n"
        "from holdfast import learn\n"
        "from holdfast.learn import x\n"
        "from ..learn import x\n"
        "from .. import learn\n"
        "def later():\n    from holdfast.learn.deep import y\n"
    )
    found = [_room(target) for _, target in _imports(ways, "holdfast.runs.files", is_package=False)]
    assert found == ["learn"] * 6
    own = ast.parse("from .files import x\nfrom ..types import Status\n")
    found = [target for _, target in _imports(own, "holdfast.runs", is_package=True)]
    assert found == ["holdfast.runs.files", "holdfast.types"]


def test_no_module_imports_itself_in_a_circle():
    graph = {
        module: {target for _, target in _imports_of(file) if target in MODULES and target != "holdfast"} - {module}
        for module, file in MODULES.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_no_pickle_no_eval_no_private_jax_no_print(room):
    wrong = []
    for file in _files_of(room):
        for line, target in _imports_of(file):
            if any(target == bad or target.startswith(bad + ".") for bad in FORBIDDEN_MODULES):
                wrong.append(f"{_where(file, line)} imports {target}")
        for node in ast.walk(_tree(file)):
            if isinstance(node, ast.Attribute) and node.attr == "_src":
                wrong.append(f"{_where(file, node.lineno)} reaches into _src")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                wrong.append(f"{_where(file, node.value.lineno)} names allow_pickle")
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if called in FORBIDDEN_CALLS or (called == "print" and room != "cli"):
                wrong.append(f"{_where(file, node.lineno)} calls {called}")
    assert not wrong, "\n".join(wrong)


def test_no_file_is_long():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    long = [f"{_where(file, length)}" for file, length in lengths.items() if length > LONGEST_FILE]
    assert not long, f"over {LONGEST_FILE} lines: " + ", ".join(long)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_what_a_room_exports_is_documented(room):
    name = f"holdfast.{room}"
    if name not in MODULES:
        pytest.skip("not built yet")
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    if MODULES[name].name == "__init__.py":
        public = list(getattr(module, "__all__", []))
        built = len(_files_of(room)) > 1
        assert public or not built, f"{name}/__init__.py has no __all__"
    else:
        public = [n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", "") == name]
    missing = []
    for attribute in public:
        value = getattr(module, attribute)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        text = value.__doc__ or ""
        # A dataclass without a docstring is given its signature for one.
        if not text.strip() or text.startswith(f"{value.__name__}("):
            missing.append(attribute)
    assert not missing, f"{name}: without a docstring: {', '.join(missing)}"


def test_no_module_of_the_core_imports_an_extra():
    """Not even through a module of ours that needs one."""
    foreign = set(EXTRAS.values())
    wrong = [
        f"{_where(file, line)} imports {target}"
        for module, file in MODULES.items()
        for line, target in _imports_of(file)
        if module not in EXTRAS and (target.split(".")[0] in foreign or target in EXTRAS)
    ]
    assert not wrong, "\n".join(wrong)


_IMPORT_ALL = """
import os, sys, warnings
import gymnasium, jax, jaxtyping, equinox, optax, numpy, scipy, safetensors  # whatever they do is theirs
environment, config, state = dict(os.environ), dict(jax.config.values), numpy.random.get_state()[1].tobytes()
filters = list(warnings.filters)
import importlib
for name in {modules!r}:
    importlib.import_module(name)
assert not jax.config.jax_enable_x64, "an import switched 64-bit on"
changed = [k for k, v in jax.config.values.items() if config.get(k, v) != v]
assert not changed, f"an import changed jax.config: {{changed}}"
assert dict(os.environ) == environment, "an import changed the environment"
assert numpy.random.get_state()[1].tobytes() == state, "an import drew from numpy's global generator"
assert [f for f in filters if f not in warnings.filters] == [], "an import removed warning filters"
assert not set(["torch", "stable_baselines3", "mujoco"]) & set(sys.modules), "an extra is imported by the core"
try:
    jax.numpy.zeros(1)
except Exception:
    print("no backend so far")
"""


def test_importing_has_no_side_effects(tmp_path):
    """With a platform that does not exist, whatever initialises a backend fails; the last lines prove that it would."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    modules = [module for module in MODULES if not module.endswith("__main__") and module not in EXTRAS]
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "HOLDFAST_"))} | {
        "JAX_PLATFORMS": "no_such_platform",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),  # its font cache is its own business
    }
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL.format(modules=modules)],
        cwd=work,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "no backend so far\n"
    assert [*home.rglob("*"), *work.rglob("*")] == []


def _code_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of a file's lines that say something: no blanks, comments, imports or lone punctuation."""
    tree = ast.parse(path.read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    silent = {line for node in imports for line in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(path.read_text().splitlines(), 1)
    spoken = [(number, " ".join(line.split())) for number, line in lines if number not in silent]
    return [(n, line) for n, line in spoken if re.search(r"\w", line) and not line.startswith("#")]


def test_no_run_of_lines_stands_twice():
    """No trainer, safeguard or report logic is written twice: six lines of code in a row stand in one place only."""
    length, seen, twice = 6, {}, set()
    for folder in ("src", "tests", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = _code_lines(path)
            for i in range(len(lines) - length + 1):
                run = tuple(text for _, text in lines[i : i + length])
                place = f"{path.relative_to(ROOT)}:{lines[i][0]}"
                if run in seen:
                    twice.add((seen[run], place))
                seen.setdefault(run, place)
    assert not twice, sorted(twice)
