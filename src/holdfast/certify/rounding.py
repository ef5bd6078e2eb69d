"""Running error analysis: how far a floating-point run of a JAX function can be from exact arithmetic.

The function's jaxpr is interpreted with triples (lo, hi, error): lo..hi encloses the exact value, and the computed one
differs from it by at most `error`. An operation passes its operands' errors on and adds its own rounding (Higham,
*Accuracy and Stability of Numerical Algorithms*, 2002, chapters 2 and 3; running error analysis after Wilkinson).

What the bound allows the compiler:

- *Fused multiply-add* rounds once where a product and a sum round twice; the bound charges both roundings.
- *Reassociation*: a sum is charged `ADD_ROUNDINGS` roundings of |a| + |b| instead of one of |a + b|. For a + b alone
  order does not matter; for three terms any order costs at most u (|p + q| + |p + q + r|), which two such charges
  cover. Sums of more terms written as one reduction or matrix product are charged for every order. A chain of four or
  more separate additions reordered by the compiler is not covered (XLA does not do this: it only folds constants).
- *Reciprocals*: x / constant may become x * (1 / constant), two roundings more.
- *Flushing* subnormal numbers to zero: the smallest normal number is added to every error.

Trusted base: `FUNCTION_ULPS` for XLA's own sin, cos, tanh, ..., and matrix products in the full precision of the type
(`jax_default_matmul_precision="highest"` on GPUs, whose default may be TF32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from holdfast.certify import interval as iv
from holdfast.certify.interpreter import (
    STEPS,
    UNARY,
    IntervalDomain,
    Program,
    gather_arrays,
    gather_intervals,
    rounding_rule,
)
from holdfast.certify.interval import Interval
from holdfast.certify.slope import DERIVATIVES, run_slopes

#: Assumed accuracy of XLA's elementary functions in the running type, in units in the last place of the result.
FUNCTION_ULPS = 4
#: Functions that XLA builds from others less accurately: sinh and cosh from exp (4.8 ulps seen in float32).
_LESS_ACCURATE = {"sinh": 2, "cosh": 2}
#: Roundings charged for an addition, of |a| + |b| (see the module).
ADD_ROUNDINGS = 2
#: Roundings charged for a product.
MUL_ROUNDINGS = 1
#: Roundings charged for a division (reciprocal and product, GPUs' 2-ulp division) or a square root.
DIV_ROUNDINGS = 4
#: The error bounds themselves are computed in float64 with rounding: this relative surplus covers 10^6 operations.
_SURPLUS = 1 + 1e-9


@dataclass(frozen=True, eq=False)
class Rounded:
    """Enclosure of the exact value, and a bound on the computed value's distance from it, each [..., boxes]."""

    value: Interval
    error: np.ndarray

    @property
    def computed(self) -> Interval:
        """Where the computed value can be: exactly where the exact one is, if it has no error (a constant zero is zero)."""
        lo, hi = self.value.lo - self.error, self.value.hi + self.error
        exact = self.error == 0
        return Interval(np.where(exact, lo, np.nextafter(lo, -np.inf)), np.where(exact, hi, np.nextafter(hi, np.inf)))

    @property
    def size(self) -> np.ndarray:
        return self.value.magnitude + self.error


class RoundingDomain:
    """Values with rounding errors in a float type."""

    def __init__(self, dtype):
        info = np.finfo(dtype)
        self.dtype = np.dtype(dtype)
        self.unit = float(info.eps) / 2
        self.flush = float(info.tiny)
        self.rules: dict[str, Callable] = {name: self._function(name) for name in DERIVATIVES}
        self.rules |= {name: self._step(rule) for name, rule in STEPS.items()}
        self.rules |= {
            "neg": lambda x, **_: Rounded(iv.neg(x.value), x.error),
            "abs": lambda x, **_: Rounded(iv.absolute(x.value), x.error),
            "sqrt": lambda x, **_: self._smooth("sqrt", x, DIV_ROUNDINGS),
            "rsqrt": lambda x, **_: self._smooth("rsqrt", x, 2 * DIV_ROUNDINGS),
            "square": lambda x, **_: self._mul(x, x),
            "exp2": self._exp2,
            "add": lambda a, b, **_: self._add(iv.add(a.value, b.value), a, b),
            "add_any": lambda a, b, **_: self._add(iv.add(a.value, b.value), a, b),
            "sub": lambda a, b, **_: self._add(iv.sub(a.value, b.value), a, b),
            "mul": self._mul,
            "div": self._div,
            "max": lambda a, b, **_: Rounded(iv.maximum(a.value, b.value), np.maximum(a.error, b.error)),
            "min": lambda a, b, **_: Rounded(iv.minimum(a.value, b.value), np.maximum(a.error, b.error)),
            "clamp": self._clamp,
            "atan2": self._atan2,
            "rem": self._rem,
            "integer_pow": self._integer_pow,
            "pow": self._pow,
            "round": rounding_rule(self._step),
        }

    def constant(self, array) -> Rounded:
        """A constant is itself rounded to the running type."""
        exact = np.asarray(array, np.float64)
        with np.errstate(over="ignore", under="ignore"):
            error = np.abs(exact.astype(self.dtype).astype(np.float64) - exact)
        error = np.where(np.isfinite(exact), error, 0.0)
        return Rounded(Interval.constant(exact), error[..., None])

    def enclosure(self, value) -> Interval:
        return value.computed if isinstance(value, Rounded) else value

    def gather(self, values: list[Rounded], sizes, index) -> Rounded:
        error = gather_arrays([v.error for v in values], sizes, index, 1)
        return Rounded(gather_intervals([v.value for v in values], sizes, index), error)

    def select(self, which: Interval, if_false: Rounded, if_true: Rounded) -> Rounded:
        """`which` already covers exact and computed comparisons; where undecided they may differ from each other."""
        value = iv.select(which, if_false.value, if_true.value)
        gap = iv.sub(if_true.value, if_false.value).magnitude
        either = np.maximum(if_false.error, if_true.error)
        decided = np.where(which.lo, if_true.error, if_false.error)
        return Rounded(value, np.where(which.lo == which.hi, decided, either + gap))

    def total(self, terms: list[Rounded]) -> Rounded:
        value = IntervalDomain().total([term.value for term in terms])
        if len(terms) == 1:
            return terms[0]
        size = sum(term.size for term in terms)
        # n - 1 additions in any order: (n - 1) u of the sum of absolute values, to first order; n covers the rest.
        error = np.sum([term.error for term in terms], axis=0) + (
            len(terms) * self.unit * size + len(terms) * self.flush
        )
        return Rounded(value, error)

    # --- rules -------------------------------------------------------------------------------------------------

    def _rounded(self, value: Interval, carried: np.ndarray, size: np.ndarray, roundings) -> Rounded:
        return Rounded(value, carried + roundings * self.unit * size * (1 + 64 * self.unit) + self.flush)

    def _add(self, value: Interval, a: Rounded, b: Rounded) -> Rounded:
        return self._rounded(value, a.error + b.error, a.size + b.size, ADD_ROUNDINGS)

    def _mul(self, a: Rounded, b: Rounded, **_) -> Rounded:
        value = iv.mul(a.value, b.value)
        carried = _product(a.value.magnitude, b.error) + _product(b.value.magnitude, a.error) + a.error * b.error
        return self._rounded(value, carried, value.magnitude + carried, MUL_ROUNDINGS)

    def _div(self, a: Rounded, b: Rounded, **_) -> Rounded:
        value = iv.div(a.value, b.value)
        smallest = np.maximum(iv.absolute(b.computed).lo, 0.0)
        # a'/b' - a/b = ((a' - a) - (a/b) (b' - b)) / b'
        carried = np.where(smallest > 0, (a.error + _product(value.magnitude, b.error)) / smallest, np.inf)
        return self._rounded(value, carried, value.magnitude + carried, DIV_ROUNDINGS)

    def _smooth(self, name: str, x: Rounded, roundings: float | np.ndarray) -> Rounded:
        value = UNARY[name](x.value)
        carried = np.zeros(1)
        if np.any(x.error):
            wide = x.computed
            slope = DERIVATIVES[name](wide, UNARY[name](wide)).magnitude
            carried = _product(slope, x.error)
        return self._rounded(value, carried, value.magnitude + carried, roundings)

    def _function(self, name: str) -> Callable:
        roundings = 2 * FUNCTION_ULPS * _LESS_ACCURATE.get(name, 1)
        return lambda x, **_: self._smooth(name, x, roundings)

    def _exp2(self, x: Rounded, **_) -> Rounded:
        """XLA computes exp(x log 2): the product's rounding is amplified by its size."""
        return self._smooth("exp2", x, 2 * FUNCTION_ULPS * (1 + x.size))

    def _step(self, function: Callable) -> Callable:
        """Exact in floating point; the argument's error matters only where it can cross a step."""

        def rule(x: Rounded, **_) -> Rounded:
            computed = function(x.computed)
            return Rounded(function(x.value), np.where(computed.lo == computed.hi, 0.0, computed.width))

        return rule

    def _clamp(self, low: Rounded, x: Rounded, high: Rounded) -> Rounded:
        return self.rules["min"](self.rules["max"](x, low), high)

    def _atan2(self, y: Rounded, x: Rounded, **_) -> Rounded:
        value = iv.atan2(y.value, x.value)
        wide_y, wide_x = y.computed, x.computed
        radius = iv.add(iv.square(wide_x), iv.square(wide_y))
        carried = _product(iv.div(wide_x, radius).magnitude, y.error) + _product(
            iv.div(wide_y, radius).magnitude, x.error
        )
        cut = (wide_x.lo <= 0) & (wide_y.lo <= 0) & (wide_y.hi >= 0)
        carried = np.where(cut, 2 * np.pi, carried)
        return self._rounded(value, carried, value.magnitude + carried, 2 * FUNCTION_ULPS)

    def _rem(self, a: Rounded, b: Rounded, **_) -> Rounded:
        """fmod is exact on its operands, so a constant quotient only passes errors on; else anything in range."""
        value = iv.rem(a.value, b.value)
        quotient = iv.truncate(iv.div(a.computed, b.computed))
        constant = quotient.lo == quotient.hi
        carried = a.error + _product(quotient.magnitude, b.error)
        anything = 2 * (b.size + a.error)
        return self._rounded(value, np.where(constant, carried, anything), value.magnitude, 2)

    def _integer_pow(self, x: Rounded, *, y: int) -> Rounded:
        value = iv.integer_pow(x.value, y)
        slope = iv.mul(Interval.constant(float(y)), iv.integer_pow(x.computed, y - 1)).magnitude
        carried = _product(slope, x.error)
        return self._rounded(value, carried, value.magnitude + carried, DIV_ROUNDINGS + 2 * abs(y))

    def _pow(self, x: Rounded, exponent: Rounded, **_) -> Rounded:
        value = iv.power(x.value, exponent.value)
        wide, power = x.computed, exponent.computed
        near = iv.power(wide, power)
        carried = _product(iv.mul(power, iv.div(near, wide)).magnitude, x.error)
        carried = carried + _product(iv.mul(near, iv.log(wide)).magnitude, exponent.error)
        # exp(y log x): the logarithm's rounding is amplified by its own size.
        amplified = 1 + iv.mul(power, iv.log(wide)).magnitude
        return self._rounded(value, carried, (value.magnitude + carried) * amplified, 2 * FUNCTION_ULPS)


def _product(factor: np.ndarray, error: np.ndarray) -> np.ndarray:
    """No error stays no error, even under an infinite slope."""
    with np.errstate(all="ignore"):
        return np.where(error == 0, 0.0, factor * error)


def _box(box) -> Interval:
    return box if isinstance(box, Interval) else Interval.box(*box)


def rounding_error(function: Callable, *boxes, dtype=np.float32) -> np.ndarray | list[np.ndarray]:
    """Bound the distance of a floating-point evaluation from the exact one, on the same inputs.

    Args:
        function: JAX function of arrays [...]; its constants are rounded to `dtype` when it runs.
        boxes: one per argument, a pair (lo, hi) of arrays [...] or an `Interval` [..., boxes]. Inputs are exact,
            that is representable in `dtype`.
        dtype: the running float type, unit roundoff eps/2 (2^-24 for float32).

    Returns: per output entry (and box, if `Interval`s were given) a bound on |computed - exact|, infinite or NaN where
        nothing is known: an array, or a list if the function returns several. If the function jumps inside a box
        (round, where), the jump is part of the bound.
    Errors: `UnsupportedPrimitive`.
    """
    batched = any(isinstance(box, Interval) for box in boxes)
    intervals = [_box(box) for box in boxes]
    program = Program(function, *(jax.ShapeDtypeStruct(x.shape, np.float64) for x in intervals))
    errors = [error if batched else error[..., 0] for error in _run(program, intervals, dtype)]
    return errors[0] if len(errors) == 1 else errors


def _run(program: Program, intervals: list[Interval], dtype) -> list[np.ndarray]:
    results = program(RoundingDomain(dtype), *(Rounded(x, np.zeros((*x.shape, 1))) for x in intervals))
    out = []
    for result in results:
        undefined = np.isnan(result.value.lo) | np.isnan(result.value.hi)
        out.append(np.where(undefined, np.nan, result.error * _SURPLUS))
    return out


def flow_deviation(
    step: Callable, state_box, input_box, horizon: int, dtype=np.float32, noise: float | np.ndarray = 0.0
) -> np.ndarray:
    """Bound how far two replays of one input sequence can drift apart under two floating-point programs of `step`.

    From a common start, delta_0 = 0 and delta_{k+1} = |J| delta_k + 2 r + noise: J encloses the Jacobian of step with
    respect to the state, r bounds the rounding of either program. Both flows must stay in `state_box`, at least one
    of them in it and the other within the deviation, so J is taken over the box widened by the final deviation (found
    by iteration).

    Args:
        step: JAX function (x [n], u [m]) -> x_next [n].
        state_box, input_box: pairs (lo, hi) of arrays [n] and [m].
        horizon: number of steps N. dtype: the running float type.
        noise: extra deviation per step, a number or [n], in the units of the state.

    Returns: bounds [N + 1, n] on |x_k - x'_k|. Where step may jump within the box (the wrap of an angle) the jump is
        added at every step; infinite where nothing can be bounded.
    Errors: `UnsupportedPrimitive`.
    """
    lo, hi = (np.asarray(side, np.float64) for side in state_box)
    u = _box(input_box)
    n = lo.shape[0]
    program = Program(step, *(jax.ShapeDtypeStruct(shape, np.float64) for shape in ((n,), u.shape)))
    jacobian_program = Program(lambda z: step(z[:n], z[n:]), jax.ShapeDtypeStruct((n + u.shape[0],), np.float64))
    noise = np.broadcast_to(np.asarray(noise, np.float64), (n,))
    margin = np.zeros(n)
    for _ in range(20):
        flow = _recursion(program, jacobian_program, Interval.box(lo - margin, hi + margin), u, horizon, dtype, noise)
        if (flow <= margin).all() or not np.isfinite(flow).all():
            return flow
        margin = 1.5 * flow.max(0)
    return np.concatenate([np.zeros((1, n)), np.full((horizon, n), np.inf)])


def _recursion(program, jacobian_program, x: Interval, u: Interval, horizon: int, dtype, noise) -> np.ndarray:
    n = x.shape[0]
    (error,) = _run(program, [x, u], dtype)
    joint = Interval(np.concatenate([x.lo, u.lo]), np.concatenate([x.hi, u.hi]))
    _, slopes, jump = run_slopes(jacobian_program, joint)
    gain = slopes.magnitude[:, :n, 0]
    fresh = (2 * error[:, 0] + jump[:, 0] + noise) * _SURPLUS
    flow = [np.zeros(n)]
    for _ in range(horizon):
        with np.errstate(all="ignore"):
            carried = np.where(flow[-1] == 0, 0.0, gain * flow[-1]).sum(1)
            flow.append(np.nan_to_num((carried + fresh) * _SURPLUS, nan=np.inf))
    return np.array(flow)
