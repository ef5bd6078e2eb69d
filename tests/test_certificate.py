"""Certificates: what holds, what is refuted, what is not proved; and what follows from each for a safeguard."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.certify import MEANING, Certificate, NotProvable, Obligation, certify_base_set
from holdfast.sets import Box, SuperlevelSet
from holdfast.tasks import make_task
from systems_for_tests import Cart

TASK = make_task("lane-keeping")


def certify(level=None, safe_set=TASK.safe_set, **budget):
    return certify_base_set(
        TASK.system,
        safe_set,
        TASK.state_box,
        state_cost=np.asarray(TASK.safety.state_cost),
        input_cost=np.asarray(TASK.safety.input_cost),
        horizon=TASK.safety.horizon,
        level=level,
        **budget,
    )


@pytest.fixture(scope="module")
def largest():
    return certify()


@pytest.fixture(scope="module")
def refuted():
    return certify(14.0)


def test_the_largest_provable_level_beats_the_published_cap(largest):
    level = largest.certificate["base set invariant"].numbers["level"]
    assert largest.certificate.holds
    assert 1.05 <= level < 13.81  # beyond 13.81 the set is known not to be invariant
    assert largest.base_set.ellipsoid.level == level


def test_every_obligation_says_how_it_was_discharged(largest):
    discharged = {each.name: each.discharge for each in largest.certificate.obligations}
    expected = {
        "base set invariant": "proved",
        "base set safe": "proved",
        "rounding along a plan": "proved",
        "rounding inside the base set": "proved",
        "recursive feasibility": "proved",
        "every action": "checked",
        "model": "assumed",
        "arithmetic": "assumed",
    }
    assert expected.items() <= discharged.items()
    assert all(each.claim and each.method for each in largest.certificate.obligations)
    assert {each.discharge for each in largest.certificate.obligations} <= set(MEANING)


def test_rounding_inside_the_base_set_is_absorbed_by_the_proved_contraction(largest):
    numbers = largest.certificate["rounding inside the base set"].numbers
    assert 0 < numbers["needed"] <= numbers["absorbed"]
    delta = largest.certificate["base set invariant"].numbers["delta"]
    level = largest.base_set.ellipsoid.level
    assert numbers["absorbed"] == pytest.approx((1 - np.sqrt(1 - delta)) * np.sqrt(level), rel=1e-9)


def test_the_proved_contraction_is_seen_in_closed_loop(largest):
    base, numbers = largest.base_set, largest.certificate["base set invariant"].numbers
    directions = jax.random.normal(jax.random.key(0), (2000, 3))
    factor = np.linalg.cholesky(np.linalg.inv(base.ellipsoid.shape_matrix))
    on_boundary = np.sqrt(base.ellipsoid.level) * directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    errors = on_boundary @ factor.T
    after = jax.vmap(lambda e: base.ellipsoid.value(base.closed_loop(e)))(errors)
    assert np.all(after <= (1 - numbers["delta"]) * numbers["level"])


def test_every_number_of_the_base_controller_is_a_float32_number(largest):
    base = largest.base_set
    for value in (base.controller.gain, base.controller.equilibrium_input, base.ellipsoid.shape_matrix):
        np.testing.assert_array_equal(value, np.asarray(value, np.float32).astype(np.float64))
    assert float(np.float32(base.ellipsoid.level)) == base.ellipsoid.level


def test_acceptance_margins_are_small_and_finite(largest):
    margins = largest.acceptance
    assert np.shape(margins.path)[-1] == 4
    assert np.all(margins.path > 0) and np.all(margins.path < 0.05)
    assert np.all(np.asarray(margins.base) > 0) and np.all(np.asarray(margins.base) < 0.5)
    np.testing.assert_array_equal(margins.path, margins.path.astype(np.float32).astype(np.float64))


def test_a_refuted_level_has_a_counterexample_that_anyone_can_check(refuted):
    obligation = refuted.certificate["base set invariant"]
    assert obligation.discharge == "refuted"
    assert not refuted.certificate.holds
    state = jnp.asarray(obligation.numbers["counterexample"]["error"])
    base = refuted.base_set
    assert base.ellipsoid.value(state) <= 14.0
    assert base.ellipsoid.value(base.closed_loop(state)) > 14.0


def test_nothing_is_accepted_on_a_refuted_base_set(refuted, largest):
    states = jax.vmap(TASK.state_box.sample)(jax.random.split(jax.random.key(0), 500))
    states = jnp.concatenate([states, TASK.system.equilibrium()[0][None]])

    def certified(found):
        implicit = ImplicitInvariantSet(BackupPolicy(found.base_set), TASK.safe_set, TASK.safety.horizon)
        return jax.jit(jax.vmap(lambda x: implicit.plan(x, found.acceptance).certified))(states)

    assert np.all(np.isinf(refuted.acceptance.path)) and np.all(np.isinf(refuted.acceptance.base))
    assert not np.any(certified(refuted))
    assert np.any(certified(largest))


def test_what_rests_on_a_refuted_base_set_is_not_called_proved(refuted):
    discharged = {each.name: each.discharge for each in refuted.certificate.obligations}
    assert discharged["base set safe"] == "proved"  # that part is true
    assert discharged["recursive feasibility"] == "not proved"
    assert not any(name.startswith("rounding") for name in discharged)


def test_a_spent_budget_is_not_a_proof():
    found = certify(5.0, max_boxes=1)
    assert found.certificate["base set invariant"].discharge == "not proved"
    assert not found.certificate.holds
    assert np.all(np.isinf(found.acceptance.path))
    with pytest.raises(NotProvable, match=r"not proved for any level.*time is up.*max_seconds = 1e-06"):
        certify(max_seconds=1e-6)


def test_where_every_search_for_an_invariant_level_fails_it_says_so():
    task = make_task("pendulum")
    with pytest.raises(NotProvable, match="that it is invariant is not proved for any level"):
        certify_base_set(
            task.system,
            task.safe_set,
            task.state_box,
            state_cost=task.safety.state_cost,
            input_cost=task.safety.input_cost,
            horizon=20,
            max_boxes=0,
        )


def test_a_safe_set_without_the_equilibrium_is_named():
    away = SuperlevelSet(lambda x: jnp.stack([x[0] - 0.5]), ("far from the centre line",), ("m",))
    with pytest.raises(NotProvable, match=r"margin -0.5 on 'far from the centre line'.*[Mm]ove the equilibrium"):
        certify(safe_set=away)
    broken = SuperlevelSet(lambda x: jnp.stack([x[0] / (x[1] - 5.0)]), ("ratio",), ("",))
    with pytest.raises(NotProvable, match=r"margin nan on 'ratio'"):
        certify(safe_set=broken)


def test_an_unsafe_part_of_the_base_set_is_found():
    narrow = SuperlevelSet(lambda x: jnp.stack([0.1 - x[0], 0.1 + x[0]]), ("left", "right"), ("m", "m"))
    found = certify(1.05, safe_set=narrow)
    obligation = found.certificate["base set safe"]
    assert obligation.discharge == "refuted" and not found.certificate.holds
    state = jnp.asarray(obligation.numbers["counterexample"]["error"])
    assert found.base_set.ellipsoid.value(state) <= found.base_set.ellipsoid.level
    assert jnp.min(narrow.margin(TASK.system.lift(state))) < 0


def test_a_certificate_survives_its_file(largest, refuted):
    for found in (largest, refuted):
        text = json.dumps(found.certificate.to_json(), allow_nan=False)
        again = Certificate.from_json(json.loads(text))
        assert again.to_json() == json.loads(text)
        assert again.holds == found.certificate.holds
    with pytest.raises(KeyError, match="no obligation 'nonsense'; there are"):
        again["nonsense"]


def test_what_is_sampled_stays_sampled(largest):
    sampled = Obligation("starts", "Episodes start at certified states.", "sampled", "1000 samples")
    with_sampled = largest.certificate.with_obligation(sampled)
    assert with_sampled.holds
    assert with_sampled["starts"].discharge == "sampled"
    assert "not a proof" in MEANING["sampled"]
    words = [each.method for each in largest.certificate.obligations if each.discharge == "proved"]
    assert not any("random" in each or "Clopper" in each or "confidence" in each for each in words)


def test_an_obligation_is_replaced_by_name(largest):
    worse = Obligation("model", "The plant is the model.", "refuted", "a measurement")
    changed = largest.certificate.with_obligation(worse)
    assert len(changed.obligations) == len(largest.certificate.obligations)
    assert largest.certificate.holds and not changed.holds


class Strip(Cart):
    """A cart that also moves on along a road, which its error drops."""

    state_names = ("along", "x", "v")

    def derivative(self, x, u, w):
        return jnp.stack([1.0 + 0 * x[0], x[2], u[0]])

    def equilibrium(self):
        return jnp.zeros(3), jnp.zeros(1)

    def error(self, x):
        return x[1:]

    def lift(self, e):
        return jnp.concatenate([jnp.zeros(1, e.dtype), e])


@pytest.mark.parametrize("ends", [False, True])
def test_constraints_on_what_the_error_drops_are_refuted(ends):
    """A wall across the road is met by every state with error zero sooner or later: no base set is safe."""

    def margins(x):
        road = [5 - x[0]] if ends else []
        return jnp.stack([1 - x[1], 1 + x[1], *road])

    found = certify_base_set(
        Strip(),
        SuperlevelSet(margins),
        Box([-4.0, -1.0, -2.0], [4.0, 1.0, 2.0]),
        state_cost=(1, 1),
        input_cost=(1,),
        horizon=10,
    )
    seen = found.certificate["constraints see the error only"]
    assert found.certificate.holds is not ends
    assert seen.discharge == ("refuted" if ends else "proved")
    assert found.certificate["dropped coordinates stay in the box"].discharge == "assumed"
    if ends:
        assert np.all(np.isinf(found.acceptance.path))
