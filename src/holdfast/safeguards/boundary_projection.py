"""Boundary projection: the closest safe action."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.safeguards.map import Adjoint, Map, Segments, look_around, segment_adjoint
from holdfast.safeguards.source import HalfSpaces
from holdfast.sets import Box
from holdfast.solvers import SolverStatus, project, stretch


class BoundaryProjection(Map):
    """Minimises |(v - u) / half_widths| over the safe actions, by sequential projection onto linearised margins.

    Half-spaces are linearised **at u**, not at the backup action: far from it the linearisation edits safe actions.
    For an exact source one projection onto all of its half-spaces is the answer, and its derivative that of the KKT
    system: what points along the normals of active rows is lost, rank m less the number of active rows. Otherwise the
    projection is repeated at its own result. Because the true boundary is curved and may jump, the result is then the
    target of a segment from the known safe action: where it does not pass the check, the search walks back along that
    segment.

    Attributes:
        repeats: linearise-and-project rounds.
        active_rows: rows kept in the small QP, those with the smallest margins; the others are far from active.
        backoff: fraction of the typical row slope that margins are asked to keep, against the curvature left over.
    """

    repeats: int = eqx.field(static=True, default=2)
    active_rows: int = eqx.field(static=True, default=8)
    backoff: float = eqx.field(static=True, default=1e-5)

    non_expansive = True
    from_known_safe = True
    curved = True

    def count(self, m):
        return 1

    def segments(self, actions, u, margin):
        unknown = jnp.full((1,), jnp.nan, u.dtype)
        if actions.halfspaces is not None:
            v = closest(actions.halfspaces, actions.source.input_box, u)
            return Segments(v[None], v[None], unknown, unknown)
        v = jax.lax.fori_loop(0, self.repeats, lambda _, v: self._project(actions, u, v)[0], u)
        return Segments(actions.known_safe[None], v[None], unknown, actions.known_margin[None])

    def _project(self, actions, u, at, local=None):
        """The projection of u onto the margins linearised at an action, its rows [k] and their multipliers [k].

        Multipliers belong to rows scaled by the half-widths; zero for rows that are not active.
        """
        box = actions.source.input_box
        half = jnp.asarray(box.half_widths, u.dtype)
        lower, upper = box.bounds(u.dtype)
        local = look_around(actions.rows, at, False) if local is None else local
        normals, slack = local.normals * half[None], local.value
        # Rows compete by distance to their boundary in input space, so that units do not matter.
        steep = jnp.sqrt(jnp.sum(normals**2, axis=1))
        _, rows = jax.lax.top_k(-slack / (steep + 1e-12), min(self.active_rows, slack.shape[0]))
        normals, slack, steep = normals[rows], slack[rows], steep[rows]
        offsets = jnp.sum(normals * (at / half)[None], axis=1) - slack + self.backoff * steep
        # A row that no input moves cannot be helped here: `check` decides. It must not make the QP infeasible.
        useless = ~(steep > 1e-9) | ~jnp.isfinite(offsets)
        normals = jnp.where(useless[:, None], 0.0, normals)
        offsets = jnp.where(useless, -jnp.inf, offsets)
        solution = project(u / half, normals, offsets, lower / half, upper / half)
        good = (solution.status == SolverStatus.solved) & jnp.all(jnp.isfinite(solution.value))
        multipliers = jnp.where(good, solution.multipliers[: len(rows)], 0.0)
        return jnp.where(good, solution.value * half, at), rows, multipliers

    def adjoint(self, actions, local, u, action, index, length, cotangent):
        across = self._projection_adjoint(actions, local, u, action, cotangent)
        # Short of the target the action lies where the segment leaves the set. The projection is not stored, so its
        # derivative is taken for the identity; the length is exact.
        ones = jnp.ones_like(u)
        direction = action - actions.known_safe
        along = segment_adjoint(local, direction, length * ones, (1 - length) * ones, cotangent)
        along = eqx.tree_at(lambda a: a.held, along, jnp.asarray(True))
        return jax.tree.map(lambda a, b: jnp.where(length >= 1, a, b), across, along)

    def _projection_adjoint(self, actions, local, u, action, cotangent) -> Adjoint:
        """Adjoint of the KKT system of min 1/2 |s - s_u|^2 with active rows r(x, s) = 0, in s = v / half_widths.

        Stationarity: s - s_u = A' mu. With the curvature H = I - sum_i mu_i r_i,ss of the active rows,
            H ds - A' dmu = ds_u + sum_i mu_i r_i,sx dx,      A ds = -r_x dx,
        and inputs held at the box do not move. For a cotangent c the adjoint solves H z + A' y = c, A z = 0; then s_u
        gets z, and x gets the gradient of mu' r_s z less r_x' y. With P the projector onto {A z = 0},
            z = (P H P + I - P)^-1 P c,      y = (A A')^-1 A (c - H z).
        """
        m, box = action.shape[0], actions.source.input_box
        half = jnp.asarray(box.half_widths, action.dtype)
        lower, upper = box.bounds(action.dtype)
        eye = jnp.eye(m, dtype=action.dtype)
        _, rows, multipliers = self._project(actions, u, action, local)
        # At most m rows are active; with fewer rows than inputs all are looked at.
        mu, order = jax.lax.top_k(multipliers, min(m, len(rows)))
        rows = rows[order]
        active = mu > 0
        held = (action <= lower) | (action >= upper)
        A = jnp.where(active[:, None] & ~held[None], local.normals[rows] * half[None], 0.0)
        absent = jnp.diag(jnp.where(jnp.any(A != 0, axis=1), 0.0, 1.0).astype(A.dtype))
        # Sums instead of products of tiny matrices: XLA fuses these, and calls a routine per batch entry for those.
        gram_inverse = _inverse(_times(A, A.T) + absent)
        pseudo = _times(A.T, gram_inverse)
        P = jnp.where(held[:, None] | held[None], 0.0, eye - _times(pseudo, A))
        curvature = jnp.sum(mu[:, None, None] * local.curvature[rows], axis=0) * half[:, None] * half[None]
        H = eye - curvature
        inner = _inverse(_times(_times(P, H), P) + eye - P)
        c = jnp.where(held, 0.0, cotangent * half)
        z = _apply(P, _apply(inner, _apply(P, c)))
        y = _apply(pseudo.T, c - _apply(H, z))
        usable = jnp.any(active) & jnp.all(jnp.isfinite(z)) & jnp.all(jnp.isfinite(y))
        u_bar = jnp.where(usable, z / half, jnp.where(held, 0.0, cotangent))
        zero, keep = jnp.zeros_like(local.value), active & usable
        return Adjoint(
            u_bar,
            jnp.zeros_like(u_bar),
            zero.at[rows].add(jnp.where(keep, -y, 0.0)),
            zero.at[rows].add(jnp.where(keep, mu, 0.0)),
            jnp.where(usable, z * half, 0.0),
            ~usable,
        )


def closest(halfspaces: HalfSpaces, box: Box, u: Float[Array, " m"]) -> Float[Array, " m"]:
    """The point of the half-spaces and the box nearest to u in half-widths, shape [m]; differentiable by plain JAX.

    Not safe where there is none: u, or the solver's last iterate. Whoever applies it checks it.
    """
    lower, upper = box.bounds(u.dtype)
    half = jnp.asarray(box.half_widths, u.dtype)
    if u.shape[0] == 1:
        first, last = stretch(halfspaces.normals, halfspaces.offsets, jnp.zeros_like(u), jnp.ones_like(u))
        # An empty interval gives a point that its own rows refuse.
        v = jnp.where(u < first, first, jnp.where(u > last, last, u))
    else:
        scaled = halfspaces.normals * half[None]
        v = project(u / half, scaled, halfspaces.offsets, lower / half, upper / half).value * half
    # The search for the end of the segment, of which this is both ends, moves rounding back into the box.
    return v


def _times(a, b):
    return jnp.sum(a[:, :, None] * b[None], axis=1)


def _apply(matrix, vector):
    return jnp.sum(matrix * vector[None], axis=1)


def _inverse(matrix):
    """Inverse of a tiny positive definite matrix by Gauss-Jordan elimination; not finite where it is singular.

    No pivoting: where a pivot is not positive, the point is no minimum and its derivative is not used.
    """
    k = matrix.shape[0]

    def eliminate(i, state):
        row = jnp.arange(k) == i
        pivot_row = state[i] / state[i, i]
        below = jnp.where(row, 0.0, state[:, i])
        return jnp.where(row[:, None], pivot_row[None], state - below[:, None] * pivot_row[None])

    both = jnp.concatenate([matrix, jnp.eye(k, dtype=matrix.dtype)], axis=1)
    return jax.lax.fori_loop(0, k, eliminate, both)[:, k:]
