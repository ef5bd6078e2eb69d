"""The published safety layer as it was published, to compare with: `holdfast.safeguards.BackupCBF` solved by qpax.

Rows, gains and slack are those of the library's layer, which tells what they are and what they do not prove. As published,
the sensitivity of the flow is a product of matrix exponentials, Q_0 = I, Q_{k+1} = expm(J_cl(phi_k) dt) Q_k: a first-order
approximation of the Euler flow's, without meaning where the flow jumps from network to base controller. The interior
point method stops at a tolerance, or at its iteration limit without one.

It is meant to be fast: rows for all nodes at once, one program for a batch, variables in units of the input box, the
slack scaled so that the Hessian is the identity, rows scaled to size one, qpax's Cholesky back end in float32, and no
more squarings in `expm` than float32 numbers of this size need. Measured on 512 states near the boundary: in float32
qpax's floor of sqrt(eps) under slacks and multipliers keeps nearly every problem from ever meeting a tolerance of 1e-3,
so that it costs all iterations (30, its default), though after 10 the action is as close to a float64 solution as it
gets (0.6 % of the half-width at worst, as after 30).

**How sensitivities are computed.** As published: the n x n Jacobian of the closed loop at every node by forward mode, its
matrix exponential (Pade with scaling and squaring; in a batch all of its orders are evaluated), and their products Q_k.
The rows only need Q_k f and Q_k g, so `tuned` never forms Q_k: it carries 1 + m tangents of the flow along, as the
library does, and stops qpax after 10 iterations. That is the fastest form we know that is as accurate with qpax; it is
what an honest engineer would compare with, the other is what was published.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import qpax
from jaxtyping import Array, Bool, Float, Int

from holdfast.backup import ImplicitInvariantSet
from holdfast.safeguards import BackupCBF
from holdfast.types import Safeguarded, Status


class QpaxAnswer(eqx.Module):
    """What the layer returns.

    Attributes:
        action: shape [m].
        slack: s, in the units of a row, shape [].
        converged: what qpax says, shape [].
        iterations: of qpax, shape [].
    """

    action: Float[Array, " m"]
    slack: Float[Array, ""]
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


class PublishedLayer(eqx.Module):
    """The library's rows, and qpax's slack QP, for one state; `jax.vmap` for many.

    Attributes:
        layer: rows, gains, slack weight.
        tolerance, max_iterations: of qpax.
        squarings: most squarings of the matrix exponential.
        exponentials: multiply matrix exponentials instead of carrying 1 + m tangents of the flow along.
    """

    layer: BackupCBF
    tolerance: float = eqx.field(static=True, default=1e-3)
    max_iterations: int = eqx.field(static=True, default=30)
    squarings: int = eqx.field(static=True, default=6)
    exponentials: bool = eqx.field(static=True, default=True)

    @staticmethod
    def of(implicit_set: ImplicitInvariantSet, **settings) -> "PublishedLayer":
        """With the published gains."""
        return PublishedLayer(BackupCBF(implicit_set), **settings)

    def tuned(self) -> "PublishedLayer":
        """The same with no more iterations than help in float32, and without matrix exponentials."""
        return dataclasses.replace(self, max_iterations=10, exponentials=False)

    def sensitivities(self, nodes: Float[Array, "N1 n"]) -> Float[Array, "N1 n n"]:
        """Q_0..Q_N, shape [N+1, n, n]: products of matrix exponentials of the closed loop's Jacobians."""
        dt, n = self.layer.system.dt, nodes.shape[1]
        jacobians = jax.vmap(jax.jacfwd(self.layer.closed_loop))(nodes[:-1])
        factors = jax.vmap(lambda J: jax.scipy.linalg.expm(dt * J, max_squarings=self.squarings))(jacobians)

        def advance(Q, factor):
            # A sum, not a product of tiny matrices: in a batch XLA fuses it, and calls a routine for each of those.
            Q = jnp.sum(factor[:, :, None] * Q[None], axis=1)
            return Q, Q

        eye = jnp.eye(n, dtype=nodes.dtype)
        return jnp.concatenate([eye[None], jax.lax.scan(advance, eye, factors)[1]])

    def multiplied(
        self, x: Float[Array, " n"], directions: Float[Array, "n d"]
    ) -> tuple[Float[Array, "N1 n"], Float[Array, "N1 n d"]]:
        """The nodes, and Q_k times each direction: where small displacements of x move them."""
        nodes = self.layer.flow(x)
        return nodes, jnp.sum(self.sensitivities(nodes)[:, :, :, None] * directions[None, None], axis=2)

    def rows(self, x: Float[Array, " n"]) -> tuple[Float[Array, "R m"], Float[Array, " R"]]:
        """(A, b) with A u >= b, R = (N+1) p + 1."""
        return self.layer.rows(x, self.multiplied if self.exponentials else None)

    def problem(self, x: Float[Array, " n"], u: Float[Array, " m"]):
        """The QP as qpax takes it, (Q, q, A, b, G, h), in z = (u / half_widths, sqrt(w) s)."""
        box, m, weight = self.layer.input_box, u.shape[0], self.layer.slack_weight
        half = jnp.asarray(box.half_widths, u.dtype)
        lower, upper = box.bounds(u.dtype)
        rows, offsets = self.rows(x)
        eye = jnp.eye(m + 1, dtype=u.dtype)
        rows = jnp.concatenate([rows * half[None], jnp.full((rows.shape[0], 1), weight**-0.5, u.dtype)], axis=1)
        # Rows of size one, the same problem: under qpax's floor of sqrt(eps) large ones never meet the tolerance.
        size = jnp.sum(jnp.abs(rows), axis=1) + jnp.abs(offsets)
        G = jnp.concatenate([-rows / size[:, None], eye[:m], -eye])
        h = jnp.concatenate([-offsets / size, upper / half, -lower / half, jnp.zeros(1, u.dtype)])
        q = -jnp.concatenate([u / half, jnp.zeros(1, u.dtype)])
        return eye, q, jnp.zeros((0, m + 1), u.dtype), jnp.zeros(0, u.dtype), G, h

    def solve(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> QpaxAnswer:
        """The layer's action for a proposal u [m] at x [n], with what qpax says about it."""
        z, _, _, _, converged, iterations = qpax.solve_qp(
            *self.problem(x, u), solver_tol=self.tolerance, max_iter=self.max_iterations
        )
        half = jnp.asarray(self.layer.input_box.half_widths, u.dtype)
        return QpaxAnswer(z[:-1] * half, z[-1] * self.layer.slack_weight**-0.5, converged == 1, iterations)

    def __call__(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " m"]:
        """The action alone, shape [m]; differentiable in both, by qpax's relaxed implicit function theorem."""
        z = qpax.solve_qp_primal(*self.problem(x, u), solver_tol=self.tolerance, max_iter=self.max_iterations)
        return z[:-1] * jnp.asarray(self.layer.input_box.half_widths, u.dtype)

    def init(self, x: Float[Array, " n"]):
        """As the library's layer, so that learning can stand behind this one."""
        return self.layer.init(x)

    def step(self, state, x: Float[Array, " n"], u: Float[Array, " m"]):
        """The layer as a guard: its action moved into the box, which the interior point method reaches only nearly."""
        action = self.layer.input_box.clip(self(x, u))
        moved = jnp.any(jnp.abs(action - u) > 1e-3 * jnp.asarray(self.layer.input_box.half_widths, u.dtype))
        status = jnp.where(moved, Status.corrected, Status.accepted).astype(jnp.int32)
        return Safeguarded(action, status, jnp.full((), -jnp.inf, u.dtype), action - u), state
