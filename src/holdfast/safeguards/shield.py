"""Model-predictive shielding as published: look again at every step, promise nothing."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from holdfast.safeguards.backup_source import BackupSource
from holdfast.types import Safeguarded, Status


class ModelPredictiveShield(eqx.Module):
    """Applies the proposal if the backup flow from its successor is seen to stay safe and to arrive; else the backup
    policy's action, looked up anew. Source: Bastani, "Safe reinforcement learning with nonlinear dynamics via model
    predictive shielding" (ACC 2021, arXiv 1905.10691).

    **What it does not promise.** It keeps no plan. Where the backup's action has to be taken, its flow is computed again
    from the next state, and rounding, or a network that was compiled another way, may then see another flow than the one
    that was verified: the set is discontinuous where flows graze the hand-off. The same shield with a memory is a
    `Safeguard` without maps.

    Attributes:
        source: gives the check and the backup policy. Published without acceptance margins.
    """

    source: BackupSource

    def init(self, x: Float[Array, " n"]) -> "Outlook":
        return Outlook(self.source.init(x).certified)

    def step(self, state: "Outlook", x: Float[Array, " n"], u: Float[Array, " m"]) -> tuple[Safeguarded, "Outlook"]:
        """As `types.Guard`. Total; `uncertified` where neither the proposal nor the backup's action passes the check."""
        box, policy = self.source.input_box, self.source.implicit_set.policy
        finite_x, finite_u = jnp.all(jnp.isfinite(x)), jnp.all(jnp.isfinite(u))
        resting = jnp.asarray(policy.base.controller.equilibrium_input, u.dtype)
        backup = policy(jnp.where(finite_x, x, 0.0))
        backup = box.clip(jnp.where(finite_x & jnp.all(jnp.isfinite(backup)), backup, resting))
        proposal = jnp.where(finite_u & box.contains(u), u, box.clip(jnp.where(finite_u, u, backup)))
        seen = self.source.check(x, proposal)
        verified = seen.certified & finite_u & finite_x
        behind = self.source.check(x, backup)
        action = jnp.where(verified, proposal, backup)
        certified = verified | (behind.certified & finite_x)
        status = jnp.select(
            [verified & box.contains(u), verified, ~certified, ~finite_u],
            [Status.accepted, Status.corrected, Status.uncertified, Status.bad_action],
            Status.fell_back,
        ).astype(jnp.int32)
        margin = jnp.where(verified, seen.margin, jnp.where(certified, behind.margin, -jnp.inf))
        correction = jnp.where(finite_u, action - jnp.where(finite_u, u, 0.0), 0.0)
        return Safeguarded(action, status, margin, correction), Outlook(certified)


class Outlook(eqx.Module):
    """What a guard without a memory knows: whether what it last saw was certified, shape []."""

    certified: Bool[Array, ""]
