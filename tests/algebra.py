"""Proofs of identities between traced JAX functions, by polynomial algebra in SymPy.

The function's jaxpr is run on fractions of polynomials with rational coefficients. Floats in the program stand for the
decimal number that they were written as. Square roots, sines and cosines are symbols with a polynomial relation each
(r^2 = 1 + h.h, c^2 = 1 - s^2); as the leading monomials of the relations have no variable in common they are a Groebner
basis, so a polynomial is zero on the variety exactly where its remainder is zero. Branches are decided at a sample point:
an identity holds on the connected set around it where the branches are the same.
"""

from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from sympy import QQ
from sympy.polys.orderings import lex
from sympy.polys.rings import ring

from holdfast.certify.interpreter import Program, gather_arrays
from holdfast.certify.interval import Interval


class Algebra:
    """A polynomial ring with relations.

    Args:
        names: of the variables, those that the relations eliminate first.
        relations: name -> function of the variables by name, giving the polynomial that name^2 equals.
        point: name -> number, a sample point on the variety.
    """

    def __init__(self, names, relations, point):
        self.ring, *symbols = ring(list(names), QQ, lex)
        self.symbols = dict(zip(names, symbols))
        self.squares = {name: self.ring(f(self.symbols)) for name, f in relations.items()}
        self.relations = [self.symbols[name] ** 2 - square for name, square in self.squares.items()]
        self.point = [QQ(Fraction(point[name]).limit_denominator(10**9)) for name in names]

    def normal(self, polynomial):
        return polynomial.rem(self.relations) if self.relations else polynomial

    def array(self, entries) -> "Expression":
        """An array of variables (by name) and numbers."""
        flat = [self.symbols[e] if isinstance(e, str) else e for e in entries]
        values = np.empty(len(flat), object)
        values[:] = [Ratio(self, self.ring(e), self.ring(1)) for e in flat]
        return Expression(values)

    def run(self, function, *arguments: "Expression", **functions) -> list["Expression"]:
        """The function on symbols; `functions` says what sin, cos, ... give: name -> (argument, result)."""
        shapes = [jax.ShapeDtypeStruct(a.values.shape, np.float64) for a in arguments]
        return Program(function, *shapes)(_Domain(self, functions), *arguments)


class Ratio:
    """num / den, both in normal form."""

    def __init__(self, algebra: Algebra, num, den):
        self.algebra = algebra
        num, den = algebra.normal(num), algebra.normal(den)
        if not den.is_ground:
            num, den = num.cancel(den)
        self.num, self.den = num.quo_ground(den.LC), den.quo_ground(den.LC)

    def _new(self, num, den):
        return Ratio(self.algebra, num, den)

    def __add__(self, other):
        if self.den == other.den:
            return self._new(self.num + other.num, self.den)
        return self._new(self.num * other.den + other.num * self.den, self.den * other.den)

    def __neg__(self):
        return self._new(-self.num, self.den)

    def __sub__(self, other):
        return self + -other

    def __mul__(self, other):
        return self._new(self.num * other.num, self.den * other.den)

    def __truediv__(self, other):
        return self._new(self.num * other.den, self.den * other.num)

    def equals(self, other) -> bool:
        return self.algebra.normal(self.num * other.den - other.num * self.den) == 0

    def root(self):
        for name, square in self.algebra.squares.items():
            if self.equals(self._new(square, self.algebra.ring(1))):
                return self._new(self.algebra.symbols[name], self.algebra.ring(1))
        raise AssertionError(f"no variable is declared to be the square root of ({self.num}) / ({self.den})")

    def __float__(self):
        point = self.algebra.point
        return float(self.num.evaluate(list(zip(self.algebra.ring.gens, point)))) / float(
            self.den.evaluate(list(zip(self.algebra.ring.gens, point)))
        )


@dataclass(frozen=True, eq=False)
class Expression:
    """An array [...] of `Ratio`s."""

    values: np.ndarray

    def equals(self, other: "Expression") -> bool:
        pairs = zip(self.values.ravel(), other.values.ravel(), strict=True)
        return all(a.equals(b) for a, b in pairs)


class _Domain:
    def __init__(self, algebra: Algebra, functions):
        self.algebra = algebra
        elementwise = {
            "add": lambda a, b: a + b,
            "add_any": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "mul": lambda a, b: a * b,
            "div": lambda a, b: a / b,
            "neg": lambda a: -a,
            "sqrt": Ratio.root,
            "square": lambda a: a * a,
        }
        for name, (argument, result) in functions.items():
            elementwise[name] = self._known(argument.values.item(), result.values.item())
        self.rules = {name: self._rule(function) for name, function in elementwise.items()}

    @staticmethod
    def _known(argument, result):
        def function(x):
            assert x.equals(argument)
            return result

        return function

    @staticmethod
    def _rule(function):
        vectorised = np.frompyfunc(function, function.__code__.co_argcount, 1)

        def rule(*operands, **_):
            values = vectorised(*(operand.values for operand in operands))
            return Expression(values if isinstance(values, np.ndarray) else _scalar(values))

        return rule

    def constant(self, array):
        array = np.asarray(array, np.float64)
        values = np.empty(array.shape, object)
        for index, number in np.ndenumerate(array):
            exact = Fraction(float(number)).limit_denominator(10**6)
            assert abs(float(exact) - number) <= 1e-15 * abs(number), f"{number} is no short decimal"
            values[index] = Ratio(self.algebra, self.algebra.ring(QQ(exact)), self.algebra.ring(1))
        return Expression(values)

    def gather(self, values, sizes, index):
        result = gather_arrays([v.values for v in values], sizes, index, 0)
        return Expression(result if isinstance(result, np.ndarray) else _scalar(result))

    def enclosure(self, value):
        if isinstance(value, Interval):
            return value
        numbers = np.vectorize(float, otypes=[float])(value.values)
        return Interval.constant(numbers)

    def select(self, which, if_false, if_true):
        assert (which.lo == which.hi).all(), "a branch is undecided at the sample point"
        return Expression(np.where(which.lo[..., 0], if_true.values, if_false.values))

    def total(self, terms):
        result = terms[0]
        for term in terms[1:]:
            result = self.rules["add"](result, term)
        return result


def _scalar(value) -> np.ndarray:
    array = np.empty((), object)
    array[()] = value
    return array


def hover_relations(rates: tuple[str, str, str]):
    """(relations, point) of quadrotors whose step turns by dt = 1/50 of body rates with these names.

    C = cos and S = sin of half the yaw, rho^2 = 1 + |s|^2/4, r^2 = 1 + |dt w/2|^2.
    """
    relations = {
        "C": lambda m: 1 - m["S"] ** 2,
        "rho": lambda m: 1 + (m["s1"] ** 2 + m["s2"] ** 2) / 4,
        "r": lambda m: 1 + sum(m[rate] ** 2 for rate in rates) * QQ(1, 100) ** 2,
    }
    return relations, {"C": 0.8, "S": 0.6, "rho": 1.0025, "r": 1.0}


def lifted_anywhere(algebra, system, e):
    """Every state of a quadrotor with the error e: its lift at half the yaw (C, S), at the place (x, y) in the plane."""
    yaw, place = algebra.array(["x"]), algebra.array("xy")
    (half,) = algebra.run(lambda psi: psi / 2, yaw)
    known = {"cos": (half, algebra.array("C")), "sin": (half, algebra.array("S"))}
    rest = system.state_size - 2
    (x,) = algebra.run(lambda e, psi, xy: system.lift_along(e, psi) + jnp.pad(xy, (0, rest)), e, yaw, place, **known)
    assert algebra.run(system.error, x)[0].equals(e)
    assert algebra.run(system.manifold, x)[0].equals(algebra.array([0]))
    return x


def turned(pairs, vector, cos, sin):
    """The vector with pairs of its numbers turned by one angle."""
    for a, b in pairs:
        first, second = vector[a], vector[b]
        vector = vector.at[a].set(cos[0] * first - sin[0] * second).at[b].set(sin[0] * first + cos[0] * second)
    return vector
