"""The physics hash: one word for the equations and the numbers a certificate speaks about."""

import enum
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Calls that compute what their body computes: they are read through, so that a `jit` or a custom derivative around an
# expression does not make other physics of it.
_TRANSPARENT = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
# Parameters that name, place or differentiate, and do not change a value.
_SILENT = frozenset(
    (
        *("name", "debug", "debug_info", "metadata", "ctx_mesh", "inline", "keep_unused", "donated_invars", "unroll"),
        *("sharding", "in_shardings", "out_shardings", "out_sharding", "in_layouts", "out_layouts"),
        "compiler_options_kvs",
    )
)


def physics_hash(functions: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], constants: Any = ()) -> str:
    """SHA-256, in hexadecimal, of the functions' programs and of every number in them and in `constants`.

    Functions are traced in float64, without being run. Names of Python variables, `jit` and derivative rules do not
    matter; the last bit of every constant does. Equal hashes mean equal programs; equal physics written in another
    way may hash differently, and so may another version of JAX: verify again then.

    Args:
        functions: name -> (function, example arguments); arguments are pytrees of arrays or `jax.ShapeDtypeStruct`, of
            which only shapes and dtypes matter.
        constants: pytree of further numbers and words, as boxes, weights of costs, horizons. No functions.

    Raises:
        TypeError: if a leaf of `constants` is no number, array or word, or a function calls back into Python.
    """
    digest = hashlib.sha256()
    with jax.enable_x64(True):
        for name in sorted(functions):
            function, arguments = functions[name]
            # A fresh function, because traces are cached by identity and a cached trace would not see a field of a
            # mutable object that has changed since.
            program = jax.make_jaxpr(lambda *a, f=function: f(*a))(*jax.tree.map(_shape, arguments))
            _feed(digest, "function", name)
            _Program(digest).closed(program)
    for path, leaf in jax.tree_util.tree_leaves_with_path(constants):
        _feed(digest, "constant", jax.tree_util.keystr(path))
        if isinstance(leaf, str):
            _feed(digest, "word", leaf)
        elif isinstance(leaf, bool | int | float | complex | np.ndarray | np.generic | jax.Array):
            _feed_array(digest, leaf)
        else:
            raise TypeError(
                f"constants{jax.tree_util.keystr(path)} is a {type(leaf).__name__}; give numbers, arrays and words "
                "here, and functions in `functions` with example arguments"
            )
    return digest.hexdigest()


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))


class _Program:
    """Feeds one jaxpr to a digest. Variables are numbered in the order of their appearance.

    A scope maps the variables of one body to their numbers. Each body that is read through gets a scope of its own:
    traces are cached, so one body may be called twice, and share variables with its caller.
    """

    def __init__(self, digest: Any):
        self.digest = digest
        self.next = 0

    def closed(self, program: core.ClosedJaxpr) -> None:
        arguments = []
        for variable in program.jaxpr.invars:
            arguments.append(self._number("variable"))
            _feed(self.digest, "input", str(variable.aval))
        _feed(self.digest, "outputs", *self._body(program, arguments))

    def _number(self, kind: str) -> str:
        self.next += 1
        return f"{kind} {self.next}"

    def _body(self, program: core.ClosedJaxpr, arguments: list[str]) -> list[str]:
        jaxpr = program.jaxpr
        scope: dict[Any, str] = dict(zip(jaxpr.invars, arguments))
        for variable, constant in zip(jaxpr.constvars, program.consts):
            scope[variable] = self._number("constant")
            _feed(self.digest, scope[variable])
            _feed_array(self.digest, constant)
        for equation in jaxpr.eqns:
            references = [self._refer(v, scope) for v in equation.invars]
            inner = self._transparent(equation)
            if inner is None:
                results = self._equation(equation, references)
            else:
                results = self._body(inner, references)
            scope.update(zip(equation.outvars, results))
        return [self._refer(v, scope) for v in jaxpr.outvars]

    @staticmethod
    def _transparent(equation: Any) -> core.ClosedJaxpr | None:
        if equation.primitive.name not in _TRANSPARENT:
            return None
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            inner = equation.params.get(key)
            if isinstance(inner, core.Jaxpr):
                inner = core.ClosedJaxpr(inner, ())
            if isinstance(inner, core.ClosedJaxpr) and len(inner.jaxpr.invars) == len(equation.invars):
                return inner
        return None

    def _equation(self, equation: Any, references: list[str]) -> list[str]:
        name = equation.primitive.name
        if "callback" in name and not name.startswith("debug"):
            raise TypeError(f"the function calls Python ({name}), whose code no hash can see; write it in jax.numpy")
        _feed(self.digest, "equation", name, *references)
        for key in sorted(equation.params):
            if key not in _SILENT:
                _feed(self.digest, "parameter", key)
                self._parameter(equation.params[key])
        results = []
        for variable in equation.outvars:
            results.append(self._number("variable"))
            _feed(self.digest, "output", str(variable.aval))
        return results

    def _refer(self, atom: Any, scope: dict[Any, str]) -> str:
        if not isinstance(atom, core.Literal):
            return scope[atom]
        reference = self._number("literal")
        _feed(self.digest, reference, str(atom.aval))
        _feed_array(self.digest, atom.val)  # never the printed text: it rounds
        return reference

    def _parameter(self, value: Any) -> None:
        if isinstance(value, core.Jaxpr):
            value = core.ClosedJaxpr(value, ())
        if isinstance(value, core.ClosedJaxpr):
            _feed(self.digest, "program")
            _Program(self.digest).closed(value)
        elif isinstance(value, enum.Enum):
            _feed(self.digest, "enum", type(value).__name__, value.name)
        elif value is None or isinstance(value, bool | int | str):
            _feed(self.digest, type(value).__name__, str(value))
        elif isinstance(value, np.dtype):
            _feed(self.digest, "dtype", str(value))
        elif isinstance(value, float | complex | np.ndarray | np.generic | jax.Array):
            _feed_array(self.digest, value)
        elif isinstance(value, Mapping):
            _feed(self.digest, "mapping", str(len(value)))
            for key in sorted(value, key=str):
                _feed(self.digest, "key", str(key))
                self._parameter(value[key])
        elif isinstance(value, set | frozenset):
            _feed(self.digest, "set", *sorted(map(str, value)))
        elif isinstance(value, tuple | list):
            _feed(self.digest, type(value).__name__, str(len(value)))
            for item in value:
                self._parameter(item)
        elif callable(value):
            pass  # rules and thunks for derivatives and batching
        else:
            text = repr(value)  # dimension numbers and the like print all they hold
            _feed(self.digest, type(value).__name__, "" if " at 0x" in text else text)


def _feed_array(digest: Any, value: Any) -> None:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        _feed(digest, str(value.dtype))
        value = jax.random.key_data(value)
    array = np.asarray(value)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    _feed(digest, "array", array.dtype.name, str(array.shape))
    digest.update(little.tobytes())


def _feed(digest: Any, *words: str) -> None:
    for word in words:
        data = word.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
