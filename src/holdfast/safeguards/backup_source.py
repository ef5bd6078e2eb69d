"""Safe actions from the implicit invariant set of a backup policy, kept by commitment."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.backup import AcceptanceMargins, ImplicitInvariantSet, Plan
from holdfast.safeguards.source import Source
from holdfast.sets import Box


class BackupSource(Source):
    """u is safe at x if the backup flow from F(x, u) stays safe and arrives, with margins; accepting commits that flow.

    Attributes:
        implicit_set: the implicit invariant set S_N.
        acceptance: margins that bound the rounding of a plan's replay (`holdfast.certify`); None: none, and no promise.
    """

    implicit_set: ImplicitInvariantSet
    acceptance: AcceptanceMargins | None

    @property
    def input_box(self) -> Box:
        return self.implicit_set.policy.base.system.input_box

    @property
    def state_size(self) -> int:
        return self.implicit_set.policy.base.system.state_size

    def init(self, x: Float[Array, " n"]) -> Plan:
        return self.implicit_set.plan(x, self.acceptance)

    def check(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Plan:
        successor = self.implicit_set.policy.base.system.step(x, u)
        plan = self.implicit_set.plan(successor, self.acceptance)
        # The rounding of this very step is bounded only from where the acceptance margins were derived.
        known = self.implicit_set.bounded(x, self.acceptance)
        return eqx.tree_at(lambda plan: plan.certified, plan, plan.certified & known)

    def standing(self, x: Float[Array, " n"], commitment: Plan) -> Plan:
        """Revoked where the plan is over and the state is not seen inside the base set: by theorem that does not happen,
        so it tells that the plant is not the model, or that the state could not be read until the plan ended."""
        running, read = commitment.age < commitment.length, jnp.all(jnp.isfinite(x))
        blind = ~read & (commitment.age < commitment.actions.shape[0])
        stands = running | blind | self.implicit_set.policy.base.contains(x)
        # The model starts from the last state that could be read.
        now = commitment.certified & stands, jnp.where(read, x, commitment.expected)
        return eqx.tree_at(lambda plan: (plan.certified, plan.expected), commitment, now)

    def fallback(self, x: Float[Array, " n"], commitment: Plan) -> Float[Array, " m"]:
        policy = self.implicit_set.policy
        # After the plan has arrived the base controller goes on. Without a promise: the backup policy, for what it is.
        closed_loop = jnp.where(commitment.certified, policy.base.action(x), policy(x))
        replaying = commitment.certified & (commitment.age < commitment.length)
        action = jnp.where(replaying, commitment.next_action(), closed_loop)
        # An unreadable state leaves the plan, and the model where it has arrived, for as long as rounding along a replay is
        # bounded; then the equilibrium input.
        unread = commitment.certified & (commitment.age < commitment.actions.shape[0])
        resting = jnp.asarray(policy.base.controller.equilibrium_input, action.dtype)
        blind = jnp.where(unread, self._planned(commitment), resting)
        action = jnp.where(jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(action)), action, blind)
        return self.input_box.clip(jnp.where(jnp.all(jnp.isfinite(action)), action, resting))

    def after_fallback(self, commitment: Plan) -> Plan:
        system = self.implicit_set.policy.base.system
        return commitment.replayed(system.step(commitment.expected, self._planned(commitment)))

    def _planned(self, commitment: Plan) -> Float[Array, " m"]:
        """What the commitment does next by the model alone, shape [m]."""
        arrived = self.implicit_set.policy.base.action(commitment.expected)
        return jnp.where(commitment.age < commitment.length, commitment.next_action(), arrived)

    def rows(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " R"]:
        successor = self.implicit_set.policy.base.system.step(x, u)
        return self.implicit_set.rows(successor, self.acceptance)
