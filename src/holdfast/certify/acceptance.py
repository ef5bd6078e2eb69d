"""How far inside a plan must lie so that rounding along its replay cannot lead outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from holdfast.backup import AcceptanceMargins, BaseSet
from holdfast.certify.cover import cover_base, cover_region
from holdfast.certify.interpreter import interval_eval
from holdfast.certify.interval import Interval
from holdfast.certify.proof import deviation_norm
from holdfast.certify.rounding import flow_deviation, rounding_error
from holdfast.certify.slope import interval_jacobian
from holdfast.sets import Box, Set
from holdfast.systems import System


@dataclass(frozen=True)
class Acceptance:
    """Acceptance margins and the bounds behind them.

    Attributes:
        margins: eps_h and eps_B, and the region for which they hold.
        deviation: bound on |x_k - x'_k| at each node of a plan, shape [N+1, n], in the units of the state.
        step_deviation: bound on the rounding of one closed-loop step inside the base set, in error coordinates, [e].
    """

    margins: AcceptanceMargins
    deviation: np.ndarray
    step_deviation: np.ndarray


def acceptance_margins(base: BaseSet, safe_set: Set, state_box: Box, horizon: int, dtype=np.float32) -> Acceptance:
    """Margins that bound `horizon` + 1 steps of rounding between two programs, one ulp of state noise a step included.

    The plan is computed by one compiled program and replayed by another (the plant). From the same state both follow the
    same inputs, so their distance obeys delta+ <= L delta + 2 r + ulp, with r the rounding of a step over `state_box` and
    L the system's declared `spread`, else the interval Jacobian of the step there. The margins are the interval slopes of
    h and of 1 - V/c times that.

    Args:
        base: base set with its level.
        safe_set: C.
        state_box: the region in which plans live, n numbers; plans that leave it are not accepted.
        horizon: N.
        dtype: precision of the run; float32 covers float64.

    Raises:
        ValueError: if a bound is not finite: the step jumps, or its slope is unbounded, within the region.
    """
    system = base.system
    # A plan starts at the predicted successor, so its node k is k + 1 steps away from the common state.
    deviations, sizes = (each[1:] for each in _replay_deviation(system, state_box, horizon + 1, dtype))
    deviation = deviations[-1]
    if not np.all(np.isfinite(deviation)):
        raise ValueError(
            f"acceptance_margins: rounding along {horizon} steps cannot be bounded over the state box "
            f"[{state_box.lower}, {state_box.upper}] (bound {deviation}); the step jumps or has an unbounded slope there: "
            "give a smaller state_box"
        )
    widened = Interval.box(state_box.lower - deviation, state_box.upper + deviation)
    path = _path_change(safe_set.margin, widened, deviations, dtype)
    _, states = cover_base(system, base.ellipsoid.bounding_radii(), state_box)
    at_base = _base_change(base, states, _error_spread(base, _widened(states, deviation)), sizes, dtype)
    step = step_deviation(base, state_box, dtype)
    if not np.all(np.isfinite(step)):
        raise ValueError(f"acceptance_margins: rounding of a step inside the base set cannot be bounded ({step})")
    margins = AcceptanceMargins(
        _margin("the safe set's margin", path, state_box),
        _margin("the base set's margin", at_base, state_box),
        state_box,
    )
    return Acceptance(margins, deviations, step)


def _rounding(function: Callable, *boxes, dtype) -> np.ndarray:
    """`rounding_error` of a function with one result."""
    return np.asarray(rounding_error(function, *boxes, dtype=dtype))


def _ulp(states: Interval, dtype) -> np.ndarray:
    """One unit in the last place of the largest state, shape [n]."""
    return np.spacing(states.magnitude.max(-1).astype(dtype)).astype(np.float64)


def _wrap_rounding(system: System, dtype) -> np.ndarray:
    """Bound on the rounding of a wrap by at most one turn, [n]: of 2 pi, of its multiple and of the difference."""
    bound = np.zeros(system.state_size)
    bound[list(system.angles)] = 4 * np.spacing(np.asarray(2 * np.pi, dtype)).astype(np.float64)
    return bound


def _widened(x: Interval, by: np.ndarray) -> Interval:
    return Interval(x.lo - by[:, None], x.hi + by[:, None])


def _replay_deviation(system: System, region: Box, steps: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on the distance of two replays after 0 to `steps` steps, never decreasing: entries [steps+1, n] and sizes.

    Sizes are the norms of the blocks of a declared spread, [steps+1, b], else the entries themselves.
    """
    spread, inputs = system.spread, (system.input_box.lower, system.input_box.upper)
    if spread is None:
        ulp = _ulp(Interval.box(region.lower, region.upper), dtype)
        box = (region.lower, region.upper)
        # Distances of angles are distances on the circle, for which a wrap is no jump; its own rounding is.
        noise = ulp + 2 * _wrap_rounding(system, dtype)
        flow = flow_deviation(lambda x, u: system.unwrapped_step(x, u), box, inputs, steps, dtype, noise=noise)
        flow = np.maximum.accumulate(flow, axis=0)
        return flow, flow
    # Rounding may carry a state out of the region by what is to be found: a hundredth is checked to be enough.
    slack = 1e-2 * np.maximum(1.0, np.maximum(np.abs(region.lower), np.abs(region.upper)))
    reached = Box(region.lower - slack, region.upper + slack)
    cells, gains = cover_region(system, reached), spread.gains_in(reached)
    rounding = _rounding(lambda x, u: system.step(x, u), cells, Interval.box(*inputs), dtype=dtype)
    fresh = spread.norms(2 * rounding + _ulp(cells, dtype)[:, None]).max(axis=1)
    norms = [np.zeros(len(spread.blocks))]
    for _ in range(steps):
        norms.append(np.maximum(norms[-1], (gains @ norms[-1] + fresh) * (1 + 1e-9)))
    deviations = np.stack([spread.entries(each) for each in norms])
    return np.where(deviations <= slack, deviations, np.inf), np.stack(norms)


def _path_change(margin: Callable, box: Interval, deviations: np.ndarray, dtype) -> np.ndarray:
    """Bound on how much each row of a margin can differ between states `deviations` apart, rounding included, [N+1, p]."""
    slope, jump = interval_jacobian(margin, box)
    constant = np.asarray(jump)[..., 0] + 2 * _rounding(margin, box, dtype=dtype)[..., 0]
    return deviations @ slope.magnitude[..., 0].T + constant


def _error_spread(base: BaseSet, states: Interval) -> Callable[[np.ndarray], np.ndarray]:
    """Size of the deviation of a state near the base set (see `_replay_deviation`) -> bound on that of its error, [e]."""
    spread, widening = base.system.spread, 1.25
    if spread is None:
        slope, jump = interval_jacobian(base.system.error, states)

        return lambda sizes: ((slope.magnitude * sizes[:, None]).sum(axis=1) + jump).max(axis=-1)
    radii = base.ellipsoid.bounding_radii()
    gains = spread.error_gains(widening * radii)

    def by_gains(sizes):
        bound = gains @ sizes
        # The gains hold for two errors within the widened radii.
        return np.where((bound <= (widening - 1) * radii).all(), bound, np.inf)

    return by_gains


def _base_change(base: BaseSet, states: Interval, to_error: Callable, sizes, dtype) -> np.ndarray:
    """Bound on the difference of 1 - V/c between states `sizes` apart, one of them in the base set, shape [N+1].

    With d the P-norm of the difference of the errors, sqrt(V) moves by at most d and V by 2 sqrt(c) d + d^2.
    """
    P = base.ellipsoid.shape_matrix
    distance = np.array([deviation_norm(P, to_error(each)) for each in sizes])
    level = base.ellipsoid.level
    rounding = _rounding(lambda x: base.margin(x)[None], states, dtype=dtype).max()
    return (2 * np.sqrt(level) * distance + distance**2) / level + 2 * rounding


def step_deviation(base: BaseSet, state_box: Box, dtype=np.float32) -> np.ndarray:
    """Bound on what rounding and one ulp of noise do to the error in one step inside the base set, shape [e].

    The step's own rounding, seen through `error` at the next state, and the rounding of the controller, seen through the
    step's dependence on the input. Not finite where nothing is known.
    """
    system = base.system
    errors, states = cover_base(system, base.ellipsoid.bounding_radii(), state_box)
    e = errors.shape[0]
    m = system.input_size
    inputs = Interval.box(system.input_box.lower, system.input_box.upper)
    rounding = _rounding(lambda x, u: system.unwrapped_step(x, u), states, inputs, dtype=dtype)
    noisy = rounding + (_ulp(states, dtype) + _wrap_rounding(system, dtype))[:, None]
    to_error = _error_spread(base, _widened(states, noisy.max(axis=-1)))
    fresh = to_error((noisy if system.spread is None else system.spread.norms(noisy)).max(axis=-1))
    action = _rounding(base.action, states, dtype=dtype).max(axis=-1)
    actions = interval_eval(base.controller, errors)
    joint = Interval(
        np.concatenate([errors.lo, actions.lo - action[:, None]]),
        np.concatenate([errors.hi, actions.hi + action[:, None]]),
    )
    reach, jumps = interval_jacobian(lambda z: system.error_step(z[:e], z[e:]), joint)
    pushed = ((reach.magnitude[:, e : e + m] * action[None, :, None]).sum(axis=1) + jumps).max(axis=-1)
    return fresh + pushed


def _margin(what: str, change, region: Box):
    """Rounded up to a float32 number with a little to spare, so that every precision compares with the same margin."""
    change = np.nextafter((1.01 * np.asarray(change)).astype(np.float32), np.float32(np.inf)).astype(np.float64)
    if not np.all(np.isfinite(change)):
        raise ValueError(f"acceptance_margins: {what} cannot be bounded over {region} (bound {change})")
    return change
