"""Attacks: a safeguarded plant withstands them, and they have teeth."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import AcceptanceMargins, BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.evaluate import HeldCorners, Invalid, attack, default_adversaries
from holdfast.safeguards import BackupSource, Ray, Safeguard
from holdfast.tasks import make_task
from holdfast.types import Unguarded

TASK = make_task("lane-keeping")
BOX = TASK.system.input_box
BASE = design_base_controller(TASK.system, TASK.safety.state_cost, TASK.safety.input_cost, level=1.05)
IMPLICIT = ImplicitInvariantSet(BackupPolicy(BASE, None), TASK.safe_set, 25)
SAFEGUARD = Safeguard(BackupSource(IMPLICIT, AcceptanceMargins(np.full(4, 1e-4), 1e-3)), (Ray(),))
UNGUARDED = Unguarded(jnp.asarray(BOX.lower), jnp.asarray(BOX.upper))


def policy(observation):
    y, v, psi, y_ref, v_ref, psi_ref = observation[:6]
    return jnp.stack([2 * (v_ref - v), 2 * (psi_ref + 0.5 * (y_ref - y) - psi)])


class Credulous(BackupSource):
    """Sabotage: believes in every action."""

    def check(self, x, u):
        plan = super().check(x, u)
        return eqx.tree_at(lambda p: p.certified, plan, jnp.asarray(True))


@pytest.fixture(scope="module")
def result():
    seen = []
    found = attack(
        TASK, SAFEGUARD, steps=100_000, batch=96, policy=policy, dtype=jnp.float32, progress=lambda *a: seen.append(a)
    )
    assert seen[-1][1] == found.steps and all(violations == 0 for *_, violations in seen)
    return found


def test_a_safeguarded_plant_withstands_every_adversary(result):
    assert result.steps >= 100_000 and result.precision == "float32"
    assert result.violations == 0 and result.violating_plants == 0 and result.diverged == 0
    assert result.certified_steps == result.steps == sum(result.statuses.values())
    assert result.statuses["uncertified"] == 0 and result.examples == []
    assert not result.outside_certificate
    # They do push: the plants come as near to the lane edge as the acceptance margin lets them.
    assert 0 <= result.worst_margin["left lane edge"] < 2e-3
    assert result.statuses["corrected"] > 1000 and result.statuses["bad_action"] > 1000
    assert set(result.adversaries) == {"corners", "uniform", "invalid", "gradient", "boundary", "policy"}
    assert sum(each["steps"] for each in result.adversaries.values()) == result.steps
    json.dumps(result.to_json(), allow_nan=False)


def test_every_adversary_breaks_an_unguarded_plant():
    found = attack(TASK, UNGUARDED, steps=30_000, batch=96, policy=policy, dtype=jnp.float32)
    for name, each in found.adversaries.items():
        assert each["violations"] > 0, name
    assert found.certified_steps == 0 and "No safeguard" in found.conditions
    assert found.diverged > 0  # NaN proposals go through to the plant
    first = found.examples[0]
    x_next = TASK.system.step(jnp.asarray(first["x"]), jnp.asarray(first["applied"]))
    np.testing.assert_allclose(first["x_next"], x_next, rtol=1e-5, atol=1e-6)
    assert {each["adversary"] for each in found.examples} == set(found.adversaries)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_safeguard_that_believes_everything_is_found_out():
    sabotaged = Safeguard(Credulous(IMPLICIT, SAFEGUARD.source.acceptance), ())
    found = attack(TASK, sabotaged, steps=5_000, batch=16, adversaries=[HeldCorners(BOX)], dtype=jnp.float32)
    assert found.violations > 0


def test_attacks_are_reproducible_and_beyond_the_certificate_say_so():
    def run(guard, **options):
        return attack(TASK, guard, steps=2_000, batch=8, adversaries=[HeldCorners(BOX)], **options)

    plain, again, other = (run(UNGUARDED, seed=seed) for seed in (3, 3, 4))
    assert plain.worst_margin == again.worst_margin != other.worst_margin
    beyond = run(SAFEGUARD, dtype=jnp.float32, model_error=0.3, noise=0.05, delay=2)
    assert beyond.outside_certificate and "Outside the certificate" in beyond.conditions
    assert beyond.violations > 0
    stopped = run(UNGUARDED, seed=3, progress=lambda done, total, violations: done >= 512)
    assert stopped.steps == sum(stopped.statuses.values()) == 512
    with pytest.raises(ValueError, match="delay = -1"):
        run(UNGUARDED, delay=-1)


def test_without_a_certified_state_there_is_nothing_to_attack():
    hopeless = Safeguard(BackupSource(IMPLICIT, AcceptanceMargins(np.full(4, 10.0), 1e-3)), ())
    with pytest.raises(ValueError, match="certifies none"):
        attack(TASK, hopeless, steps=10, batch=4)


def test_adversaries_stay_in_the_box_but_for_the_invalid_one():
    x, u = jnp.array([1.0, 6.0, 0.3]), jnp.zeros(2)
    keys = jax.random.split(jax.random.key(0), 64)
    for adversary in default_adversaries(TASK, SAFEGUARD):
        program = jax.jit(jax.vmap(adversary, in_axes=(0, None, None, None)))
        proposals = program(keys, x, u, jnp.asarray(0))
        inside = np.asarray(jax.vmap(BOX.contains)(proposals))
        if isinstance(adversary, Invalid):
            finite = np.isfinite(np.asarray(proposals)).all(axis=1)
            assert (~finite).any() and (finite & ~inside).any() and inside.any()
        else:
            assert inside.all(), adversary.name
            assert len(np.unique(np.asarray(proposals), axis=0)) > 1, adversary.name
