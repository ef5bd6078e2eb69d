"""A small disturbed system with a robust invariant set that is right by construction, for tests of sources and maps."""

from functools import cache
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.safeguards import InvariantSource
from holdfast.sets import Box, Polytope
from holdfast.systems import ClippedFeedback, ContinuousSystem

NOISE = 0.1
INSIDE, SUCCESSOR = 2e-6, 1e-5
"""Asked margins in the units of unit facets: some tens of roundings of float32 numbers of order one."""


class Platform(ContinuousSystem):
    """Position and velocity along one or two axes; the inputs push askew: v' = M u + w."""

    state_names: ClassVar = ("p", "v")
    input_names: ClassVar = ("u",)
    integrator: ClassVar = "semi_implicit_euler"
    velocities: ClassVar = (1,)

    dt: float = 0.1
    push: np.ndarray = eqx.field(default_factory=lambda: np.eye(1))
    input_box: Box = eqx.field(default_factory=lambda: Box([-2.0], [2.0]))
    disturbance: Box = eqx.field(default_factory=lambda: Box([-NOISE], [NOISE]))

    @property
    def disturbance_box(self) -> Box:
        return self.disturbance

    def derivative(self, x, u, w):
        axes = len(self.push)
        acceleration = jnp.asarray(self.push, x.dtype) @ u
        return jnp.concatenate([x[axes:], acceleration + w if w.shape[0] else acceleration])

    def equilibrium(self):
        axes = len(self.push)
        return jnp.zeros(2 * axes), jnp.zeros(axes)


class TwoAxes(Platform):
    """Two axes, inputs askew, so that both act on every facet."""

    state_names: ClassVar = ("px", "py", "vx", "vy")
    input_names: ClassVar = ("u1", "u2")
    velocities: ClassVar = (2, 3)

    push: np.ndarray = eqx.field(default_factory=lambda: np.array([[1.0, 0.6], [-0.3, 0.8]]))
    input_box: Box = eqx.field(default_factory=lambda: Box([-2.0, -3.0], [2.0, 2.5]))
    disturbance: Box = eqx.field(default_factory=lambda: Box([-NOISE, -0.5 * NOISE], [NOISE, 0.5 * NOISE]))


def _largest_invariant(closed, rows, offsets, spread_of, steps=60):
    """The largest subset of {rows x <= offsets} that x+ = closed x + w never leaves; Kolmanovsky and Gilbert, 1998."""
    H, h, power, lost = rows, offsets, np.eye(len(closed)), np.zeros(len(rows))
    for _ in range(steps):
        lost = lost + spread_of(rows @ power)
        power = closed @ power
        ahead, limit = rows @ power, offsets - lost
        new = [i for i in range(len(ahead)) if -_lowest(-ahead[i], H, h) > limit[i] + 1e-9]
        if not new:
            break
        H, h = np.concatenate([H, ahead[new]]), np.concatenate([h, limit[new]])
    else:
        raise AssertionError("the test's own set did not settle")
    keep = np.ones(len(H), bool)
    for i in range(len(H)):
        keep[i] = False
        keep[i] = -_lowest(-H[i], H[keep], h[keep]) > h[i] + 1e-9
    return H[keep], h[keep]


def _lowest(c, H, h):
    return linprog(c, H, h, bounds=[(-10, 10)] * len(c)).fun


@cache
def invariant_set(axes=1):
    """The set, invariant for noise 5 % larger than there is: what is left over pays for rounding."""
    system = (Platform, TwoAxes)[axes - 1]()
    x, u = (np.asarray(v) for v in system.equilibrium())
    w = np.zeros(axes)
    A, B, E = (np.asarray(j) for j in jax.jacfwd(system.step, argnums=(0, 1, 2))(x, u, w))
    feedback = np.linalg.solve(system.push, -np.concatenate([4.0 * np.eye(axes), 3.2 * np.eye(axes)], axis=1))
    eye = np.eye(2 * axes)
    rows = np.concatenate([eye, -eye, feedback, -feedback])
    offsets = np.concatenate([np.ones(4 * axes), system.input_box.upper, -system.input_box.lower])
    half = 1.05 * system.disturbance_box.half_widths
    H, h = _largest_invariant(A + B @ feedback, rows, offsets, lambda N: np.abs(N @ E) @ half)
    norms = np.linalg.norm(H, axis=1)
    controller = ClippedFeedback(feedback, x, u, system.input_box)
    return InvariantSet(system, Polytope(H / norms[:, None], h / norms), controller)


@cache
def invariant_source(axes=1):
    return InvariantSource(invariant_set(axes), RobustMargins(INSIDE, SUCCESSOR, 0.0))


@cache
def states(axes=1, count=64, seed=0):
    """States of the set [count, n], many near its boundary; float64."""
    region = invariant_set(axes).region
    directions = np.random.default_rng(seed).normal(size=(count, 2 * axes))
    reach = 1 / np.max(directions @ region.normals.T / region.offsets[None], axis=1)
    share = 1 - np.random.default_rng(seed + 1).uniform(0, 1, count) ** 3
    return jnp.asarray(directions * (0.9995 * reach * share)[:, None])
