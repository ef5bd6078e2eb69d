"""That the free space among round obstacles is robustly invariant for a point that steers itself: algebra, and its numbers.

A point p+ = p + dt u + w with |w_i| <= w_max in n dimensions keeps free space under `Retreat`. Write m_i(p) >= 0 for the
distance to face i (a wall or an obstacle), e_i for its unit normal at p, s for the surplus and R = sqrt(n) w_max + s. A face
is satisfied after the disturbance if the move d has m_i + e_i'd >= |e_i|_1 w_max + s, and |e_i|_1 <= sqrt(n), so a face
that lacks anything lacks at most R, a wall at most w_max + s. Two faces at distance g of each other have m_i + m_j >= g.

1. If an obstacle lacks L <= R, then d = L e_j satisfies it. Every other obstacle has m_k >= g - R, loses at most R, and needs
   at most R: g >= 3 R suffices. A wall needs at most w_max + s: g >= 2 R + w_max + s suffices. In particular nothing else
   lacks anything, so that no second move is added.
2. If walls lack something, then d, of length at most sqrt(n) (w_max + s), satisfies them coordinate by coordinate, and
   opposite walls that are 4 (w_max + s) apart do not both lack. An obstacle has m_j > g - w_max - s, loses at most |d| and
   needs at most R: g >= w_max + s + sqrt(n) (w_max + s) + R suffices.
3. Every component of d is at most R, so that it fits the input box if dt u_max >= R.

After the move every e_i'(z - o_i) >= r_i + s for all disturbed successors z, so z is free (Cauchy-Schwarz).
"""

import numpy as np

from holdfast.backup import InvariantSet
from holdfast.certify import interval as iv
from holdfast.certify.certificate import Obligation
from holdfast.certify.cover import grid
from holdfast.certify.interpreter import interval_eval
from holdfast.certify.interval import Interval
from holdfast.certify.linear import total
from holdfast.certify.slope import interval_jacobian
from holdfast.sets import Box, FreeSpace
from holdfast.systems import Retreat, System

#: Cells along each coordinate over which rounding is bounded.
_CELLS = 40
_NAME = "invariant under its controller"
_CLAIM = "From every state of the free space, whatever the disturbance, the controller leads back into the free space."


def free_space_obligation(invariant: InvariantSet, needed: float) -> Obligation:
    """The invariance of free space under `Retreat`, proved from the gaps, or refuted by a gap that is too narrow for it.

    Args:
        invariant: of a region `FreeSpace` and a controller `Retreat`.
        needed: surplus that rounding asks for, m.

    Raises:
        TypeError: if the region is no `FreeSpace`, or the controller no `Retreat`.
    """
    region, retreat, system = invariant.region, invariant.controller, invariant.system
    if not isinstance(region, FreeSpace) or not isinstance(retreat, Retreat):
        raise TypeError("free_space_obligation: give a FreeSpace with a Retreat as its controller")
    noise, n = system.noise_box, region.walls.dimension
    if not noise.dimension or not _is_integrator(system, region.walls):
        words = "the step is not shown to be p + dt u + w with an input and a disturbance for each coordinate"
        return Obligation(_NAME, _CLAIM, "not proved", words)
    bound = float(np.max(np.abs([noise.lower, noise.upper])))
    # It moves as far as the noise that it believes in asks for, so that gaps and inputs have to allow that.
    asked_for = max(bound, float(retreat.noise))
    w, s = (Interval.constant(np.array([float(v)])) for v in (asked_for, retreat.surplus))
    root = iv.sqrt(Interval.constant(np.array([float(n)])))
    R = root * w + s
    between, to_walls = Interval.constant(np.array([3.0])) * R, R + R + w + s
    corner = w + s + root * (w + s) + R
    to_walls = Interval(np.maximum(to_walls.lo, corner.lo), np.maximum(to_walls.hi, corner.hi))
    gaps = _gaps(region)
    asked = {True: float(between.hi.item()), False: float(to_walls.hi.item())}
    numbers = {
        "disturbance": bound,
        "surplus": float(retreat.surplus),
        "retreat_at_most": float(R.hi.item()),
        "gap_needed_between_obstacles": asked[True],
        "gap_needed_to_walls": asked[False],
        "narrowest_gaps": [{"between": list(names), "gap": gap} for gap, names, *_ in gaps[:3]],
    }
    inputs = (system.input_box, retreat.input_box)
    fits = all(np.all(float(system.dt) * np.minimum(box.upper, -box.lower) >= R.hi.item()) for box in inputs)
    own, theirs = ((r.walls.lower, r.walls.upper, r.centres, r.radii) for r in (region, retreat.region))
    same = all(np.array_equal(*pair) for pair in zip(own, theirs))
    conditions = {
        "the controller keeps to this very free space": same,
        f"it knows the disturbance, {bound:g}": retreat.noise >= bound and retreat.dt == system.dt,
        f"its surplus {retreat.surplus:g} covers rounding, {needed:.3g}": needed <= retreat.surplus,
        f"its farthest retreat, {R.hi.item():.4g} in a step, fits the input box": bool(fits),
        "opposite walls are far apart": bool(
            np.all(region.walls.half_widths >= 2 * (asked_for + retreat.surplus) * (1 + 1e-9))
        ),
    }
    broken = [words for words, holds in conditions.items() if not holds]
    if broken:
        return Obligation(_NAME, _CLAIM, "not proved", f"it does not hold that {'; nor that '.join(broken)}", numbers)
    for gap, names, among, where in gaps:
        if gap < asked[among]:
            # The condition is sufficient. Obstacles that overlap refute nothing: given twice, they are the same free space.
            words = f"the gap between {names[0]} and {names[1]} is {gap:.4g} m, and {asked[among]:.4g} m are needed"
            numbers |= {"state": where}
            return Obligation(
                _NAME,
                _CLAIM,
                "not proved",
                f"{words}; the state between them is {np.round(where, 4).tolist()}",
                numbers,
            )
    method = "algebra on distances, its inequalities in interval arithmetic: all gaps are wide enough"
    return Obligation(_NAME, _CLAIM, "proved", method, numbers)


def free_cells(region: FreeSpace) -> Interval:
    """Boxes [n, cells] that cover the free space and keep away from the obstacles' centres, where tangents jump."""
    n = region.walls.dimension
    cells = grid(region.walls.lower, region.walls.upper, np.full(n, _CELLS))
    o, r = region.centres[:, :, None], region.radii[:, None]
    farthest = np.linalg.norm(np.maximum(np.abs(cells.lo - o), np.abs(cells.hi - o)), axis=1)
    free = (farthest >= r * (1 - 1e-9)).all(axis=0)
    return Interval(cells.lo[:, free], cells.hi[:, free])


def _is_integrator(system: System, walls: Box) -> bool:
    """Whether the step is p + dt u + w: its interval Jacobian over the boxes is (1, dt, 1), and so it is at their centre."""
    n = walls.dimension
    if (system.state_size, system.input_size, system.noise_box.dimension) != (n, n, n):
        return False
    boxes = (walls, system.input_box, system.noise_box)
    z = Interval.box(*(np.concatenate([getattr(box, side) for box in boxes]) for side in ("lower", "upper")))
    slopes, jumps = interval_jacobian(lambda z: system.step(z[:n], z[n : 2 * n], z[2 * n :]), z)
    eye = np.eye(n)
    wanted = np.concatenate([eye, float(system.dt) * eye, eye], axis=1)
    # The affine part by one point of the boxes: somewhere else it may be another.
    at = np.concatenate([box.centre for box in boxes])
    there = interval_eval(lambda z: system.step(z[:n], z[n : 2 * n], z[2 * n :]), Interval.box(at, at))
    apart = np.abs(wanted @ at[:, None] - np.stack([there.lo[:, 0], there.hi[:, 0]], axis=1)).max()
    off = np.abs(slopes.lo[..., 0] - wanted).max() + np.abs(slopes.hi[..., 0] - wanted).max()
    return bool(not np.any(jumps) and off <= 1e-13 and apart <= 1e-12 * (1 + np.abs(at).max()))


def _gaps(region: FreeSpace) -> list[tuple[float, tuple[str, str], bool, list[float]]]:
    """(lower bound of a gap in m, names, whether between obstacles, the point in its middle), narrowest first."""
    centres, radii, found = region.centres, region.radii, []
    for i, (o, r) in enumerate(zip(centres, radii)):
        name = f"obstacle {i} at {np.round(o, 3).tolist()}"
        for j in range(i):
            apart = Interval.constant(centres[j]) - Interval.constant(o)
            distance = iv.sqrt(total(iv.square(apart)))
            gap = float((distance - Interval.constant(r) - Interval.constant(radii[j])).lo.item())
            towards = centres[j] - o
            middle = o + towards / max(float(np.linalg.norm(towards)), 1e-12) * (r + gap / 2)
            found.append((gap, (f"obstacle {j} at {np.round(centres[j], 3).tolist()}", name), True, middle.tolist()))
        for axis in range(len(o)):
            for side, wall in ((-1.0, region.walls.lower[axis]), (1.0, region.walls.upper[axis])):
                from_wall = Interval.constant(np.array([side * wall])) - Interval.constant(np.array([side * o[axis]]))
                gap = float((from_wall - Interval.constant(np.array([r]))).lo.item())
                middle = o + side * np.eye(len(o))[axis] * (r + gap / 2)
                words = f"the {'upper' if side > 0 else 'lower'} wall of coordinate {axis}"
                found.append((gap, (words, name), False, middle.tolist()))
    return sorted(found, key=lambda each: each[0])
