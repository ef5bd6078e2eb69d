"""Slopes from a fixed point: g(e) - g(0) = S e with S enclosed for all e of a box, however far the box is from 0.

The interval Jacobian over a box holds between two points of that box. Here one of the points is always 0, so the slope
of a product may keep one factor at its value in the box and count only the other as a change,

    a b - a0 b0 = a (b - b0) + (a - a0) b0,

always the first factor. A system that is linear in some coordinates once the others are known (a rotation that acts on a
velocity) then has a matrix S that depends on those others alone, if its products are written with them first; and only
those need small boxes. Source: interval slopes (Krawczyk and Neumaier 1985); the view of a nonlinear system as a linear
one with parameters is that of gain scheduling (Shamma 1988).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from holdfast.certify import interval as iv
from holdfast.certify.interpreter import IntervalDomain, Program, gather_intervals
from holdfast.certify.interval import Interval
from holdfast.certify.slope import Slope, SlopeDomain, minus, plus, times


@dataclass(frozen=True, eq=False)
class Anchored(Slope):
    """A value over the box, `local` [..., boxes], and at 0, `anchor` [..., 1]; `value` is the hull of both."""

    local: Interval
    anchor: Interval


class AnchoredDomain:
    """Values with slopes from 0: the rules of `SlopeDomain` over the hull of box and 0, but for products and quotients.

    A rule of `SlopeDomain` sees each operand's values anywhere between 0 and the box, so its slope holds from 0 as well.
    """

    def __init__(self, inputs: int):
        self._slopes, self._values = SlopeDomain(inputs), IntervalDomain()
        self.rules: dict[str, Callable] = {name: self._rule(name) for name in self._slopes.rules}
        self.rules |= {"mul": self._mul, "div": self._div, "square": self._square}

    def constant(self, array) -> Anchored:
        return self._anchored(self._slopes.constant(array).columns, *[Interval.constant(array)] * 2)

    def enclosure(self, value: Anchored | Interval) -> Interval:
        return self._slopes.enclosure(value)

    def gather(self, values: list[Anchored], sizes, index) -> Anchored:
        columns = self._slopes.gather([*values], sizes, index).columns
        local = gather_intervals([v.local for v in values], sizes, index)
        return self._anchored(columns, local, gather_intervals([v.anchor for v in values], sizes, index))

    def select(self, which: Interval, if_false: Anchored, if_true: Anchored) -> Anchored:
        columns = self._slopes.select(which, if_false, if_true).columns
        local = iv.select(which, if_false.local, if_true.local)
        return self._anchored(columns, local, iv.select(which, if_false.anchor, if_true.anchor))

    def total(self, terms: list[Anchored]) -> Anchored:
        result = terms[0]
        for term in terms[1:]:
            result = self.rules["add"](result, term)
        return result

    def _anchored(self, columns: Interval | None, local: Interval, anchor: Interval) -> Anchored:
        return Anchored(iv.hull(local, anchor), columns, local, anchor)

    def _rule(self, name: str) -> Callable:
        slopes, values = self._slopes.rules[name], self._values.rules.get(name)

        def rule(*operands: Anchored, **params) -> Anchored:
            found = slopes(*operands, **params)
            if values is None:  # only the hull is known
                return self._anchored(found.columns, found.value, found.value)
            local = values(*(x.local for x in operands), **params)
            return self._anchored(found.columns, local, values(*(x.anchor for x in operands), **params))

        return rule

    def _mul(self, a: Anchored, b: Anchored, **_) -> Anchored:
        if a is b:
            return self._square(a)
        columns = plus(times(a.local, b.columns), times(b.anchor, a.columns))
        return self._anchored(columns, iv.mul(a.local, b.local), iv.mul(a.anchor, b.anchor))

    def _square(self, x: Anchored, **_) -> Anchored:
        columns = times(iv.add(x.local, x.anchor), x.columns)
        return self._anchored(columns, iv.square(x.local), iv.square(x.anchor))

    def _div(self, a: Anchored, b: Anchored, **_) -> Anchored:
        # a/b - a0/b0 = ((a - a0) - (a0/b0) (b - b0)) / b
        anchor = iv.div(a.anchor, b.anchor)
        numerator = plus(a.columns, minus(times(anchor, b.columns)))
        columns = times(iv.div(Interval.constant(1.0), b.local), numerator)
        return self._anchored(columns, iv.div(a.local, b.local), anchor)


def run_anchored(program: Program, x: Interval) -> tuple[Interval, Interval, np.ndarray]:
    """g(0) [m, 1], slopes [m, n, boxes] and jumps [m, boxes] of a traced map R^n -> R^m: g(e) in g(0) + S e + [-j, j].

    For every e of the boxes x [n, boxes], whether they contain 0 or not.
    """
    n, boxes = x.shape[0], x.lo.shape[-1]
    seed = np.concatenate([np.eye(n), np.zeros((n, 1))], axis=1)[..., None]
    domain, zero = AnchoredDomain(n), Interval.constant(np.zeros(n))
    argument = Anchored(iv.hull(x, zero), Interval(seed, seed), x, zero)
    (result,) = program(domain, argument)
    m = result.anchor.shape
    if result.columns is None:
        still = np.zeros((*m, n, boxes))
        return result.anchor, Interval(still, still), np.zeros((*m, boxes))
    shape = (*m, n + 1, boxes)
    lo, hi = (np.broadcast_to(side, shape) for side in (result.columns.lo, result.columns.hi))
    return result.anchor, Interval(lo[..., :-1, :], hi[..., :-1, :]), Interval(lo, hi).magnitude[..., -1, :]
