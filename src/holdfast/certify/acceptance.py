"""How far inside a plan must lie so that rounding along its replay cannot lead outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.backup import AcceptanceMargins, BaseSet
from holdfast.certify.interpreter import interval_eval
from holdfast.certify.interval import Interval
from holdfast.certify.rounding import flow_deviation, rounding_error
from holdfast.certify.slope import interval_jacobian
from holdfast.sets import Box, Set


@dataclass(frozen=True)
class Acceptance:
    """Acceptance margins and the bounds behind them.

    Attributes:
        margins: eps_h and eps_B.
        deviation: bound on |x_k - x'_k| over all nodes, shape [n], in the units of the state.
        step_deviation: bound on the rounding of one closed-loop step inside the base set, in error coordinates, [e].
    """

    margins: AcceptanceMargins
    deviation: np.ndarray
    step_deviation: np.ndarray


def acceptance_margins(
    base: BaseSet, safe_set: Set, state_box: Box, horizon: int, dtype=np.float32
) -> Acceptance:
    """Margins that bound `horizon` + 1 steps of rounding between two programs, one ulp of state noise a step included.

    The plan is computed by one compiled program and replayed by another (the plant). From the same state both follow the
    same inputs, so their distance obeys delta+ <= |J| delta + 2 r + ulp, with J the interval Jacobian of the step over
    `state_box` and r the rounding of a step. The margins are the interval slopes of h and of 1 - V/c times that.

    Args:
        base: base set with its level.
        safe_set: C.
        state_box: the region in which plans live, n numbers.
        horizon: N.
        dtype: precision of the run; float32 covers float64.

    Raises:
        ValueError: if a bound is not finite: the step jumps, or its slope is unbounded, within the region.
    """
    system = base.system
    inputs = (system.input_box.lower, system.input_box.upper)
    largest = np.maximum(np.abs(state_box.lower), np.abs(state_box.upper))
    ulp = np.spacing(largest.astype(dtype)).astype(np.float64)
    region = (state_box.lower, state_box.upper)
    flow = flow_deviation(lambda x, u: system.step(x, u), region, inputs, horizon + 1, dtype, noise=ulp)
    deviation = flow.max(axis=0)
    widened = (state_box.lower - deviation, state_box.upper + deviation)
    if not np.all(np.isfinite(deviation)):
        raise ValueError(
            f"acceptance_margins: rounding along {horizon} steps cannot be bounded over the state box "
            f"[{state_box.lower}, {state_box.upper}] (bound {deviation}); the step jumps or has an unbounded slope there: "
            "give a smaller state_box"
        )
    path = _change(safe_set.margin, widened, deviation, dtype)
    radii = base.ellipsoid.bounding_radii()
    around = interval_eval(system.lift, Interval.box(-radii, radii))
    inner = (around.lo[..., 0] - deviation, around.hi[..., 0] + deviation)
    at_base = _change(lambda x: base.margin(x)[None], inner, deviation, dtype)
    # One step of the sampled closed loop inside the base set: rounding of both programs and the noise of the plant.
    slope, _ = interval_jacobian(system.error, Interval.box(*inner))
    noise = (slope.magnitude[..., 0] * ulp).sum(axis=1)
    step = 2 * rounding_error(base.closed_loop, (-radii, radii), dtype=dtype) + noise
    return Acceptance(AcceptanceMargins(path, float(at_base[0])), deviation, step)


def _change(margin, box, deviation: np.ndarray, dtype) -> np.ndarray:
    """Bound on how much each row of a margin can differ between states `deviation` apart, rounding included, [p]."""
    slope, jump = interval_jacobian(margin, Interval.box(*box))
    change = (slope.magnitude[..., 0] * deviation).sum(axis=1) + np.asarray(jump)[..., 0]
    change = change + 2 * rounding_error(margin, box, dtype=dtype)
    # Rounded up to a float32 number with a little to spare, so that every precision compares with the same margin.
    change = np.nextafter((1.01 * change).astype(np.float32), np.float32(np.inf)).astype(np.float64)
    if not np.all(np.isfinite(change)):
        raise ValueError(f"acceptance_margins: a margin cannot be bounded over {box} (bound {change})")
    return change


