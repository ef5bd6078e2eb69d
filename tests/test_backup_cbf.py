"""The published layer: its rows are derivatives, its slack and gradients are what they say, and verified it never leaves."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.safeguards import BackupCBF, BackupSource, LayerFirst, Safeguard
from holdfast.systems import Quadrotor
from holdfast.tasks import make_task
from holdfast.types import Status
from systems_for_tests import HALF, MARGINS, TASK, bang_bang, lane_base, lane_source

HORIZON, COUNT = 10, 64


@cache
def layer(**settings):
    return BackupCBF(lane_source("smooth", HORIZON).implicit_set, **settings)


@cache
def answers(**settings):
    """One program for a batch: what the QP says."""
    return jax.jit(jax.vmap(layer(**settings).answer))


@cache
def guarded():
    """One program for a batch: what a plant gets."""
    return jax.jit(jax.vmap(layer().guard))


@cache
def jacobians(**settings):
    """Jacobian by u of the layer's action, for a batch."""
    each = layer(**settings)
    return jax.jit(jax.vmap(jax.jacrev(lambda u, x: each.guard(x, u).action)))


@pytest.fixture(scope="module")
def states():
    x = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(3), COUNT))
    rest = jnp.array([[0.0, 5.0, 0.0]])
    return rest + 0.8 * (x - rest)


def test_rows_are_the_derivative_of_the_margins_along_the_flow_and_time(states):
    each, u, h = layer(), jnp.array([3.0, -0.7]), 1e-6
    safe, base = each.implicit_set.safe_set, each.implicit_set.policy.base

    @jax.jit
    @jax.vmap
    def both(x):
        motion = each.derivative(x, u)
        margins = lambda x: jax.vmap(safe.margin)(each.flow(x))  # noqa: E731
        last = lambda x: base.margin(each.flow(x)[-1])  # noqa: E731
        rate = (margins(x + h * motion) - margins(x - h * motion)) / (2 * h)
        base_rate = (last(x + h * motion) - last(x - h * motion)) / (2 * h)
        # A node at a fixed time of the clock: the flow is followed for less and less time.
        nodes = each.flow(x)
        ahead = jax.vmap(lambda z: (safe.margin(z + h * each.closed_loop(z)) - safe.margin(z)) / h)(nodes)
        wanted = (rate - ahead + 4 * margins(x)).reshape(-1), (base_rate + 2 * last(x))[None]
        A, b = each.rows(x)
        same = ~jnp.any(jax.vmap(base.contains)(each.flow(x)))  # the flow jumps at the hand-off
        return A @ u - b, jnp.concatenate(wanted), same

    found, wanted, smooth = map(np.asarray, both(states))
    assert smooth.sum() > COUNT // 4
    np.testing.assert_allclose(found[smooth], wanted[smooth], rtol=1e-4, atol=1e-4)


def test_without_relative_time_the_backup_action_need_not_meet_its_rows(states):
    """With the term, the rows at the backup's own action say h >= 0 along the flow, and nothing about its speed."""

    def least(relative_time):
        each = layer(relative_time=relative_time)

        def one(x):
            A, b = each.rows(x)
            h = jax.vmap(each.implicit_set.safe_set.margin)(each.flow(x)).reshape(-1)
            return (A @ each.implicit_set.policy(x) - b)[:-1], 4 * h

        return map(np.asarray, jax.jit(jax.vmap(one))(states))

    found, expected = least(True)
    # Q f_cl(x) is f_cl(phi_k) in continuous time; for the sampled flow to first order in dt.
    assert np.median(np.abs(found - expected)) < 0.1
    other, _ = least(False)
    assert np.abs(other - expected).max() > 1.0


def test_a_proposal_that_meets_the_rows_comes_back_bit_for_bit_and_others_meet_them(states):
    u = bang_bang(COUNT) * 0.7
    found, answer = answers()(states, u), guarded()(states, u)
    held = np.asarray(found.margin) >= 0
    np.testing.assert_array_equal(np.asarray(answer.action)[held], np.asarray(u)[held])
    assert held.sum() > 5 and np.all(np.asarray(answer.status)[held] == Status.accepted)
    moved = ~held & (np.asarray(found.slack) <= 1e-2)
    assert moved.sum() > 5 and np.all(np.asarray(answer.status)[moved] == Status.corrected)
    again = answers()(states, answer.action)
    # A quadratic price: a little slack is paid wherever a row is active.
    assert np.all(np.asarray(again.margin)[moved] >= -1.001e-2)
    assert np.all(np.abs(answer.action) <= HALF[None])


def test_slack_is_what_the_rows_lack_and_no_more(states):
    """Where the rows cannot be met, the answer says so, breaks them by its slack, and lets the slack cost."""
    outside = states.at[:, 0].set(jnp.where(states[:, 0] >= 0, 1.9, -1.9)).at[:, 2].set(0.5 * jnp.sign(states[:, 0]))
    u = bang_bang(COUNT)
    found, answer = answers()(outside, u), guarded()(outside, u)
    slack = np.asarray(found.slack)
    assert np.all(found.solved) and (slack > 1e-2).sum() > COUNT // 2
    np.testing.assert_array_equal(np.asarray(answer.status)[slack > 1e-2], Status.uncertified)
    after = np.asarray(answers()(outside, answer.action).margin)
    np.testing.assert_allclose(-after[slack > 1e-2], slack[slack > 1e-2], rtol=1e-4, atol=1e-6)
    cheap = np.asarray(answers(slack_weight=1e-2)(outside, u).slack)
    assert np.all(cheap >= slack - 1e-6) and np.mean(cheap > slack + 0.1) > 0.1


def test_kept_rows_are_enough_where_few_are_active(states):
    u = bang_bang(COUNT) * 0.7
    whole, pruned = answers()(states, u), answers(kept_rows=12)(states, u)
    same = np.max(np.abs(np.asarray(whole.action - pruned.action)), axis=1) < 1e-9
    assert same.mean() > 0.95
    # What is left out is not asked for: the pruned problem is never the harder one.
    assert np.all(np.asarray(pruned.slack) <= np.asarray(whole.slack) + 1e-9)


def test_gradients_exact_relaxed_straight_through_stopped(states):
    u = bang_bang(COUNT) * 0.7
    answer, h = guarded()(states, u), 1e-6
    columns = []
    for k in range(2):
        step = h * jnp.eye(2)[k][None]
        columns.append((guarded()(states, u + step).action - guarded()(states, u - step).action) / (2 * h))
    differences = np.stack(columns, axis=2)
    exact = np.asarray(jacobians()(u, states))
    status = np.asarray(answer.status)
    moved = status == Status.corrected
    close = np.max(np.abs(exact - differences), axis=(1, 2)) < 1e-4
    assert moved.sum() > 5 and close[moved].mean() > 0.9 and close.mean() > 0.9  # the rest are kinks
    relaxed = np.asarray(jacobians(gradient="relaxed")(u, states))
    apart = np.max(np.abs(relaxed - exact), axis=(1, 2))
    assert np.median(apart) < 0.05
    # What points along an active row's normal is lost exactly, and a little of it comes back relaxed.
    ranks = [np.linalg.matrix_rank(j[moved], tol=1e-9) for j in (exact, relaxed)]
    assert ranks[0].min() < 2 and np.all(ranks[1] == 2)
    through = np.asarray(jacobians(gradient="straight_through")(u, states))
    np.testing.assert_array_equal(through, np.broadcast_to(np.eye(2), through.shape))
    stopped = np.asarray(jacobians(gradient="stopped")(u, states))
    np.testing.assert_array_equal(stopped[moved], 0.0)
    np.testing.assert_array_equal(stopped[status == Status.accepted], through[status == Status.accepted])


def test_the_relaxed_derivative_is_that_of_the_relaxed_minimum():
    """Against finite differences of the log-barrier minimum, found by scipy."""
    from scipy.optimize import minimize

    from holdfast.safeguards.relaxation import with_relaxed_tangents

    A, b, kappa = np.array([[1.0, 0.5], [-0.3, 1.0]]), np.array([0.3, -0.2]), 1e-2
    lower, upper, weights, value = -np.ones(2), np.array([1.0, np.inf]), np.array([1.0, 2.0]), np.array([0.2, 0.2])
    problem = [jnp.asarray(v) for v in (value, np.array([-0.5, 0.1]), A, b, lower, upper, weights)]
    found = jax.jacfwd(lambda u: with_relaxed_tangents(problem[0], u, *problem[2:], kappa))(problem[1])

    rows = np.concatenate([A / weights, np.eye(2), -np.eye(2)[:1]])
    offsets = np.concatenate([b, weights * lower, -weights[:1] * upper[:1]])
    size = np.abs(rows).sum(axis=1) + np.abs(offsets)
    rows, offsets = rows / size[:, None], offsets / size

    def minimum(u):
        def barrier(z):
            s = rows @ z - offsets
            return np.inf if np.any(s <= 0) else 0.5 * np.sum((z - weights * u) ** 2) - kappa * np.log(s).sum()

        return minimize(barrier, [0.5, 0.5], method="Nelder-Mead", options={"xatol": 1e-12, "fatol": 1e-16}).x / weights

    u, h = np.array([-0.5, 0.1]), 1e-3
    expected = np.stack([(minimum(u + h * e) - minimum(u - h * e)) / (2 * h) for e in np.eye(2)], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_total_for_any_numbers(states):
    nan, inf = np.nan, np.inf
    x, u = np.array(states), np.ones((COUNT, 2))
    u[:3], x[3:6] = [[nan, 0], [inf, 0], [1e300, -1e300]], [[nan, 5, 0], [inf, 5, 0], [0.5, 1e300, 0.1]]
    for dtype in (np.float64, np.float32):
        with np.errstate(over="ignore"):
            seen, wanted = jnp.asarray(x.astype(dtype)), jnp.asarray(u.astype(dtype))
        answer = guarded()(seen, wanted)
        assert np.all(np.isfinite(answer.action)) and np.all(np.abs(answer.action) <= HALF[None].astype(dtype))
        assert list(answer.status[:2]) == [Status.bad_action] * 2 and list(answer.status[3:5]) == [Status.bad_state] * 2
    np.testing.assert_allclose(answer.action[0], layer().implicit_set.policy(seen[0]), rtol=1e-5)
    assert np.all(np.isfinite(jacobians()(jnp.asarray(u), jnp.asarray(x))))


@cache
def hardened():
    implicit = lane_source("lqr", HORIZON).implicit_set
    return Safeguard(BackupSource(implicit, MARGINS), (), mask=LayerFirst(BackupCBF(implicit)))


@cache
def closed_loop(verified):
    """2000 steps of 64 plants from certified states under held corners of the input box, by one program: (in S_N, safe)."""
    guard = hardened() if verified else hardened().mask.layer
    implicit = lane_source("lqr", HORIZON).implicit_set
    x = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(1), 40 * COUNT))
    certified = jax.jit(jax.vmap(lambda x: hardened().init(x).certified))(x)
    x = x[np.flatnonzero(np.asarray(certified))[:COUNT]]

    def advance(carry, key):
        x, state, u = carry
        corner = jnp.sign(jax.random.normal(key, (len(x), 2))) * HALF[None]
        held = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.9, (len(x), 1))
        u = jnp.where(held, u, corner)
        answer, state = jax.vmap(guard.step)(state, x, u)
        x = jax.vmap(TASK.system.step)(x, answer.action)
        inside, safe = jax.vmap(implicit.contains)(x), jax.vmap(TASK.safe_set.contains)(x)
        return (x, state, u), (inside, safe, answer.status, u, answer.action)

    @jax.jit
    def run(x):
        carry = x, jax.vmap(guard.init)(x), jnp.zeros((len(x), 2))
        return jax.lax.scan(advance, carry, jax.random.split(jax.random.key(2), 500))[1]

    return [np.asarray(each) for each in run(x)]


def test_verified_the_layer_never_leaves_and_alone_it_does():
    """One flag's difference; the second half is the sabotage of the first: without the check, the same loop leaves."""
    inside, safe, status, u, action = closed_loop(True)
    assert inside.all() and safe.all()
    assert set(np.unique(status)) == {Status.accepted, Status.corrected, Status.fell_back}
    accepted = status == Status.accepted
    np.testing.assert_array_equal(action[accepted], u[accepted])
    inside, _, status, _, _ = closed_loop(False)
    assert not inside.all(), "the layer alone should leave the implicit set"


def test_a_layer_needs_a_derivative_and_knows_its_settings():
    base = lane_base()
    implicit = ImplicitInvariantSet(BackupPolicy(base), TASK.safe_set, 3)
    for settings, words in (
        ({"gradient": "none"}, "gradient"),
        ({"safe_gain": 0.0}, "safe_gain = 0.0"),
        ({"kept_rows": 0}, "kept_rows = 0"),
    ):
        with pytest.raises(ValueError, match=words):
            BackupCBF(implicit, **settings)
    rigid = make_task("rigid-eight")
    if not hasattr(rigid.system, "derivative"):
        from holdfast.backup import design_base_controller

        settings = rigid.safety
        base = design_base_controller(rigid.system, settings.state_cost, settings.input_cost)
        with pytest.raises(ValueError, match=r"derivative\(x, u, w\)"):
            BackupCBF(ImplicitInvariantSet(BackupPolicy(base), rigid.safe_set, 3))


def test_the_quadrotor_in_continuous_time_is_the_sampled_one():
    system, task = Quadrotor(), make_task("power-loop")
    x = jax.vmap(task.sample_state)(jax.random.split(jax.random.key(0), 32))
    u = jax.vmap(system.input_box.sample)(jax.random.split(jax.random.key(1), 32))

    @jax.jit
    @jax.vmap
    def both(x, u):
        motion = system.derivative
        bend = motion(x, 0.5 * u) - 0.5 * (motion(x, u) + motion(x, 0 * u))
        euler = x + system.dt * motion(x, u)
        return euler.at[6:].divide(jnp.linalg.norm(euler[6:])), system.step(x, u), bend

    euler, sampled, bend = both(x, u)
    np.testing.assert_allclose(euler, sampled, atol=1e-12)
    # Affine in the input, as the layer's rows are.
    np.testing.assert_allclose(bend, np.zeros((32, 10)), atol=1e-12)
