"""The quadrotor: quaternions, the step, exactness of its reduced coordinates, its declared structure, its base set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from algebra import Algebra, hover_relations, lifted_anywhere, turned
from holdfast.backup import AcceptanceMargins, BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.certify import acceptance, certify_base_set
from holdfast.certify.declared import declared_obligations
from holdfast.systems import Quadrotor, linearise, quaternion
from holdfast.tasks import PowerLoop
from published_power_loop import PublishedPowerLoop
from systems_for_tests import assert_proved

SYSTEM = Quadrotor()
WEIGHTS = ((1.1, 0.32, 0.32, 0.16, 1.5, 1.5), (0.028, 0.08, 0.08, 0.01))


def random_states(count, seed=0, speed=6.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 10)) * np.array([5, 5, 5, speed, speed, speed, 1, 1, 1, 1])
    x[:, 6:] /= np.linalg.norm(x[:, 6:], axis=1, keepdims=True)
    return x


def random_inputs(count, seed=1):
    return np.random.default_rng(seed).uniform(SYSTEM.input_box.lower, SYSTEM.input_box.upper, (count, 4))


# --- quaternions ---------------------------------------------------------------------------------------------------


def test_quaternions_against_scipy():
    q, r = random_states(20)[:, 6:], random_states(20, seed=3)[:, 6:]
    ours = np.asarray(jax.vmap(quaternion.multiply)(q, r))
    first, second = Rotation.from_quat(q, scalar_first=True), Rotation.from_quat(r, scalar_first=True)
    np.testing.assert_allclose(
        Rotation.from_quat(ours, scalar_first=True).as_matrix(), (first * second).as_matrix(), atol=1e-12
    )
    matrices = np.asarray(jax.vmap(quaternion.rotation_matrix)(q))
    np.testing.assert_allclose(matrices, first.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(jax.vmap(quaternion.body_z)(q), matrices[:, :, 2], atol=1e-15)
    np.testing.assert_allclose(jax.vmap(quaternion.world_z)(q), matrices[:, 2, :], atol=1e-15)
    identity = jax.vmap(quaternion.multiply)(q, jax.vmap(quaternion.conjugate)(q))
    np.testing.assert_allclose(identity, np.tile([1.0, 0, 0, 0], (20, 1)), atol=1e-15)


def test_normalising_nothing_is_finite_and_nan_is_seen():
    zero = jnp.zeros(4)
    np.testing.assert_array_equal(quaternion.normalise(zero), [1.0, 0, 0, 0])
    np.testing.assert_array_equal(jax.jacfwd(quaternion.normalise)(zero), np.zeros((4, 4)))
    assert np.isnan(quaternion.normalise(zero.at[2].set(jnp.nan))).any()


# --- the step ------------------------------------------------------------------------------------------------------


def euler_then_renormalise(x, u):
    """The published step, as published."""
    rates = jnp.concatenate([jnp.zeros(1, u.dtype), u[1:]])
    q = x[6:] + SYSTEM.dt * (0.5 * quaternion.multiply(x[6:], rates))
    weight = jnp.array([0.0, 0.0, SYSTEM.gravity])
    v = x[3:6] + SYSTEM.dt * (u[0] * quaternion.rotation_matrix(x[6:])[:, 2] - weight)
    return jnp.concatenate([x[:3] + SYSTEM.dt * x[3:6], v, q / jnp.sqrt(q @ q)])


def test_step_is_euler_and_renormalisation():
    x, u = random_states(200), random_inputs(200)
    ours = np.asarray(jax.jit(jax.vmap(SYSTEM.step))(x, u))
    np.testing.assert_allclose(ours, jax.vmap(euler_then_renormalise)(x, u), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(ours[:, 6:], axis=1), 1.0, atol=1e-15)


def test_hover_is_an_equilibrium_without_a_say_for_yaw():
    A, B = linearise(SYSTEM)
    assert A.shape == (6, 6) and B.shape == (6, 4)
    np.testing.assert_array_equal(B[:, 3], 0.0)


# --- algebra -------------------------------------------------------------------------------------------------------

VARIABLES = ("C", "rho", "r", "S", "x", "y", "z", "v1", "v2", "v3", "s1", "s2", "a", "w1", "w2", "w3")


def the_algebra():
    """e = (z, v, s), u = (a, w), a place (x, y), half the yaw as C = cos, S = sin; rho^2 = 1 + |s|^2/4, r^2 = 1 + |dt w/2|^2."""
    relations, point = hover_relations(("w1", "w2", "w3"))
    return Algebra(VARIABLES, relations, dict.fromkeys(VARIABLES, 0.1) | point)


def test_reduction_is_exact():
    """error(F(x, u)) = error_step(error(x), u) for every state that is not upside down.

    Every such state is a lift of its error, moved in the plane and turned by some yaw: two rotations with the same R'e3
    differ by one about the vertical. The published step gives the same state as ours.
    """
    algebra = the_algebra()
    e, u = (algebra.array(names) for names in (("z", "v1", "v2", "v3", "s1", "s2"), ("a", "w1", "w2", "w3")))
    x = lifted_anywhere(algebra, SYSTEM, e)
    (x_next,) = algebra.run(SYSTEM.step, x, u)
    assert algebra.run(euler_then_renormalise, x, u)[0].equals(x_next)
    (e_next,) = algebra.run(SYSTEM.error_step, e, u)
    assert algebra.run(SYSTEM.error, x_next)[0].equals(e_next)
    # The proof has teeth: a gravity that is off by a thousandth is seen.
    wrong = Quadrotor(gravity=9.82)
    assert not algebra.run(wrong.error_step, e, u)[0].equals(e_next)


def test_symmetry_is_exact():
    """error_step commutes with a turn about the body's z axis and with the mirror; here with C, S as the turn."""
    algebra = the_algebra()
    e, u = algebra.array(("z", "v1", "v2", "v3", "s1", "s2")), algebra.array(("a", "w1", "w2", "w3"))
    cos, sin = algebra.array("C"), algebra.array("S")
    symmetry = SYSTEM.symmetry

    def turned_before(e, u, cos, sin):
        return SYSTEM.error_step(turned(symmetry.pairs, e, cos, sin), turned(symmetry.input_pairs, u, cos, sin))

    def turned_after(e, u, cos, sin):
        return turned(symmetry.pairs, SYSTEM.error_step(e, u), cos, sin)

    assert algebra.run(turned_before, e, u, cos, sin)[0].equals(algebra.run(turned_after, e, u, cos, sin)[0])
    flip, flip_input = np.diag(symmetry.error_matrix(6, 0.0, True)), np.diag(symmetry.input_matrix(4, 0.0, True))
    (before,) = algebra.run(lambda e, u: SYSTEM.error_step(flip * e, flip_input * u), e, u)
    assert before.equals(algebra.run(lambda e, u: flip * SYSTEM.error_step(e, u), e, u)[0])


# --- error and lift ------------------------------------------------------------------------------------------------


def test_error_of_lift():
    rng = np.random.default_rng(0)
    e, yaw = rng.normal(size=(100, 6)), rng.uniform(-6, 6, (100, 1))
    error, lift = jax.jit(jax.vmap(SYSTEM.error)), jax.jit(jax.vmap(SYSTEM.lift_along))
    np.testing.assert_allclose(error(lift(e, 0 * yaw)), e, atol=1e-12)
    np.testing.assert_allclose(error(lift(e, yaw)), e, atol=1e-12)
    x = random_states(100)
    np.testing.assert_allclose(error(x * np.r_[np.ones(6), -np.ones(4)]), error(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_upside_down_is_outside_and_differentiable(dtype):
    base = design_base_controller(SYSTEM, *map(np.asarray, WEIGHTS), level=25.0)
    roll = np.pi - np.array([0.0, 1e-8, 1e-3, 0.02, 0.05, 0.3])
    x = np.tile(np.array([0, 0, 2.0, 0, 0, 0, 0, 0, 0, 0], dtype), (len(roll), 1))
    x[:, 6], x[:, 7] = np.cos(roll / 2), np.sin(roll / 2)

    @jax.jit
    @jax.vmap
    def look(x):
        functions = (SYSTEM.error, SYSTEM.features, SYSTEM.bounded_error, base.margin, base.action)
        step = jax.jacrev(lambda x: SYSTEM.step(x, jnp.asarray([5.0, 1, 2, 3], dtype)))(x)
        return base.margin(x), base.contains(x), base.action(x), [jax.jacrev(f)(x) for f in functions], step

    margin, contains, action, *slopes = look(jnp.asarray(x))
    assert (margin < -10).all() and np.isfinite(margin).all() and not contains.any()
    assert jax.vmap(SYSTEM.input_box.contains)(action).all()
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


def test_nan_goes_through_and_is_outside():
    base = design_base_controller(SYSTEM, *map(np.asarray, WEIGHTS), level=25.0)
    for index in (2, 3, 6, 7):
        x = SYSTEM.equilibrium()[0].at[index].set(jnp.nan)
        assert np.isnan(SYSTEM.error(x)).any() and not base.contains(x)


def test_bounded_error_agrees_near_zero_and_is_bounded():
    e = 1e-3 * np.random.default_rng(0).normal(size=(50, 6))
    bounded = jax.jit(jax.vmap(SYSTEM.bounded_error))
    near = bounded(jax.jit(jax.vmap(SYSTEM.lift))(e))
    np.testing.assert_allclose(near, e, atol=1e-8)
    tilt = np.asarray(bounded(random_states(500)))[:, 4:]
    up = np.asarray(jax.vmap(quaternion.world_z)(random_states(500)[:, 6:]))
    regular = up[:, 2] > -0.99
    np.testing.assert_allclose((tilt**2).sum(1)[regular], 2 * (1 - up[regular, 2]), atol=1e-9)
    assert (tilt**2).sum(1).max() <= 4 + 1e-9


# --- declared structure --------------------------------------------------------------------------------------------


def test_spread_bounds_what_it_says():
    """Pairs of states from far apart to 1e-6 apart, quaternions off unit length by less than the manifold's tolerance."""
    spread, rng = SYSTEM.spread, np.random.default_rng(0)
    count = 4000
    x, u = random_states(count), random_inputs(count)
    scale = 10.0 ** rng.uniform(-6, 0.5, (count, 1))
    other = x + scale * rng.normal(size=x.shape)
    other[:, 6:] /= np.linalg.norm(other[:, 6:], axis=1, keepdims=True)
    for each in (x, other):
        each[:, 6:] *= 1 + rng.uniform(-4e-6, 4e-6, (count, 1))
    step = jax.jit(jax.vmap(SYSTEM.step))
    before, after = spread.norms((x - other).T), spread.norms(np.asarray(step(x, u) - step(other, u)).T)
    assert (after <= spread.gains @ before + 1e-12).all()
    far = before[2] > 1e-3
    np.testing.assert_allclose(after[2][far], before[2][far], rtol=0.01)  # and so not idle

    errors, others = (np.asarray(jax.jit(jax.vmap(SYSTEM.error))(each)) for each in (x, other))
    radii = np.array([30.0, 6.0, 6.0, 6.0, 2.0, 2.0])
    both = (np.abs(errors) <= radii).all(1) & (np.abs(others) <= radii).all(1)
    assert both.sum() > 200
    gap = np.abs(errors - others).T[:, both]
    assert (gap <= spread.error_gains(radii) @ before[:, both] + 1e-10).all()


def test_controller_has_the_symmetry_exactly():
    base, symmetry = design_base_controller(SYSTEM, *map(np.asarray, WEIGHTS)), SYSTEM.symmetry
    K, P = base.controller.gain, base.ellipsoid.shape_matrix
    for flip in (False, True):
        T, U = symmetry.error_matrix(6, np.pi / 2, flip), symmetry.input_matrix(4, np.pi / 2, flip)
        np.testing.assert_array_equal(K @ T, U @ K)
        np.testing.assert_array_equal(T.T @ P @ T, P)
    np.testing.assert_array_equal(K, K.astype(np.float32))


def test_replays_in_float32_stay_within_the_bound():
    """float32 against float64 over 100 steps of random inputs, from the region of the task."""
    task, steps = PowerLoop(), 100
    entries, _ = acceptance._replay_deviation(SYSTEM, task.state_box, steps, np.float32)
    rng = np.random.default_rng(0)
    x = np.asarray(jax.vmap(task.sample_state)(jax.random.split(jax.random.key(0), 64))).astype(np.float32)
    u = rng.uniform([5, -2, -2, -2], [15, 2, 2, 2], (steps, 64, 4)).astype(np.float32)

    @jax.jit
    def replay(x, u):
        return jax.lax.scan(lambda x, u: (jax.vmap(SYSTEM.step)(x, u),) * 2, x, u)[1]

    low, high = np.asarray(replay(x, u)), np.asarray(replay(x.astype(np.float64), u.astype(np.float64)))
    inside = np.cumprod((np.abs(high) <= task.state_box.upper.max()).all(2), axis=0).astype(bool)
    assert inside[20].all()
    assert (np.abs(low - high) <= entries[1:, None])[inside].all()
    assert entries[20, 2] < 1e-3 and entries[50, 2] < 1e-2


# --- base sets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certified():
    return certify(PowerLoop())


def certify(task):
    return certify_base_set(
        task.system,
        task.safe_set,
        task.state_box,
        state_cost=np.asarray(task.safety.state_cost, float),
        input_cost=np.asarray(task.safety.input_cost, float),
        horizon=task.safety.horizon,
        level=task.safety.level,
    )


def test_base_set_is_proved_up_to_the_ceiling(certified):
    certificate = certified.certificate
    assert certificate.holds
    assert_proved(certificate, "reduced coordinates", "symmetry")
    invariant = certificate["base set invariant"].numbers
    assert 25.1 < invariant["level"] < 25.17 and invariant["boxes"] < 100_000
    # The base set touches the ceiling: that is what bounds it.
    assert 0.999 < certified.base_set.ellipsoid.bounding_radii()[0] <= 1.0


def test_acceptance_margins_grow_along_the_plan(certified):
    path, base = certified.acceptance.path[:, 0], certified.acceptance.base
    assert path.shape == base.shape == (101,)
    assert (np.diff(path) >= 0).all() and (np.diff(base) >= 0).all()
    assert path[0] < 1e-4 and path[20] < 1e-3 and path[50] < 1e-2 and base[50] < 0.1


def test_a_plan_outside_the_region_of_its_margins_is_not_accepted(certified):
    """Rounding is bounded in the state box and for unit quaternions: nothing is promised elsewhere."""
    implicit = ImplicitInvariantSet(BackupPolicy(certified.base_set), PowerLoop().safe_set, 10)
    hover = SYSTEM.equilibrium()[0]
    states = jnp.stack([hover, hover.at[0].set(15.1), hover.at[6].set(1.0 + 1e-4), hover.at[6].set(0.0)])
    accepted = jax.jit(jax.vmap(lambda x: implicit.plan(x, acceptance_of(certified, 10)).certified))(states)
    assert accepted.tolist() == [True, False, False, False]


def acceptance_of(certified, horizon):
    margins = certified.acceptance
    return AcceptanceMargins(margins.path[: horizon + 1], margins.base[: horizon + 1], margins.region)


def test_base_set_holds_on_the_true_system_at_any_yaw(certified):
    """The proof is about the reduced system; the flow of the full one, in float32, must agree."""
    base = certified.base_set
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(2000, 6))
    P = base.ellipsoid.shape_matrix
    e = direction * np.sqrt(0.9999 * base.ellipsoid.level / np.einsum("bi,ij,bj->b", direction, P, direction))[:, None]
    x = jax.vmap(SYSTEM.lift_along)(e, rng.uniform(-6, 6, (2000, 1))).astype(jnp.float32)
    assert bool(jax.vmap(base.contains)(x).all())
    after = jax.jit(jax.vmap(lambda x: SYSTEM.step(x, base.action(x))))(x)
    assert bool(jax.vmap(base.contains)(after).all()) and bool((after[:, 2] <= 3.0).all())


def test_published_base_set_is_refuted():
    """TASKS: at c = 8 the unsaturated LQR raises V by several per cent in one step."""
    task = PublishedPowerLoop()
    found = certify(task)
    assert not found.certificate.holds
    obligation = found.certificate["base set invariant"]
    assert obligation.discharge == "refuted" and "V rises" in obligation.method
    assert found.certificate["reduced coordinates"].discharge == "sampled"
    e = np.asarray(obligation.numbers["counterexample"]["error"])
    base = found.base_set
    P, level = base.ellipsoid.shape_matrix, base.ellipsoid.level
    after = np.asarray(base.closed_loop(jnp.asarray(e)))
    assert level == 8.0 and e @ P @ e <= level < after @ P @ after
    # One that was found by hand: no input saturates, and V rises from 8.0 to 8.309.
    e = np.array([0.0089, -0.8568, 0.2839, -0.1507, -0.4746, -0.1862, 1.9236])
    after = np.asarray(base.closed_loop(jnp.asarray(e)))
    np.testing.assert_allclose([e @ P @ e, after @ P @ after], [8.0, 8.309], atol=5e-3)
    u = np.asarray(base.controller.unclipped(jnp.asarray(e)))
    assert (u > task.system.input_box.lower).all() and (u < task.system.input_box.upper).all()
    assert np.isinf(found.acceptance.base)


def test_a_false_symmetry_is_refuted(monkeypatch):
    """Sabotage: rates declared as a true vector instead of an axial one."""
    honest = Quadrotor.symmetry.fget

    def false(self):
        symmetry = honest(self)
        return type(symmetry)(symmetry.pairs, symmetry.input_pairs, True, (2, 3), symmetry.shown_by)

    monkeypatch.setattr(Quadrotor, "symmetry", property(false))
    base = design_base_controller(SYSTEM, *map(np.asarray, WEIGHTS), level=1.0)
    discharges = {o.name: o.discharge for o in declared_obligations(base, PowerLoop().state_box)}
    assert discharges == {"reduced coordinates": "proved", "symmetry": "refuted"}
