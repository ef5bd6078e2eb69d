"""Rolling the backup out until it has arrived: the rest of the horizon need not be computed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from holdfast.backup.policy import BackupPolicy

CHUNK = 8
"""Steps between two looks at whether all have arrived. Most plans arrive within a fifth of the horizon."""


def flow_until_arrival(
    policy: BackupPolicy, x: Float[Array, " n"], base_margins: Float[Array, " N1"]
) -> tuple[Float[Array, "N1 n"], Float[Array, "N m"], Int[Array, ""]]:
    """States phi_0..phi_N and actions of the backup flow from x, computed no further than to its arrival; and how far.

    Nodes after the arrival may repeat a state of the base set instead of following the flow: they do not count. A batch
    (`jax.vmap`) goes on until all of it has arrived, in one loop without a select for every array in it, which is what
    `vmap` would make of a loop that ends at different times. Not differentiable: see `backup_flow`.

    Args:
        policy: the backup policy.
        x: the state, shape [n].
        base_margins: base-set margin that counts as arrived, at each node; N is one less than its length.
    """
    # NumPy leaves are constants, not operands: a `Box` rounds its bounds inwards only while they are NumPy.
    leaves, structure = jax.tree.flatten(policy)
    traced = [isinstance(leaf, jax.Array) for leaf in leaves]
    operands = [leaf for leaf, is_traced in zip(leaves, traced) if is_traced]

    def restored(operands) -> BackupPolicy:
        rest = iter(operands)
        filled = [next(rest) if is_traced else leaf for leaf, is_traced in zip(leaves, traced)]
        return jax.tree.unflatten(structure, filled)

    def compute(operands, base_margins, starts):
        return _batched_flow(restored(operands), starts, base_margins)

    @jax.custom_batching.custom_vmap
    def flows(operands, base_margins, starts):
        return compute(operands, base_margins, starts)

    @flows.def_vmap
    def more_flows(axis_size, in_batched, operands, base_margins, starts):
        if any(jax.tree.leaves(in_batched[:2])):
            # Policies that differ within the batch: nothing is shared, so every one has its own loop.
            axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(in_batched))
            result = jax.vmap(compute, in_axes=axes, axis_size=axis_size)(operands, base_margins, starts)
        else:
            size, n = starts.shape[1:]
            flat = flows(operands, base_margins, starts.reshape(axis_size * size, n))
            result = jax.tree.map(lambda a: a.reshape(axis_size, size, *a.shape[1:]), flat)
        return result, (True, True, True)

    return jax.tree.map(lambda found: found[0], flows(operands, base_margins, x[None]))


def _batched_flow(policy: BackupPolicy, starts: Float[Array, "B n"], base_margins: Float[Array, " N1"]):
    """States [B, N+1, n], actions [B, N, m] and the last node computed [B]."""
    system, base = policy.base.system, policy.base
    horizon, (size, n) = base_margins.shape[0] - 1, starts.shape
    m = system.input_size
    chunk = min(CHUNK, horizon)
    length = -(-horizon // chunk) * chunk

    def advance(states, _):
        actions = jax.vmap(policy)(states)
        following = jax.vmap(system.step)(states, actions)
        return following, (following, actions)

    def work(carry):
        k, _, last, states, actions = carry
        last, (new_states, new_actions) = jax.lax.scan(advance, last, None, length=chunk)
        states = jax.lax.dynamic_update_slice_in_dim(states, new_states, k, axis=0)
        actions = jax.lax.dynamic_update_slice_in_dim(actions, new_actions, k, axis=0)
        k = k + chunk
        # Past the horizon nothing counts, whatever is written there.
        arrived = jax.vmap(base.margin)(last) >= base_margins[jnp.minimum(k, horizon)]
        return k, jnp.all(arrived), last, states, actions

    nought = jnp.zeros((), jnp.int32)
    buffers = jnp.zeros((length, size, n), starts.dtype), jnp.zeros((length, size, m), starts.dtype)
    carry = (nought, jnp.asarray(False), starts, *buffers)
    k, _, last, states, actions = jax.lax.while_loop(lambda c: (c[0] < horizon) & ~c[1], work, carry)
    reached = jnp.arange(1, length + 1, dtype=jnp.int32)[:, None, None] <= k
    states = jnp.concatenate([starts[None], jnp.where(reached, states, last[None])])
    computed = jnp.full(size, jnp.minimum(k, horizon))
    return jnp.swapaxes(states[: horizon + 1], 0, 1), jnp.swapaxes(actions[:horizon], 0, 1), computed
