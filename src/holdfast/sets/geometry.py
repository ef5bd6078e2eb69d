"""Polytopes on the host: supports, balls, corners, products and what fits into what, by linear programs and Qhull.

For set-up, tests and pictures: NumPy in float64, answers within the tolerance of the solver (about 1e-9). A proof never
rests on them; it uses `certify`, whose bounds are rounded outwards.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection

from holdfast.sets.box import Box
from holdfast.sets.polytope import Polytope, in_words

_TOLERANCE = 1e-9
_MOST_CORNERS = 400


def furthest(shape, direction: np.ndarray) -> np.ndarray:
    """A point of a set furthest in a direction [n], shape [n].

    Args:
        shape: a box, or anything with a method of this name.

    Raises:
        ValueError: as the set's own method.
    """
    if isinstance(shape, Box):
        return np.where(np.asarray(direction) >= 0, shape.upper, shape.lower)
    return shape.furthest(direction)


def support(shape, directions: np.ndarray) -> np.ndarray:
    """max of y'x over a set for directions y [k, n], shape [k].

    Args:
        shape: a polytope, or anything with a method of this name.

    Raises:
        ValueError: if a polytope is empty or unbounded in one of the directions.
    """
    directions = np.asarray(directions, np.float64)
    if not isinstance(shape, Polytope):
        return np.asarray(shape.support(directions))
    return np.array([y @ furthest(shape, y) for y in directions])


def is_empty(polytope: Polytope) -> bool:
    """Whether no point satisfies all half-spaces."""
    try:
        polytope.chebyshev_ball()
    except ValueError:
        return True
    return False


def unbounded_direction(polytope: Polytope) -> np.ndarray | None:
    """A ray y [n], A y <= 0 and |y|_inf = 1, along which a polytope that is not empty never ends; None if it is bounded."""
    A = polytope.normals
    # Rows of length one, so that a tolerance means an angle.
    sizes = np.linalg.norm(A, axis=1)
    A = A[sizes > 0] / sizes[sizes > 0, None]
    for y in (*np.eye(A.shape[1]), *-np.eye(A.shape[1])):
        found = linprog(-y, A, np.zeros(len(A)), bounds=(-1.0, 1.0))
        if found.status == 0 and y @ found.x > 0.5:
            return found.x
    return None


def require_body(polytope: Polytope, name: str = "Polytope") -> tuple[np.ndarray, float]:
    """Chebyshev ball of a polytope that is bounded and has inner points.

    Raises:
        ValueError: if it is empty, unbounded or flat; the message starts with `name`.
    """
    try:
        centre, radius = polytope.chebyshev_ball()
    except ValueError as error:
        raise ValueError(str(error).replace("Polytope", name, 1)) from None
    ray = unbounded_direction(polytope)
    if ray is not None:
        raise ValueError(f"{name}: unbounded in the direction {in_words(ray)}; add half-spaces that bound it")
    if radius <= _TOLERANCE * max(1.0, np.abs(centre).max()):
        raise ValueError(f"{name}: flat, it holds no ball; give a set with inner points")
    return centre, radius


def irredundant(polytope: Polytope) -> Polytope:
    """The same set without the half-spaces that the others imply, one linear program each; of equal ones the first stays.

    Raises:
        ValueError: if the polytope is empty.
    """
    polytope.chebyshev_ball()
    A, b = polytope.normals, polytope.offsets
    sizes = np.linalg.norm(A, axis=1)
    keep = (sizes > 0) & np.isfinite(b)
    rows, ends = A / np.where(keep, sizes, 1.0)[:, None], b / np.where(keep, sizes, 1.0)
    for i in np.flatnonzero(keep)[::-1]:
        others = keep.copy()
        others[i] = False
        # One further than the row allows is enough to see that it is needed, and keeps the program bounded.
        limits = np.r_[ends[others], ends[i] + 1.0]
        found = linprog(-rows[i], np.concatenate([rows[others], rows[i : i + 1]]), limits, bounds=(None, None))
        keep[i] = found.status != 0 or rows[i] @ found.x > ends[i] + _TOLERANCE * max(1.0, abs(ends[i]))
    return Polytope(A[keep], b[keep])


def vertices(polytope: Polytope) -> np.ndarray:
    """Corners [v, n]; in the plane counterclockwise.

    Raises:
        ValueError: if the polytope is empty, unbounded or flat.
    """
    inner, radius = require_body(polytope)
    A, b = polytope.normals, polytope.offsets
    real = np.any(A != 0, axis=1) & np.isfinite(b)
    A, b = A[real], b[real]
    n = A.shape[1]
    if n == 1:
        ends = b / A[:, 0]
        return np.array([[ends[A[:, 0] < 0].max()], [ends[A[:, 0] > 0].min()]])
    # About the inner point and in units of the extents, where Qhull's tolerances fit.
    units = np.maximum([furthest(polytope, y) @ y - inner @ y for y in np.eye(n)], radius)
    rows = np.column_stack([A * units, A @ inner - b])
    sizes = np.linalg.norm(rows[:, :n], axis=1, keepdims=True)
    corners = HalfspaceIntersection(rows / sizes, np.zeros(n)).intersections
    corners = corners[np.isfinite(corners).all(axis=1)]
    # A corner where more than n facets meet comes several times.
    _, first = np.unique(np.round(corners, 8), axis=0, return_index=True)
    corners = _hull(corners[first]) if n == 2 else corners[np.sort(first)]
    return inner + corners * units


def linear_map(polytope: Polytope, matrix: np.ndarray, shift: np.ndarray | float = 0.0) -> Polytope:
    """{M x + shift} for an invertible M [n, n].

    Raises:
        ValueError: if M is not square or is singular.
    """
    M, n = np.asarray(matrix, np.float64), polytope.normals.shape[1]
    if M.shape != (n, n) or np.linalg.matrix_rank(M) < n:
        raise ValueError(f"linear_map: matrix has shape {M.shape}; give an invertible one of [{n}, {n}]")
    normals = np.linalg.solve(M.T, polytope.normals.T).T
    return Polytope(normals, polytope.offsets + normals @ np.broadcast_to(np.asarray(shift, np.float64), (n,)))


def intersection(*polytopes: Polytope) -> Polytope:
    """All half-spaces of all; it may be empty."""
    sizes = {p.normals.shape[1] for p in polytopes}
    if len(sizes) != 1:
        raise ValueError(f"intersection: polytopes of {sorted(sizes)} dimensions; give one or more of equal dimension")
    return Polytope(np.concatenate([p.normals for p in polytopes]), np.concatenate([p.offsets for p in polytopes]))


def product(first: Polytope, second: Polytope) -> Polytope:
    """{(x, y) : x in the first, y in the second}."""
    (p, n), (q, m) = first.normals.shape, second.normals.shape
    normals = np.block([[first.normals, np.zeros((p, m))], [np.zeros((q, n)), second.normals]])
    return Polytope(normals, np.concatenate([first.offsets, second.offsets]))


def box_polytope(box: Box) -> Polytope:
    """The box as 2n half-spaces, upper faces first."""
    eye = np.eye(box.dimension)
    return Polytope(np.concatenate([eye, -eye]), np.concatenate([box.upper, -box.lower]))


def pontryagin_difference(polytope: Polytope, other) -> Polytope:
    """{x : x + y in the polytope for all y in the other}, exact; it may be empty.

    Args:
        other: a box, a zonotope, a ball, a polytope: whatever `support` takes.
    """
    return Polytope(polytope.normals, polytope.offsets - support(other, polytope.normals))


def room_for(polytope: Polytope, other) -> np.ndarray:
    """Distance that each half-space leaves to a set, b - max of A x over it, shape [p]: negative where the set leaves.

    Args:
        other: whatever `support` takes.
    """
    return polytope.offsets - support(other, polytope.normals)


def contains_set(polytope: Polytope, other, tolerance: float = _TOLERANCE) -> bool:
    """Whether a set lies in a polytope: exact, up to `tolerance` times the size of the offsets.

    Args:
        other: whatever `support` takes.
    """
    return bool(np.all(room_for(polytope, other) >= -tolerance * np.maximum(1.0, np.abs(polytope.offsets))))


def projection(shape, axes: Sequence[int], tolerance: float = 1e-7) -> np.ndarray:
    """Corners [k, 2], counterclockwise, of the projection of a convex set onto two of its coordinates.

    Exact for polytopes, boxes and zonotopes: the hull of points furthest in some directions, refined by asking across each
    of its edges until nothing lies beyond. What is round is drawn by some hundred corners, from inside.

    Args:
        shape: whatever `furthest` takes.
        axes: the two coordinates.

    Raises:
        ValueError: if a polytope is empty or unbounded there, or the axes are not two.
    """
    i, j = axes
    if i == j:
        raise ValueError(f"projection: axes = {tuple(axes)}; give two different coordinates")
    if isinstance(shape, Polytope):
        n = shape.normals.shape[1]
    else:
        n = shape.dimension

    def ask(direction):
        whole = np.zeros(n)
        whole[[i, j]] = direction
        return furthest(shape, whole)[[i, j]]

    first = [ask(d) for d in ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))]
    units = np.ptp(np.array(first), axis=0)
    units = np.where(units > 0, units, 1.0)
    corners, done = np.array(first) / units, set()
    while len(corners) < _MOST_CORNERS:
        corners = _hull(corners)
        edges = np.roll(corners, -1, axis=0) - corners
        found = []
        for start, edge in zip(corners, edges):
            outwards = np.array([edge[1], -edge[0]])
            key = tuple(np.round(np.concatenate([start, edge]), 9))
            if key in done or not outwards.any():
                continue
            point = ask(outwards / units) / units
            if outwards @ (point - start) > tolerance * np.linalg.norm(outwards):
                found.append(point)
            else:
                done.add(key)
        if not found:
            break
        corners = np.concatenate([corners, found])
    return _hull(corners) * units


def _hull(points: np.ndarray) -> np.ndarray:
    """Corners of the hull of planar points, counterclockwise; two for a segment, one for a point."""
    spread = points - points.mean(axis=0)
    along = np.linalg.svd(spread, full_matrices=False)[2][0]
    across = spread @ np.array([-along[1], along[0]])
    if np.abs(across).max() <= 1e-9 * max(1.0, np.abs(spread).max()):
        ends = points[[np.argmin(spread @ along), np.argmax(spread @ along)]]
        return ends[: 1 if np.allclose(*ends) else 2]
    return points[ConvexHull(points).vertices]
