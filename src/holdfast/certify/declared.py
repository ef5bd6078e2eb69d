"""Obligations from what a system declares about itself: its reduced coordinates, its angles and its symmetry."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import BaseSet
from holdfast.certify.certificate import Obligation
from holdfast.certify.cover import cover_region
from holdfast.certify.interpreter import IntervalDomain, Program, UnsupportedPrimitive
from holdfast.certify.interval import Interval
from holdfast.certify.slope import run_slopes
from holdfast.sets import Box, Set
from holdfast.systems import System

_SAMPLES = 2000
#: Multiple of the base set's radii within which states are sampled.
_NEAR = 3.0
#: Two ways of computing one number in float64 differ by rounding only, relative to its size.
_TOLERANCE = 1e-8
#: What intervals leave of a difference that is zero in exact arithmetic, in the margins' units.
_EXACT = 1e-12


def declared_obligations(base: BaseSet, state_box: Box) -> list[Obligation]:
    """Reduced coordinates, and the symmetry if one is declared."""
    found = [_reduction(base, state_box)]
    return found if base.system.symmetry is None else [*found, _symmetry(base, state_box)]


def _reduction(base: BaseSet, state_box: Box) -> Obligation:
    system = base.system
    name = "reduced coordinates"
    claim = "The error after a step is error_step(error(x), u): it depends on the state only through the error."
    kind = type(system)
    plain = all(getattr(kind, method) is getattr(System, method) for method in ("error", "lift", "error_step"))
    if plain and not system.angles:
        return Obligation(name, claim, "proved", "trivially: the error is the state minus the equilibrium")

    def both(x, u):
        return system.error(system.step(x, u)), system.error_step(system.error(x), u)

    return _shown(name, claim, system.reduction_shown_by, both, base, state_box)


def constraint_obligations(base: BaseSet, safe_set: Set, state_box: Box) -> list[Obligation]:
    """That no constraint sees what the error drops, for systems with an error of their own.

    The base set's safety is proved for the states `lift` gives; it carries over to all others with the same error only if
    they have the same margins.
    """
    system = base.system
    kind = type(system)
    if all(getattr(kind, method) is getattr(System, method) for method in ("error", "lift")):
        return []
    name = "constraints see the error only"
    claim = "Two states with the same error have the same margins: that the base set is safe holds for all of them."

    def both(x, u):
        return safe_set.margin(x), safe_set.margin(system.lift(system.error(x)))

    found = _shown(name, claim, "", both, base, state_box)
    if found.discharge == "sampled" and _never_differ(lambda x: jnp.subtract(*both(x, None)), system, state_box):
        method = "interval slopes: the difference of the two margins is nowhere larger than rounding in the state box"
        return [Obligation(name, claim, "proved", method, found.numbers)]
    return [found]


def _never_differ(difference: Callable, system: System, region: Box) -> bool:
    """Whether interval slopes show a function of the state to be zero, but for rounding, on a whole box."""
    cells = cover_region(system, region)
    try:
        program = Program(difference, jax.ShapeDtypeStruct((region.dimension,), np.float64))
        _, slopes, jump = run_slopes(program, cells)
        middle = cells.lo + 0.5 * (cells.hi - cells.lo)
        (at_middle,) = program(IntervalDomain(), Interval(middle, middle))
    except UnsupportedPrimitive:
        return False
    away = np.maximum(cells.hi - middle, middle - cells.lo)
    bound = at_middle.magnitude + (slopes.magnitude * away).sum(-2) + jump
    return bool(np.all(bound * (1 + 1e-12) <= _EXACT))


def angle_obligations(base: BaseSet, safe_set: Set, state_box: Box) -> list[Obligation]:
    """That the declared angles are angles, if there are any."""
    system = base.system
    if not system.angles:
        return []
    names = ", ".join(system.state_names[i] for i in system.angles)
    claim = f"One turn more of an angle ({names}) changes neither the next state nor the error nor a margin."
    turn = np.zeros(system.state_size)
    turn[list(system.angles)] = 2 * np.pi

    def seen(x, u):
        # Angles on the circle: -pi and pi are one.
        following = system.step(x, u)
        circle = [f(following[i]) for i in system.angles for f in (jnp.sin, jnp.cos)]
        rest = [following[i] for i in range(system.state_size) if i not in system.angles]
        return jnp.concatenate([jnp.stack(circle + rest), system.error(x), safe_set.margin(x)])

    def both(x, u):
        return seen(x, u), seen(x + jnp.asarray(turn), u)

    return [_shown("angles", claim, "", both, base, state_box)]


def _symmetry(base: BaseSet, state_box: Box) -> Obligation:
    system, symmetry = base.system, base.system.symmetry
    assert symmetry is not None
    claim = (
        f"Turning the error pairs {symmetry.pairs} and the input pairs {symmetry.input_pairs} by one angle"
        + (", and the mirror image," if symmetry.mirror else "")
        + " commutes with error_step; P and K have the symmetry exactly, and inputs do not saturate."
    )
    # One turn, with the mirror if there is one: an angle that is no fraction of a full turn generates all others.
    turn = symmetry.error_matrix(_error_size(system), 1.0, symmetry.mirror)
    turn_input = symmetry.input_matrix(system.input_size, 1.0, symmetry.mirror)

    def both(x, u):
        e = system.error(x)
        return system.error_step(jnp.asarray(turn) @ e, jnp.asarray(turn_input) @ u), jnp.asarray(
            turn
        ) @ system.error_step(e, u)

    return _shown("symmetry", claim, symmetry.shown_by, both, base, state_box)


def _shown(name: str, claim: str, shown_by: str, both: Callable, base: BaseSet, state_box: Box) -> Obligation:
    """Proved where algebra shows it, else sampled; sampled in both cases, so that a wrong declaration is found."""
    states = _states(base, state_box)
    if not len(states):
        return Obligation(name, claim, "not proved", "`lift` gave no finite state to sample near the base set")
    gap, x, u = _largest_gap(both, base.system, states)
    numbers = {"samples": len(states), "largest_gap": gap}
    if not gap <= _TOLERANCE:
        numbers["counterexample"] = {"state": x.tolist(), "input": u.tolist()}
        return Obligation(name, claim, "refuted", f"the two sides differ by {gap:.3g} at a sampled state", numbers)
    if shown_by and type(base.system).__module__.startswith("holdfast."):
        return Obligation(name, claim, "proved", shown_by, numbers)
    if shown_by:
        return Obligation(name, claim, "assumed", f"declared by the system: {shown_by}", numbers)
    return Obligation(name, claim, "sampled", f"at {len(states)} random states and inputs", numbers)


def _error_size(system: System) -> int:
    return jax.eval_shape(system.error, jax.ShapeDtypeStruct((system.state_size,), np.float32)).shape[0]


def _largest_gap(both: Callable, system: System, states: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The largest relative difference of two ways to the next error, and where."""
    rng = np.random.default_rng(1)
    inputs = rng.uniform(system.input_box.lower, system.input_box.upper, (len(states), system.input_size))
    with jax.enable_x64(True):
        one, other = (np.asarray(side) for side in jax.jit(jax.vmap(both))(states, inputs))
    size = 1 + np.maximum(np.abs(one), np.abs(other)).max(axis=1)
    gap = np.abs(one - other).max(axis=1) / size
    worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    return float(gap[worst]), states[worst], inputs[worst]


def _states(base: BaseSet, state_box: Box) -> np.ndarray:
    """Random states on the manifold: lifted from the base set, and those of the state box that are not far from it.

    The base set is where the claims are used; far from it a chart may be singular.
    """
    system, radii, rng = base.system, base.ellipsoid.bounding_radii(), np.random.default_rng(0)
    errors = rng.uniform(-radii, radii, (_SAMPLES, len(radii)))
    along = rng.uniform(system.fibre_box.lower, system.fibre_box.upper, (_SAMPLES, system.fibre_box.dimension))
    anywhere = rng.uniform(state_box.lower, state_box.upper, (10 * _SAMPLES, state_box.dimension))
    rest = np.asarray(system.equilibrium()[1], np.float64)
    with jax.enable_x64(True):
        lifted = np.asarray(jax.vmap(system.lift_along)(jnp.asarray(errors), jnp.asarray(along)))
        # A step takes any vector to a state that there is.
        anywhere = np.asarray(jax.jit(jax.vmap(system.step, in_axes=(0, None)))(anywhere, rest))
        near = (np.abs(np.asarray(jax.vmap(system.error)(jnp.asarray(anywhere)))) <= _NEAR * radii).all(axis=1)
    states = np.concatenate([lifted, anywhere[near]])
    # The corners of a box of errors may belong to no state.
    return states[np.isfinite(states).all(axis=1)]
