"""Gatekeeper: go on as proposed for as long as a verified backup remains, and commit to both."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from holdfast.backup import AcceptanceMargins, Plan
from holdfast.safeguards.backup_source import BackupSource


class GatekeeperSource(BackupSource):
    """A plan is the proposal, held for 1 to K steps, and then the backup flow; the longest that is verified is committed.

    Source: Agrawal, Chen and Panagou, "gatekeeper: online safety verification and control for nonlinear systems in dynamic
    environments" (T-RO 2024, arXiv 2211.14361). There the nominal trajectory comes from a planner; a guard knows one
    proposal, so its nominal trajectory is the proposal held. Against `BackupSource`, which it contains (K = 1): a proposal
    passes if *some* switching time is verified, and what is replayed when nothing passes is the rest of the nominal part
    first.

    Attributes:
        implicit_set: of the backup, whose horizon is what the prefix leaves of the acceptance margins' nodes.
        acceptance: for plans of `prefix` + horizon steps.
        prefix: K, the most steps for which a proposal is held.

    Raises:
        ValueError: if the acceptance margins have too few nodes.
    """

    prefix: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        nodes, horizon = self.prefix + self.implicit_set.horizon, self.implicit_set.horizon
        seen = nodes if self.acceptance is None or self.acceptance.path.ndim < 2 else len(self.acceptance.path)
        if seen < nodes:
            raise ValueError(
                f"GatekeeperSource: acceptance has margins for {seen} nodes; plans of prefix = {self.prefix} and "
                f"horizon = {horizon} have {nodes}: give a shorter prefix or horizon"
            )

    def init(self, x: Float[Array, " n"]) -> Plan:
        backup = self.implicit_set.plan(x, self._margins(0))
        return self._after(backup, jnp.zeros(self.input_box.dimension, x.dtype), jnp.zeros((), jnp.int32))

    def check(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Plan:
        system, acceptance = self.implicit_set.policy.base.system, self.acceptance

        def go_on(state, _):
            state = system.step(state, u)
            return state, state

        _, states = jax.lax.scan(go_on, x, None, length=self.prefix)
        # Wherever in the plan a node lies, it is asked for the margin of the latest place that it may have.
        late = self._margins(self.prefix - 1)
        plans = jax.vmap(lambda state: self.implicit_set.plan(state, late))(states)
        slack = jax.vmap(self.implicit_set.safe_set.margin)(states)
        if late is not None:
            path = jnp.asarray(late.path, x.dtype)
            slack = slack - (path[:1] if path.ndim == 2 else path[None])
        bounded = jax.vmap(lambda state: self.implicit_set.bounded(state, acceptance))(states)
        safe = jnp.all(slack >= 0, axis=1) & jnp.all(jnp.isfinite(states), axis=1) & bounded
        passes = plans.certified & (jnp.cumsum(~safe) == 0) & self.implicit_set.bounded(x, acceptance)
        # The longest prefix that is verified; the shortest, whose margin says how far it fails, where none is.
        index = jnp.arange(self.prefix, dtype=jnp.int32)
        chosen = jnp.max(jnp.where(passes, index, 0))
        plan = jax.tree.map(lambda leaf: leaf[chosen], plans)
        whole = jnp.min(jnp.where((index <= chosen)[:, None], slack, jnp.inf))
        margin = jnp.where(jnp.isfinite(whole), jnp.minimum(plan.margin, whole), -jnp.inf)
        changes = jnp.any(passes), margin, states[0]
        plan = eqx.tree_at(lambda p: (p.certified, p.margin, p.expected), plan, changes)
        return self._after(plan, u, chosen)

    def rows(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " R"]:
        """Those of the shortest prefix."""
        successor = self.implicit_set.policy.base.system.step(x, u)
        return self.implicit_set.rows(successor, self._margins(self.prefix - 1))

    def _after(self, backup: Plan, u: Float[Array, " m"], steps: Int[Array, ""]) -> Plan:
        """The backup's plan, to begin after u is held for `steps` more steps."""
        horizon = self.implicit_set.horizon
        index = jnp.arange(self.prefix + horizon, dtype=jnp.int32) - steps
        later = backup.actions[jnp.clip(index, 0, horizon - 1)]
        actions = jnp.where((index < 0)[:, None], u[None], later)
        return eqx.tree_at(lambda p: (p.actions, p.length), backup, (actions, backup.length + steps))

    def _margins(self, first: int) -> AcceptanceMargins | None:
        """The acceptance margins of a backup that begins at node `first` of a plan. What rounding costs only adds up, so
        later nodes ask for more, and a backup that begins earlier is asked for too much, never for too little."""
        if self.acceptance is None:
            return None
        last = first + self.implicit_set.horizon + 1

        def part(margins):
            return jax.lax.cummax(jnp.asarray(margins), axis=0)[first:last]

        path, base = self.acceptance.path, self.acceptance.base
        path, base = (part(path) if path.ndim == 2 else path), (part(base) if jnp.ndim(base) else base)
        return eqx.tree_at(lambda a: (a.path, a.base), self.acceptance, (path, base))
