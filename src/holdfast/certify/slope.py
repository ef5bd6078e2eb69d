"""Interval slopes: Jacobians over a box that also hold where a function has kinks or jumps.

For a function f and a box X the *slope* is an interval matrix J and a *jump* bound j >= 0 with, for all x1, x2 in X,

    f(x1) - f(x2)  is in  J (x1 - x2) + [-j, j].

Where f is continuously differentiable, J encloses the Jacobian and j = 0 (mean value theorem; Moore 1966, Krawczyk and
Neumaier 1985 for slopes). max, min, clip and abs give the hull of the pieces' slopes, decided by comparing the
operands, never the result with itself (that is what JAX's own derivative of `max` does, and an interval compared with
its own result is always "maybe"). round, floor, sign and an undecided `where` have no derivative bound; they enter
through j. Differentiating the traced derivative instead would be unsound there: JAX's derivative of `round` is zero.

A value is carried with its slopes in arrays of shape ``value_shape + (columns, boxes)``; the last column is the jump.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from holdfast.certify import interval as iv
from holdfast.certify.interpreter import STEPS, UNARY, Program, gather_intervals, rounding_rule
from holdfast.certify.interval import Interval

_ONE = Interval.constant(1.0)


@dataclass(frozen=True, eq=False)
class Slope:
    """A value's enclosure [..., boxes] and its slopes [..., columns, boxes]; None for a constant."""

    value: Interval
    columns: Interval | None


def times(factor: Interval, columns: Interval | None) -> Interval | None:
    """Slopes of factor * value: the factor [..., boxes] times columns [..., columns, boxes]; None for zero."""
    if columns is None:
        return None
    lo = factor.lo[..., None, :]
    return iv.mul(Interval(lo, lo if factor.is_thin else factor.hi[..., None, :]), columns)


def plus(a: Interval | None, b: Interval | None) -> Interval | None:
    """Sum of two sets of slopes; None for zero."""
    if a is None or b is None:
        return b if a is None else a
    return iv.add(a, b)


def minus(a: Interval | None) -> Interval | None:
    """Slopes of the negative; None for zero."""
    return None if a is None else iv.neg(a)


def _complement(y: Interval) -> Interval:
    return iv.sub(_ONE, iv.square(y))


def _logistic_slope(y: Interval) -> Interval:
    return iv.sub(Interval.constant(0.25), iv.square(iv.sub(y, Interval.constant(0.5))))


def _abs_slope(x: Interval) -> Interval:
    return Interval(np.where(x.lo >= 0, 1.0, -1.0), np.where(x.hi <= 0, -1.0, 1.0))


def _inverse(x: Interval) -> Interval:
    return iv.div(_ONE, x)


#: Derivative of each function of one variable, from its argument x and its value y.
DERIVATIVES: dict[str, Callable[[Interval, Interval], Interval]] = {
    "sin": lambda x, y: iv.cos(x),
    "cos": lambda x, y: iv.neg(iv.sin(x)),
    "tan": lambda x, y: iv.add(_ONE, iv.square(y)),
    "exp": lambda x, y: y,
    "exp2": lambda x, y: iv.mul(y, iv.log(Interval.constant(2.0))),
    "expm1": lambda x, y: iv.exp(x),
    "log": lambda x, y: _inverse(x),
    "log1p": lambda x, y: _inverse(iv.add(_ONE, x)),
    "tanh": lambda x, y: _complement(y),
    "logistic": lambda x, y: _logistic_slope(y),
    "atan": lambda x, y: _inverse(iv.add(_ONE, iv.square(x))),
    "asin": lambda x, y: iv.rsqrt(_complement(x)),
    "acos": lambda x, y: iv.neg(iv.rsqrt(_complement(x))),
    "sinh": lambda x, y: iv.cosh(x),
    "cosh": lambda x, y: iv.sinh(x),
    "asinh": lambda x, y: iv.rsqrt(iv.add(_ONE, iv.square(x))),
    "cbrt": lambda x, y: _inverse(iv.mul(Interval.constant(3.0), iv.square(y))),
    "sqrt": lambda x, y: _inverse(iv.mul(Interval.constant(2.0), y)),
    "rsqrt": lambda x, y: iv.mul(Interval.constant(-0.5), iv.div(y, x)),
    "square": lambda x, y: iv.mul(Interval.constant(2.0), x),
    "abs": lambda x, y: _abs_slope(x),
}


class SlopeDomain:
    """Values with slopes with respect to `inputs` input numbers (plus the jump column)."""

    def __init__(self, inputs: int):
        self.inputs = inputs
        self.rules: dict[str, Callable] = {name: self._smooth(name) for name in DERIVATIVES}
        self.rules |= {name: self._step(rule) for name, rule in STEPS.items()}
        self.rules |= {
            "neg": lambda x, **_: Slope(iv.neg(x.value), minus(x.columns)),
            "add": self._add,
            "add_any": self._add,
            "sub": lambda a, b, **_: Slope(iv.sub(a.value, b.value), plus(a.columns, minus(b.columns))),
            "mul": self._mul,
            "div": self._div,
            "max": self._max,
            "min": self._min,
            "clamp": lambda low, x, high: self._min(self._max(x, low), high),
            "atan2": self._atan2,
            "rem": self._rem,
            "integer_pow": self._integer_pow,
            "pow": self._pow,
            "round": rounding_rule(self._step),
        }

    def constant(self, array) -> Slope:
        return Slope(Interval.constant(array), None)

    def enclosure(self, value: Slope | Interval) -> Interval:
        return value.value if isinstance(value, Slope) else value

    def gather(self, values: list[Slope], sizes, index) -> Slope:
        value = gather_intervals([v.value for v in values], sizes, index)
        if all(v.columns is None for v in values):
            return Slope(value, None)
        zero = np.zeros((1, 1, 1))
        columns = []
        for v, size in zip(values, sizes):
            missing = np.broadcast_to(zero, (size, 1, 1))
            columns.append(Interval(missing, missing) if v.columns is None else v.columns)
        return Slope(value, gather_intervals(columns, sizes, index, tail=2))

    def total(self, terms: list[Slope]) -> Slope:
        result = terms[0]
        for term in terms[1:]:
            result = self._add(result, term)
        return result

    def select(self, which: Interval, if_false: Slope, if_true: Slope) -> Slope:
        value = iv.select(which, if_false.value, if_true.value)
        # Between the branches f1(x1) - f0(x2) = (f1(x1) - f1(x2)) + (f1 - f0)(x2): slope of one plus the gap.
        gap = iv.sub(if_true.value, if_false.value).magnitude
        gap = np.where(which.lo == which.hi, 0.0, gap)
        if if_false.columns is None and if_true.columns is None and not gap.any():
            return Slope(value, None)
        zero = self._jump_column(np.zeros((1,)))
        undecided = Interval(which.lo[..., None, :], which.hi[..., None, :])
        columns = iv.select(undecided, if_false.columns or zero, if_true.columns or zero)
        return Slope(value, iv.add(columns, self._jump_column(gap)) if gap.any() else columns)

    def _jump_column(self, bound: np.ndarray) -> Interval:
        columns = np.zeros((*bound.shape[:-1], self.inputs + 1, bound.shape[-1]))
        columns[..., -1, :] = bound
        return Interval(-columns, columns)

    def _smooth(self, name: str) -> Callable:
        function, derivative = UNARY[name], DERIVATIVES[name]

        def rule(x: Slope, **_) -> Slope:
            value = function(x.value)
            return Slope(value, None if x.columns is None else times(derivative(x.value, value), x.columns))

        return rule

    def _step(self, function: Callable) -> Callable:
        def rule(x: Slope, **_) -> Slope:
            value = function(x.value)
            return self._jumping(value)

        return rule

    def _jumping(self, value: Interval) -> Slope:
        """Nothing known but the range: the whole of it is a jump."""
        jump = value.width
        return Slope(value, self._jump_column(jump) if (jump != 0).any() else None)

    def _add(self, a: Slope, b: Slope, **_) -> Slope:
        return Slope(iv.add(a.value, b.value), plus(a.columns, b.columns))

    def _mul(self, a: Slope, b: Slope, **_) -> Slope:
        if a is b:
            return self.rules["square"](a)
        # a1 b1 - a2 b2 = (a1 - a2) b1 + a2 (b1 - b2)
        return Slope(iv.mul(a.value, b.value), plus(times(b.value, a.columns), times(a.value, b.columns)))

    def _div(self, a: Slope, b: Slope, **_) -> Slope:
        value = iv.div(a.value, b.value)
        if a.columns is None and b.columns is None:
            return Slope(value, None)
        # a1/b1 - a2/b2 = ((a1 - a2) - (a2/b2) (b1 - b2)) / b1
        if b.columns is None:
            lo = b.value.lo[..., None, :]
            divisor = Interval(lo, lo if b.value.is_thin else b.value.hi[..., None, :])
            return Slope(value, None if a.columns is None else iv.div(a.columns, divisor))
        numerator = plus(a.columns, minus(times(value, b.columns)))
        return Slope(value, times(_inverse(b.value), numerator))

    def _max(self, a: Slope, b: Slope, **_) -> Slope:
        value = iv.maximum(a.value, b.value)
        return Slope(value, self._piece(iv.compare("ge", a.value, b.value), a, b))

    def _min(self, a: Slope, b: Slope, **_) -> Slope:
        value = iv.minimum(a.value, b.value)
        return Slope(value, self._piece(iv.compare("le", a.value, b.value), a, b))

    def _piece(self, first: Interval, a: Slope, b: Slope) -> Interval | None:
        """Slopes of a continuous choice: along a segment the derivative is one operand's or the other's."""
        if a.columns is None and b.columns is None:
            return None
        zero = Interval.constant(np.zeros((1,)))
        choice = Interval(first.lo[..., None, :], first.hi[..., None, :])
        return iv.select(choice, b.columns or zero, a.columns or zero)

    def _atan2(self, y: Slope, x: Slope, **_) -> Slope:
        value = iv.atan2(y.value, x.value)
        radius = iv.add(iv.square(x.value), iv.square(y.value))
        dy, dx = iv.div(x.value, radius), iv.neg(iv.div(y.value, radius))
        columns = plus(times(dy, y.columns), times(dx, x.columns))
        if columns is None:
            return Slope(value, None)
        cut = (x.value.lo <= 0) & (y.value.lo <= 0) & (y.value.hi >= 0)
        jumping = self._jump_column(np.where(cut, value.width, 0.0))
        cut = cut[..., None, :]
        lo, hi = np.where(cut, jumping.lo, columns.lo), np.where(cut, jumping.hi, columns.hi)
        return Slope(value, Interval(lo, hi))

    def _rem(self, a: Slope, b: Slope, **_) -> Slope:
        quotient = self._jumping(iv.truncate(iv.div(a.value, b.value)))
        columns = self._add(a, self._mul(Slope(iv.neg(b.value), minus(b.columns)), quotient)).columns
        return Slope(iv.rem(a.value, b.value), columns)

    def _integer_pow(self, x: Slope, *, y: int) -> Slope:
        slope = iv.mul(Interval.constant(float(y)), iv.integer_pow(x.value, y - 1))
        return Slope(iv.integer_pow(x.value, y), times(slope, x.columns))

    def _pow(self, x: Slope, exponent: Slope, **_) -> Slope:
        value = iv.power(x.value, exponent.value)
        columns = None
        if x.columns is not None:
            columns = times(iv.mul(exponent.value, iv.div(value, x.value)), x.columns)
        if exponent.columns is not None:
            columns = plus(columns, times(iv.mul(value, iv.log(x.value)), exponent.columns))
        return Slope(value, columns)


def run_slopes(program: Program, x: Interval) -> tuple[Interval, Interval, np.ndarray]:
    """Value [m, boxes], slopes [m, n, boxes] and jumps [m, boxes] of a traced map R^n -> R^m over x [n, boxes]."""
    n, boxes = x.shape[0], x.lo.shape[-1]
    seed = np.concatenate([np.eye(n), np.zeros((n, 1))], axis=1)[..., None]
    (result,) = program(SlopeDomain(n), Slope(x, Interval(seed, seed)))
    value = result.value
    m = value.shape
    if result.columns is None:
        zero = np.zeros((*m, n, boxes))
        return value, Interval(zero, zero), np.zeros((*m, boxes))
    columns = result.columns
    return value, columns[..., :-1, :], columns[..., -1, :].magnitude


def interval_jacobian(function: Callable, x: Interval) -> tuple[Interval, np.ndarray]:
    """Enclose the Jacobian of a JAX function over boxes.

    Args:
        function: maps an array [n] to an array [...].
        x: boxes [n, boxes].

    Returns: slopes J, an `Interval` [..., n, boxes], and jumps j [..., boxes] (zero where the function is continuous on
        the box) with f(x1) - f(x2) in J (x1 - x2) + [-j, j] for any two points of a box.
    Errors: `UnsupportedPrimitive`.
    Source: mean value form (Moore 1966), slopes (Krawczyk and Neumaier 1985).
    """
    program = Program(function, jax.ShapeDtypeStruct(x.shape, np.float64))
    _, slopes, jumps = run_slopes(program, x)
    return slopes, jumps
