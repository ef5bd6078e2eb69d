"""One gradient step, with its finiteness counted.

JAX arrays are what is learned; NumPy arrays and Python numbers are the problem (physics, bounds, weights) and never move.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax


def arrays(tree: Any) -> tuple[Any, Any]:
    """(JAX arrays, the rest), as `equinox.partition`: what loops carry, and the problem's constants."""
    return eqx.partition(tree, lambda leaf: isinstance(leaf, jax.Array))


def learned(model: Any) -> tuple[Any, Any]:
    """(floating-point JAX arrays, the rest), as `equinox.partition`."""
    return eqx.partition(model, lambda leaf: isinstance(leaf, jax.Array) and eqx.is_inexact_array(leaf))


def value_and_gradient(loss: Callable[..., tuple[jax.Array, Any]], model: Any, *args):
    """((loss, aux), gradient by the learned arrays of the model) of loss(model, *args)."""
    arrays, rest = learned(model)
    return jax.value_and_grad(lambda a: loss(eqx.combine(a, rest), *args), has_aux=True)(arrays)


def adam(peak: float, updates: int, clip: float) -> optax.GradientTransformation:
    """Adam with cosine decay to a twentieth of the peak rate, gradients clipped by global norm."""
    schedule = optax.cosine_decay_schedule(peak, updates, alpha=0.05)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule, b1=0.9, b2=0.98))


def start(optimiser: optax.GradientTransformation, model: Any):
    """Optimiser state for the learned arrays of a model."""
    return optimiser.init(learned(model)[0])


def descend(optimiser: optax.GradientTransformation, gradient, optimiser_state, model):
    """Model and optimiser state after one step, and 1 if the gradient was not finite (then nothing moves), else 0."""
    arrays, rest = learned(model)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)]))
    updates, moved = optimiser.update(gradient, optimiser_state, arrays)

    def keep(new, old):
        return jnp.where(finite, new, old)

    stepped = jax.tree.map(keep, optax.apply_updates(arrays, updates), arrays)
    moved = jax.tree.map(keep, moved, optimiser_state)
    return eqx.combine(stepped, rest), moved, (~finite).astype(jnp.int32)


def over_steps(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` of step(carry, input) -> (carry, output) for models: their leaves need not all be JAX arrays."""
    moving, rest = arrays(carry)

    def body(moving, each):
        carry, output = step(eqx.combine(moving, rest), each)
        return arrays(carry)[0], output

    moving, outputs = jax.lax.scan(body, moving, inputs)
    return eqx.combine(moving, rest), outputs


def over_steps_if(ready: jax.Array, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any):
    """`over_steps` where `ready`, shape []; else the carry as it is, and what steps that were not made have to say: NaN, as
    for returns of episodes that did not end (0 for whole numbers)."""
    moving, rest = arrays(carry)

    def go(moving):
        carry, output = over_steps(step, eqx.combine(moving, rest), inputs)
        return arrays(carry)[0], output

    def wait(moving):
        def blank(shape):
            return jnp.full(shape.shape, jnp.nan if jnp.issubdtype(shape.dtype, jnp.inexact) else 0, shape.dtype)

        return moving, jax.tree.map(blank, jax.eval_shape(go, moving)[1])

    moving, outputs = jax.lax.cond(ready, go, wait, moving)
    return eqx.combine(moving, rest), outputs


def moved_towards(target: Any, model: Any, share: float) -> Any:
    """A target network after a share of the model has moved into it (Polyak averaging)."""
    return jax.tree.map(lambda old, new: (1 - share) * old + share * new, target, model)


def norm(gradient: Any) -> jax.Array:
    """Euclidean length over all leaves, shape []."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def limit_cotangent(x: jax.Array, limit: float) -> jax.Array:
    """x, shape [n]; in the backward pass a cotangent longer than `limit` is shortened to it."""
    return x


def _limit_forward(x, limit):
    return x, None


def _limit_backward(limit, _, cotangent):
    # The square of a large cotangent must not overflow: measured in units of its largest entry.
    largest = jnp.max(jnp.abs(cotangent))
    unit = jnp.where(largest > 0, largest, 1.0)
    length = unit * jnp.sqrt(jnp.sum((cotangent / unit) ** 2))
    return (cotangent * (limit / jnp.maximum(length, limit)),)


limit_cotangent.defvjp(_limit_forward, _limit_backward)
