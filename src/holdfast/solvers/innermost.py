"""Batches as the innermost axis, whatever `vmap` puts where: what a loop over tiny arrays needs to fill vector units."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def batch_innermost(function: Callable) -> Callable:
    """`function` of arrays [..., N], whose results are arrays [..., N], such that every `vmap` of it is a larger N.

    Without it, `vmap` makes the batch the first axis, and XLA loops over the last, tiny one. Not differentiable: put it
    inside a custom derivative.
    """

    @jax.custom_batching.custom_vmap
    def evaluate(*arrays):
        return function(*arrays)

    @evaluate.def_vmap
    def batched(axis_size, in_batched, *arrays):
        def fold(array, is_batched):
            array = jnp.moveaxis(array, 0, -1) if is_batched else array[..., None]
            array = jnp.broadcast_to(array, (*array.shape[:-1], axis_size))
            return array.reshape(*array.shape[:-2], array.shape[-2] * axis_size)

        def unfold(array):
            return jnp.moveaxis(array.reshape(*array.shape[:-1], array.shape[-1] // axis_size, axis_size), -1, 0)

        found = jax.tree.map(unfold, evaluate(*map(fold, arrays, in_batched)))
        return found, jax.tree.map(lambda _: True, found)

    return evaluate
