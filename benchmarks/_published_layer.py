"""The published safety layer, written once to compare with: PS2-RL (arXiv 2606.14536), in continuous time.

Along the Euler backup flow phi_0 = x, phi_{k+1} = phi_k + dt f_cl(phi_k) of the closed loop f_cl = f + g pi_b, with the
sensitivity Q_0 = I, Q_{k+1} = expm(J_cl(phi_k) dt) Q_k, the layer asks an action u for

    safe set   grad h_i(phi_k) . (Q_k (f(x) + g(x) u) - f_cl(phi_k)) >= -4 h_i(phi_k)     for all i, k = 0..N,
    base set   grad h_b(phi_N) . Q_N (f(x) + g(x) u)                 >= -2 h_b(phi_N),

where the term f_cl(phi_k) is that of the relative time of a node, and solves min |u - u_ref|^2 + w s^2 over u in the
input box and a slack s >= 0 on all rows, by qpax. Gains 4 and 2 are the published ones.

**What it does not prove.** With s > 0 nothing is promised, and s > 0 is always allowed. The rows are conditions on a
derivative at the present instant, under an action that changes continuously: held over a sampling period, and with
nodes that are dt apart, they bound neither the samples nor what lies between them. Q is a first-order approximation of
the flow's sensitivity, and has no meaning where the flow jumps from network to base controller. The interior point
method stops at a tolerance, or at its iteration limit without one.

It is meant to be fast: rows for all nodes at once, one program for a batch, variables in units of the input box, the
slack scaled so that the Hessian is the identity, rows scaled to size one, qpax's Cholesky back end in float32, and no
more squarings in `expm` than float32 numbers of this size need. Measured on 512 states near the boundary: in float32
qpax's floor of sqrt(eps) under slacks and multipliers keeps nearly every problem from ever meeting a tolerance of 1e-3,
so that it costs all iterations (30, its default), though after 10 the action is as close to a float64 solution as it
gets (0.6 % of the half-width at worst, as after 30). `tuned` stops there: the fastest form that is as accurate.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import qpax
from jaxtyping import Array, Bool, Float, Int

from holdfast.backup import BackupPolicy
from holdfast.sets import Set


class LayerAnswer(eqx.Module):
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
    """Rows and slack QP for one state; `jax.vmap` for many.

    Attributes:
        policy: the backup policy, with its base set; its system must be a `ContinuousSystem`, affine in its input.
        safe_set: C, margins h >= 0 inside.
        horizon: N, steps of the system's dt.
        safe_gain, base_gain: class-K gains, 1/s.
        slack_weight: w.
        tolerance, max_iterations: of qpax.
        squarings: most squarings of the matrix exponential.
    """

    policy: BackupPolicy
    safe_set: Set
    horizon: int = eqx.field(static=True)
    safe_gain: float = eqx.field(static=True, default=4.0)
    base_gain: float = eqx.field(static=True, default=2.0)
    slack_weight: float = eqx.field(static=True, default=1e3)
    tolerance: float = eqx.field(static=True, default=1e-3)
    max_iterations: int = eqx.field(static=True, default=30)
    squarings: int = eqx.field(static=True, default=6)

    def tuned(self) -> "PublishedLayer":
        """The same with no more iterations than help in float32."""
        return dataclasses.replace(self, max_iterations=10)

    def _derivative(self, x, u):
        return self.policy.base.system.derivative(x, u, jnp.zeros(0, x.dtype))

    def closed_loop(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """f_cl(x) = f(x) + g(x) pi_b(x), shape [n]."""
        return self._derivative(x, self.policy(x))

    def flow(self, x: Float[Array, " n"]) -> Float[Array, "N1 n"]:
        """phi_0..phi_N, shape [N+1, n]: explicit Euler, each node brought back by the system's `post_step`."""
        system = self.policy.base.system

        def advance(state, _):
            return system.post_step(state + system.dt * self.closed_loop(state)), state

        last, nodes = jax.lax.scan(advance, x, None, length=self.horizon)
        return jnp.concatenate([nodes, last[None]])

    def sensitivities(self, nodes: Float[Array, "N1 n"]) -> Float[Array, "N1 n n"]:
        """Q_0..Q_N, shape [N+1, n, n]: products of matrix exponentials of the closed loop's Jacobians."""
        dt, n = self.policy.base.system.dt, nodes.shape[1]
        jacobians = jax.vmap(jax.jacfwd(self.closed_loop))(nodes[:-1])
        factors = jax.vmap(lambda J: jax.scipy.linalg.expm(dt * J, max_squarings=self.squarings))(jacobians)

        def advance(Q, factor):
            # A sum, not a product of tiny matrices: in a batch XLA fuses it, and calls a routine for each of those.
            Q = jnp.sum(factor[:, :, None] * Q[None], axis=1)
            return Q, Q

        eye = jnp.eye(n, dtype=nodes.dtype)
        return jnp.concatenate([eye[None], jax.lax.scan(advance, eye, factors)[1]])

    def rows(self, x: Float[Array, " n"]) -> tuple[Float[Array, "R m"], Float[Array, " R"]]:
        """(A, b) with A u >= b, R = (N+1) p + 1: safe-set rows node by node, then the base-set row."""
        base, m = self.policy.base, self.policy.base.system.input_size
        drift = self._derivative(x, jnp.zeros(m, x.dtype))
        inputs = jax.jacfwd(lambda u: self._derivative(x, u))(jnp.zeros(m, x.dtype))
        nodes = self.flow(x)
        Q = self.sensitivities(nodes)
        h = jax.vmap(self.safe_set.margin)(nodes)
        slopes = jax.vmap(jax.jacfwd(self.safe_set.margin))(nodes)
        own = jax.vmap(self.closed_loop)(nodes)
        moved_inputs = jnp.sum(Q[:, :, :, None] * inputs[None, None], axis=2)
        moved_drift = jnp.sum(Q * drift[None, None], axis=2)
        A = jnp.sum(slopes[:, :, :, None] * moved_inputs[:, None], axis=2)
        b = -self.safe_gain * h - jnp.sum(slopes * (moved_drift - own)[:, None], axis=2)
        base_slope = jax.grad(base.margin)(nodes[-1])
        A_base = jnp.sum(base_slope[:, None] * moved_inputs[-1], axis=0)
        b_base = -self.base_gain * base.margin(nodes[-1]) - jnp.sum(base_slope * moved_drift[-1])
        return jnp.concatenate([A.reshape(-1, m), A_base[None]]), jnp.concatenate([b.reshape(-1), b_base[None]])

    def problem(self, x: Float[Array, " n"], u: Float[Array, " m"]):
        """The QP as qpax takes it, (Q, q, A, b, G, h), in z = (u / half_widths, sqrt(w) s)."""
        box, m = self.policy.base.system.input_box, u.shape[0]
        half = jnp.asarray(box.half_widths, u.dtype)
        lower, upper = box.bounds(u.dtype)
        rows, offsets = self.rows(x)
        eye = jnp.eye(m + 1, dtype=u.dtype)
        rows = jnp.concatenate(
            [rows * half[None], jnp.full((rows.shape[0], 1), self.slack_weight**-0.5, u.dtype)], axis=1
        )
        # Rows of size one, the same problem: under qpax's floor of sqrt(eps) large ones never meet the tolerance.
        size = jnp.sum(jnp.abs(rows), axis=1) + jnp.abs(offsets)
        G = jnp.concatenate([-rows / size[:, None], eye[:m], -eye])
        h = jnp.concatenate([-offsets / size, upper / half, -lower / half, jnp.zeros(1, u.dtype)])
        q = -jnp.concatenate([u / half, jnp.zeros(1, u.dtype)])
        return eye, q, jnp.zeros((0, m + 1), u.dtype), jnp.zeros(0, u.dtype), G, h

    def solve(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> LayerAnswer:
        """The layer's action for a proposal u [m] at x [n], with what qpax says about it."""
        z, _, _, _, converged, iterations = qpax.solve_qp(
            *self.problem(x, u), solver_tol=self.tolerance, max_iter=self.max_iterations
        )
        half = jnp.asarray(self.policy.base.system.input_box.half_widths, u.dtype)
        return LayerAnswer(z[:-1] * half, z[-1] * self.slack_weight**-0.5, converged == 1, iterations)

    def __call__(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " m"]:
        """The action alone, shape [m]; differentiable in both, by qpax's relaxed implicit function theorem."""
        z = qpax.solve_qp_primal(*self.problem(x, u), solver_tol=self.tolerance, max_iter=self.max_iterations)
        return z[:-1] * jnp.asarray(self.policy.base.system.input_box.half_widths, u.dtype)
