"""What a certificate of an invariant set must not say: derivatives that lie, precisions that are coarser, other systems."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import InvariantSet
from holdfast.certify import certify_invariant_set, verify_zonotope
from holdfast.safeguards import InvariantSource
from holdfast.sets import Box, FreeSpace, Polytope
from holdfast.systems import ClippedFeedback, Retreat, Seeker, System

BOX = Box([-1.0], [1.0])
SET = Polytope([[1.0], [-1.0]], [1.0, 1.0])


class Pushed(System):
    """x+ = x + 0.1 u + push(w), |w| <= 0.1."""

    state_names: ClassVar = ("x",)
    input_names: ClassVar = ("u",)
    push: object = eqx.field(static=True)
    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-5.0], [5.0]))

    @property
    def disturbance_box(self):
        return Box([-0.1], [0.1])

    def step(self, x, u, w=None):
        return x + 0.1 * u + (0 if w is None else self.push(w))

    def equilibrium(self):
        return jnp.zeros(1), jnp.zeros(1)


def certified(push):
    system = Pushed(push)
    controller = ClippedFeedback([[-5.0]], [0.0], [0.0], system.input_box)
    return certify_invariant_set(InvariantSet(system, SET, controller), BOX, physics="")


def test_an_honest_push_is_proved_affine():
    found = certified(lambda w: w)
    assert found.certificate.holds and not np.any(found.acceptance.remainder)


@pytest.mark.parametrize(
    "push",
    [
        jax.lax.stop_gradient,
        lambda w: jax.nn.relu(w) - jax.nn.relu(-w),
        lambda w: jnp.round(20 * w) / 20,
        lambda w: jnp.where(w > 0.05, 0.1, 0.0),
    ],
    ids=["stop_gradient", "custom_jvp", "round", "where"],
)
def test_a_derivative_that_is_somebodys_word_proves_nothing(push):
    found = certified(push)
    assert found.certificate["affine in the disturbance"].discharge == "not proved"
    assert np.all(np.isinf(found.acceptance.successor))


def test_a_kink_in_the_disturbance_is_charged_in_full():
    found = certified(lambda w: w + jnp.abs(w - 0.05) - 0.05)
    # The derivative jumps by 2, so that a linearisation may be off by 2 * 0.1 at the corners; 0.1 is what it is.
    assert np.all(np.asarray(found.certificate["affine in the disturbance"].numbers["remainder"]) >= 0.1)


def test_margins_do_not_serve_a_coarser_precision():
    found = certified(lambda w: w)
    source = InvariantSource(found.invariant, found.acceptance)
    assert source.init(jnp.zeros(1, jnp.float32)).certified
    with pytest.raises(ValueError, match="x is float16, but the margins for rounding hold for float32"):
        source.init(jnp.zeros(1, jnp.float16))


class Drifting(Seeker):
    """Moves on by itself, but not at the origin, which its walls leave out."""

    def step(self, x, u, w=None):
        return super().step(x, u, w) + jnp.where(x[0] > 5, 0.045, 0.0)


def test_free_space_is_proved_for_an_integrator_between_its_own_walls():
    walls = Box([10.0, 10.0], [20.0, 20.0])
    region = FreeSpace(walls, [[15.0, 15.0]], [1.0])
    for system, discharge in ((Seeker(), "proved"), (Drifting(), "not proved")):
        controller = Retreat(region, system.dt, 0.05, system.input_box, surplus=0.015)
        found = certify_invariant_set(InvariantSet(system, region, controller), walls, physics="")
        assert found.certificate["invariant under its controller"].discharge == discharge


def test_a_zonotope_that_touches_the_feasible_box_is_not_refuted_by_rounding():
    found = verify_zonotope(Pushed(lambda w: 0.1 * w), [0.0], [[0.3]], Box([-0.3], [0.3]))
    assert found.certificate["inside the feasible set"].discharge == "proved"


def test_other_regions_are_refused_not_assumed():
    system = Pushed(lambda w: w)
    with pytest.raises(TypeError, match="give a Polytope with a ClippedFeedback, or a FreeSpace with a Retreat"):
        certify_invariant_set(InvariantSet(system, SET, lambda x: -x), BOX, physics="")
