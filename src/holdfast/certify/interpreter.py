"""Interpretation of JAX functions in an abstract domain (intervals, slopes, rounding errors).

The function is traced once, under float64 whatever the caller's setting, to a jaxpr (JAX's intermediate program);
each equation is then carried out by the domain's own rule, in numpy. Programs are read as statements about real
numbers: a conversion between float types is the identity (rounding is bounded apart, see
`holdfast.certify.rounding`).

Integers and booleans that do not depend on the arguments are computed exactly by JAX itself. Data movement (slice,
stack, gather...) is exact in every domain: the primitive runs once on the flat indices of its operands, and the result
says where each entry comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from holdfast.certify import interval as iv
from holdfast.certify.domain import Domain, UnsupportedPrimitive
from holdfast.certify.interval import Interval
from holdfast.certify.written_out import WRITTEN_OUT, live_equations, needed_after, written_out


def gather_arrays(arrays: list[np.ndarray], sizes: list[int], index: np.ndarray, tail: int) -> np.ndarray:
    """`Domain.gather` for one component array per value; `tail` counts the axes behind the value's own."""
    flat = [a.reshape((size, *a.shape[a.ndim - tail :])) for a, size in zip(arrays, sizes)]
    if len(flat) == 1:
        return flat[0][index]
    rest = np.broadcast_shapes(*(a.shape[1:] for a in flat))
    return np.concatenate([np.broadcast_to(a, (a.shape[0], *rest)) for a in flat])[index]


def gather_intervals(values: list[Interval], sizes: list[int], index: np.ndarray, tail: int = 1) -> Interval:
    lo = gather_arrays([v.lo for v in values], sizes, index, tail)
    thin = all(v.is_thin for v in values)
    return Interval(lo, lo if thin else gather_arrays([v.hi for v in values], sizes, index, tail))


# Which operands of a data movement carry data; the others are indices and must be known.
_MOVES: dict[str, slice | tuple[int, ...]] = {
    "broadcast_in_dim": (0,),
    "copy": (0,),
    "copy_p": (0,),
    "device_put": (0,),
    "dynamic_slice": (0,),
    "expand_dims": (0,),
    "gather": (0,),
    "optimization_barrier": slice(None),
    "reshape": (0,),
    "rev": (0,),
    "slice": (0,),
    "split": (0,),
    "squeeze": (0,),
    "stop_gradient": (0,),
    "tile": (0,),
    "transpose": (0,),
    "unstack": (0,),
    "concatenate": slice(None),
    "stack": slice(None),
    "pad": slice(None),
    "select_n": slice(1, None),
    "dynamic_update_slice": (0, 1),
    "scatter": (0, 2),
}
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}


def _is_float(aval) -> bool:
    return np.issubdtype(aval.dtype, np.floating)


def _lift_bool(value) -> Interval:
    return value if isinstance(value, Interval) else Interval.constant(value)


class Program:
    """A JAX function, traced to a jaxpr for arguments of given shapes, ready to run in any domain.

    `example` is a pytree of objects with a `shape` (all taken as float64), one per argument.
    Errors: `UnsupportedPrimitive` when run, naming the primitive.
    """

    def __init__(self, function: Callable, *example):
        self.name = getattr(function, "__name__", None) or type(function).__name__
        structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), np.float64), example)
        with jax.enable_x64(True):
            closed, out = jax.make_jaxpr(function, return_shape=True)(*structs)
        self.jaxpr: ClosedJaxpr = closed
        self.out_tree = jax.tree.structure(out)
        self.out_shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(out)]
        self._memory: dict = {}

    def __call__(self, domain: Domain, *values) -> list[Any]:
        """Flat list of results for a flat list of the domain's values (one per leaf of the arguments)."""
        with jax.enable_x64(True), np.errstate(all="ignore"):
            return [self._as_value(domain, v) for v in self._run(domain, self.jaxpr, values)]

    @staticmethod
    def _as_value(domain: Domain, value):
        return domain.constant(value) if isinstance(value, np.ndarray) else value

    def _run(self, domain: Domain, program, values, needed: tuple[bool, ...] | None = None) -> list[Any]:
        """Results for values; None for those that are not `needed`, with what only they depend on left out."""
        closed = isinstance(program, ClosedJaxpr)
        jaxpr = program.jaxpr if closed else program
        needed = (True,) * len(jaxpr.outvars) if needed is None else needed
        store: dict = {}

        def known_or_constant(array):
            array = np.asarray(array)
            return domain.constant(array) if np.issubdtype(array.dtype, np.floating) else array

        for var, const in zip(jaxpr.constvars, program.consts if closed else ()):
            store[var] = known_or_constant(const)
        store.update(zip(jaxpr.invars, values))
        read = lambda atom: known_or_constant(atom.val) if isinstance(atom, Literal) else store[atom]  # noqa: E731
        for equation, wanted in self._live(jaxpr, needed):
            results = self._equation(domain, equation, [read(atom) for atom in equation.invars], wanted)
            store.update(zip(equation.outvars, results))
        return [read(atom) if need else None for atom, need in zip(jaxpr.outvars, needed)]

    def _live(self, jaxpr, needed: tuple[bool, ...]) -> list:
        """Pairs of a live equation and which of its results are needed."""
        key = (id(jaxpr), needed)
        if key not in self._memory:
            live = live_equations(jaxpr, needed)
            self._memory[key] = list(zip(live, needed_after(jaxpr, needed, live)))
        return self._memory[key]

    def _equation(self, domain: Domain, equation, values: list[Any], needed: tuple[bool, ...]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name in _CALLS and _CALLS[name] in params:
            return self._run(domain, params[_CALLS[name]], values, needed)
        if name == "scan":
            return self._scan(domain, equation, values)
        if all(isinstance(v, np.ndarray) for v in values):
            results = self._remember(equation, values, lambda: self._bind(equation, values))
            return [domain.constant(r) if np.issubdtype(r.dtype, np.floating) else r for r in results]
        if name in WRITTEN_OUT:
            program, taken = self._remember(equation, values, lambda: written_out(equation, values, self.name))
            return self._run(domain, program, [self._as_value(domain, values[i]) for i in taken])
        if name in _MOVES and not (name == "select_n" and not isinstance(values[0], np.ndarray)):
            return self._move(domain, equation, values)
        if name in _COMPARISONS:
            a, b = (_lift_bool(v) if isinstance(v, np.ndarray) else domain.enclosure(v) for v in values)
            if equation.invars[0] is equation.invars[1] and name in ("eq", "ne"):
                return [self._is_nan(a, name == "ne")]
            return [iv.compare(name, a, b)]
        if equation.invars and all(atom.aval.dtype == bool for atom in equation.invars):
            result = self._logic(name, params, [_lift_bool(v) for v in values])
            if result is not None:
                return [result]
        return [self._apply(domain, equation, values)]

    def _apply(self, domain: Domain, equation, values):
        name, params = equation.primitive.name, equation.params
        aval = equation.outvars[0].aval
        if name == "select_n":
            if equation.invars[0].aval.dtype != bool:
                raise UnsupportedPrimitive(name, self.name, " with an integer selector that depends on the arguments")
            if aval.dtype == bool:
                return iv.select(values[0], *map(_lift_bool, values[1:]))
            return domain.select(values[0], *(self._as_value(domain, v) for v in values[1:]))
        if name == "convert_element_type":
            return self._convert(domain, equation, values[0])
        values = [self._as_value(domain, v) for v in values]
        if name == "reduce_sum":
            return self._total(domain, equation, self._slices(domain, equation, values[0]))
        if name in ("reduce_max", "reduce_min", "reduce_prod"):
            rule = domain.rules[{"reduce_max": "max", "reduce_min": "min", "reduce_prod": "mul"}[name]]
            terms = self._slices(domain, equation, values[0])
            result = terms[0]
            for term in terms[1:]:
                result = rule(result, term)
            return result
        if name == "dot_general":
            return self._dot(domain, equation, *values)
        if name not in domain.rules:
            raise UnsupportedPrimitive(name, self.name)
        return domain.rules[name](*values, **params)

    def _convert(self, domain: Domain, equation, value):
        source, target = equation.invars[0].aval.dtype, np.dtype(equation.params["new_dtype"])
        if source.kind == "b":
            one_or_zero = (domain.constant(np.zeros(())), domain.constant(np.ones(())))
            return value if target.kind == "b" else domain.select(value, *one_or_zero)
        if target.kind == "b":
            return iv.compare("ne", domain.enclosure(value), Interval.constant(0.0))
        if np.issubdtype(target, np.integer) and np.issubdtype(source, np.floating):
            return domain.rules["truncate"](value)
        return value

    @staticmethod
    def _is_nan(x: Interval, answer: bool) -> Interval:
        """x != x is how programs ask for NaN: a bounded interval is none, anything else may be one."""
        known = np.isfinite(x.lo) & np.isfinite(x.hi)
        no = Interval(np.zeros_like(known), ~known)
        return no if answer else Interval(~no.hi, ~no.lo)

    def _logic(self, name: str, params: dict, values: list[Interval]) -> Interval | None:
        if name == "not":
            return Interval(~values[0].hi, ~values[0].lo)
        if name in ("and", "or"):
            operation = np.logical_and if name == "and" else np.logical_or
            return Interval(operation(values[0].lo, values[1].lo), operation(values[0].hi, values[1].hi))
        if name == "xor":
            return iv.compare("ne", *values)
        if name in ("reduce_and", "reduce_or"):
            operation = np.logical_and if name == "reduce_and" else np.logical_or
            axes = tuple(params["axes"])
            return Interval(operation.reduce(values[0].lo, axes), operation.reduce(values[0].hi, axes))
        return None

    # --- data movement -----------------------------------------------------------------------------------------

    def _bind(self, equation, values) -> list[np.ndarray]:
        with jax.default_device(jax.devices("cpu")[0]):
            result = equation.primitive.bind(*values, **equation.params)
        return [np.asarray(r) for r in (result if equation.primitive.multiple_results else [result])]

    def _remember(self, equation, known: list, compute: Callable):
        """Results that depend on the program alone are computed once per program."""
        key = (id(equation), tuple((v.tobytes(), v.shape) for v in known if isinstance(v, np.ndarray)))
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    def _move(self, domain: Domain, equation, values) -> list[Any]:
        name = equation.primitive.name
        if name in ("device_put", "optimization_barrier"):
            return list(values)
        moved = _MOVES[name]
        positions = range(len(values))[moved] if isinstance(moved, slice) else moved
        for i, value in enumerate(values):
            if i not in positions and not isinstance(value, np.ndarray):
                raise UnsupportedPrimitive(name, self.name, " with indices that depend on the arguments")
        shapes = [equation.invars[i].aval.shape for i in positions]
        sizes = [int(np.prod(shape, dtype=int)) for shape in shapes]

        def indices():
            operands = list(values)
            start = 0
            for i, shape, size in zip(positions, shapes, sizes):
                operands[i] = np.arange(start, start + size, dtype=np.int64).reshape(shape)
                start += size
            results = self._bind(equation, operands)
            if any(((r < 0) | (r >= start)).any() for r in results):
                raise UnsupportedPrimitive(name, self.name, " out of bounds")
            return results

        known = [v for i, v in enumerate(values) if i not in positions]
        results = self._remember(equation, known, indices)
        data = [values[i] for i in positions]
        if not _is_float(equation.outvars[0].aval) and all(isinstance(v, np.ndarray | Interval) for v in data):
            lifted = [_lift_bool(v) for v in data]
            return [gather_intervals(lifted, sizes, index) for index in results]
        lifted = [self._as_value(domain, v) for v in data]
        return [domain.gather(lifted, sizes, index) for index in results]

    def _slices(self, domain: Domain, equation, value) -> list[Any]:
        """The terms of a reduction, one value of the result's shape each."""
        shape, axes = equation.invars[0].aval.shape, tuple(equation.params["axes"])
        kept = [i for i in range(len(shape)) if i not in axes]
        size = int(np.prod(shape, dtype=int))
        index = np.arange(size).reshape(shape).transpose([*axes, *kept])
        index = index.reshape((-1, *(shape[i] for i in kept)))
        return [domain.gather([value], [size], row) for row in index]

    def _dot(self, domain: Domain, equation, a, b):
        ((ca, cb), (ba, bb)) = equation.params["dimension_numbers"]
        shapes = [atom.aval.shape for atom in equation.invars]

        def layout(shape, contract, batch):
            free = [i for i in range(len(shape)) if i not in contract and i not in batch]
            index = np.arange(int(np.prod(shape, dtype=int))).reshape(shape).transpose([*batch, *free, *contract])
            sizes = [int(np.prod([shape[i] for i in group], dtype=int)) for group in (batch, free, contract)]
            return index.reshape(sizes)

        left, right = layout(shapes[0], ca, ba)[:, :, None], layout(shapes[1], cb, bb)[:, None, :]
        left, right = np.broadcast_arrays(left, right)
        out_shape, terms = equation.outvars[0].aval.shape, []
        for k in range(left.shape[-1]):
            rows, columns = left[..., k].reshape(out_shape), right[..., k].reshape(out_shape)
            x = domain.gather([a], [self._size(shapes[0])], rows)
            # x @ x is a sum of squares: hand the same object over, so that the domain sees it.
            same = a is b and (rows == columns).all()
            y = x if same else domain.gather([b], [self._size(shapes[1])], columns)
            terms.append(domain.rules["mul"](x, y))
        return self._total(domain, equation, terms)

    @staticmethod
    def _total(domain: Domain, equation, terms: list):
        """The sum of the terms; over nothing it is zero."""
        return domain.total(terms) if terms else domain.constant(np.zeros(equation.outvars[0].aval.shape))

    @staticmethod
    def _size(shape) -> int:
        return int(np.prod(shape, dtype=int))

    def _scan(self, domain: Domain, equation, values) -> list[Any]:
        """Unrolled: fixed length, so a loop of calls."""
        p = equation.params
        fixed, carried = p["num_consts"], p["num_carry"]
        constants, carry, xs = values[:fixed], values[fixed : fixed + carried], values[fixed + carried :]
        shapes = [atom.aval.shape for atom in equation.invars[fixed + carried :]]
        steps = range(p["length"])
        outputs: list[list[Any]] = []
        for t in reversed(steps) if p["reverse"] else steps:
            slices = [self._row(domain, x, shape, t) for x, shape in zip(xs, shapes)]
            results = self._run(domain, p["jaxpr"], [*constants, *carry, *slices])
            carry = results[:carried]
            outputs.append(results[carried:])
        if p["reverse"]:
            outputs.reverse()
        out_avals = [v.aval for v in equation.outvars[carried:]]
        return [*carry, *(self._pile(domain, [row[i] for row in outputs], aval) for i, aval in enumerate(out_avals))]

    def _row(self, domain: Domain, x, shape, t: int):
        if isinstance(x, np.ndarray):
            return x[t]
        index = np.arange(self._size(shape)).reshape(shape)[t]
        if isinstance(x, Interval):
            return gather_intervals([x], [self._size(shape)], index)
        return domain.gather([x], [self._size(shape)], index)

    def _pile(self, domain: Domain, rows: list[Any], aval):
        index = np.arange(self._size(aval.shape)).reshape(aval.shape)
        sizes = [self._size(aval.shape[1:])] * len(rows)
        if all(isinstance(row, np.ndarray) for row in rows):
            return np.stack(rows)
        if not _is_float(aval) and all(isinstance(row, np.ndarray | Interval) for row in rows):
            return gather_intervals([_lift_bool(row) for row in rows], sizes, index)
        return domain.gather([self._as_value(domain, row) for row in rows], sizes, index)


# --- the domain of intervals ---------------------------------------------------------------------------------------


def rounding_rule(step: Callable) -> Callable:
    """The rule of `round` from what a domain makes of a step function."""
    return lambda x, *, rounding_method: step(iv.round_even if int(rounding_method) == 1 else iv.round_away)(x)


def _plain(rule: Callable) -> Callable:
    """Drop the primitive's parameters, which say nothing about the value (accuracy hints and the like)."""
    return lambda *values, **_: rule(*values)


#: Functions of one variable, shared by name with the other domains.
UNARY = {
    "sin": iv.sin, "cos": iv.cos, "tan": iv.tan, "exp": iv.exp, "exp2": iv.exp2, "expm1": iv.expm1, "log": iv.log,
    "log1p": iv.log1p, "tanh": iv.tanh, "logistic": iv.logistic, "atan": iv.atan, "asin": iv.asin, "acos": iv.acos,
    "sinh": iv.sinh, "cosh": iv.cosh, "asinh": iv.asinh, "cbrt": iv.cbrt, "sqrt": iv.sqrt, "rsqrt": iv.rsqrt,
    "square": iv.square, "abs": iv.absolute, "neg": iv.neg,
}  # fmt: skip
STEPS = {"sign": iv.sign, "floor": iv.floor, "ceil": iv.ceil, "truncate": iv.truncate}


class IntervalDomain:
    """Plain interval evaluation; values are `Interval`s."""

    def __init__(self) -> None:
        self.rules = {name: _plain(rule) for name, rule in (UNARY | STEPS).items()} | {
            "add": _plain(iv.add),
            "add_any": _plain(iv.add),
            "sub": _plain(iv.sub),
            "mul": _plain(iv.mul),
            "div": _plain(iv.div),
            "max": _plain(iv.maximum),
            "min": _plain(iv.minimum),
            "rem": _plain(iv.rem),
            "atan2": _plain(iv.atan2),
            "pow": _plain(iv.power),
            "round": rounding_rule(_plain),
            "integer_pow": lambda x, *, y: iv.integer_pow(x, y),
            "clamp": lambda low, x, high: iv.minimum(iv.maximum(x, low), high),
        }

    def constant(self, array) -> Interval:
        return Interval.constant(array)

    def gather(self, values, sizes, index) -> Interval:
        return gather_intervals(values, sizes, index)

    def enclosure(self, value: Interval) -> Interval:
        return value

    def select(self, which, if_false, if_true) -> Interval:
        return iv.select(which, if_false, if_true)

    def total(self, terms: list[Interval]) -> Interval:
        result = terms[0]
        for term in terms[1:]:
            result = iv.add(result, term)
        return result


def _is_interval(leaf) -> bool:
    return isinstance(leaf, Interval)


def interval_eval(function: Callable, *args):
    """Enclose the range of a JAX function over boxes.

    Args:
        function: a JAX function of unbatched arrays (or pytrees of them); arrays it closes over are exact constants.
        args: pytrees whose leaves are `Interval`s [..., boxes], or plain arrays [...] (exactly known).

    Returns: the function's result with every array [...] replaced by an `Interval` [..., boxes] that contains its
        value at every point of the box; NaN bounds where the function may be undefined.
    Errors: `UnsupportedPrimitive` names a primitive without a rule.
    Source: natural interval extension (Moore 1966), outward rounded.
    """
    values = jax.tree.map(lambda a: a if _is_interval(a) else Interval.constant(a), args, is_leaf=_is_interval)
    leaves, tree = jax.tree.flatten(values, is_leaf=_is_interval)
    shapes = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(leaf.shape, np.float64) for leaf in leaves])
    program = Program(function, *shapes)
    return jax.tree.unflatten(program.out_tree, program(IntervalDomain(), *leaves))
