"""Proofs that an ellipsoid lies inside a safe set {margin >= 0}."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.certify import interval as iv
from holdfast.certify.branch_and_bound import Budget, Judgement, search
from holdfast.certify.coordinates import normal_coordinates
from holdfast.certify.interpreter import IntervalDomain, Program
from holdfast.certify.interval import Interval
from holdfast.certify.invariance import InvarianceProof, _apply, _largest, _sum, _timed
from holdfast.certify.slope import run_slopes

_EPS = float(np.finfo(np.float64).eps)


class _Margin:
    """A margin function, traced once, over an ellipsoid."""

    def __init__(self, margin: Callable, P):
        self.P = np.asarray(P, np.float64)
        self.n = self.P.shape[0]
        self.coordinates = normal_coordinates(lambda e: 0.0 * e, self.P)
        S = self.coordinates.S

        def normal_margin(y):
            return jnp.ravel(margin(jnp.asarray(S) @ y))

        normal_margin.__name__ = getattr(margin, "__name__", "margin")
        self.program = Program(normal_margin, jax.ShapeDtypeStruct((self.n,), np.float64))

    def witness(self, y: np.ndarray, level: float):
        """The state at y with verified bounds: V at most, worst margin at most; None if neither side is clear."""
        e = self.coordinates.S @ y
        before = float(iv.quadratic_form(self.P, Interval.constant(e)).hi[0])
        # The margin is evaluated at a box around the float state, so that S y is in it.
        return (e, before) if before <= level else None

    def judge(self, level: float, lo: np.ndarray, hi: np.ndarray) -> Judgement:
        with np.errstate(all="ignore"):
            return self._judge(level, lo, hi)

    def _judge(self, level, lo, hi) -> Judgement:
        raise NotImplementedError
