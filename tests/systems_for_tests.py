"""Small systems, policies and safeguards that several test files share."""

from functools import cache
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import (
    AcceptanceMargins,
    BackupNetwork,
    BackupPolicy,
    ImplicitInvariantSet,
    design_base_controller,
)
from holdfast.safeguards import BackupSource, BoundaryProjection, PerInput, Ray, Safeguard
from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import ContinuousSystem
from holdfast.tasks import make_task

TASK = make_task("lane-keeping")
HALF = np.asarray(TASK.system.input_box.half_widths)
MAPS = {
    "ray": (Ray(),),
    "per_input": (PerInput(),),
    "boundary_projection": (BoundaryProjection(),),
    "all": (Ray(), PerInput(), BoundaryProjection()),
}
MARGINS = AcceptanceMargins(np.full(4, 1e-4), 1e-3)


class Cart(ContinuousSystem):
    """x'' = u: two states, one input, everything in closed form."""

    state_names: ClassVar = ("x", "v")
    input_names: ClassVar = ("u",)
    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0], [1.0]))

    def derivative(self, x, u, w):
        return jnp.stack([x[1], u[0]])

    def equilibrium(self):
        return jnp.zeros(2), jnp.zeros(1)


class NoisyCart(ContinuousSystem):
    """x'' = u + w."""

    state_names: ClassVar = ("x", "v")
    input_names: ClassVar = ("u",)
    integrator: ClassVar = "semi_implicit_euler"
    velocities: ClassVar = (1,)
    dt: float = 0.1
    noise: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0], [1.0]))

    @property
    def disturbance_box(self):
        return Box([-self.noise], [self.noise])

    def derivative(self, x, u, w):
        return jnp.stack([x[1], u[0] + w[0]])

    def equilibrium(self):
        return jnp.zeros(2), jnp.zeros(1)


@cache
def cart_guard(horizon=12):
    """A safeguard of the cart between walls at 1 m, with the analytic backup; compiles quickly."""
    walls = SuperlevelSet(lambda x: jnp.stack([1 - x[0], 1 + x[0]]), ("right wall", "left wall"), ("m", "m"))
    base = design_base_controller(Cart(), (1.0, 1.0), (1.0,), 0.5)
    implicit = ImplicitInvariantSet(BackupPolicy(base), walls, horizon)
    return Safeguard(BackupSource(implicit, AcceptanceMargins(np.full(2, 1e-4), 1e-3)), (Ray(),))


class SmoothPolicy(eqx.Module):
    """The saturated regulator with tanh for the clip, bent by a small random network: smooth, and it arrives."""

    base: eqx.Module
    network: BackupNetwork

    def __call__(self, x):
        box = self.base.controller.input_box
        half = jnp.asarray(box.half_widths, x.dtype)
        wanted = self.base.controller.unclipped(self.base.system.error(x))
        return box.clip(half * jnp.tanh((wanted + 0.5 * self.network(x)) / half))


@cache
def lane_base(level=1.05):
    return design_base_controller(TASK.system, TASK.safety.state_cost, TASK.safety.input_cost, level)


@cache
def lane_source(backup="lqr", horizon=20):
    """The lane-keeping source with the analytic ("lqr") or the smooth backup."""
    base = lane_base()
    network = BackupNetwork.initialise(jax.random.key(7), TASK.system, np.array([1.8, 3.0, 1.0]), hidden=(8, 8))
    outside = None if backup == "lqr" else SmoothPolicy(base, network)
    return BackupSource(ImplicitInvariantSet(BackupPolicy(base, outside), TASK.safe_set, horizon), MARGINS)


@cache
def safeguard(maps="ray", backup="lqr", gradient="exact", **kwargs):
    return Safeguard(lane_source(backup), MAPS[maps], gradient, **kwargs)


@cache
def certified_states(backup="lqr", count=256):
    """(states, commitments) of states with a plan, drawn over the state box; float64."""
    source = lane_source(backup)
    x = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(1), 20 * count))
    state = jax.jit(jax.vmap(source.init))(x)
    keep = np.flatnonzero(np.asarray(state.certified))[:count]
    return x[keep], jax.tree.map(lambda leaf: leaf[keep], state)


def bang_bang(count, seed=2):
    """Corner actions of the input box, [count, 2]."""
    return jnp.sign(jax.random.normal(jax.random.key(seed), (count, 2))) * HALF[None]


@cache
def batched_step(maps, backup="lqr", gradient="exact", **kwargs):
    """One compiled program for a batch, shared by all tests."""
    guard = safeguard(maps, backup, gradient, **kwargs)
    return jax.jit(jax.vmap(guard.step))


def assert_proved(certificate, *more):
    """That what every base set needs is proved, and `more`."""
    basic = ("base set invariant", "base set safe", "rounding along a plan", "rounding inside the base set")
    found = {name: certificate[name].discharge for name in (*basic, *more)}
    assert set(found.values()) == {"proved"}, found
