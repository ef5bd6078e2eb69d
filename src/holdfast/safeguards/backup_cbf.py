"""The published layer of PS2-RL: conditions on the derivative of the margins along the backup flow, and a slack QP."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from holdfast.backup import ImplicitInvariantSet
from holdfast.certify import Certificate, Obligation
from holdfast.safeguards.explicit import Promise
from holdfast.safeguards.relaxation import with_relaxed_tangents
from holdfast.safeguards.source import SafeActionSet
from holdfast.sets import Box
from holdfast.solvers import project
from holdfast.types import Safeguarded, Status

LayerGradient = Literal["exact", "relaxed", "straight_through", "stopped"]
Moved = Callable[[Float[Array, " n"], Float[Array, "n d"]], tuple[Float[Array, "N1 n"], Float[Array, "N1 n d"]]]

#: Slack above this breaks a row, in its units (a margin per second). Below, it is what a quadratic price lets through: the
#: multipliers' sum over the weight, wherever a row is active.
_BROKEN = 1e-2


class LayerAnswer(eqx.Module):
    """What the QP of a layer says.

    Attributes:
        action: shape [m].
        slack: s, in the units of a row, shape [].
        solved: whether the solver says that this is the solution, shape []; else the backup's action stands in.
        margin: least row at the proposal, A u - b, in the units of a row, shape [].
    """

    action: Float[Array, " m"]
    slack: Float[Array, ""]
    solved: Bool[Array, ""]
    margin: Float[Array, ""]


class BackupCBF(eqx.Module):
    """A control-barrier-function layer on the implicit set of a backup, as published: it filters, and proves nothing.

    Along the backup flow phi_0 = x, phi_{k+1} = F(phi_k, pi_b(phi_k)), with Q_k = d phi_k / d x and the closed loop
    f_cl = f + g pi_b, an action u is asked to satisfy

        safe set   grad h_i(phi_k) . (Q_k (f(x) + g(x) u) - f_cl(phi_k)) >= -safe_gain h_i(phi_k)     for all i, k = 0..N,
        base set   grad h_b(phi_N) . Q_N (f(x) + g(x) u)                 >= -base_gain h_b(phi_N),

    where the term f_cl(phi_k) is that of the relative time of a node: a node at a fixed time of the clock comes nearer.
    The action is that of min |u - u_ref|^2 + slack_weight s^2, in half-widths of the input box, over u in the box and a
    slack s >= 0 on all rows. A proposal that meets all rows comes back bit for bit.

    The rows need Q_k f and Q_k g only: 1 + m tangents of the flow, carried along in forward mode, where the published
    code multiplies n x n matrix exponentials. Source: PS2-RL (arXiv 2606.14536).

    **What it does not prove** is in `certificate`. Statuses say whether rows held: `accepted` (all did), `corrected` (the
    QP moved the action), `uncertified` (they cannot all be met: s > 0, or the QP was not solved), `bad_action`,
    `bad_state` (the backup's action, the equilibrium input). It keeps no promise and so remembers none: `init` looks
    whether an episode begins in the implicit set, and `step` returns that unchanged.

    Attributes:
        implicit_set: backup policy with its base set, safe set and horizon; its system must have `derivative(x, u, w)`,
            affine in u.
        safe_gain, base_gain: class-K gains, 1/s.
        slack_weight: weight of s^2, in the inverse square of a row's units.
        gradient: derivative of a moved action. "exact" (of the KKT system), "relaxed" (of the KKT system with products
            of slacks and multipliers at `relaxation` instead of 0, as interior-point layers have it), "straight_through",
            "stopped".
        relaxation: kappa of "relaxed", of rows scaled to size one.
        relative_time: whether safe-set rows have their term f_cl.
        kept_rows: most rows in the QP, those that the proposal comes nearest to breaking; None: all. What is left out
            is not asked for.
    """

    implicit_set: ImplicitInvariantSet
    safe_gain: float = eqx.field(static=True, default=4.0)
    base_gain: float = eqx.field(static=True, default=2.0)
    slack_weight: float = eqx.field(static=True, default=1e3)
    gradient: LayerGradient = eqx.field(static=True, default="exact")
    relaxation: float = eqx.field(static=True, default=1e-3)
    relative_time: bool = eqx.field(static=True, default=True)
    kept_rows: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.gradient not in (known := ("exact", "relaxed", "straight_through", "stopped")):
            raise ValueError(f"BackupCBF: gradient = {self.gradient!r}; give one of {', '.join(map(repr, known))}")
        for name in ("safe_gain", "base_gain", "slack_weight", "relaxation"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"BackupCBF: {name} = {getattr(self, name)}; give a finite number > 0")
        if self.kept_rows is not None and self.kept_rows < 1:
            raise ValueError(f"BackupCBF: kept_rows = {self.kept_rows}; give a whole number >= 1, or None for all rows")
        if not hasattr(self.system, "derivative"):
            raise ValueError(
                f"BackupCBF: {type(self.system).__name__} has no derivative(x, u, w), and the layer's rows are in "
                "continuous time: subclass ContinuousSystem, or take a safeguard of the sampled system (ray)"
            )

    @property
    def system(self) -> Any:
        """The system whose sampled step the backup flow takes, with its `derivative`."""
        return self.implicit_set.policy.base.system

    @property
    def input_box(self) -> Box:
        """Admissible inputs."""
        return self.system.input_box

    def init(self, x: Float[Array, " n"]) -> Promise:
        """Whether an episode begins in the implicit set, without acceptance margins. The layer itself never looks at it."""
        plan = self.implicit_set.plan(x, None)
        return Promise(plan.certified, plan.margin)

    def step(self, state: Promise, x: Float[Array, " n"], u: Float[Array, " m"]) -> tuple[Safeguarded, Promise]:
        """The layer's action for a proposal u [m] at x [n], and the state unchanged. Total: never raises on numbers.

        `margin` of the answer is -inf: there is no plan.
        """
        finite_x, finite_u = jnp.all(jnp.isfinite(x)), jnp.all(jnp.isfinite(u))
        rest, resting = (jnp.asarray(v, x.dtype) for v in self.system.equilibrium())
        # Double where: what cannot be read has no derivative, and 0 * NaN is NaN.
        seen, wanted = jnp.where(finite_x, x, rest), jnp.where(finite_u, u, resting.astype(u.dtype))
        answer = self.answer(seen, wanted)
        backup = jnp.where(finite_x, self.implicit_set.policy(seen), resting).astype(u.dtype)
        backup = self.input_box.clip(jnp.where(jnp.all(jnp.isfinite(backup)), backup, resting.astype(u.dtype)))
        usable = finite_x & finite_u & answer.solved
        action = jnp.where(usable, answer.action, jax.lax.stop_gradient(backup))
        if self.gradient == "straight_through":
            # The difference is zero, and its derivative one: no bit of the action changes.
            action = jax.lax.stop_gradient(action) + (wanted - jax.lax.stop_gradient(wanted))
        status = jnp.select(
            [~finite_x, ~finite_u, ~answer.solved | self.broken(answer), jnp.all(action == u)],
            [Status.bad_state, Status.bad_action, Status.uncertified, Status.accepted],
            Status.corrected,
        ).astype(jnp.int32)
        correction = jnp.where(finite_u, action - wanted, 0.0)
        return Safeguarded(action, status, jnp.full((), -jnp.inf, u.dtype), correction), state

    def guard(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Safeguarded:
        """One step without a history, which makes no difference to the layer."""
        return self.step(Promise(jnp.asarray(False), jnp.full((), -jnp.inf, x.dtype)), x, u)[0]

    def broken(self, answer: LayerAnswer) -> Bool[Array, ""]:
        """Whether the answer breaks a row by more than the little that an active row always gives away."""
        return answer.slack > _BROKEN

    def answer(self, x: Float[Array, " n"], u: Float[Array, " m"], moved: Moved | None = None) -> LayerAnswer:
        """The solution of the QP at a state and a proposal that are finite; see `rows` for `moved`."""
        A, b = self.rows(x, moved)
        m, half = u.shape[0], jnp.asarray(self.input_box.half_widths, u.dtype)
        lower, upper = self.input_box.bounds(u.dtype)
        least = jnp.min(jnp.sum(A * u[None], axis=1) - b)
        if self.kept_rows is not None and self.kept_rows < A.shape[0]:
            steep = jnp.sqrt(jnp.sum((A * half[None]) ** 2, axis=1))
            nearness = (jnp.sum(A * u[None], axis=1) - b) / (steep + 1e-12)
            _, kept = jax.lax.top_k(-jax.lax.stop_gradient(nearness), self.kept_rows)
            A, b = A[kept], b[kept]
        finite = jnp.all(jnp.isfinite(A)) & jnp.all(jnp.isfinite(b))
        A, b = jnp.where(finite, A, 0.0), jnp.where(finite, b, 0.0)
        # With the slack as one more variable the layer is a projection, which always has a solution.
        A = jnp.concatenate([A, jnp.ones((A.shape[0], 1), A.dtype)], axis=1)
        nought, far = jnp.zeros(1, u.dtype), jnp.full(1, jnp.inf, u.dtype)
        wanted = jnp.concatenate([u, nought])
        bounds = jnp.concatenate([lower, nought]), jnp.concatenate([upper, far])
        weights = jnp.concatenate([1 / half, jnp.full(1, self.slack_weight**0.5, u.dtype)])
        problem = (wanted, A, b)
        if self.gradient != "exact":
            problem = jax.lax.stop_gradient(problem)
        solution = project(*problem, *bounds, weights=weights)
        value = solution.value
        if self.gradient == "relaxed":
            value = with_relaxed_tangents(value, wanted, A, b, *bounds, weights, self.relaxation)
        # A proposal that no row and no bound moves keeps its derivative, whatever that of moved ones is.
        kept = jnp.all(solution.value[:m] == u)
        action = jnp.where(kept & (self.gradient != "relaxed"), u, value[:m])
        return LayerAnswer(action, jax.lax.stop_gradient(solution.value[m]), finite & solution.solved, least)

    def rows(self, x: Float[Array, " n"], moved: Moved | None = None) -> tuple[Float[Array, "R m"], Float[Array, " R"]]:
        """(A, b) with A u >= b, R = (N+1) p + 1: safe-set rows node by node, then the base-set row.

        Args:
            moved: (x, directions [n, d]) -> the nodes [N+1, n], and Q_k times each direction [N+1, n, d]; the exact
                derivative of the sampled flow, `tangents`, if not given.
        """
        base, m, safe_set = self.implicit_set.policy.base, self.system.input_size, self.implicit_set.safe_set
        still = jnp.zeros(m, x.dtype)
        drift = self.derivative(x, still)
        inputs = jax.jacfwd(lambda u: self.derivative(x, u))(still)
        directions = jnp.concatenate([inputs, drift[:, None]], axis=1)
        nodes, pushed = (self.tangents if moved is None else moved)(x, directions)
        h = jax.vmap(safe_set.margin)(nodes)
        slopes = jax.vmap(jax.jacfwd(safe_set.margin))(nodes)
        # Sums instead of products of tiny matrices: XLA fuses these, and calls a routine per batch entry for those.
        A = jnp.sum(slopes[:, :, :, None] * pushed[:, None, :, :m], axis=2)
        motion = pushed[:, :, m]
        if self.relative_time:
            motion = motion - jax.vmap(self.closed_loop)(nodes)
        b = -self.safe_gain * h - jnp.sum(slopes * motion[:, None], axis=2)
        base_slope = jax.grad(base.margin)(nodes[-1])
        A_base = jnp.sum(base_slope[:, None] * pushed[-1, :, :m], axis=0)
        b_base = -self.base_gain * base.margin(nodes[-1]) - jnp.sum(base_slope * pushed[-1, :, m])
        return jnp.concatenate([A.reshape(-1, m), A_base[None]]), jnp.concatenate([b.reshape(-1), b_base[None]])

    def tangents(
        self, x: Float[Array, " n"], directions: Float[Array, "n d"]
    ) -> tuple[Float[Array, "N1 n"], Float[Array, "N1 n d"]]:
        """The nodes of the backup flow, and where small displacements of x move them."""
        push = jax.vmap(lambda v: jax.jvp(self.flow, (x,), (v,)), in_axes=1, out_axes=(None, 2))
        return push(directions)

    def flow(self, x: Float[Array, " n"]) -> Float[Array, "N1 n"]:
        """phi_0..phi_N, shape [N+1, n]."""
        policy, system = self.implicit_set.policy, self.system

        def advance(state, _):
            return system.step(state, policy(state)), state

        last, nodes = jax.lax.scan(advance, x, None, length=self.implicit_set.horizon)
        return jnp.concatenate([nodes, last[None]])

    def derivative(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " n"]:
        """f(x) + g(x) u without a disturbance, shape [n]."""
        return self.system.derivative(x, u, jnp.zeros(self.system.noise_box.dimension, x.dtype))

    def closed_loop(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """f_cl(x) = f(x) + g(x) pi_b(x), shape [n]."""
        return self.derivative(x, self.implicit_set.policy(x))

    @staticmethod
    def certificate(base: Certificate) -> Certificate:
        """What holds of a layer on a certified base set, and what does not.

        Args:
            base: of the base set; what it says about replayed plans is no matter of a layer.
        """
        about = ("base set invariant", "base set safe")
        kept = tuple(each for each in base.obligations if each.name in about)
        return Certificate(f"{base.subject}, through the published layer", base.physics, (*kept, *NOT_PROVED))


NOT_PROVED = (
    Obligation(
        "rows are met",
        "Every row of the layer holds at the action that it gives.",
        "not proved",
        "a slack on all rows is always allowed, so that the quadratic program has a solution where no action meets them; at "
        "a quadratic price, a little of it is paid wherever a row is active",
    ),
    Obligation(
        "rows between samples",
        "Rows that hold at a sample keep the margins until the next one.",
        "not proved",
        "they bound a derivative at one instant, under an action that changes continuously; here it is held over a period, "
        "and constraints are looked at in nodes one period apart",
    ),
    Obligation(
        "rows where the backup switches",
        "Rows are the derivative of the margins along the backup flow.",
        "not proved",
        "the flow jumps where it passes from the network to the base controller, and has no derivative there",
    ),
    Obligation(
        "tolerance",
        "The action of the layer is the exact solution of its quadratic program.",
        "not proved",
        "it is solved in floating point up to a tolerance, and rows up to it count as met",
    ),
    Obligation(
        "recursion",
        "Where the rows can be met, they can be met again at the next state.",
        "not proved",
        "the next state is not checked, no plan is kept, and nothing takes over when the rows have led into a corner",
    ),
)
"""What the published layer does not show, whatever its numbers are."""


class LayerFirst(eqx.Module):
    """A layer in front of a safeguard, which verifies the layer's answer like any proposal: the layer hardened.

    With no maps behind it, what is not accepted is replaced by the committed plan's action.

    Attributes:
        layer: moves proposals.
    """

    layer: BackupCBF

    preserves_safe: ClassVar[bool] = False
    idempotent: ClassVar[bool] = False
    non_expansive: ClassVar[bool] = False
    bijective: ClassVar[bool] = False

    def __call__(self, actions: SafeActionSet, u: Float[Array, " m"]) -> Float[Array, " m"]:
        """The layer's action, shape [m]; the safeguard's known safe action where its QP is not solved."""
        answer = self.layer.answer(actions.x, u)
        return jnp.where(answer.solved, answer.action, jax.lax.stop_gradient(actions.known_safe))


LAYERS = ("backup_cbf", "backup_cbf_verified")
"""The names that the command line gives the published layer, and the same behind our accept/verify step."""
