"""The rigid-body quadrotor: its step against other integrators, its declarations by algebra, its base set, its task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.spatial.transform import Rotation

from algebra import Algebra, hover_relations, lifted_anywhere, turned
from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.certify import certify_base_set
from holdfast.certify.declared import declared_obligations
from holdfast.safeguards import MAPS, BackupSource, Safeguard
from holdfast.sets import Box
from holdfast.systems import RigidQuadrotor
from holdfast.tasks import make_task
from holdfast.testing import check_system, check_task
from systems_for_tests import assert_proved

TASK = make_task("rigid-eight")
SYSTEM = TASK.system


def random_states(count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 13)) * np.array([5.0] * 3 + [4.0] * 3 + [1.0] * 4 + [5.0, 5.0, 2.0])
    x[:, 6:10] /= np.linalg.norm(x[:, 6:10], axis=1, keepdims=True)
    return x


def random_inputs(count, seed=1):
    return np.random.default_rng(seed).uniform(SYSTEM.input_box.lower, SYSTEM.input_box.upper, (count, 4))


# --- the step ------------------------------------------------------------------------------------------------------


def newton_euler(x, u, system):
    """Forces and torques of each rotor at its place, rotation matrices and J itself: p', v', R', w'."""
    p, v, R, w = x[:3], x[3:6], x[6:15].reshape(3, 3), x[15:]
    del p
    arms = system.arm * np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    forces = u[:, None] * np.array([0, 0, 1.0])
    torque = np.cross(arms, forces).sum(0) + system.drag_torque * np.array([0, 0, u[0] - u[1] + u[2] - u[3]])
    J = np.diag(system.inertia)
    skew = np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
    force = R @ forces.sum(0) / system.mass - np.array([0, 0, system.gravity])
    return np.concatenate([v, force, (R @ skew).ravel(), np.linalg.solve(J, torque - np.cross(w, J @ w))])


@pytest.mark.parametrize("inertia", [(3.65e-3, 3.65e-3, 7.03e-3), (3e-3, 4e-3, 6e-3)])
def test_small_steps_follow_newton_and_euler(inertia):
    """A tenth of a second in steps of 0.1 ms, against an adaptive integrator of another formulation: first order."""
    x0, u, span, errors = random_states(1)[0], np.array([1.4, 1.1, 1.2, 1.3]), 0.1, []
    R0 = Rotation.from_quat(x0[6:10], scalar_first=True).as_matrix()
    start = np.concatenate([x0[:6], R0.ravel(), x0[10:]])
    for dt in (2e-4, 1e-4):
        system = RigidQuadrotor(dt=dt, inertia=inertia)
        steps = round(span / dt)
        x = jax.jit(lambda x, s=system, k=steps: jax.lax.fori_loop(0, k, lambda _, x: s.step(x, jnp.asarray(u)), x))(x0)
        exact = solve_ivp(lambda t, y, s=system: newton_euler(y, u, s), (0, span), start, rtol=1e-10, atol=1e-10).y[
            :, -1
        ]
        R = Rotation.from_quat(np.asarray(x[6:10]), scalar_first=True).as_matrix()
        errors.append(np.abs(np.concatenate([x[:6], R.ravel(), x[10:]]) - exact).max())
    assert errors[1] < 2e-3 and 1.8 < errors[0] / errors[1] < 2.2


def published_step(x, u):
    """Explicit Euler on q' = q (0, w)/2 and J w' = tau - w x J w, then q / |q|, in numpy."""
    s, q, w = SYSTEM, Rotation.from_quat(x[6:10], scalar_first=True), x[10:]
    y = np.concatenate([x[:6], q.as_matrix().ravel(), w])
    rate = newton_euler(y, u, s)
    a, b = x[6], x[7:10]
    turn = np.concatenate([[-b @ w], a * w + np.cross(b, w)]) / 2
    moved = x[6:10] + s.dt * turn
    return np.concatenate([x[:6] + s.dt * rate[:6], moved / np.linalg.norm(moved), w + s.dt * rate[15:]])


def test_step_is_euler_and_renormalisation():
    x, u = random_states(50), random_inputs(50)
    ours = jax.jit(jax.vmap(SYSTEM.step))(x, u)
    np.testing.assert_allclose(ours, [published_step(*each) for each in zip(x, u)], atol=1e-12)


def test_it_conforms():
    check_system(SYSTEM)
    measured = check_task(TASK)
    assert measured.safe_start_share == 1.0 and measured.safe_state_share == 1.0


# --- algebra -------------------------------------------------------------------------------------------------------

ERRORS, INPUTS = ("z", "v1", "v2", "v3", "s1", "s2", "r1", "r2", "r3"), ("f1", "f2", "f3", "f4")
VARIABLES = ("C", "rho", "r", "S", "x", "y", *ERRORS, *INPUTS)


def the_algebra():
    """As in tests/test_quadrotor.py: rho^2 = 1 + |s|^2/4, r^2 = 1 + |dt w/2|^2, with the rates now in the error."""
    relations, point = hover_relations(("r1", "r2", "r3"))
    return Algebra(VARIABLES, relations, dict.fromkeys(VARIABLES, 0.1) | point)


def test_reduction_is_exact():
    """error(F(x, u)) = error_step(error(x), u) for every state that is not upside down, any place and yaw."""
    algebra = the_algebra()
    e, u = algebra.array(ERRORS), algebra.array(INPUTS)
    x = lifted_anywhere(algebra, SYSTEM, e)
    (x_next,) = algebra.run(SYSTEM.step, x, u)
    (e_next,) = algebra.run(SYSTEM.error_step, e, u)
    assert algebra.run(SYSTEM.error, x_next)[0].equals(e_next)
    # The proof has teeth: an arm that is off by a hundredth is seen.
    assert not algebra.run(RigidQuadrotor(arm=0.18).error_step, e, u)[0].equals(e_next)


def test_symmetry_is_exact():
    """error_step commutes with a turn about the body's z axis, by any angle (cos C, sin S), and with the mirror."""
    algebra, symmetry = the_algebra(), SYSTEM.symmetry
    e, u = algebra.array(ERRORS), algebra.array(INPUTS)
    cos, sin = algebra.array("C"), algebra.array("S")
    mixing, unmixing = symmetry.mixing, np.linalg.inv(symmetry.mixing)

    def turned_before(e, u, cos, sin):
        mixed = turned(symmetry.input_pairs, mixing @ u, cos, sin)
        return SYSTEM.error_step(turned(symmetry.pairs, e, cos, sin), unmixing @ mixed)

    def turned_after(e, u, cos, sin):
        return turned(symmetry.pairs, SYSTEM.error_step(e, u), cos, sin)

    assert algebra.run(turned_before, e, u, cos, sin)[0].equals(algebra.run(turned_after, e, u, cos, sin)[0])
    flip, flip_input = np.diag(symmetry.error_matrix(9, 0.0, True)), symmetry.input_matrix(4, 0.0, True)
    (before,) = algebra.run(lambda e, u: SYSTEM.error_step(flip * e, flip_input @ u), e, u)
    assert before.equals(algebra.run(lambda e, u: flip * SYSTEM.error_step(e, u), e, u)[0])


def test_only_a_symmetric_body_has_the_symmetry():
    assert RigidQuadrotor(inertia=(3e-3, 4e-3, 6e-3)).symmetry is None
    assert RigidQuadrotor(inertia=(3e-3, 4e-3, 6e-3)).spread is None


# --- declared structure --------------------------------------------------------------------------------------------


def test_spread_bounds_what_it_says():
    """Pairs of states of a region from far apart to 1e-6 apart, quaternions off unit length within the tolerance."""
    spread, rng, count = SYSTEM.spread, np.random.default_rng(0), 4000
    region = Box([-30.0] * 6 + [-1.1] * 4 + [-15.0, -15.0, -4.0], [30.0] * 6 + [1.1] * 4 + [15.0, 15.0, 4.0])
    x, u = random_states(count), random_inputs(count)
    other = x + 10.0 ** rng.uniform(-6, 0.5, (count, 1)) * rng.normal(size=x.shape)
    for each in (x, other):
        each[:, 10:] = np.clip(each[:, 10:], region.lower[10:], region.upper[10:])
        each[:, 6:10] /= np.linalg.norm(each[:, 6:10], axis=1, keepdims=True)
        each[:, 6:10] *= 1 + rng.uniform(-4e-6, 4e-6, (count, 1))
    step = jax.jit(jax.vmap(SYSTEM.step))
    before, after = spread.norms((x - other).T), spread.norms(np.asarray(step(x, u) - step(other, u)).T)
    bound = spread.gains_in(region) @ before
    assert (after <= bound + 1e-12).all()
    assert (after > 0.9 * bound).mean(axis=1).min() > 0.01  # and so not idle

    errors, others = (np.asarray(jax.jit(jax.vmap(SYSTEM.error))(each)) for each in (x, other))
    radii = np.array([30.0, 6.0, 6.0, 6.0, 2.0, 2.0, 15.0, 15.0, 4.0])
    both = (np.abs(errors) <= radii).all(1) & (np.abs(others) <= radii).all(1)
    assert both.sum() > 200
    gap = np.abs(errors - others).T[:, both]
    assert (gap <= spread.error_gains(radii) @ before[:, both] + 1e-10).all()


# --- base set ------------------------------------------------------------------------------------------------------


def certify(**changes):
    safety = TASK.safety
    settings = {
        "state_cost": np.asarray(safety.state_cost, float),
        "input_cost": np.asarray(safety.input_cost, float),
        "horizon": safety.horizon,
    }
    return certify_base_set(TASK.system, TASK.safe_set, TASK.state_box, **settings | changes)


@pytest.fixture(scope="module")
def certified():
    """At a quarter of the level that `holdfast verify` proves, for the sake of time."""
    return certify(level=2.0)


def test_base_set_is_proved(certified):
    certificate = certified.certificate
    assert certificate.holds
    assert_proved(certificate, "reduced coordinates", "symmetry")
    invariant = certificate["base set invariant"]
    assert "vertex test" in invariant.method and 0 < invariant.numbers["boxes"] < 10_000
    assert certified.acceptance.path.shape == (91, 2) and certified.acceptance.path.max() < 0.04
    controller, symmetry, P = certified.base_set.controller, SYSTEM.symmetry, certified.base_set.ellipsoid.shape_matrix
    for flip in (False, True):
        T, U = symmetry.error_matrix(9, np.pi / 2, flip), symmetry.input_matrix(4, np.pi / 2, flip)
        np.testing.assert_array_equal(controller.gain @ T, U @ controller.gain)
        np.testing.assert_array_equal(T.T @ P @ T, P)


def test_base_set_holds_on_the_true_system_at_any_yaw(certified):
    base, rng = certified.base_set, np.random.default_rng(0)
    direction = rng.normal(size=(2000, 9))
    P, level = base.ellipsoid.shape_matrix, base.ellipsoid.level
    e = direction * np.sqrt(0.9999 * level / np.einsum("bi,ij,bj->b", direction, P, direction))[:, None]
    x = jax.vmap(SYSTEM.lift_along)(e, rng.uniform(-6, 6, (2000, 1))).astype(jnp.float32)
    assert bool(jax.vmap(base.contains)(x).all())
    after = jax.jit(jax.vmap(lambda x: SYSTEM.step(x, base.action(x))))(x)
    assert bool(jax.vmap(base.contains)(after).all())


def test_a_false_level_is_not_proved():
    """Twelve times the level at which a rotor first stops: states there tumble."""
    found = certify(level=100.0, max_boxes=5_000, max_seconds=20.0)
    assert found.certificate["base set invariant"].discharge == "refuted" and not found.certificate.holds
    assert np.isinf(found.acceptance.base)


def test_a_false_symmetry_is_refuted(certified, monkeypatch):
    """Sabotage: rates in the order (wx, wy), which do not turn with the tilt."""
    honest = RigidQuadrotor.symmetry.fget

    def false(self):
        symmetry = honest(self)
        return type(symmetry)(((4, 5), (7, 6), (1, 2)), *(getattr(symmetry, name) for name in FIELDS))

    monkeypatch.setattr(RigidQuadrotor, "symmetry", property(false))
    discharges = {o.name: o.discharge for o in declared_obligations(certified.base_set, TASK.state_box)}
    assert discharges == {"reduced coordinates": "proved", "symmetry": "refuted"}


FIELDS = ("input_pairs", "mirror", "mirrored_inputs", "shown_by", "mirrored_errors", "mixing")


# --- the task ------------------------------------------------------------------------------------------------------


def test_the_reference_leaves_the_room_on_both_sides_and_could_be_flown():
    wanted = np.asarray(jax.vmap(TASK.reference, in_axes=(0, None))(jnp.arange(301), ()))
    assert wanted[:, 2].max() > 3.3 and wanted[:, 2].min() < -0.3
    np.testing.assert_allclose(np.gradient(wanted[:, 2], SYSTEM.dt)[1:-1], wanted[1:-1, 5], atol=0.02)
    np.testing.assert_allclose(np.gradient(wanted[:, 0], SYSTEM.dt)[1:-1], wanted[1:-1, 3], atol=0.02)
    pull = np.gradient(wanted[:, 3:6], SYSTEM.dt, axis=0) + np.array([0, 0, SYSTEM.gravity])
    most = SYSTEM.input_box.upper.sum() / SYSTEM.mass
    assert pull[2:-2, 2].min() > 0 and np.linalg.norm(pull[2:-2], axis=1).max() < most


def test_sampled_states_are_what_the_task_says():
    x = np.asarray(jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(0), 2000)))
    assert (np.abs(x[:, 3:6]) <= 4).all() and (np.abs(x[:, 10:]) <= [6, 6, 2]).all()
    assert np.ptp(x[:, 2]) > 2.9 and x[:, 2].min() >= 0 and x[:, 2].max() <= 3
    tilt = np.arccos(Rotation.from_quat(x[:, 6:10], scalar_first=True).as_matrix()[:, 2, 2])
    assert 2.3 < tilt.max() <= 0.75 * np.pi + 1e-6
    assert jax.vmap(TASK.state_box.contains)(jnp.asarray(x)).all()


def test_metrics_of_the_reference_are_zero_and_the_scene_keeps_its_shapes():
    states = np.asarray(jax.vmap(TASK.reference, in_axes=(0, None))(jnp.arange(301), ()))
    np.testing.assert_allclose(list(TASK.metrics(jnp.asarray(states), ()).values()), 0.0, atol=1e-9)
    moved = states + np.r_[0.3, 0.4, 0, np.zeros(10)]
    np.testing.assert_allclose(TASK.metrics(jnp.asarray(moved), ())["p_rmse"], 0.5)
    futures = {"backup": states[:20]}
    scenes = [TASK.scene(states, t, (), futures) for t in (0, 150, 300)]
    kinds = [[(type(shape), shape.role) for shape in scene.shapes] for scene in scenes]
    assert kinds[0] == kinds[1] == kinds[2]
    assert sum(role == "unsafe" for _, role in kinds[0]) == 2


def test_attacked_flight_stays_in_the_room(certified):
    """Full thrust, no thrust and spins by turns against the safeguard with the analytic backup, from many starts."""
    backup = BackupPolicy(certified.base_set)
    implicit = ImplicitInvariantSet(backup, TASK.safe_set, TASK.safety.horizon)
    guard = Safeguard(BackupSource(implicit, certified.acceptance), (MAPS["ray"](),), "stopped")
    starts = jax.vmap(TASK.sample_start)(jax.random.split(jax.random.key(0), 8)).astype(jnp.float32)
    upper = jnp.asarray(SYSTEM.input_box.upper, jnp.float32)
    patterns = (
        jnp.asarray([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], jnp.float32)
        * upper[None]
    )

    @jax.jit
    def fly(x, key):
        def advance(carry, key):
            x, state = carry
            which = jax.random.randint(key, (8,), 0, len(patterns))
            attack = patterns[which]
            found, state = jax.vmap(guard.step)(state, x, attack)
            x = jax.vmap(SYSTEM.step)(x, found.action)
            return (x, state), (jax.vmap(TASK.safe_set.margin)(x).min(1), found.status)

        return jax.lax.scan(advance, (x, jax.vmap(guard.init)(x)), jax.random.split(key, 150))[1]

    margin, status = fly(starts, jax.random.key(1))
    assert (margin >= 0).all()
    assert len(np.unique(status)) >= 2  # accepted at times, and not always
