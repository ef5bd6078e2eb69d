"""Noise chosen by an adversary: robust safeguards withstand it, and a safeguard that ignores noise is found out."""

import json
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import InvariantSet
from holdfast.evaluate import (
    BoundaryHugging,
    attack,
    default_adversaries,
)
from holdfast.safeguards import Ray, Safeguard, Source
from holdfast.sets import Box, Polytope
from holdfast.systems import ClippedFeedback, System
from holdfast.tasks import RobustSafety, Task
from holdfast.tasks.limits import limits
from holdfast.types import Unguarded


class Raft(System):
    """x+ = x + dt (u + w): a raft in a current that may come from anywhere."""

    state_names: ClassVar = ("x", "y")
    input_names: ClassVar = ("u_x", "u_y")
    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0, -1.0], [1.0, 1.0]))

    @property
    def disturbance_box(self):
        return Box([-0.2, -0.4], [0.4, 0.3])

    def step(self, x, u, w=None):
        return x + self.dt * (u + (0.0 if w is None else w))

    def equilibrium(self):
        return jnp.zeros(2), jnp.zeros(2)


class Pond(Task):
    """Stay in the pond, |x|, |y| <= `edge`, and certified while both are <= 1; the current drives outwards."""

    name: ClassVar = "pond"
    episode_steps: ClassVar = 40
    edge: float = eqx.field(static=True, default=1.0)
    system: Raft = eqx.field(default_factory=Raft)
    state_box: Box = eqx.field(default_factory=lambda: Box([-1.0, -1.0], [1.0, 1.0]))

    @property
    def safe_set(self):
        return limits(x=(0, -self.edge, self.edge, "m"), y=(1, -self.edge, self.edge, "m"))

    @property
    def safety(self):
        normals = np.concatenate([np.eye(2), -np.eye(2)])
        home = ClippedFeedback(-5 * np.eye(2), np.zeros(2), np.zeros(2), self.system.input_box)
        return RobustSafety(Polytope(normals, np.ones(4)), home)

    def sample_start(self, key):
        return self.state_box.sample(key)

    def reward(self, x, u, x_next, t, context):
        return -jnp.sum((x_next - 2.0) ** 2)


class Commitment(eqx.Module):
    certified: jax.Array
    margin: jax.Array


class RobustSource(Source):
    """What a robust source has to do, for a system affine in u and w: a double for the one in `safeguards`.

    `believed`: 1 allows for all of the noise; 0 is the sabotage, rows without it.
    """

    invariant: InvariantSet
    believed: float = eqx.field(static=True, default=1.0)

    @property
    def input_box(self):
        return self.invariant.system.input_box

    def init(self, x):
        margin = jnp.min(self.invariant.region.margin(x))
        return Commitment(jnp.all(self.invariant.region.margin(x) >= 0), margin)

    def standing(self, x, commitment):
        return self.init(x)

    def rows(self, x, u):
        box, region = self.invariant.system.disturbance_box, self.invariant.region
        still = region.margin(self.invariant.system.step(x, u, jnp.asarray(box.centre, x.dtype)))
        reach = self.invariant.system.dt * np.abs(region.normals) @ box.half_widths
        return still - jnp.asarray(self.believed * reach + 1e-6, x.dtype)

    def check(self, x, u):
        rows = self.rows(x, u)
        return Commitment(jnp.all(rows >= 0), jnp.min(rows))

    def fallback(self, x, commitment):
        return self.invariant.controller(x)

    def after_fallback(self, commitment):
        return commitment


def guarded(task, believed=1.0):
    invariant = InvariantSet(task.system, task.safety.region, task.safety.controller)
    return Safeguard(RobustSource(invariant, believed), (Ray(),))


POND, LAKE = Pond(), Pond(3.0)
GUARD, DEAF = guarded(POND), guarded(POND, believed=0.0)
NOISE = POND.system.disturbance_box
UNGUARDED = Unguarded(jnp.asarray(POND.system.input_box.lower), jnp.asarray(POND.system.input_box.upper))


def outwards(observation):
    return 5 * observation[:2] + 0.3


@pytest.fixture(scope="module")
def withstood():
    return attack(POND, GUARD, steps=60_000, batch=96, policy=outwards, dtype=jnp.float32)


@pytest.fixture(scope="module")
def found_out():
    return attack(POND, DEAF, steps=6_000, batch=96, policy=outwards, dtype=jnp.float32)


def test_a_robust_safeguard_withstands_chosen_noise(withstood):
    assert withstood.violations == 0 and withstood.diverged == 0
    assert withstood.certified_steps == withstood.steps and withstood.statuses["uncertified"] == 0
    assert set(withstood.disturbances) == {"uniform", "vertices", "gradient"}
    assert sum(each["steps"] for each in withstood.disturbances.values()) == withstood.steps
    assert sum(each["steps"] for each in withstood.adversaries.values()) == withstood.steps
    # The worst noise takes what the source allowed for, but no more; uniform noise all but reaches it.
    worst = {name: min(each["worst_margin"].values()) for name, each in withstood.disturbances.items()}
    assert 0 <= worst["gradient"] < 1e-4 and 0 <= worst["vertices"] < 1e-4 and worst["uniform"] < 0.02
    assert not withstood.outside_certificate and "inside the certificate" in withstood.conditions
    json.dumps(withstood.to_json(), allow_nan=False)


def test_a_safeguard_that_ignores_noise_is_found_out_by_every_kind_of_noise(found_out):
    for name, each in found_out.disturbances.items():
        assert each["violations"] > 0 and each["certified_steps"] < each["steps"], name
    shares = {name: each["violations"] / each["steps"] for name, each in found_out.disturbances.items()}
    assert shares["gradient"] == max(shares.values())
    first = found_out.examples[0]
    assert first["noise"] in shares
    x_next = POND.system.step(*(jnp.asarray(first[name]) for name in ("x", "applied", "disturbance")))
    np.testing.assert_allclose(first["x_next"], x_next, rtol=1e-5, atol=1e-6)


def test_leaving_the_certified_set_is_counted_where_nothing_is_violated_yet():
    found = attack(LAKE, DEAF, steps=6_000, batch=96, adversaries=[BoundaryHugging(*_look(DEAF))], dtype=jnp.float32)
    assert found.violations == 0 and found.certified_steps < found.steps
    assert found.disturbances["gradient"]["certified_steps"] < found.disturbances["gradient"]["steps"]


def _look(guard):
    adversary = next(each for each in default_adversaries(POND, guard) if each.name == "boundary")
    return adversary.look, adversary.box
