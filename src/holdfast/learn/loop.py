"""The one training loop: compiled chunks of updates, all seeds in one program, interruptible between chunks."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key


class TrainingDiverged(RuntimeError):
    """Gradients were not finite. The state before the offending chunk is the last good one."""


class Trainer(Protocol):
    """A learning algorithm, written for one seed.

    Its JAX arrays carry a leading seed axis when it is handed to `train`; everything else is shared by all seeds.
    """

    def init(self, key: Key[Array, ""]) -> Any: ...

    def update(self, state: Any) -> tuple[Any, dict[str, Array]]:
        """One update; metrics are scalars, among them `nonfinite`, the count of gradients that were not finite."""
        ...


def _per_seed(tree):
    """(per-seed arrays, the rest). NumPy arrays are parameters shared by all seeds: constants of the program."""
    return eqx.partition(tree, lambda leaf: isinstance(leaf, jax.Array))


def _over_seeds(function: Callable, stacked):
    """function of each seed's arrays, stacked again.

    On CPU one seed after the other: a batch over seeds would turn every product with a network's weights into a batched
    one, which XLA's CPU backend runs several times slower, and every conditional into both of its branches. One seed's
    environments fill the vector units already. On GPUs a batch pays.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(function, stacked)
    return jax.vmap(function)(stacked)


def _compiler_options() -> dict[str, int] | None:
    """On CPU, the first level of LLVM's optimiser: a training program is large, runs for a minute, and compiles in two
    thirds of the time, at no cost that could be measured. (XLA without its fusion emitters compiles faster still, and trains
    SAC through a safeguard at less than half of the speed.)"""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def _strong(leaf):
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else jnp.asarray(leaf, leaf.dtype)


def initialise(trainer: Trainer, keys: Key[Array, " S"]):
    """Training states of S seeds, stacked along a leading axis."""
    arrays, static = _per_seed(trainer)
    shape = {}

    def one_seed(arguments):
        arrays, key = arguments
        state = eqx.combine(arrays, static).init(key)
        state_arrays, shape["static"] = _per_seed(state)
        # Weakly typed leaves would come back strongly typed from the first chunk and compile the program twice.
        return jax.tree.map(_strong, state_arrays)

    stacked = jax.jit(lambda arrays, keys: _over_seeds(one_seed, (arrays, keys)))(arrays, keys)
    return eqx.combine(stacked, shape["static"])


def compiled(trainer: Trainer, state: Any) -> Callable[[Any, int], tuple[Any, dict[str, Array]]]:
    """(state, updates) -> (state, metrics [S, updates]), compiled once for each number of updates.

    `trainer` and `state` are as `train` takes them, which looks after what is not finite and says how far it is.
    """
    trainer_arrays, trainer_static = _per_seed(trainer)
    _, state_static = _per_seed(state)

    @functools.partial(jax.jit, static_argnums=2, compiler_options=_compiler_options())
    def run(trainer_arrays, state_arrays, updates):
        def one_seed(arguments):
            trainer_arrays, state_arrays = arguments
            trainer = eqx.combine(trainer_arrays, trainer_static)

            def body(arrays, _):
                state, metrics = trainer.update(eqx.combine(arrays, state_static))
                return _per_seed(state)[0], metrics

            return jax.lax.scan(body, state_arrays, None, length=updates)

        return _over_seeds(one_seed, (trainer_arrays, state_arrays))

    def advance(state, updates):
        arrays, metrics = run(trainer_arrays, _per_seed(state)[0], updates)
        return eqx.combine(arrays, state_static), metrics

    return advance


def train(
    trainer: Trainer,
    state: Any,
    *,
    updates: int,
    start: int = 0,
    chunk: int = 25,
    on_chunk: Callable[[int, Any, dict[str, np.ndarray]], bool | None] | None = None,
) -> Any:
    """Runs updates `start` to `updates` in chunks of one compiled program.

    Args:
        trainer: the algorithm; its JAX arrays have a leading seed axis [S].
        state: stacked states of S seeds, from `initialise` or a checkpoint.
        on_chunk: called after each chunk with the updates done, the state and the metrics [S, chunk] as numpy; returning
            True stops the training there (an interrupt), with nothing lost.

    Raises:
        TrainingDiverged: if a gradient was not finite; nothing is zeroed in silence.
    """
    advance = compiled(trainer, state)
    done = start
    while done < updates:
        # One chunk size compiles one program; only a remainder pays for another.
        size = min(chunk, updates - done)
        state, metrics = advance(state, size)
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        done += size
        if np.any(metrics["nonfinite"] > 0):
            seeds = np.flatnonzero(np.any(metrics["nonfinite"] > 0, axis=1)).tolist()
            raise TrainingDiverged(
                f"gradients were not finite between updates {done - size} and {done} (seed positions {seeds}): lower the "
                "learning rate or the horizon, or look for a square root or division at zero in reward and dynamics"
            )
        if on_chunk is not None and on_chunk(done, state, metrics):
            break
    return state
