"""Adversaries: policies that try to make a safeguarded plant violate its constraints."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from holdfast.backup import AcceptanceMargins
from holdfast.safeguards import BackupCBF, BackupSource
from holdfast.sets import Box
from holdfast.tasks import Task

Look = Callable[[Float[Array, " n"], Float[Array, " m"]], tuple[Float[Array, ""], Bool[Array, ""]]]
Rows = Callable[[Float[Array, " n"], Float[Array, " m"]], Float[Array, " R"]]


class Adversary(eqx.Module):
    """Proposes an action at every step, from the true state and its own last proposal. Written for one plant."""

    name: eqx.AbstractClassVar[str]

    @abc.abstractmethod
    def __call__(
        self, key: Key[Array, ""], x: Float[Array, " n"], u_prev: Float[Array, " m"], t: Int[Array, ""]
    ) -> Float[Array, " m"]:
        """The proposal at time step t, shape [m]; `u_prev` is zero at t = 0."""


class HeldCorners(Adversary):
    """A corner of the input box, held for a random number of steps: 4, 30 or 300 on average, in turns."""

    name: ClassVar = "corners"
    box: Box

    def __call__(self, key, x, u_prev, t):
        choose, switch = jax.random.split(key)
        mean_hold = jnp.asarray([4.0, 30.0, 300.0], x.dtype)[(t // 300) % 3]
        switches = (t == 0) | (jax.random.uniform(switch, (), x.dtype) * mean_hold < 1)
        return jnp.where(switches, _corner(self.box, choose, x.dtype), u_prev)


class Uniform(Adversary):
    """Uniform in the input box, anew at every step."""

    name: ClassVar = "uniform"
    box: Box

    def __call__(self, key, x, u_prev, t):
        return _uniform(self.box, key, x.dtype)


class Invalid(Adversary):
    """NaN, infinities and numbers far outside the input box in random components; every fourth proposal is valid."""

    name: ClassVar = "invalid"
    box: Box

    def __call__(self, key, x, u_prev, t):
        values, kinds, hits, valid = jax.random.split(key, 4)
        u = _corner(self.box, values, x.dtype)
        largest = float(jnp.finfo(x.dtype).max)
        broken = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 1.001, -1.5, 10.0, 1e6, largest], x.dtype)
        kind = jax.random.randint(kinds, u.shape, 0, broken.shape[0])
        bad = jnp.where(kind >= 3, jnp.clip(broken[kind] * u, -largest, largest), broken[kind])
        hit = jax.random.bernoulli(hits, 0.5, u.shape) & jax.random.bernoulli(valid, 0.75)
        return jnp.where(hit, bad, u)


class MarginDescent(Adversary):
    """Signed gradient steps down the smallest margin of the last proposal, of random length up to the whole box.

    Attributes:
        rows: (x, u) -> differentiable margins [R] of applying u at x.
        box: the input box.
    """

    name: ClassVar = "gradient"
    rows: Rows
    box: Box

    def __call__(self, key, x, u_prev, t):
        restart, length, tie, start = jax.random.split(key, 4)
        half = jnp.asarray(self.box.half_widths, x.dtype)
        # Descent gets stuck where the margin is flat or jumps: begin anew from time to time.
        anew = (t == 0) | jax.random.bernoulli(restart, 0.05)
        at = jnp.where(anew, _uniform(self.box, start, x.dtype), self.box.clip(u_prev))
        slope = jax.grad(lambda u: jnp.min(self.rows(x, u)))(at)
        useful = jnp.isfinite(slope) & (slope != 0)
        sign = jnp.where(useful, jnp.sign(slope), jax.random.rademacher(tie, at.shape, x.dtype))
        step = 2 * jax.random.uniform(length, (), x.dtype) ** 2
        return self.box.clip(at - step * half * sign)


class BoundaryHugging(Adversary):
    """The acceptable action with the least margin: it lets the safeguard agree until there is no room left.

    Looks at random corners, random actions and the neighbourhood of its last proposal. Where none is acceptable it
    proposes the one with the least margin.

    Attributes:
        look: (x, u) -> (margin, acceptable).
        box: the input box.
    """

    name: ClassVar = "boundary"
    look: Look
    box: Box

    def __call__(self, key, x, u_prev, t):
        corners, inner, near = jax.random.split(key, 3)
        half = jnp.asarray(self.box.half_widths, x.dtype)
        spread = 0.1 * half[None] * jax.random.normal(near, (2, half.shape[0]), x.dtype)
        candidates = jnp.concatenate(
            [
                jax.vmap(lambda k: _corner(self.box, k, x.dtype))(jax.random.split(corners, 4)),
                jax.vmap(lambda k: _uniform(self.box, k, x.dtype))(jax.random.split(inner, 2)),
                jax.vmap(self.box.clip)(u_prev[None] + spread),
            ]
        )
        margins, acceptable = jax.vmap(self.look, in_axes=(None, 0))(x, candidates)
        margins = jnp.where(jnp.isfinite(margins), margins, jnp.finfo(x.dtype).max)
        # Acceptable candidates first, then the least margin.
        rank = jnp.where(acceptable | ~jnp.any(acceptable), margins, jnp.inf)
        return candidates[jnp.argmin(rank)]


class NoisyPolicy(Adversary):
    """The trained policy with uniform noise, as a fraction of the input box's half-widths.

    Attributes:
        task: gives observations; time runs on through one episode after the other.
        policy: observation [o] -> action [m].
        context: of the episode.
        noise: amplitude, 1 = half the input box.
    """

    name: ClassVar = "policy"
    task: Task
    policy: Callable
    context: Any
    noise: float = 0.3

    def __call__(self, key, x, u_prev, t):
        box = self.task.system.input_box
        u = self.policy(self.task.observe(x, t % self.task.episode_steps, self.context)).astype(x.dtype)
        noise = jax.random.uniform(key, u.shape, x.dtype, -1.0, 1.0)
        return u + self.noise * jnp.asarray(box.half_widths, x.dtype) * noise


def default_adversaries(task: Task, guard: Any, policy: Callable | None = None) -> tuple[Adversary, ...]:
    """One of each kind, aimed at this guard: at its source's margins, or at the safe set ahead where it has no source.

    Args:
        task: what is attacked.
        guard: a `Safeguard`, or any other guard.
        policy: adds `NoisyPolicy` where given.
    """
    box = task.system.input_box
    rows, look = attack_surface(task, guard)
    found: list[Any] = [
        HeldCorners(box),
        Uniform(box),
        Invalid(box),
        MarginDescent(rows, box),
        BoundaryHugging(look, box),
    ]
    if policy is not None:
        found.append(NoisyPolicy(task, policy, task.sample_context(jax.random.key(0))))
    return tuple(found)


def attack_surface(task: Task, guard: Any, ahead: int = 10) -> tuple[Rows, Look]:
    """Margins to push against: (differentiable rows, (margin, acceptable)), both functions of (x, u).

    Of the published layer, those of its implicit set. Without a source, the safe set's margins while u is held for `ahead`
    steps; one step would not do, since many inputs reach a constrained coordinate only through others.
    """
    source = getattr(guard, "source", None)
    if isinstance(guard, BackupCBF):
        # It has no source; what it should keep is the implicit set all the same.
        source = BackupSource(guard.implicit_set, AcceptanceMargins(np.zeros(1), 0.0))
    if source is not None:
        return source.rows, _SourceLook(source)
    rows = HeldMargins(task, ahead)
    return rows, _HeldLook(rows)


class _SourceLook(eqx.Module):
    source: Any

    def __call__(self, x, u):
        commitment = self.source.check(x, u)
        return commitment.margin, commitment.certified


class HeldMargins(eqx.Module):
    """The safe set's margins while u and w are held: (x, u, w) -> [ahead * p]; w is its box's centre where not given.

    Attributes:
        task: gives the system and the safe set.
        ahead: steps for which they are held.
    """

    task: Task
    ahead: int = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"] | None = None
    ) -> Float[Array, " R"]:
        if w is None:
            w = jnp.asarray(self.task.system.noise_box.centre, x.dtype)

        def advance(x, _):
            x = self.task.system.disturbed_step(x, u, w)
            return x, self.task.safe_set.margin(x)

        return jax.lax.scan(advance, x, None, length=self.ahead)[1].reshape(-1)


class _HeldLook(eqx.Module):
    rows: HeldMargins

    def __call__(self, x, u):
        return jnp.min(self.rows(x, u)), jnp.asarray(True)


def _corner(box: Box, key, dtype):
    lower, upper = box.bounds(dtype)
    return jnp.where(jax.random.bernoulli(key, 0.5, lower.shape), upper, lower)


def _uniform(box: Box, key, dtype):
    lower, upper = box.bounds(dtype)
    return jax.random.uniform(key, lower.shape, dtype, lower, upper)
