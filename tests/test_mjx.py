"""MuJoCo by MJX: the step is the C engine's, the certificate says sampled, the closed loop holds, and bad models are named."""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.certify import Interval, interval_eval, interval_jacobian, rounding_error, sample_base_set
from holdfast.safeguards import BackupSource, Ray, Safeguard

pytest.importorskip("mujoco", reason="install the extra 'mjx'")
mjx = importlib.import_module("holdfast.interop.mjx")
EXAMPLE = Path(__file__).parents[1] / "examples" / "mjx_cart_pole.py"
HALF_WIDTHS, STEPS, ROBOTS = np.array([0.9, 0.4, 2.0, 3.0]), 200, 32


@cache
def example():
    spec = importlib.util.spec_from_file_location("mjx_cart_pole", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def task():
    return example().ShortTrack()


@cache
def step():
    return jax.jit(jax.vmap(lambda x, u: task().system.step(x, u)))


def sampled(level=10.0, system=None, samples=2000):
    t = task()
    return sample_base_set(
        system or t.system,
        t.safe_set,
        t.state_box,
        state_cost=t.safety.state_cost,
        input_cost=t.safety.input_cost,
        horizon=t.safety.horizon,
        level=level,
        samples=samples,
    )


@pytest.fixture(scope="module")
def certified():
    return sampled()


def states(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-HALF_WIDTHS, HALF_WIDTHS, (count, 4)), rng.uniform(-10, 10, (count, 1))


def test_the_step_is_that_of_the_c_engine():
    plant = mjx.MujocoPlant(example().XML)
    x, u = states(ROBOTS)
    there = np.stack([plant.step(*each) for each in zip(x, u)])
    np.testing.assert_allclose(step()(x, u), there, rtol=0, atol=1e-12)
    half = mjx.MujocoPlant(example().XML.replace("0.02", "0.01"), dt=0.02)
    twice = mjx.MujocoPlant(example().XML.replace("0.02", "0.01"))
    np.testing.assert_array_equal(half.step(x[0], u[0]), twice.step(twice.step(x[0], u[0]), u[0]))


def test_names_units_bounds_and_rest_come_from_the_model():
    system = task().system
    assert system.state_names == ("x", "theta", "x velocity", "theta velocity")
    assert system.state_units == ("m", "rad", "m/s", "rad/s") and system.input_names == ("force",)
    assert system.input_box.lower == -10 and system.dt == 0.02 and system.substeps == 1
    finer = mjx.MjxSystem.from_xml(example().XML.replace("0.02", "0.005"), dt=0.02, rest=[0.1, 0], rest_input=[0])
    assert finer.substeps == 4 and finer.dt == 0.02
    np.testing.assert_array_equal(finer.equilibrium()[0], [0.1, 0, 0, 0])


def test_intervals_enclose_the_step_and_its_slopes_and_rounding():
    """The mass matrix is factorised on the way: Cholesky, triangular systems and scattered sums have rules."""
    system, rng = task().system, np.random.default_rng(0)

    def joint(z):
        return system.step(z[:4], z[4:])

    radii = np.array([0.05, 0.05, 0.2, 0.2, 1.0])
    box = Interval.box(-radii, radii)
    z = rng.uniform(-radii, radii, (ROBOTS, 5))
    after = np.asarray(step()(z[:, :4], z[:, 4:]))
    found = interval_eval(joint, box)
    assert np.all((found.lo[:, 0] <= after) & (after <= found.hi[:, 0])) and np.all(found.width < 1.0)
    slopes, jump = interval_jacobian(joint, box)
    assert not jump.any()
    change, moved = after[1:] - after[:-1], z[1:] - z[:-1]
    middle, radius = slopes.midpoint[..., 0], 0.5 * slopes.width[..., 0]
    assert np.all(np.abs(change - moved @ middle.T) <= np.abs(moved) @ radius.T + 1e-12)
    assert np.all(rounding_error(joint, (-radii, radii)) < 1e-4)


def test_the_certificate_says_sampled_and_does_not_hold(certified):
    certificate = certified.certificate
    discharged = {each.name: each.discharge for each in certificate.obligations}
    assert "proved" not in discharged.values()
    for name in ("base set invariant", "base set safe", "rounding along a plan", "recursive feasibility"):
        assert discharged[name] == "sampled"
    assert not certificate.holds and certificate["base set invariant"].numbers["samples"] == 2000
    assert {each.name for each in certificate.open} >= {"base set invariant", "recursive feasibility"}
    assert np.all(np.isfinite(certified.acceptance.path)) and np.all(certified.acceptance.path > 0)


def _safeguard(found):
    implicit = ImplicitInvariantSet(BackupPolicy(found.base_set), task().safe_set, task().safety.horizon)
    return Safeguard(BackupSource(implicit, found.acceptance), (Ray(),))


@pytest.fixture(scope="module")
def guard(certified):
    """(init, step) of the safeguard, compiled once for a batch."""
    found = _safeguard(certified)
    return jax.jit(jax.vmap(lambda x: found.init(x))), jax.jit(jax.vmap(lambda p, x, u: found.step(p, x, u)))


def attacked(guard, plant, steps):
    """Worst margin and statuses of a closed loop under held corners, random inputs and NaN."""
    init, answer = guard
    start = 0.3 * states(ROBOTS, 1)[0]
    x, plan, rng, worst = start, None, np.random.default_rng(2), np.inf
    plan = init(x)
    assert np.asarray(plan.certified).mean() > 0.5
    x = np.where(np.asarray(plan.certified)[:, None], x, 0.0)
    plan, seen = init(x), set()
    assert np.asarray(plan.certified).all()
    held = np.where(np.arange(ROBOTS) % 2, 10.0, -10.0)[:, None]
    for t in range(steps):
        u = np.where((np.arange(ROBOTS) % 4 < 2)[:, None], held, rng.uniform(-10, 10, (ROBOTS, 1)))
        u[-1] = np.nan if t % 7 == 0 else u[-1]
        found, plan = answer(plan, x, u)
        assert np.asarray(plan.certified).all() and np.all(np.abs(found.action) <= 10)
        seen |= set(np.unique(found.status).tolist())
        x = np.asarray(plant(x, np.asarray(found.action)))
        worst = min(worst, float(jax.vmap(task().safe_set.margin)(x).min()))
    return worst, seen


def test_the_closed_loop_holds_on_mjx_and_on_the_c_engine(guard):
    """Sampled, not proved: no violation of 32 robots in 200 steps on each plant; and the attack is one."""
    engine = mjx.MujocoPlant(example().XML)
    for plant in (step(), lambda x, u: np.stack([engine.step(*each) for each in zip(x, u)])):
        worst, seen = attacked(guard, plant, STEPS)
        assert worst >= 0 and len(seen) >= 2


def test_sabotage_another_gravity_breaks_the_attacked_loop(guard):
    """A plant that is not the model: the attack finds it, so its silence above says something."""
    heavy = example().XML.replace('timestep="0.02"', 'timestep="0.02" gravity="0 0 -60"')
    engine = mjx.MujocoPlant(heavy)
    init, answer = guard
    x = np.zeros((ROBOTS, 4))
    plan, worst = init(x), np.inf
    for _ in range(60):
        found, plan = answer(plan, x, np.full((ROBOTS, 1), 10.0))
        x = np.stack([engine.step(*each) for each in zip(x[:1], np.asarray(found.action[:1]))]).repeat(ROBOTS, axis=0)
        worst = min(worst, float(task().safe_set.margin(x[0]).min()))
    assert worst < 0


def test_sabotage_a_base_set_blown_up_is_refuted(certified):
    blown = sampled(level=40.0)
    assert blown.certificate["base set safe"].discharge == "refuted"
    state = jnp.asarray(blown.certificate["base set safe"].numbers["counterexample"]["state"])
    assert task().safe_set.margin(state).min() < 0
    assert np.all(np.isinf(blown.acceptance.path)) and not blown.certificate.holds
    with pytest.raises(ValueError, match="samples = 0; give a positive number"):
        sampled(samples=0)


BAD = {
    "free or a ball": ("</worldbody>", '<body><freejoint/><geom size=".1"/></body></worldbody>'),
    "has no bounds": (' ctrlrange="-10 10"', ""),
    "contacts are enabled": ('<flag contact="disable"/>', ""),
    "activation": ("<motor", '<general dyntype="integrator"'),
    "limit": ('axis="1 0 0"', 'axis="1 0 0" limited="true" range="-1 1"'),
    "frictionloss": ('axis="1 0 0"', 'axis="1 0 0" frictionloss="1"'),
    "at least one of each": ('<motor name="force" joint="x" ctrlrange="-10 10"/>', ""),
}


@pytest.mark.parametrize("words", BAD)
def test_a_model_that_the_state_cannot_hold_is_refused(words):
    old, new = BAD[words]
    assert old in example().XML
    with pytest.raises(ValueError, match=words):
        mjx.MjxSystem.from_xml(example().XML.replace(old, new))


def test_a_period_a_file_and_a_rest_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"not a whole number .* of 0.02 s; give dt = 0.04"):
        mjx.MjxSystem.from_xml(example().XML, dt=0.05)
    with pytest.raises(ValueError, match="dt = -1; give a positive number"):
        mjx.MujocoPlant(example().XML, dt=-1)
    with pytest.raises(ValueError, match="there is no such file"):
        mjx.MjxSystem.from_xml("nowhere.xml")
    with pytest.raises(ValueError, match=r"rest = \[0\]; give 2 finite numbers"):
        mjx.MjxSystem.from_xml(example().XML, rest=[0])


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.delitem(sys.modules, "holdfast.interop.mjx")
    with pytest.raises(ImportError, match=r'pip install "holdfast\[mjx\]"'):
        importlib.import_module("holdfast.interop.mjx")
