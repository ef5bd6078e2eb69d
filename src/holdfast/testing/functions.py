"""One function, in every way it will be called."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: States, starts or errors that are tried.
SAMPLES = 32
_LOOPED = 2


class ConformanceError(ValueError):
    """A system or task breaks a rule of the library.

    Attributes:
        item: what was checked.
        seen: what came out.
        right: what is right, and how to get there.
    """

    def __init__(self, item: str, seen: Any, right: str):
        super().__init__(f"{item}: saw {seen}; {right}")
        self.item, self.seen, self.right = item, seen, right


def name_of(thing: Any) -> str:
    return type(thing).__name__


def check_shape(item: str, function: Callable, batches: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> None:
    """Traceability, shape and dtypes of a function of float arrays; nothing is compiled."""
    for dtype in (jnp.float64, jnp.float32):
        try:
            out = jax.eval_shape(lambda *a: function(*a), *(jax.ShapeDtypeStruct(b.shape[1:], dtype) for b in batches))
        except Exception as error:
            raise ConformanceError(
                item,
                f"{name_of(error)}: {error}",
                "it must run under jax.jit for one state: no Python `if` on its numbers",
            ) from error
        if not hasattr(out, "shape") or out.shape != shape:
            raise ConformanceError(item, f"shape {getattr(out, 'shape', out)}", f"it must give shape {shape}")
        if out.dtype != dtype:
            raise ConformanceError(
                item,
                f"{out.dtype} for inputs of {np.dtype(dtype)}",
                "keep the dtype of the inputs: cast constant arrays with `.astype(x.dtype)`",
            )


def check_function(
    item: str, function: Callable, batches: tuple[np.ndarray, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """Shape, dtypes, finiteness, vmap = loop and jit = eager of a function of float arrays; returns its outputs."""
    check_shape(item, function, batches, shape)
    arguments = [jnp.asarray(b) for b in batches]
    # Bound methods of modules that hold arrays cannot be hashed, which jax.jit asks for; a lambda can.
    compiled = np.asarray(jax.jit(jax.vmap(lambda *a: function(*a)))(*arguments))
    finite = np.isfinite(compiled).reshape(len(compiled), -1).all(axis=1)
    if not finite.all():
        i = int(np.argmin(finite))
        at = ", ".join(str(b[i]) for b in batches)
        raise ConformanceError(item, f"{compiled[i]} at {at}", "it must be finite; look for a division or root at zero")
    for i in range(min(_LOOPED, len(compiled))):
        value = np.asarray(function(*(a[i] for a in arguments)))
        if not np.allclose(value, compiled[i], rtol=1e-9, atol=1e-9):
            raise ConformanceError(
                item,
                f"{value} for one state without jit, {compiled[i]} under jit and vmap",
                "both must agree: no hidden state, no randomness, no Python branch on what is traced",
            )
    return compiled
