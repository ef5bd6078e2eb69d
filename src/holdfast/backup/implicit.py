"""The implicit control-invariant set of a backup policy."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from holdfast.backup.arrival import CHUNK, flow_until_arrival
from holdfast.backup.flow import Flow, backup_flow
from holdfast.backup.plan import AcceptanceMargins, Plan
from holdfast.backup.policy import BackupPolicy
from holdfast.sets import Set
from holdfast.systems import MANIFOLD_TOLERANCE

# Margins that do not count (after the arrival) are set to this: far from active, and finite, so that 0 * it is 0.
_NOT_COUNTED = 1e6


class ImplicitInvariantSet(eqx.Module):
    """S_N = {x : the backup flow from x stays in the safe set and arrives in the base set within N steps}.

    The base set is invariant and lies in the safe set, so nodes after the first arrival need no check, and "arrives at
    some k <= N" is the same set as "is inside at N".

    *Recursive feasibility.* If x is in S_N, so is F(x, pi_b(x)): its flow is that of x shifted by one, and its last
    node is one step of the base controller from a point of the base set. Source: PS2-RL (arXiv 2606.14536), in
    discrete time.

    Attributes:
        policy: the backup policy, with its base set.
        safe_set: C, margins >= 0 inside.
        horizon: N, steps.
    """

    policy: BackupPolicy
    safe_set: Set
    horizon: int = eqx.field(static=True)

    def flow(self, x: Float[Array, " n"]) -> Flow:
        """The backup flow from x, N + 1 nodes."""
        return backup_flow(self.policy, self.safe_set, x, self.horizon)

    def rows(self, x: Float[Array, " n"], acceptance: AcceptanceMargins | None = None) -> Float[Array, " R"]:
        """Every margin of the flow, shape [(N+1) p + 1]: h(phi_k) up to the first arrival, then the best base margin.

        Rows after the arrival hold a large constant. With `acceptance`, the acceptance margins are subtracted.
        """
        return _counted(self.flow(x), acceptance)

    def margin(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """Smallest row, shape []; NaN where the flow is not finite (numpy's rule, which XLA's min does not keep)."""
        rows = self.rows(x)
        return jnp.where(jnp.all(jnp.isfinite(rows)), jnp.min(rows), jnp.nan)

    def contains(self, x: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether x is in S_N as this program sees it. A promise needs a committed plan, not a second look."""
        return self.plan(x, None).certified

    def plan(self, x: Float[Array, " n"], acceptance: AcceptanceMargins | None) -> Plan:
        """Rolls out from x and returns the plan, certified if all of it clears the acceptance margins.

        Acceptance is `all(h >= eps)` over nodes and constraints, never `min(h) >= eps`: XLA's min drops NaN. A NaN
        anywhere before the arrival makes a comparison false, and NaN can not arrive.
        """
        base = self.policy.base
        eps_path, eps_base = _at_nodes(acceptance, self.horizon + 1, x.dtype)
        states, actions, computed = flow_until_arrival(self.policy, x, eps_base)
        # All nodes at once, after the loop: its body stays small, which decides run time and compile time.
        slack = jax.vmap(self.safe_set.margin)(states) - eps_path
        base_slack = jax.vmap(base.margin)(states) - eps_base
        nodes = jnp.arange(self.horizon + 1, dtype=jnp.int32)
        # Two programs may see one state on two sides of the boundary: what was not computed never counts.
        arrives = (base_slack >= 0) & (nodes <= computed)
        length = jnp.min(jnp.where(arrives, nodes, self.horizon))
        counts = (nodes <= length)[:, None]
        ok = jnp.all((slack >= 0) | ~counts) & jnp.all(jnp.isfinite(states) | ~counts)
        ok = ok & jnp.all(jax.vmap(lambda state: self.bounded(state, acceptance))(states) | ~counts[:, 0])
        certified = ok & jnp.any(arrives)
        arrival = jnp.where(jnp.any(arrives), self._arrival_slack(base_slack, nodes, length), jnp.max(base_slack))
        margin = jnp.minimum(jnp.min(jnp.where(counts, slack, jnp.inf)), arrival)
        # A margin is a number to look at and to search a root of; a flow that broke has none.
        margin = jnp.where(jnp.isfinite(margin) & (certified | (margin < 0)), margin, -jnp.inf)
        return Plan(actions, length, jnp.zeros_like(length), margin, certified, x)

    def _arrival_slack(self, base_slack, nodes, length) -> Float[Array, ""]:
        """How well a flow arrives, shape []: 1 where there was time to spare, else how deep it still goes inside.

        A root search wants the latter, smooth where an arrival is about to come too late. It looks no further than to the
        end of the chunk in which the flow arrives, so that it does not depend on how far a batch was computed.
        """
        last = -(-length // CHUNK) * CHUNK
        seen = jnp.where((nodes >= length) & (nodes <= last), base_slack, -jnp.inf)
        return jnp.where(length > self.horizon - CHUNK, jnp.max(seen), 1.0)

    def bounded(self, state: Float[Array, " n"], acceptance: AcceptanceMargins | None) -> Bool[Array, ""]:
        """Whether the acceptance margins were derived for this state: in their region, and on the system's manifold."""
        if acceptance is None or acceptance.region is None:
            return jnp.asarray(True)
        off = jnp.abs(self.policy.base.system.manifold(state))
        return acceptance.region.contains(state) & jnp.all(off <= MANIFOLD_TOLERANCE)


def _at_nodes(acceptance: AcceptanceMargins | None, nodes: int, dtype) -> tuple[Array, Array]:
    """eps_h [N+1, p] (or [N+1, 1], for all constraints) and eps_B [N+1], node by node."""
    if acceptance is None:
        return jnp.zeros((nodes, 1), dtype), jnp.zeros(nodes, dtype)
    path, base = jnp.asarray(acceptance.path, dtype), jnp.asarray(acceptance.base, dtype)
    path = path if path.ndim == 2 else jnp.broadcast_to(path, (nodes, *jnp.atleast_1d(path).shape))
    return path, jnp.broadcast_to(base, (nodes,))


def _counted(flow: Flow, acceptance: AcceptanceMargins | None) -> Float[Array, " R"]:
    eps_path, eps_base = _at_nodes(acceptance, flow.states.shape[0], flow.states.dtype)
    base_slack = flow.base_margins - eps_base
    arrived = jnp.cumsum(base_slack >= 0) > 0
    counts = jnp.concatenate([jnp.array([True]), ~arrived[:-1]])
    path = jnp.where(counts[:, None], flow.margins - eps_path, _NOT_COUNTED)
    # The best node decides arrival. `max` drops no NaN that matters: a NaN node before the arrival is in `path`.
    return jnp.concatenate([path.reshape(-1), jnp.max(base_slack)[None]])
