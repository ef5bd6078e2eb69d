"""Worst-case noise: adversaries that choose the disturbance of every step, within the system's box."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from holdfast.evaluate.adversaries import HeldMargins
from holdfast.safeguards import BackupCBF
from holdfast.sets import Box, LocallyConvex
from holdfast.tasks import Task

Margins = Callable[[Float[Array, " n"], Float[Array, " m"], Float[Array, " d"]], Float[Array, " R"]]
_EPOCH = 300  # steps for which one pace of change is kept


class Disturbance(eqx.Module):
    """Chooses the disturbance of every step, knowing state and applied action. Written for one closed loop.

    Fits `disturb=` of `tasks.step`, `tasks.rollout` and of the evaluation.
    """

    name: eqx.AbstractClassVar[str]

    @abc.abstractmethod
    def __call__(
        self, key: Key[Array, ""], x: Float[Array, " n"], applied: Float[Array, " m"], t: Int[Array, ""], context: Any
    ) -> Float[Array, " d"]:
        """The disturbance of the step from time t, shape [d]. `key` is that of the closed loop, the same at all t."""


class UniformNoise(Disturbance):
    """Uniform in the box, anew at every step."""

    name: ClassVar = "uniform"
    box: Box

    def __call__(self, key, x, applied, t, context):
        lower, upper = self.box.bounds(x.dtype)
        return jax.random.uniform(jax.random.fold_in(key, t), lower.shape, x.dtype, lower, upper)


class HeldVertices(Disturbance):
    """A random vertex of the box, held for a while: every 300 steps another pace, log-uniform from 1 to 300 steps."""

    name: ClassVar = "vertices"
    box: Box

    def __call__(self, key, x, applied, t, context):
        pace, offset = jax.random.split(jax.random.fold_in(key, t // _EPOCH))
        while_ = jnp.exp(jax.random.uniform(pace, (), x.dtype, 0.0, float(np.log(_EPOCH)))).astype(jnp.int32)
        block = (t + jax.random.randint(offset, (), 0, _EPOCH)) // while_
        choose = jax.random.fold_in(jax.random.fold_in(pace, 1), block)
        return _vertex(self.box, jax.random.bernoulli(choose, 0.5, (self.box.dimension,)), x.dtype)


class GradientChosen(Disturbance):
    """The vertex that takes the most from the margin that is least in the worst case.

    Every margin is linearised by w at the box's centre; for margins affine in w, the vertex is the worst one there is.
    Where the margin does not depend on a component of w, that component is drawn.

    Attributes:
        margins: (x, u, w) -> differentiable margins [R] of the successor.
        box: of the disturbance.
    """

    name: ClassVar = "gradient"
    margins: Margins
    box: Box

    def __call__(self, key, x, applied, t, context):
        centre, half = (jnp.asarray(each, x.dtype) for each in (self.box.centre, self.box.half_widths))

        def along(direction):
            return jax.jvp(lambda w: self.margins(x, applied, w), (centre,), (direction,))

        value, change = jax.vmap(along, out_axes=(None, 0))(jnp.diag(half))
        worst = value - jnp.sum(jnp.abs(change), axis=0)
        slope = change[:, jnp.argmin(jnp.where(jnp.isfinite(worst), worst, jnp.inf))]
        drawn = jax.random.bernoulli(jax.random.fold_in(key, t), 0.5, slope.shape)
        useful = jnp.isfinite(slope) & (slope != 0)
        return _vertex(self.box, jnp.where(useful, slope < 0, drawn), x.dtype)


class OneOf(Disturbance):
    """One of several disturbances, so that one compiled program serves them all.

    Attributes:
        kinds: to choose from.
        which: index of the one that acts, shape [].
    """

    name: ClassVar = "one of several"
    kinds: tuple[Disturbance, ...]
    which: Int[Array, ""]

    def __call__(self, key, x, applied, t, context):
        # As functions: what holds numpy arrays has no hash, which `switch` asks for.
        branches = [lambda *step, kind=kind: kind(*step) for kind in self.kinds]
        return jax.lax.switch(self.which, branches, key, x, applied, t, context)


def default_disturbances(task: Task, guard: Any, ahead: int = 10) -> tuple[Disturbance, ...]:
    """One of each kind, the last one aimed at this guard; none where the task's system is undisturbed.

    Args:
        task: what is disturbed.
        guard: a `Safeguard`, or any other guard. Where it keeps an invariant set, the noise aims at that set's margins at
            the next state; otherwise at the safe set's, while action and disturbance are held.
        ahead: steps for which they are held.
    """
    box = task.system.disturbance_box
    if box is None:
        return ()
    region = invariant_region(guard)
    margins = HeldMargins(task, ahead) if region is None else _RegionMargins(task, region)
    return UniformNoise(box), HeldVertices(box), GradientChosen(margins, box)


def invariant_region(guard: Any) -> LocallyConvex | None:
    """The set that a guard keeps invariant whatever the disturbance; None where it promises no such thing."""
    invariant = getattr(getattr(guard, "source", None), "invariant", None)
    return None if invariant is None else invariant.region


def looked_at_again(guard: Any) -> bool:
    """Whether a guard's promise is looked at anew at every state: where it keeps an invariant set; and where it keeps nothing
    at all, so that only looking tells (`BackupCBF`)."""
    return invariant_region(guard) is not None or isinstance(guard, BackupCBF)


class _RegionMargins(eqx.Module):
    task: Task
    region: LocallyConvex

    def __call__(self, x, u, w):
        return self.region.margin(self.task.system.disturbed_step(x, u, w))


def _vertex(box: Box, above: Bool[Array, " d"], dtype) -> Float[Array, " d"]:
    lower, upper = box.bounds(dtype)
    return jnp.where(above, upper, lower)
