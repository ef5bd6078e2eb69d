"""Keys from seeds. An episode's key depends on the seed and the episode's number alone, so batches do not matter."""

import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def episode_key(seed: int, episode: int | Int[Array, ""]) -> Key[Array, ""]:
    """Typed key of one episode: fold_in(key(seed), episode).

    Args:
        seed: integer >= 0 below 2^32.
        episode: number of the episode, >= 0; may be traced.

    Raises:
        ValueError: if the seed is out of range.
    """
    return jax.random.fold_in(jax.random.key(_checked(seed)), episode)


def seed_keys(seed: int, count: int, first: int = 0) -> Key[Array, " count"]:
    """Keys of the episodes first, ..., first + count - 1; entry i equals `episode_key(seed, first + i)`.

    Raises:
        ValueError: if the seed, `count` or `first` is out of range.
    """
    if operator.index(count) < 1 or operator.index(first) < 0:
        raise ValueError(f"count = {count}, first = {first}: give count >= 1 and first >= 0")
    key = jax.random.key(_checked(seed))
    return jax.vmap(lambda episode: jax.random.fold_in(key, episode))(jnp.arange(first, first + count))


def _checked(seed: int) -> int:
    # Beyond 32 bits the key would depend on whether 64-bit is switched on.
    if isinstance(seed, bool) or not 0 <= operator.index(seed) < 2**32:
        raise ValueError(f"seed = {seed!r} must be an integer from 0 to 2^32 - 1")
    return operator.index(seed)
