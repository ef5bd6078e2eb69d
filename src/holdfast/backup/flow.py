"""The backup flow: what happens if we do the backup from here."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.backup.policy import BackupPolicy
from holdfast.sets import Set


class Flow(eqx.Module):
    """phi_0 = x, phi_{k+1} = F(phi_k, pi_b(phi_k)), k = 0..N.

    Attributes:
        states: phi_k, shape [N+1, n].
        actions: pi_b(phi_k), shape [N, m].
        margins: safe-set margins h(phi_k), shape [N+1, p].
        base_margins: 1 - V(phi_k)/c, shape [N+1].
    """

    states: Float[Array, "N1 n"]
    actions: Float[Array, "N m"]
    margins: Float[Array, "N1 p"]
    base_margins: Float[Array, " N1"]


def backup_flow(policy: BackupPolicy, safe_set: Set, x: Float[Array, " n"], horizon: int) -> Flow:
    """Rolls the backup policy out for `horizon` steps from x [n]. One scan; works under jit, vmap and grad."""
    system = policy.base.system

    def advance(state, _):
        action = policy(state)
        return system.step(state, action), (state, action)

    last, (states, actions) = jax.lax.scan(advance, x, None, length=horizon)
    states = jnp.concatenate([states, last[None]])
    return Flow(states, actions, jax.vmap(safe_set.margin)(states), jax.vmap(policy.base.margin)(states))
