"""Boundary projection: the closest safe action."""

import equinox as eqx
import jax
import jax.numpy as jnp

from holdfast.safeguards.map import Map, furthest_safe, segment_pullback
from holdfast.solvers import SolverStatus, project


class BoundaryProjection(Map):
    """Minimises |(v - u) / half_widths| over the safe actions, by sequential projection onto linearised margins.

    Half-spaces are linearised **at u**, not at the backup action: far from it the linearisation edits safe actions.
    For an exact source one projection is the answer; otherwise it is repeated at its own result. Because the true
    boundary is curved, candidate 1 walks from the known safe action towards the result of candidate 0 up to the root.

    Attributes:
        repeats: linearise-and-project rounds.
        active_rows: rows kept in the small QP, those with the smallest margins; the others are far from active.
        evaluations: most margins evaluated in the root search of candidate 1.
        backoff: fraction of the typical row slope that margins are asked to keep, against the curvature left over.
    """

    repeats: int = eqx.field(static=True, default=3)
    active_rows: int = eqx.field(static=True, default=8)
    evaluations: int = eqx.field(static=True, default=4)
    backoff: float = eqx.field(static=True, default=1e-5)

    non_expansive = True

    def count(self, m):
        return 2

    def propose(self, actions, u, margin):
        v = u
        for _ in range(self.repeats):
            v = self._project_once(actions, u, v)
        length = furthest_safe(
            actions,
            actions.known_safe,
            v,
            actions.margin(actions.known_safe),
            actions.margin(v),
            self.evaluations,
        )
        return jnp.stack([v, actions.known_safe + length * (v - actions.known_safe)])

    def _project_once(self, actions, u, at):
        box = actions.source.input_box
        half = jnp.asarray(box.half_widths, u.dtype)
        lower, upper = box.bounds(u.dtype)
        planes = actions.halfspaces(at)
        slack = planes.normals @ at - planes.offsets
        kept = min(self.active_rows, slack.shape[0])
        # Rows compete by distance to their boundary in input space, so that units do not matter.
        steep = jnp.linalg.norm(planes.normals * half[None], axis=1)
        _, rows = jax.lax.top_k(-slack / (steep + 1e-12), kept)
        normals, offsets = planes.normals[rows] * half[None], planes.offsets[rows]
        offsets = offsets + self.backoff * steep[rows]
        # A row that no input moves cannot be helped here: `check` decides. It must not make the QP infeasible.
        useless = steep[rows] <= 1e-9
        normals = jnp.where(useless[:, None], 0.0, normals)
        offsets = jnp.where(useless, -1.0, offsets)
        solution = project(u / half, normals, offsets, lower / half, upper / half)
        good = (solution.status == SolverStatus.solved) & jnp.all(jnp.isfinite(solution.value))
        return jnp.where(good, solution.value * half, at)

    def pullback(self, actions, u, action, index, cotangent):
        across = self._projection_pullback(actions, u, action, cotangent)
        # Candidate 1 lies where the segment to the projection leaves the set. The projection itself is not stored, so
        # its derivative is taken for the identity; the length is exact. Counted as held.
        x_bar, u_bar, _ = segment_pullback(actions, action, action - actions.known_safe, jnp.ones_like(u), cotangent)
        along = (x_bar, u_bar, jnp.ones((), jnp.int32))
        return jax.tree.map(lambda a, b: jnp.where(index == 0, a, b), across, along)

    def _projection_pullback(self, actions, u, action, cotangent):
        """Adjoint of the KKT system of min 1/2 |s - s_u|^2 with active rows r(x, s) = 0, in s = v / half_widths.

        Stationarity: s - s_u = A' mu. With the curvature H = I - sum_i mu_i r_i,ss of the active rows,
            H ds - A' dmu = ds_u + sum_i mu_i r_i,sx dx,      A ds = -r_x dx,
        and inputs held at the box do not move. For a cotangent c the adjoint solves H z + A' y = c, A z = 0; then s_u
        gets z, and x gets the gradient of mu' r_s z less r_x' y. At most m rows are active independently.
        """
        m, box = action.shape[0], actions.source.input_box
        half = jnp.asarray(box.half_widths, action.dtype)
        lower, upper = box.bounds(action.dtype)
        s, c = action / half, cotangent * half
        value = actions.source.rows(actions.x, action)
        _, nearest = jax.lax.top_k(-value, min(m, value.shape[0]))
        k = nearest.shape[0]

        def rows(x, s):
            return actions.source.rows(x, s * half)[nearest]

        normals = jax.jacfwd(rows, argnums=1)(actions.x, s)
        steep = jnp.linalg.norm(normals, axis=1)
        active = (jnp.abs(value[nearest]) <= 1e-3 * steep) & (steep > 0)
        # A flow that grazes the boundary does so at neighbouring nodes, with almost one normal: keep independent rows.
        cosine = jnp.abs(normals @ normals[0]) / jnp.maximum(steep * steep[0], 1e-30)
        active = active & ((jnp.arange(k) == 0) | (cosine < 0.99))
        held = (action <= lower) | (action >= upper)
        A = jnp.where(active[:, None] & ~held[None], normals, 0.0)
        absent = jnp.diag(jnp.where(jnp.any(A != 0, axis=1), 0.0, 1.0).astype(s.dtype))
        mu = jnp.where(active, jnp.linalg.solve(A @ A.T + absent, A @ (s - u / half)), 0.0)
        curvature = jax.jacfwd(jax.grad(lambda s: mu @ rows(actions.x, s)))(s)
        H = jnp.eye(m, dtype=s.dtype) - jnp.where(held[:, None] | held[None], 0.0, curvature)
        kkt = jnp.block([[H, A.T], [A, absent]])
        solution = jnp.linalg.solve(kkt, jnp.concatenate([jnp.where(held, 0.0, c), jnp.zeros(k, s.dtype)]))
        z, y = solution[:m], solution[m:]

        def lagrangian(x):
            value, along_z = jax.jvp(lambda s: rows(x, s), (s,), (z,))
            return mu @ along_z - jnp.where(active, y, 0.0) @ value

        x_bar, u_bar = jax.grad(lagrangian)(actions.x), z / half
        usable = jnp.any(active) & jnp.all(jnp.isfinite(x_bar)) & jnp.all(jnp.isfinite(u_bar))
        u_bar = jnp.where(usable, u_bar, jnp.where(held, 0.0, cotangent))
        return jnp.where(usable, x_bar, 0.0), u_bar, (~usable).astype(jnp.int32)
