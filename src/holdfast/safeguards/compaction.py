"""Pay only where it is needed: a conditional that stays one under `vmap`."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

T = TypeVar("T", bound=PyTree)

CHUNK = 16
"""Fewest rows that are worked on at once; a quarter of a large batch. Large enough to fill vector units, small enough that
the last chunk wastes little: of a nearly trained policy a few rows are rejected, and they decide what a step costs."""


def where_needed(
    needed: Bool[Array, ""], function: Callable[[PyTree], T], otherwise: T, operands: PyTree, chunk: int | None = None
) -> T:
    """function(operands) where `needed`, else `otherwise`; in a batch, only the needed rows are computed.

    Under `vmap` a `lax.cond` becomes a select and every row pays. Here a batching rule gathers the needed rows, works
    through them `chunk` at a time (by default `CHUNK`, or a quarter of the batch) in a while loop, and scatters the
    results back. Not differentiable: put it inside a custom derivative.

    Args:
        needed: shape [].
        function: operands -> result; must not close over traced values, which the batching rule could not gather.
        otherwise: result of the same structure, shapes and types.
        operands: any pytree; entries that are not batched are shared by all rows, never copied.
    """
    # NumPy leaves are constants, not operands: a `Box` rounds its bounds inwards only while they are NumPy.
    traced, static = eqx.partition(operands, lambda leaf: isinstance(leaf, jax.Array))

    def call(traced_operands):
        return function(eqx.combine(traced_operands, static))

    @jax.custom_batching.custom_vmap
    def evaluate(needed, otherwise, traced):
        return jax.lax.cond(needed, lambda: call(traced), lambda: otherwise)

    @evaluate.def_vmap
    def batched(axis_size, in_batched, needed, otherwise, traced):
        needed_batched, otherwise_batched, traced_batched = in_batched

        def spread(leaf, is_batched):
            return leaf if is_batched else jnp.broadcast_to(leaf, (axis_size, *jnp.shape(leaf)))

        needed = spread(needed, needed_batched)
        result = jax.tree.map(spread, otherwise, otherwise_batched)
        rows_at_once = min(max(CHUNK, axis_size // 4) if chunk is None else chunk, axis_size)
        count = jnp.sum(needed, dtype=jnp.int32)
        (order,) = jnp.nonzero(needed, size=axis_size, fill_value=axis_size)
        padded = jnp.concatenate([order.astype(jnp.int32), jnp.full(rows_at_once, axis_size, jnp.int32)])
        in_axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, traced_batched)

        def work(carry):
            start, result = carry
            rows = jax.lax.dynamic_slice(padded, (start,), (rows_at_once,))
            gathered = jax.tree.map(
                lambda leaf, is_batched: jnp.take(leaf, rows, axis=0, mode="clip") if is_batched else leaf,
                traced,
                traced_batched,
            )
            values = jax.vmap(call, in_axes=(in_axes,), axis_size=rows_at_once)(gathered)
            # Padding rows carry the index axis_size, which `drop` ignores.
            result = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), result, values)
            return start + rows_at_once, result

        _, result = jax.lax.while_loop(lambda carry: carry[0] < count, work, (jnp.zeros((), jnp.int32), result))
        return result, jax.tree.map(lambda _: True, result)

    return evaluate(needed, otherwise, traced)
