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
gets (0.6 % of the half-width at worst, as after 30).

**How sensitivities are computed.** As published: the n x n Jacobian of the closed loop at every node by forward mode, its
matrix exponential (Pade with scaling and squaring; in a batch all of its orders are evaluated), and their products Q_k.
The rows only need Q_k f and Q_k g, so `tuned` never forms Q_k: it carries 1 + m tangents of the Euler flow along by
forward mode, which is the exact derivative of that flow, and stops qpax after 10 iterations. That is the fastest form we
know that is as accurate; it is what an honest engineer would compare with, the other is what was published.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import qpax
from jaxtyping import Array, Bool, Float, Int

from holdfast.backup import BackupPolicy
from holdfast.sets import Set
from holdfast.systems import ContinuousSystem, Quadrotor, System, quaternion


def _quadrotor_derivative(system: Quadrotor, x: Float[Array, " 10"], u: Float[Array, " 4"]) -> Float[Array, " 10"]:
    v, q = x[3:6], x[6:]
    acceleration = u[0] * quaternion.body_z(q) - system.gravity * jnp.array([0.0, 0.0, 1.0], x.dtype)
    turning = 0.5 * quaternion.multiply(q, jnp.concatenate([jnp.zeros(1, u.dtype), u[1:]]))
    return jnp.concatenate([v, acceleration, turning])


def continuous_form(system: System) -> tuple[Callable, Callable]:
    """(derivative(x, u), post_step(x)): the system before it was sampled, as the layer's rows need it.

    Raises:
        ValueError: if it is not known for this system.
    """
    if isinstance(system, ContinuousSystem):
        return lambda x, u: system.derivative(x, u, jnp.zeros(0, x.dtype)), system.post_step
    if isinstance(system, Quadrotor):
        to_unit = lambda x: jnp.concatenate([x[:6], quaternion.normalise(x[6:])])  # noqa: E731
        return lambda x, u: _quadrotor_derivative(system, x, u), to_unit
    raise ValueError(
        f"{type(system).__name__} has no derivative(x, u, w), which the published layer needs: subclass ContinuousSystem"
    )


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
        policy: the backup policy, with its base set; its system must have a `continuous_form`, affine in its input.
        safe_set: C, margins h >= 0 inside.
        horizon: N, steps of the system's dt.
        safe_gain, base_gain: class-K gains, 1/s.
        slack_weight: w.
        tolerance, max_iterations: of qpax.
        squarings: most squarings of the matrix exponential.
        tangents: carry 1 + m tangents of the flow along instead of multiplying matrix exponentials.
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
    tangents: bool = eqx.field(static=True, default=False)

    def tuned(self) -> "PublishedLayer":
        """The same with no more iterations than help in float32, and without matrix exponentials."""
        return dataclasses.replace(self, max_iterations=10, tangents=True)

    def _derivative(self, x, u):
        derivative, _ = continuous_form(self.policy.base.system)
        return derivative(x, u)

    def closed_loop(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """f_cl(x) = f(x) + g(x) pi_b(x), shape [n]."""
        return self._derivative(x, self.policy(x))

    def flow(self, x: Float[Array, " n"]) -> Float[Array, "N1 n"]:
        """phi_0..phi_N, shape [N+1, n]: explicit Euler, each node brought back by the system's `post_step`."""
        system = self.policy.base.system
        _, post_step = continuous_form(system)

        def advance(state, _):
            return post_step(state + system.dt * self.closed_loop(state)), state

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

    def moved(
        self, x: Float[Array, " n"], directions: Float[Array, "n d"]
    ) -> tuple[Float[Array, "N1 n"], Float[Array, "N1 n d"]]:
        """The nodes, and Q_k times each direction: where small displacements of x move them."""
        if self.tangents:
            push = jax.vmap(lambda v: jax.jvp(self.flow, (x,), (v,)), in_axes=1, out_axes=(None, 2))
            return push(directions)
        nodes = self.flow(x)
        return nodes, jnp.sum(self.sensitivities(nodes)[:, :, :, None] * directions[None, None], axis=2)

    def rows(self, x: Float[Array, " n"]) -> tuple[Float[Array, "R m"], Float[Array, " R"]]:
        """(A, b) with A u >= b, R = (N+1) p + 1: safe-set rows node by node, then the base-set row."""
        base, m = self.policy.base, self.policy.base.system.input_size
        drift = self._derivative(x, jnp.zeros(m, x.dtype))
        inputs = jax.jacfwd(lambda u: self._derivative(x, u))(jnp.zeros(m, x.dtype))
        nodes, moved = self.moved(x, jnp.concatenate([inputs, drift[:, None]], axis=1))
        moved_inputs, moved_drift = moved[:, :, :m], moved[:, :, m]
        h = jax.vmap(self.safe_set.margin)(nodes)
        slopes = jax.vmap(jax.jacfwd(self.safe_set.margin))(nodes)
        own = jax.vmap(self.closed_loop)(nodes)
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
