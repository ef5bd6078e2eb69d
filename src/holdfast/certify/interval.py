"""Interval arithmetic on batches of boxes, in float64 with outward rounding.

An `Interval` holds arrays `lo` and `hi` of shape ``value_shape + (boxes,)``: the boxes run along the last axis, so one
numpy call serves them all; a constant has a last axis of length 1 and broadcasts. Every operation returns an enclosure
of the exact real result (Moore, *Interval Analysis*, 1966): inexact operations are rounded outward by one unit in the
last place with `numpy.nextafter`. Nothing here is compiled by XLA, which may reassociate and so void directed rounding.

Undefined results (the square root of a negative number, 0/0) are NaN in both bounds and stay NaN through every later
operation, so a clip cannot hide them; whoever reads a bound must treat NaN as "nothing is known". Dividing by an
interval around zero gives infinite bounds.

Booleans are three-valued: `lo` says "certainly true", `hi` says "possibly true".

Trusted base: IEEE 754 for ``+ - * / sqrt``, and `LIBM_ULPS` for the functions of numpy's mathematical library.
"""

from __future__ import annotations

import numpy as np

#: Assumed accuracy of numpy's sin, cos, tan, exp, log, tanh, ... in float64, in units in the last place. The GNU
#: library documents at most 1 to 2, numpy's vectorised versions at most 4.
LIBM_ULPS = 4

_EPS = float(np.finfo(np.float64).eps)  # 2^-52
_TINY = float(np.finfo(np.float64).tiny)  # the smallest normal number: bounds never become (slow) subnormals
_MAX = float(np.finfo(np.float64).max)
_INF = np.inf


class Interval:
    """A batch of intervals, `lo` and `hi` of shape ``value_shape + (boxes,)``. Exact constants share one array."""

    __slots__ = ("hi", "lo")
    __array_ufunc__ = None  # ndarray + Interval must come to us

    def __init__(self, lo: np.ndarray, hi: np.ndarray):
        self.lo = lo
        self.hi = hi

    @staticmethod
    def constant(value) -> Interval:
        """An exactly known array [...] (the same in every box), as an interval of shape [..., 1]."""
        array = np.asarray(value)
        array = (array if array.dtype == bool else array.astype(np.float64))[..., None]
        return Interval(array, array)

    @staticmethod
    def box(lo, hi) -> Interval:
        """One box from bounds of the value's own shape [...]; NaN or lo > hi raises ValueError."""
        lo, hi = np.broadcast_arrays(np.asarray(lo, np.float64), np.asarray(hi, np.float64))
        return Interval.boxes(lo[..., None], hi[..., None])

    @staticmethod
    def boxes(lo, hi) -> Interval:
        """Many boxes from bounds [..., boxes]; NaN or lo > hi raises ValueError."""
        lo, hi = np.broadcast_arrays(np.asarray(lo, np.float64), np.asarray(hi, np.float64))
        if not np.all(lo <= hi):
            raise ValueError("an interval needs lo <= hi in every entry, and no NaN")
        return Interval(lo, hi)

    @property
    def is_thin(self) -> bool:
        return self.lo is self.hi

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value, without the axis of boxes."""
        return self.lo.shape[:-1]

    @property
    def midpoint(self) -> np.ndarray:
        return self.lo + 0.5 * (self.hi - self.lo)

    @property
    def width(self) -> np.ndarray:
        """hi - lo, rounded up."""
        return _up(self.hi - self.lo)

    @property
    def magnitude(self) -> np.ndarray:
        """The largest absolute value."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    def contains(self, value) -> np.ndarray:
        """Elementwise: is the value (broadcast against [..., boxes]) inside? Undefined intervals contain everything."""
        return ((self.lo <= value) & (value <= self.hi)) | np.isnan(self.lo) | np.isnan(self.hi)

    def __getitem__(self, index) -> Interval:
        lo = self.lo[index]
        return Interval(lo, lo if self.is_thin else self.hi[index])

    def __repr__(self) -> str:
        return f"Interval(lo={self.lo!r}, hi={self.hi!r})"

    def __neg__(self) -> Interval:
        return neg(self)

    def __add__(self, other) -> Interval:
        return add(self, _lift(other))

    def __sub__(self, other) -> Interval:
        return sub(self, _lift(other))

    def __rsub__(self, other) -> Interval:
        return sub(_lift(other), self)

    def __mul__(self, other) -> Interval:
        return mul(self, _lift(other))

    def __truediv__(self, other) -> Interval:
        return div(self, _lift(other))

    def __rtruediv__(self, other) -> Interval:
        return div(_lift(other), self)

    __radd__ = __add__
    __rmul__ = __mul__


def _lift(other) -> Interval:
    """Python scalars and arrays [..., boxes] become thin intervals."""
    if isinstance(other, Interval):
        return other
    array = np.asarray(other, np.float64)
    array = array if array.ndim else array[None]
    return Interval(array, array)


def _down(x: np.ndarray) -> np.ndarray:
    """One unit down. A sum or difference that rounds to zero is exactly zero, so zero stays."""
    x = np.asarray(x)
    return np.where(x != 0, np.nextafter(x, -_INF), x)


def _up(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    return np.where(x != 0, np.nextafter(x, _INF), x)


def _quiet(function):
    """Overflow, 0 * inf and inf - inf are expected here: they end as infinite or NaN bounds."""

    def wrapped(*args, **kwargs):
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
    return wrapped


def _libm(lo: np.ndarray, hi: np.ndarray, floor: float = -_INF, ceiling: float = _INF) -> Interval:
    """Widen library results by LIBM_ULPS and cut at the function's own range."""
    slack = 2 * LIBM_ULPS * _EPS  # a unit in the last place is at most 2^-52 of the value; doubled for this product
    lo = np.minimum(lo * np.where(lo > 0, 1 - slack, 1 + slack) - _TINY, _MAX)
    hi = np.maximum(hi * np.where(hi > 0, 1 + slack, 1 - slack) + _TINY, -_MAX)
    return Interval(np.maximum(lo, floor), np.minimum(hi, ceiling))


def neg(x: Interval) -> Interval:
    lo = -x.hi
    return Interval(lo, lo if x.is_thin else -x.lo)


def hull(a: Interval, b: Interval) -> Interval:
    if a.lo.dtype == bool:
        return Interval(a.lo & b.lo, a.hi | b.hi)
    return Interval(np.minimum(a.lo, b.lo), np.maximum(a.hi, b.hi))


def refine(a: Interval, b: Interval) -> Interval:
    """The intersection of two enclosures of one value. Where b is undefined a stands; where a is, it stays so."""
    lo = np.maximum(a.lo, np.where(np.isnan(b.lo), -_INF, b.lo))
    return Interval(lo, np.minimum(a.hi, np.where(np.isnan(b.hi), _INF, b.hi)))


def select(which: Interval, if_false: Interval, if_true: Interval) -> Interval:
    """Three-valued choice: the hull where undecided."""
    both = hull(if_false, if_true)
    lo = np.where(which.lo, if_true.lo, np.where(which.hi, both.lo, if_false.lo))
    hi = np.where(which.lo, if_true.hi, np.where(which.hi, both.hi, if_false.hi))
    return Interval(lo, hi)


def maximum(a: Interval, b: Interval) -> Interval:
    return Interval(np.maximum(a.lo, b.lo), np.maximum(a.hi, b.hi))


def minimum(a: Interval, b: Interval) -> Interval:
    return Interval(np.minimum(a.lo, b.lo), np.minimum(a.hi, b.hi))


def absolute(x: Interval) -> Interval:
    lo = np.maximum(np.maximum(x.lo, -x.hi), 0.0)
    return Interval(lo, lo if x.is_thin else x.magnitude)


def _monotone_exact(function):
    def rule(x: Interval) -> Interval:
        lo = function(x.lo)
        return Interval(lo, lo if x.is_thin else function(x.hi))

    return rule


def _round_away(x: np.ndarray) -> np.ndarray:
    # floor(|x| + 0.5) would itself round: 0.49999999999999994 + 0.5 is 1.
    whole = np.floor(np.abs(x))
    return np.copysign(whole + (np.abs(x) - whole >= 0.5), x)


sign = _monotone_exact(np.sign)
floor = _monotone_exact(np.floor)
ceil = _monotone_exact(np.ceil)
round_even = _monotone_exact(np.rint)
round_away = _monotone_exact(_round_away)
truncate = _monotone_exact(np.trunc)

_COMPARE = {  # name -> (certainly, possibly)
    "lt": (lambda a, b: a.hi < b.lo, lambda a, b: a.lo < b.hi),
    "le": (lambda a, b: a.hi <= b.lo, lambda a, b: a.lo <= b.hi),
    "gt": (lambda a, b: a.lo > b.hi, lambda a, b: a.hi > b.lo),
    "ge": (lambda a, b: a.lo >= b.hi, lambda a, b: a.hi >= b.lo),
    "eq": (lambda a, b: (a.lo == b.hi) & (a.hi == b.lo), lambda a, b: (a.lo <= b.hi) & (b.lo <= a.hi)),
}


def compare(name: str, a: Interval, b: Interval) -> Interval:
    """Three-valued comparison `lt`, `le`, `gt`, `ge`, `eq` or `ne`; anything undefined gives "maybe"."""
    if name == "ne":
        equal = compare("eq", a, b)
        return Interval(~equal.hi, ~equal.lo)
    certainly, possibly = _COMPARE[name]
    undefined = np.isnan(a.lo) | np.isnan(a.hi) | np.isnan(b.lo) | np.isnan(b.hi)
    return Interval(certainly(a, b), possibly(a, b) | undefined)


# --- rounded operations --------------------------------------------------------------------------------------------


@_quiet
def add(a: Interval, b: Interval) -> Interval:
    lo = a.lo + b.lo
    return Interval(_down(lo), _up(lo if a.is_thin and b.is_thin else a.hi + b.hi))


@_quiet
def sub(a: Interval, b: Interval) -> Interval:
    lo = a.lo - b.hi
    return Interval(_down(lo), _up(lo if a.is_thin and b.is_thin else a.hi - b.lo))


def _extremes(products: list[np.ndarray], a: Interval, b: Interval) -> Interval:
    """Outward rounded hull of products (or quotients) of bounds. A zero among them may be an underflow."""
    lo = hi = products[0]
    for product in products[1:]:
        lo, hi = np.minimum(lo, product), np.maximum(hi, product)
    zero_lo, zero_hi = lo == 0, hi == 0
    lo, hi = np.nextafter(lo, -_INF), np.nextafter(hi, _INF)
    if zero_lo.any() or zero_hi.any():
        exact = ((a.lo == 0) & (a.hi == 0)) | ((b.lo == 0) & (b.hi == 0))
        same = ((a.lo >= 0) & (b.lo >= 0)) | ((a.hi <= 0) & (b.hi <= 0))  # the signs alone bound the result by zero
        opposite = ((a.lo >= 0) & (b.hi <= 0)) | ((a.hi <= 0) & (b.lo >= 0))
        lo = np.where(zero_lo, np.where(exact | same, 0.0, -_TINY), lo)
        hi = np.where(zero_hi, np.where(exact | opposite, 0.0, _TINY), hi)
    return Interval(lo, hi)


@_quiet
def mul(a: Interval, b: Interval) -> Interval:
    if a is b:
        return square(a)
    products = [a.lo * b.lo]
    if not b.is_thin:
        products.append(a.lo * b.hi)
    if not a.is_thin:
        products.append(a.hi * b.lo)
        if not b.is_thin:
            products.append(a.hi * b.hi)
    return _extremes(products, a, b)


@_quiet
def square(x: Interval) -> Interval:
    small = absolute(x)
    lo, hi = small.lo * small.lo, small.hi * small.hi
    return Interval(np.maximum(_down(lo), 0.0), np.where(hi == 0, np.where(small.hi == 0, 0.0, _TINY), _up(hi)))


@_quiet
def div(a: Interval, b: Interval) -> Interval:
    quotients = [a.lo / b.lo, a.lo / b.hi, a.hi / b.lo, a.hi / b.hi]
    result = _extremes(quotients, a, b)
    around_zero = (b.lo <= 0) & (b.hi >= 0)
    if around_zero.any():
        undefined = np.where((a.lo <= 0) & (a.hi >= 0), np.nan, _INF)
        poison = np.where(np.isnan(a.lo + b.lo), np.nan, undefined)
        result = Interval(np.where(around_zero, -poison, result.lo), np.where(around_zero, poison, result.hi))
    return result


@_quiet
def sqrt(x: Interval) -> Interval:
    return Interval(np.maximum(_down(np.sqrt(x.lo)), 0.0), _up(np.sqrt(x.hi))) if (x.lo >= 0).all() else _sqrt_cut(x)


def _sqrt_cut(x: Interval) -> Interval:
    bad = ~(x.lo >= 0)
    root = sqrt(Interval(np.where(bad, 0.0, x.lo), np.where(bad, 0.0, x.hi)))
    return Interval(np.where(bad, np.nan, root.lo), np.where(bad, np.nan, root.hi))


def integer_pow(x: Interval, n: int) -> Interval:
    if n < 0:
        return div(Interval.constant(1.0), integer_pow(x, -n))
    if n == 0:
        return Interval(np.ones_like(x.lo), np.ones_like(x.lo))
    if n % 2 == 0:
        half = integer_pow(x, n // 2) if n > 2 else x
        return square(half)
    if n == 1:
        return x
    # Odd powers increase, so the two ends decide; each end is itself a rounded product.
    ends = [Interval(end, end) for end in (x.lo, x.hi)]
    low, high = (mul(integer_pow(end, n - 1), end) for end in ends)
    return Interval(low.lo, high.hi)


# --- library functions ---------------------------------------------------------------------------------------------


def _increasing(function, floor=-_INF, ceiling=_INF, domain=(-_INF, _INF)):
    @_quiet
    def rule(x: Interval) -> Interval:
        lo = function(x.lo)
        result = _libm(lo, lo if x.is_thin else function(x.hi), floor, ceiling)
        bad = ~((x.lo >= domain[0]) & (x.hi <= domain[1]))
        if bad.any():
            result = Interval(np.where(bad, np.nan, result.lo), np.where(bad, np.nan, result.hi))
        return result

    return rule


def _logistic(x: np.ndarray) -> np.ndarray:
    # 0.5 (1 + tanh(x/2)) loses relative accuracy far left, exp does not; two roundings beside exp's own error.
    return np.where(x < 0, np.exp(np.minimum(x, 0)) / (1 + np.exp(np.minimum(x, 0))), 1 / (1 + np.exp(-np.abs(x))))


exp = _increasing(np.exp, floor=0.0)
exp2 = _increasing(np.exp2, floor=0.0)
expm1 = _increasing(np.expm1, floor=-1.0)
log = _increasing(np.log, domain=(0.0, _INF))
log1p = _increasing(np.log1p, domain=(-1.0, _INF))
tanh = _increasing(np.tanh, -1.0, 1.0)
logistic = _increasing(_logistic, 0.0, 1.0)
atan = _increasing(np.arctan)
asin = _increasing(np.arcsin, domain=(-1.0, 1.0))
sinh = _increasing(np.sinh)
asinh = _increasing(np.arcsinh)
cbrt = _increasing(np.cbrt)
_acos_negated = _increasing(lambda x: -np.arccos(x), domain=(-1.0, 1.0))


def acos(x: Interval) -> Interval:
    return neg(_acos_negated(x))


@_quiet
def cosh(x: Interval) -> Interval:
    small = absolute(x)
    return _libm(np.cosh(small.lo), np.cosh(small.hi), floor=1.0)


def rsqrt(x: Interval) -> Interval:
    return div(Interval.constant(1.0), sqrt(x))


def _crosses(x: Interval, phase: float, period: float) -> np.ndarray:
    """Does the interval contain phase + k period for an integer k? Says yes when in doubt."""
    a, b = (x.lo - phase) / period, (x.hi - phase) / period
    # The rounding of phase, period and quotient moves a and b by less than this.
    doubt = 1e-14 * (1 + np.maximum(np.abs(a), np.abs(b)))
    return ~(np.floor(b + doubt) < np.ceil(a - doubt))


@_quiet
def cos(x: Interval) -> Interval:
    return _wave(np.cos, x, 0.0)


@_quiet
def sin(x: Interval) -> Interval:
    return _wave(np.sin, x, 0.5 * np.pi)


def _wave(function, x: Interval, peak: float) -> Interval:
    a = function(x.lo)
    if x.is_thin:
        ends = _libm(a, a, -1.0, 1.0)
        return ends
    b = function(x.hi)
    ends = _libm(np.minimum(a, b), np.maximum(a, b), -1.0, 1.0)
    lo = np.where(_crosses(x, peak - np.pi, 2 * np.pi), -1.0, ends.lo)
    hi = np.where(_crosses(x, peak, 2 * np.pi), 1.0, ends.hi)
    undefined = np.isnan(x.lo) | np.isnan(x.hi) | np.isinf(x.lo) | np.isinf(x.hi)  # sin(inf) is NaN
    return Interval(np.where(undefined, np.nan, lo), np.where(undefined, np.nan, hi))


@_quiet
def tan(x: Interval) -> Interval:
    pole = _crosses(x, 0.5 * np.pi, np.pi)
    ends = _libm(np.tan(x.lo), np.tan(x.hi))
    undefined = np.isnan(x.lo) | np.isnan(x.hi) | np.isinf(x.lo) | np.isinf(x.hi)
    lo, hi = np.where(pole, -_INF, ends.lo), np.where(pole, _INF, ends.hi)
    return Interval(np.where(undefined, np.nan, lo), np.where(undefined, np.nan, hi))


@_quiet
def atan2(y: Interval, x: Interval) -> Interval:
    """Away from the branch cut (y = 0, x <= 0) the angle is extremal at the corners; on it, [-pi, pi]."""
    corners = [np.arctan2(a, b) for a in (y.lo, y.hi) for b in (x.lo, x.hi)]
    ends = _libm(np.minimum.reduce(corners), np.maximum.reduce(corners))
    cut = (x.lo <= 0) & (y.lo <= 0) & (y.hi >= 0)
    whole = np.nextafter(np.pi, 4)
    return Interval(np.where(cut, -whole, ends.lo), np.where(cut, whole, ends.hi))


@_quiet
def power(x: Interval, exponent: Interval) -> Interval:
    """x ** exponent for x >= 0 and an exponent of known sign per box: extremal at the corners, as log is monotone."""
    corners = [np.power(a, b) for a in (x.lo, x.hi) for b in (exponent.lo, exponent.hi)]
    ends = _libm(np.minimum.reduce(corners), np.maximum.reduce(corners), floor=0.0)
    bad = ~((x.lo > 0) | ((x.lo >= 0) & (exponent.lo > 0)))
    return Interval(np.where(bad, np.nan, ends.lo), np.where(bad, np.nan, ends.hi))


@_quiet
def rem(a: Interval, b: Interval) -> Interval:
    """C remainder a - b trunc(a / b): exact where the quotient is constant, else bounded by |b| and the sign of a."""
    quotient = truncate(div(a, b))
    plain = sub(a, mul(b, quotient))
    bound = np.minimum(b.magnitude, a.magnitude)
    coarse = Interval(np.where(a.lo < 0, -bound, 0.0), np.where(a.hi > 0, bound, 0.0))
    constant = quotient.lo == quotient.hi
    lo, hi = np.where(constant, plain.lo, coarse.lo), np.where(constant, plain.hi, coarse.hi)
    bad = ~((b.lo > 0) | (b.hi < 0)) | ~(np.isfinite(a.lo) & np.isfinite(a.hi))
    return Interval(np.where(bad, np.nan, lo), np.where(bad, np.nan, hi))
