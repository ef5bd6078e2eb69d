"""Settings that a task leaves out, derived from its system and its safe set.

Nothing here is proved but the outer bounds of the safe set, and nothing needs to be: settings decide how much can be
certified, never what certified means. Where simulation is used it says how large a region, how long a horizon is useful.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import BaseSet, design_base_controller
from holdfast.certify.base_set import NotProvable
from holdfast.certify.containment import largest_inside_level
from holdfast.certify.interpreter import IntervalDomain, Program
from holdfast.certify.interval import Interval
from holdfast.certify.invariance import prove_invariance
from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import System, linearise

#: Beyond this multiple of (1 + |x*|) a coordinate counts as unbounded by the safe set.
_FAR = 1e4
#: Angles are wrapped to [-pi, pi]; rounding may lead a little beyond.
_TURN = 3.15
#: Simulated states, and the longest time that is looked at, in steps.
_COUNT, _LONGEST = 512, 400
#: Input costs tried, as multiples of Bryson's, until a base set can be proved.
_INPUT_SCALES = (1.0, 0.1, 10.0, 0.01, 100.0)
#: The first look at whether anything can be proved: shares of the level below which no input saturates, and its budget.
_FIRST_SHARES, _FIRST_BOXES = (0.25, 0.02), 20_000
_SHORTEST_HORIZON, _LONGEST_HORIZON = 10, 200
#: A horizon that is given is refused if fewer of the arriving states than this arrive within it.
_LEAST_IN_TIME = 0.1
#: Starts: shares of the region that are tried. All sampled states of one must arrive in half the horizon, so that a backup
#: that learns another way is still likely to certify them.
_START_SHARES = (0.35, 0.25, 0.15, 0.1, 0.05)


@dataclass(frozen=True)
class Defaults:
    """Settings of a task; see `holdfast.tasks.Task` and `SafetySettings` for what they mean.

    Attributes:
        state_box: bounds of the states, n numbers.
        start_box: bounds of the errors of the starts, e numbers.
        state_cost, input_cost: LQR weights, [e] and [m].
        horizon: steps.
    """

    state_box: Box
    start_box: Box
    state_cost: tuple[float, ...]
    input_cost: tuple[float, ...]
    horizon: int


def derive_defaults(
    system: System,
    safe_set: SuperlevelSet,
    *,
    state_box: Box | None = None,
    start_box: Box | None = None,
    state_cost: tuple[float, ...] = (),
    input_cost: tuple[float, ...] = (),
    horizon: int = 0,
) -> Defaults:
    """Fills in what is not given.

    *State box*: where the safe set bounds a coordinate (shown by intervals), those bounds; for an angle a full turn; else
    a little more than what held corner inputs reach from the equilibrium while the state is safe.
    *Weights*: Bryson's rule, 1 / (largest size)^2, with the sizes of the errors over the state box and the room of the
    inputs; the input costs are scaled if no base set can be proved otherwise.
    *Horizon*: the time in which nine of ten states arrive in the base set, among those that the saturated base controller
    brings there safely. It holds the closed loop's time constants and the braking with saturated inputs.
    *Start box*: the largest share of the errors' range from which that controller arrives.

    Args:
        system, safe_set: what moves, and C.
        state_box, start_box, state_cost, input_cost, horizon: what is given already.

    Raises:
        NotProvable: if no input cost gives a base set that can be proved, with the reason for each.
        ValueError: if the equilibrium or the linearisation is unusable, or a coordinate moves on for ever.
    """
    if state_box is None:
        state_box = _state_box(system, safe_set)
    states = _safe_states(safe_set, state_box)
    radii = _error_radii(system, states)
    state_cost = state_cost or tuple(_nice(1 / radii**2).tolist())
    base, input_cost = _base(system, safe_set, state_cost, input_cost)
    loop = _SaturatedLoop(base, safe_set)
    horizon = loop.checked(horizon, states) if horizon else loop.horizon(states)
    if start_box is None:
        start_box = loop.start_box(radii, horizon)
    return Defaults(state_box, start_box, state_cost, input_cost, horizon)


# --- the region ------------------------------------------------------------------------------------------------------


def _state_box(system: System, safe_set: SuperlevelSet) -> Box:
    lower, upper = safe_bounds(system, safe_set)
    for i in system.angles:
        lower[i], upper[i] = -_TURN, _TURN
    free = ~(np.isfinite(lower) & np.isfinite(upper))
    if free.any():
        low, high = _reached(system, safe_set)
        _refuse_moving_on(system, free)
        centre = np.asarray(system.equilibrium()[0], np.float64)
        widest = np.maximum(_nice(1.2 * (high - centre)), _nice(1.2 * (centre - low)))
        # Symmetric about the equilibrium: a fast approach from one side is a fast flight from the other.
        lower = np.where(np.isfinite(lower), lower, centre - widest)
        upper = np.where(np.isfinite(upper), upper, centre + widest)
    return Box(lower, upper)


def safe_bounds(system: System, safe_set: SuperlevelSet) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the safe set, coordinate by coordinate, shown by intervals; infinite where none was found: two [n]."""
    centre = np.asarray(system.equilibrium()[0], np.float64)
    program = Program(safe_set.margin, jax.ShapeDtypeStruct(centre.shape, np.float64))
    far = _FAR * (1 + np.abs(centre))
    bounds = np.stack([np.full_like(centre, -np.inf), np.full_like(centre, np.inf)])
    for i in range(len(centre)):
        for side, sign in enumerate((-1.0, 1.0)):
            # The state lies beyond x* by more than `offset`, anywhere within `far` in the others: is nothing safe there?
            inner, outer = 0.0, np.inf
            for offsets in (np.geomspace(1e-6, 1.0, 60) * far[i], None, None, None):
                if offsets is None:
                    offsets = np.linspace(inner, outer, 40)[1:]
                empty = _nothing_safe(program, centre, far, i, sign, offsets)
                if not empty.any():
                    break
                k = int(np.argmax(empty))
                inner, outer = (offsets[k - 1] if k else inner), offsets[k]
            bounds[side, i] = centre[i] + sign * outer
    # Outwards to a short number, so that other machines derive the same.
    return -_nice(-bounds[0], 3), _nice(bounds[1], 3)


def _nothing_safe(program: Program, centre, far, axis: int, sign: float, offsets) -> np.ndarray:
    lo, hi = ((centre + side * far)[:, None] * np.ones(len(offsets)) for side in (-1, 1))
    (lo if sign > 0 else hi)[axis] = centre[axis] + sign * offsets
    with np.errstate(all="ignore"):
        (margins,) = program(IntervalDomain(), Interval.boxes(lo, hi))
    return np.broadcast_to((margins.hi < 0).any(axis=0), offsets.shape)


def _reached(system: System, safe_set: SuperlevelSet) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest coordinates, [n] each, that held corner inputs reach from the equilibrium in safety (a sample)."""
    rng = np.random.default_rng(0)
    centre = np.asarray(system.equilibrium()[0], np.float64)
    box = system.input_box
    corners = rng.integers(0, 2, (_COUNT, 8, box.dimension))
    # Eight inputs, one after the other, each held for as long as the last; the first plants hold theirs longest.
    inputs = np.where(corners, box.upper, box.lower)
    holds = np.geomspace(_LONGEST, _LONGEST / 32, _COUNT).astype(int)

    def roll(inputs, hold):
        def advance(carry, t):
            x, inside = carry
            x = system.step(x, inputs[(t // hold) % 8])
            inside = inside & safe_set.contains(x) & jnp.all(jnp.isfinite(x))
            return (x, inside), jnp.where(inside, x, centre)

        return jax.lax.scan(advance, (jnp.asarray(centre), True), jnp.arange(_LONGEST))[1]

    with jax.enable_x64(True):
        states = np.asarray(jax.jit(jax.vmap(roll))(inputs, holds))
    return states.min(axis=(0, 1)), states.max(axis=(0, 1))


def _refuse_moving_on(system: System, free: np.ndarray) -> None:
    """A coordinate that goes on moving at a relative equilibrium leaves every region: its plans are accepted for a while."""
    with jax.enable_x64(True):
        x, u = (jnp.asarray(v, jnp.float64) for v in system.equilibrium())
        moved = np.abs(np.asarray(jax.jit(lambda x, u: system.step(x, u) - x)(x, u))) > 1e-6
    for i in np.flatnonzero(moved & free):
        raise ValueError(
            f"{type(system).__name__}: '{system.state_names[i]}' moves on at the equilibrium, and neither the safe set nor a "
            "wrap bounds it. Name an angle in `angles`, leave a coordinate that does not matter out of the state, or give "
            "the task a `state_box` that holds it for as long as the robot runs"
        )


def _safe_states(safe_set: SuperlevelSet, state_box: Box) -> np.ndarray:
    """States of the box that are safe, at most `_COUNT`, [k, n]."""
    states = np.random.default_rng(1).uniform(state_box.lower, state_box.upper, (40 * _COUNT, state_box.dimension))
    with jax.enable_x64(True):
        states = states[np.asarray(jax.jit(jax.vmap(lambda x: safe_set.contains(x)))(states))]
    if not len(states):
        raise ValueError(
            f"safe set: none of {40 * _COUNT} states drawn from the state box {state_box.lower} to {state_box.upper} is safe; "
            "give the task a smaller `state_box`"
        )
    return states[:_COUNT]


def _error_radii(system: System, states: np.ndarray) -> np.ndarray:
    """Size of each error over the states, [e]: what one of twenty exceeds, as a chart may be singular."""
    with jax.enable_x64(True):
        errors = np.abs(np.asarray(jax.jit(jax.vmap(lambda x: system.error(x)))(states)))
    return np.maximum(np.quantile(errors, 0.95, axis=0), 1e-6)


# --- the base set ----------------------------------------------------------------------------------------------------


def _base(system: System, safe_set: SuperlevelSet, state_cost, input_cost) -> tuple[BaseSet, tuple[float, ...]]:
    """The base set for the first input cost with which one can be proved, and that cost; the level is a first guess."""
    if input_cost:
        scales, room = (1.0,), np.asarray(input_cost) ** -0.5
    else:
        linearise(system)  # refuses an equilibrium that is none before its room is asked for
        u, box = np.asarray(system.equilibrium()[1], np.float64), system.input_box
        scales, room = _INPUT_SCALES, np.minimum(box.upper - u, u - box.lower)
        if not np.all(room > 0):
            raise ValueError(
                f"{type(system).__name__}.equilibrium: u* = {u} must lie strictly inside the input box "
                f"[{box.lower}, {box.upper}]; the regulator needs room on both sides"
            )
    reasons = []
    for scale in scales:
        cost = tuple(input_cost) or tuple(_nice(scale / room**2).tolist())
        base = design_base_controller(system, np.asarray(state_cost), np.asarray(cost))
        P, free = base.ellipsoid.shape_matrix, base.unsaturated_level()
        contained = largest_inside_level(lambda e: safe_set.margin(system.lift(e)), P, free, rtol=0.1)
        if contained.result != "proved":
            reasons.append(f"input_cost = {_words(cost)}: no level lies in the safe set ({contained.reason})")
            continue
        first = None
        for share in () if input_cost else _FIRST_SHARES:
            level = share * contained.level
            first = prove_invariance(base.closed_loop, P, level, max_boxes=_FIRST_BOXES, falsify=False)
            if first.result == "proved":
                break
        if first is None or first.result == "proved":
            return base.at_level(contained.level), cost
        reasons.append(f"input_cost = {_words(cost)}: not proved invariant ({first.reason})")
    raise NotProvable(
        f"base set: none could be proved with state_cost = {_words(state_cost)} (Bryson's rule) and any input cost. "
        + "; ".join(reasons)
        + ". Give the task `safety = SafetySettings(state_cost=..., input_cost=...)`, an equilibrium with more room in the "
        "safe set and the input box, or a shorter dt"
    )


class _SaturatedLoop:
    """The base controller with its clip, simulated from states outside the base set; compiled once."""

    def __init__(self, base: BaseSet, safe_set: SuperlevelSet):
        self.base = base
        system = base.system

        def arrival(x):
            """Steps to the first arrival in the base set; -1 if the state is unsafe before, or never arrives."""

            def advance(carry, _):
                x, arrived, safe, steps = carry
                safe = safe & (arrived | safe_set.contains(x))
                arrived = arrived | (safe & base.contains(x))
                return (system.step(x, base.action(x)), arrived, safe, steps + ~arrived), None

            start = (x, False, True, jnp.zeros((), jnp.int32))
            (_, arrived, _, steps), _ = jax.lax.scan(advance, start, None, length=_LONGEST)
            return jnp.where(arrived, steps, -1)

        self._arrival = jax.jit(jax.vmap(arrival))

    def arrival(self, states: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(self._arrival(np.resize(states, (_COUNT, states.shape[1]))))

    def horizon(self, states: np.ndarray) -> int:
        steps = self.arrival(states)
        outside = steps[steps > 0]
        if len(outside) >= 10:
            wanted = np.quantile(outside, 0.9)
        else:
            base = self.base
            A, B = linearise(base.system)
            rate = np.abs(np.linalg.eigvals(A - B @ base.controller.gain)).max()
            wanted = 3.0 / max(-np.log(rate), 1e-3)  # three of the slowest time constants
        return int(np.clip(10 * np.ceil(wanted / 10), _SHORTEST_HORIZON, _LONGEST_HORIZON))

    def checked(self, horizon: int, states: np.ndarray) -> int:
        """A horizon that was given, refused where next to no state arrives within it."""
        steps = self.arrival(states)
        outside = steps[steps > 0]
        if len(outside) >= 10 and np.mean(outside <= horizon) < _LEAST_IN_TIME:
            raise ValueError(
                f"safety.horizon = {horizon} is too short to arrive: the base controller takes {int(np.median(outside))} steps "
                f"from half of the states from which it arrives safely, and at least {int(outside.min())}. Give "
                f"horizon = {self.horizon(states)}, or leave it out"
            )
        return horizon

    def start_box(self, radii: np.ndarray, horizon: int) -> Box:
        rng, lift = np.random.default_rng(2), jax.jit(jax.vmap(lambda e: self.base.system.lift(e)))
        for share in _START_SHARES:
            half = -_nice(-share * radii)
            with jax.enable_x64(True):
                states = np.asarray(lift(rng.uniform(-half, half, (_COUNT, len(half)))))
            steps = self.arrival(states)
            if np.all((steps >= 0) & (steps <= horizon // 2)):
                return Box(-half, half)
        # Inside the base set: the box in the ellipsoid with its proportions.
        half = -_nice(-0.9 * self.base.ellipsoid.bounding_radii() / np.sqrt(len(radii)))
        return Box(-half, half)


def _nice(values: np.ndarray, digits: int = 2) -> np.ndarray:
    """Numbers rounded up to a few digits; infinity stays."""
    values = np.asarray(values, np.float64)
    with np.errstate(all="ignore"):
        unit = 10.0 ** (np.floor(np.log10(np.abs(values))) + 1 - digits)
        # A hair above a short number is that number.
        rounded = np.ceil(values / unit - 0.01) * unit
    found = np.where(np.isfinite(rounded), rounded, values)
    return np.array([float(f"{each:.{digits + 2}g}") for each in found.ravel()]).reshape(found.shape)


def _words(values) -> str:
    return "(" + ", ".join(f"{float(each):g}" for each in values) + ")"
