"""What a commitment promises, when it is revoked, and what it never does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import AcceptanceMargins, BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.certify import certify_base_set
from holdfast.safeguards import BackupSource, Ray, Safeguard
from holdfast.sets import Box, SuperlevelSet
from holdfast.types import Status
from systems_for_tests import Cart

HORIZON = 40
WALLS = SuperlevelSet(lambda x: jnp.stack([1 - x[0], 1 + x[0]]), ("right", "left"))
BASE = design_base_controller(Cart(), [1.0, 1.0], [1.0], level=0.5)
MARGINS = AcceptanceMargins(np.full(2, 1e-4), 1e-3, Box([-1.0, -2.0], [1.0, 2.0]))


def guard_with(outside=None):
    implicit = ImplicitInvariantSet(BackupPolicy(BASE, outside), WALLS, HORIZON)
    return Safeguard(BackupSource(implicit, MARGINS), (Ray(),))


GUARD = guard_with()
STEP = jax.jit(lambda plan, x, u: GUARD.step(plan, x, u))
NAN = jnp.array([jnp.nan])


def test_a_backup_out_of_the_box_is_certified_for_what_it_can_do():
    wild = guard_with(lambda x: -10.0 * x[:1] - 10.0 * x[1:])
    step = jax.jit(lambda plan, x, u: wild.step(plan, x, u))
    x = jnp.array([0.6, 0.5])
    plan = wild.init(x)
    assert np.all(np.abs(np.asarray(plan.actions)) <= 1)
    assert bool(plan.certified)
    for _ in range(2 * HORIZON):
        answer, plan = step(plan, x, NAN)
        x = Cart().step(x, answer.action)
        assert abs(float(x[0])) <= 1
        assert bool(plan.certified)


def test_an_unreadable_state_replays_the_plan_even_where_the_controller_gives_a_number():
    plan = GUARD.init(jnp.array([0.6, 0.5]))
    assert int(plan.length) > 0
    answer, _ = STEP(plan, jnp.array([jnp.inf, 0.0]), jnp.array([0.0]))
    assert answer.status == Status.bad_state
    np.testing.assert_array_equal(answer.action, plan.actions[0])


def test_a_promise_is_revoked_where_its_plan_is_over_and_the_state_is_not_in_the_base_set():
    plan = GUARD.init(jnp.array([0.1, 0.0]))
    over = eqx.tree_at(lambda p: p.age, plan, jnp.asarray(HORIZON, plan.age.dtype))
    inside, kept = STEP(over, jnp.array([0.1, 0.0]), NAN)
    assert inside.status == Status.bad_action and bool(kept.certified)
    # A plant that is not the model: outside the base set, moving fast towards the wall.
    _, revoked = STEP(over, jnp.array([0.95, 1.9]), NAN)
    assert not bool(revoked.certified)
    lost, revoked = STEP(over, jnp.array([0.95, 1.9]), jnp.array([1.0]))
    assert lost.status == Status.uncertified and not bool(revoked.certified)


def test_a_promise_is_revoked_where_nothing_was_read_until_the_plan_ended():
    plan, unread = GUARD.init(jnp.array([0.6, 0.5])), jnp.full(2, jnp.nan)
    for k in range(HORIZON + 2):
        answer, plan = STEP(plan, unread, NAN)
        assert bool(plan.certified) == (k < HORIZON)
        assert answer.status == (Status.bad_state if k < HORIZON else Status.uncertified)
    assert int(plan.age) == HORIZON


class Falling(Cart):
    """x'' = 4 x + u: what nobody steers falls."""

    def derivative(self, x, u, w):
        return jnp.stack([x[1], 4 * x[0] + u[0]])


def test_an_unreadable_state_is_steered_by_the_model_after_the_plan_has_arrived():
    """Nothing is read from the first step on: the plan is over after a few, and open loop the plant would fall."""
    base = design_base_controller(Falling(), [1.0, 1.0], [1.0], level=0.3)
    implicit = ImplicitInvariantSet(BackupPolicy(base), WALLS, HORIZON)
    guard = Safeguard(BackupSource(implicit, MARGINS), (Ray(),))
    step = jax.jit(lambda plan, x, u: guard.step(plan, x, u))
    x = jnp.array([0.13, 0.0])
    plan = guard.init(x)
    assert bool(plan.certified) and 0 < int(plan.length) < 12
    seen = []
    for _ in range(HORIZON):
        wanted = base.action(x)
        answer, plan = step(plan, jnp.full(2, jnp.nan), NAN)
        assert answer.status == Status.bad_state
        np.testing.assert_allclose(answer.action, wanted, rtol=1e-6, atol=1e-9)
        x = Falling().step(x, answer.action)
        seen.append(float(x[0]))
    assert abs(seen[-1]) < 1e-3 and max(map(abs, seen)) < 0.2


def test_nothing_is_accepted_from_where_rounding_was_not_bounded():
    outside = jnp.array([0.0, 2.5])
    assert not bool(GUARD.source.check(outside, jnp.array([-1.0])).certified)


def test_no_margins_without_a_certificate_that_holds():
    found = certify_base_set(
        Cart(), WALLS, Box([-1.0, -2.0], [1.0, 2.0]), state_cost=(1, 1), input_cost=(1,), horizon=10, level=1e6
    )
    assert not found.certificate.holds
    assert np.all(np.isinf(found.acceptance.path))
