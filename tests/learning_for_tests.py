"""A task at toy size and what several files of learning tests do with it: a slider on a track, two states, one input."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.learn import initialise, train
from holdfast.sets import Box, SuperlevelSet
from holdfast.tasks import SafetySettings, Task
from holdfast.types import Unguarded
from systems_for_tests import Cart


class Reach(Task):
    """Reach a target beyond the end of the track, which lies at 1 m."""

    name: ClassVar = "reach"
    episode_steps: ClassVar = 20
    system: Cart = eqx.field(default_factory=Cart)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: SuperlevelSet(lambda x: jnp.stack([1 - x[0], 1 + x[0]]), ("right", "left"), ("m", "m"))
    )
    state_box: Box = eqx.field(default_factory=lambda: Box([-1, -1], [1, 1]))
    safety: SafetySettings = eqx.field(default_factory=lambda: SafetySettings((1.0, 1.0), (1.0,), 20, 3.0))
    starts: Box = eqx.field(default_factory=lambda: Box([0.7, 0.2], [0.85, 0.4]))
    target: float = 1.5

    def sample_start(self, key):
        return self.starts.sample(key)

    def reward(self, x, u, x_next, t, context):
        return -((x_next[0] - self.target) ** 2)


class Manoeuvre(Reach):
    """Reach, over when its time is."""

    finite: ClassVar = True
    episode_steps: ClassVar = 5


UNGUARDED = Unguarded(Cart().input_box.lower, Cart().input_box.upper)


def learn(trainer, keys, updates=6, **options):
    """(state, metrics [S, updates]) after a whole training."""
    rows = []
    state = initialise(trainer, keys)
    state = train(trainer, state, updates=updates, on_chunk=lambda _, s, metrics: rows.append(metrics), **options)
    return state, {name: np.concatenate([row[name] for row in rows], axis=1) for name in rows[0]}


def numbers(tree):
    """Floating-point leaves of a tree, as numpy."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return [np.asarray(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
