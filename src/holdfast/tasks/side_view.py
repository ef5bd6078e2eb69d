"""Scenes of a flying multirotor from the side: x to the right, z up."""

import numpy as np

from holdfast.tasks.scene import Circle, Polyline, Rectangle, Role, Scene

_ARM = 0.28


def side_view(
    states: np.ndarray,
    t: int,
    reference: np.ndarray,
    futures: dict[Role, np.ndarray],
    window: tuple[float, float, float, float],
    ceiling: float,
    floor: float | None = None,
) -> Scene:
    """The robot is a bar with two rotors, thrust away from the bar; what is above the ceiling, or below the floor, is shaded.

    Args:
        states: x_0..x_T, shape [T+1, n], each beginning with p (3), v (3) and the quaternion (4).
        t: the step to show.
        reference: states asked for, shape [k, n], the last of which stays.
        futures: state sequences from x_t by role, see `Task.scene`.
        window: (left, right, bottom, top) in m.
        ceiling, floor: limits of z in m.
    """
    left, right, bottom, top = window

    def path(points, role):
        return Polyline(np.asarray(points)[:, [0, 2]], role)

    shapes = _forbidden(left, right, ceiling, top)
    if floor is not None:
        shapes += _forbidden(left, right, floor, bottom)
    shapes += (path(reference, "reference"), path(states[: t + 1], "trail"))
    shapes += tuple(path(f, role) for role, f in futures.items())
    wanted = reference[min(t, len(reference) - 1)]
    shapes += _robot(states[t])
    shapes += (Circle((float(wanted[0]), float(wanted[2])), 0.06, "reference"),)
    shapes += (Circle((float(states[t, 0]), float(states[t, 2])), 0.07, "body"),)
    return Scene(shapes, window, ("x (m)", "z of the centre (m)"), still=True)


def _forbidden(left: float, right: float, limit: float, end: float) -> tuple[Rectangle, Polyline]:
    """All that lies between a limit of z and the end of the window."""
    centre = (0.5 * (left + right), 0.5 * (limit + end))
    edge = Polyline(np.array([[left, limit], [right, limit]]), "limit")
    return Rectangle(centre, (right - left, abs(end - limit)), "unsafe"), edge


def _robot(state: np.ndarray) -> tuple[Polyline, ...]:
    """A spatial multirotor as seen along the y axis."""
    w, i, j, k = state[6:10]
    along = np.array([w * w + i * i - j * j - k * k, 2 * (i * k - w * j)])
    thrust = np.array([2 * (i * k + w * j), w * w - i * i - j * j + k * k])
    return quadrotor_from_the_side(state[[0, 2]], along, thrust, _ARM)


def quadrotor_from_the_side(
    centre: np.ndarray, along: np.ndarray, up: np.ndarray, arm: float
) -> tuple[Polyline, Polyline, Polyline]:
    """A bar with two rotors above it, in the scene's units.

    Args:
        centre: the middle of the bar, shape [2].
        along, up: the body axes as the viewer sees them, shape [2] each; shorter than one if they point out of the plane.
        arm: half the bar's length.
    """
    bar = Polyline(centre + arm * np.stack([-along, along]), "body")
    rotors = []
    for side in (-1, 1):
        end = centre + side * arm * along
        hub = end + 0.35 * arm * up
        blades = hub + 0.45 * arm * np.stack([-along, along])
        rotors.append(Polyline(np.stack([end, hub, *blades]), "body"))
    return bar, *rotors
