"""Primitives written out in elementary operations, so that every domain has a rule for them, and dead code left out.

Cholesky factors, triangular systems and scattered sums of fixed places are what a simulator's mass matrix needs. Written
out they are statements about the same real numbers. Every sum is one `reduce_sum`, whose rounding is charged for every
order of its terms, and a quotient is charged as a product with a reciprocal, so that the bounds of
`holdfast.certify.rounding` hold for LAPACK's order of operations and for XLA's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from holdfast.certify.domain import UnsupportedPrimitive


def live_equations(jaxpr: Jaxpr, needed: tuple[bool, ...]) -> list[JaxprEqn]:
    """The equations on which the needed results depend, in order."""
    wanted = {atom for atom, need in zip(jaxpr.outvars, needed) if need and not isinstance(atom, Literal)}
    live = []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            live.append(equation)
            wanted.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return live[::-1]


def needed_after(jaxpr: Jaxpr, needed: tuple[bool, ...], live: list[JaxprEqn]) -> list[tuple[bool, ...]]:
    """For each live equation, which of its results somebody needs."""
    wanted = {atom for atom, need in zip(jaxpr.outvars, needed) if need and not isinstance(atom, Literal)}
    wanted.update(atom for equation in live for atom in equation.invars if not isinstance(atom, Literal))
    return [tuple(variable in wanted for variable in equation.outvars) for equation in live]


def _aval(atom) -> Any:
    return atom.aval


def cholesky(a):
    """L with L L' = a, shape [n, n], from the lower triangle of a."""
    n = a.shape[0]
    L: list[list] = [[jnp.zeros((), a.dtype)] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            if i == j:
                # Squares, so that a domain knows their sign.
                rest = _sum([a[j, j], *(-jnp.square(L[j][k]) for k in range(j))])
                L[j][j] = jnp.sqrt(rest)
            else:
                L[i][j] = _sum([a[i, j], *(-(L[i][k] * L[j][k]) for k in range(j))]) / L[j][j]
    return jnp.stack([jnp.stack(row) for row in L])


def _sum(terms: list):
    return terms[0] if len(terms) == 1 else jnp.sum(jnp.stack(terms))


def triangular_solve(a, b, *, left_side: bool, lower: bool, transpose_a: bool, unit_diagonal: bool):
    """x with op(a) x = b, or x op(a) = b, for a triangular a [n, n], by substitution."""
    if not left_side:
        options = {"lower": lower, "transpose_a": not transpose_a, "unit_diagonal": unit_diagonal}
        return triangular_solve(a, b.T, left_side=True, **options).T
    n = a.shape[0]
    if transpose_a:
        a, lower = a.T, not lower
    x: list = [None] * n
    for i in range(n) if lower else reversed(range(n)):
        known = range(i) if lower else range(i + 1, n)
        rest = jnp.sum(jnp.stack([b[i], *(-(a[i, k] * x[k]) for k in known)]), axis=0)
        x[i] = rest if unit_diagonal else rest / a[i, i]
    return jnp.stack(x)


def scattered_sum(equation: JaxprEqn, indices: np.ndarray) -> Callable:
    """(operand, updates) -> operand with the updates added at their places, which are found by trying each alone."""
    operand, _, updates = (_aval(atom) for atom in equation.invars)
    size = int(np.prod(operand.shape, dtype=int))
    places: list[list[int]] = [[] for _ in range(size)]
    count = int(np.prod(updates.shape, dtype=int))
    for k in range(count):
        alone = np.eye(1, count, k).reshape(updates.shape).astype(updates.dtype)
        found = equation.primitive.bind(np.zeros(operand.shape, operand.dtype), indices, alone, **equation.params)
        for place in np.flatnonzero(np.asarray(found)):
            places[place].append(k)
    most = max(map(len, places), default=0)
    index = np.array([[each[r] if r < len(each) else count for each in places] for r in range(most)], int)

    def added(operand, updates):
        padded = jnp.concatenate([updates.reshape(-1), jnp.zeros(1, updates.dtype)])
        terms = [operand.reshape(-1), *(padded[row] for row in index)]
        return jnp.sum(jnp.stack(terms), axis=0).reshape(operand.shape)

    return added


#: Primitive -> function of (equation, values) that gives the function it stands for, of those operands that are data.
WRITTEN_OUT = ("cholesky", "triangular_solve", "scatter-add")


def written_out(equation: JaxprEqn, values: list, function: str) -> tuple[ClosedJaxpr, tuple[int, ...]]:
    """A primitive of `WRITTEN_OUT` as a program of elementary operations, and which operands it takes.

    Raises:
        UnsupportedPrimitive: for a batch of matrices, or places that depend on the arguments.
    """
    name, params = equation.primitive.name, equation.params
    taken: tuple[int, ...] = tuple(range(len(values)))
    if name == "scatter-add":
        if not isinstance(values[1], np.ndarray):
            raise UnsupportedPrimitive(name, function, " with indices that depend on the arguments")
        call, taken = scattered_sum(equation, values[1]), (0, 2)
    else:
        if any(_aval(atom).ndim != 2 for atom in equation.invars):
            raise UnsupportedPrimitive(name, function, " of a batch of matrices")
        options = {key: params[key] for key in ("left_side", "lower", "transpose_a", "unit_diagonal") if key in params}
        call = cholesky if name == "cholesky" else lambda a, b: triangular_solve(a, b, **options)
    return jax.make_jaxpr(call)(*(equation.invars[i].aval for i in taken)), taken
