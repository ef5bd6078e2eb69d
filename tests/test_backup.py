"""Base controller and set, backup flow, plans, and the implicit invariant set, against independent programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from holdfast.backup import BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.backup.arrival import CHUNK, flow_until_arrival
from holdfast.sets import SuperlevelSet
from systems_for_tests import MARGINS, TASK, Cart, SmoothPolicy, certified_states, lane_base, lane_source


def test_lqr_equals_scipy_and_a_riccati_recursion():
    base = design_base_controller(Cart(), [1.0, 0.5], [0.2])
    A, B = np.array([[1, 0.1], [0, 1]]), np.array([[0], [0.1]])
    Q, R = np.diag([1.0, 0.5]), np.diag([0.2])
    P = scipy.linalg.solve_discrete_are(A, B, Q, R)
    np.testing.assert_allclose(base.ellipsoid.shape_matrix, P, rtol=1e-6)
    recursion = Q
    for _ in range(2000):
        K = np.linalg.solve(R + B.T @ recursion @ B, B.T @ recursion @ A)
        recursion = Q + A.T @ recursion @ (A - B @ K)
    np.testing.assert_allclose(recursion, P, rtol=1e-9)
    np.testing.assert_allclose(base.controller.gain, K, rtol=1e-6)
    # Held as float32 numbers, so that every precision runs one controller.
    np.testing.assert_array_equal(base.controller.gain, base.controller.gain.astype(np.float32))


class _Unstabilisable(Cart):
    def derivative(self, x, u, w):
        return jnp.stack([0.5 * x[0], u[0]])


class _NoEquilibrium(Cart):
    def derivative(self, x, u, w):
        return jnp.stack([x[1], u[0] + 0.3])


class _AtTheBox(Cart):
    def derivative(self, x, u, w):
        return jnp.stack([x[1], u[0] - 1.0])

    def equilibrium(self):
        return jnp.zeros(2), jnp.ones(1)


class _NotFinite(Cart):
    def derivative(self, x, u, w):
        return jnp.stack([x[1] / x[0], u[0]])


@pytest.mark.parametrize(
    "system, words",
    [
        (_Unstabilisable(), ["_Unstabilisable", "1.05", "cannot be stabilised", "error"]),
        (_NoEquilibrium(), ["_NoEquilibrium.equilibrium", "0.03", "Correct x* or u*"]),
        (_AtTheBox(), ["_AtTheBox.equilibrium", "u* = [1.]", "input box"]),
        (_NotFinite(), ["_NotFinite.equilibrium", "nan", "division by zero"]),
    ],
)
def test_errors_name_field_value_and_remedy(system, words):
    with pytest.raises(ValueError) as caught:
        design_base_controller(system, [1.0, 1.0], [1.0])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "state_cost, input_cost, words",
    [
        ([1.0], [1.0], ["state_cost", "(1,)", "[2]"]),
        ([1.0, -1.0], [1.0], ["state_cost", "positive semidefinite"]),
        ([1.0, 1.0], [1.0, 1.0], ["input_cost", "[1]"]),
    ],
)
def test_weights_are_checked(state_cost, input_cost, words):
    with pytest.raises(ValueError) as caught:
        design_base_controller(Cart(), state_cost, input_cost)
    for word in words:
        assert word in str(caught.value)


def _by_hand(source, x, with_margins):
    """(certified, length) by a plain loop in NumPy order over single steps."""
    implicit, policy = source.implicit_set, source.implicit_set.policy
    step, act = jax.jit(lambda x, u: TASK.system.step(x, u)), jax.jit(lambda x: policy(x))
    path = MARGINS.path if with_margins else 0.0
    base = MARGINS.base if with_margins else 0.0
    for k in range(implicit.horizon + 1):
        if not np.all(np.asarray(TASK.safe_set.margin(x)) >= path):
            return False, None
        if policy.base.margin(x) >= base:
            return True, k
        x = step(x, act(x))
    return False, None


@pytest.mark.parametrize("backup", ["lqr", "smooth"])
def test_plan_equals_a_plain_loop(backup):
    source = lane_source(backup)
    x = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(9), 24))
    plans = jax.jit(jax.vmap(lambda x: source.implicit_set.plan(x, MARGINS)))(x)
    assert 3 < np.sum(plans.certified) < 24
    flow = jax.jit(jax.vmap(source.implicit_set.flow))(x)
    rows = jax.jit(jax.vmap(lambda x: source.implicit_set.rows(x, MARGINS)))(x)
    for i in range(24):
        certified, length = _by_hand(source, x[i], True)
        assert bool(plans.certified[i]) == certified
        assert (float(plans.margin[i]) >= 0) == certified
        if certified:
            assert int(plans.length[i]) == length
            # What comes after the arrival is not part of the plan, and may not have been computed.
            np.testing.assert_allclose(plans.actions[i, :length], flow.actions[i, :length], rtol=1e-9, atol=1e-12)
        assert np.all(np.asarray(rows[i]) >= 0) == certified
    finite = np.isfinite(plans.margin)
    # How deep a plan goes inside counts in the rows; in its margin only where it arrives at the last moment.
    late = np.asarray(plans.certified) & (np.asarray(plans.length) > source.implicit_set.horizon - CHUNK)
    path = np.minimum(np.min(rows[:, :-1], axis=1), np.where(plans.certified, 1.0, rows[:, -1]))
    compared = finite & ~late
    np.testing.assert_allclose(path[compared], np.asarray(plans.margin)[compared], rtol=1e-6, atol=1e-9)
    assert np.all(np.asarray(plans.margin)[late] <= np.min(rows, axis=1)[late] + 1e-9)
    alone = jax.jit(lambda x: jax.lax.map(lambda x: source.implicit_set.plan(x, MARGINS).margin, x))(x)
    np.testing.assert_allclose(alone, plans.margin, rtol=1e-9)


def test_a_flow_that_stops_early_is_the_flow_up_to_its_arrival():
    """Alone, in a batch, in a batch of batches, and under policies that differ: each row counts up to its own arrival."""
    source = lane_source("smooth")
    policy, horizon = source.implicit_set.policy, source.implicit_set.horizon
    x = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(9), 12))
    x = x.at[5].set(jnp.nan)
    eps = jnp.zeros(horizon + 1)
    until = lambda x: flow_until_arrival(policy, x, eps)  # noqa: E731
    whole = jax.jit(jax.vmap(source.implicit_set.flow))(x)
    arrived = np.asarray(whole.base_margins) >= 0
    length = np.where(arrived.any(axis=1), arrived.argmax(axis=1), horizon)
    assert length.min() < horizon and length.max() == horizon
    alone = jax.jit(lambda x: jax.lax.map(until, x))(x)
    nested = jax.jit(jax.vmap(jax.vmap(until)))(x.reshape(3, 4, 3))
    batch = jax.jit(jax.vmap(until))(x)
    weights = jax.tree.map(lambda leaf: jnp.stack([leaf] * 12) if isinstance(leaf, jax.Array) else leaf, policy)
    axes = jax.tree.map(lambda leaf: 0 if isinstance(leaf, jax.Array) else None, weights)
    own = jax.jit(jax.vmap(lambda policy, x: flow_until_arrival(policy, x, eps), in_axes=(axes, 0)))(weights, x)
    for states, actions, computed in (alone, batch, own, jax.tree.map(lambda a: a.reshape(12, *a.shape[2:]), nested)):
        assert np.all(computed >= length) and np.all(computed <= horizon)
        for i, k in enumerate(length):
            np.testing.assert_allclose(states[i, : k + 1], whole.states[i, : k + 1], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(actions[i, :k], whole.actions[i, :k], rtol=1e-9, atol=1e-12)
            # What repeats is a state of the base set, never an empty one.
            assert k == horizon or np.all(jax.vmap(policy.base.contains)(states[i, k:]))


def test_recursive_feasibility():
    """If x is in S_N, so is F(x, pi_b(x)), up to the states that sit on the boundary to rounding."""
    source = lane_source("smooth")
    implicit = source.implicit_set
    x, _ = certified_states("smooth", 256)
    follow = jax.jit(jax.vmap(lambda x: TASK.system.step(x, implicit.policy(x))))
    contains = jax.jit(jax.vmap(implicit.contains))
    for _ in range(5):
        assert np.all(contains(x))
        x = follow(x)


def test_the_backup_stays_in_the_base_set():
    base = lane_base()
    L = np.linalg.cholesky(np.linalg.inv(base.ellipsoid.shape_matrix) * base.ellipsoid.level)
    d = np.random.default_rng(0).normal(size=(4096, 3))
    e = jnp.asarray(d / np.linalg.norm(d, axis=1, keepdims=True) @ L.T)
    after = jax.vmap(base.closed_loop)(e)
    value = jax.vmap(base.ellipsoid.value)(after)
    assert np.max(value) < base.ellipsoid.level


def test_outside_policy_is_not_asked_inside_the_base_set():
    base = lane_base()
    policy = BackupPolicy(base, lambda x: jnp.array([-5.0, 1.0]))
    inside, outside = jnp.array([0.05, 5.0, 0.0]), jnp.array([1.5, 9.0, 0.0])
    np.testing.assert_array_equal(policy(inside), base.action(inside))
    np.testing.assert_array_equal(policy(outside), [-5.0, 1.0])
    assert isinstance(lane_source("smooth").implicit_set.policy.outside, SmoothPolicy)


def test_margin_of_a_broken_flow_is_nan_and_nothing_contains_it():
    implicit = lane_source().implicit_set
    bad = jnp.array([jnp.nan, 5.0, 0.0])
    assert np.isnan(implicit.margin(bad))
    assert not implicit.contains(bad)
    assert implicit.plan(bad, MARGINS).margin == -np.inf


def test_viability_kernel_in_closed_form_agrees_with_a_grid_program():
    """Value iteration of the safety value on a coarse grid, which only knows step and safe set."""
    lower, upper = TASK.state_box.lower, TASK.state_box.upper
    shape = (37, 13, 43)
    axes = [jnp.linspace(a, b, k) for a, b, k in zip(lower, upper, shape)]
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    inputs = jnp.asarray([[a, r] for a in (-5.0, 0.0, 5.0) for r in (-1.0, 0.0, 1.0)])

    # Four steps with one input held are one step of the grid: a single one moves less than a cell.
    def hold(x, u):
        margin = jnp.min(TASK.safe_set.margin(x))
        for _ in range(4):
            x = TASK.system.step(x, u)
            margin = jnp.minimum(margin, jnp.min(TASK.safe_set.margin(x)))
        return x, margin

    successors, margins = jax.jit(jax.vmap(jax.vmap(hold, (None, 0)), (0, None)))(grid, inputs)
    index = (successors - lower[None, None]) / (upper - lower)[None, None] * (np.array(shape) - 1)[None, None]
    coordinates = jnp.moveaxis(index, -1, 0)

    def improve(value, _):
        ahead = jax.scipy.ndimage.map_coordinates(value.reshape(shape), coordinates, order=1, mode="nearest")
        return jnp.max(jnp.minimum(margins, ahead), axis=1), None

    start = jax.vmap(lambda x: jnp.min(TASK.safe_set.margin(x)))(grid)
    value = np.asarray(jax.jit(lambda v: jax.lax.scan(improve, v, None, length=12)[0])(start))
    viable = np.asarray(jax.jit(jax.vmap(TASK.viable))(grid))
    clear = np.abs(value) > 0.12
    assert clear.mean() > 0.6
    assert np.mean((value > 0)[clear] == viable[clear]) > 0.99
    sample = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(0), 20_000))
    assert abs(float(jnp.mean(jax.jit(jax.vmap(TASK.viable))(sample))) - 0.755) < 0.012


def test_implicit_set_lies_in_the_viability_kernel():
    x, _ = certified_states("smooth", 256)
    assert np.all(jax.vmap(TASK.viable)(x))


def _boundary_states(contains, inside, outside, rounds=60):
    """Pairs bisected until neighbouring float numbers differ, so that they straddle the boundary of the set."""
    for _ in range(rounds):
        middle = ((inside + outside) / 2).astype(inside.dtype)
        keep = np.asarray(contains(middle))[:, None]
        inside, outside = jnp.where(keep, middle, inside), jnp.where(keep, outside, middle)
    return inside


def test_committed_plans_stay_safe_where_looking_again_changes_its_mind():
    """S_N is decided by rounding at its boundary: another program, or one ulp, takes a state back out. Plans hold."""
    source = lane_source("smooth")
    implicit = source.implicit_set
    plan = lambda x: implicit.plan(x, None)  # noqa: E731  (no margins: the boundary itself)
    batched = jax.jit(jax.vmap(plan))
    single = jax.jit(lambda xs: jax.lax.map(lambda x: plan(x).certified, xs))
    x, _ = certified_states("smooth", 256)
    x = x.astype(jnp.float32)
    keep = np.asarray(batched(x).certified)
    x = x[keep]
    far = jnp.asarray(np.random.default_rng(0).uniform(TASK.state_box.lower, TASK.state_box.upper, x.shape), x.dtype)
    out = ~np.asarray(batched(far).certified)
    x, far = x[out], far[out]
    x = _boundary_states(lambda x: batched(x).certified, x, far)
    plans = batched(x)
    assert np.all(plans.certified)
    flips = {"single": np.sum(~np.asarray(single(x)))}
    flips["float64"] = np.sum(~np.asarray(batched(x.astype(jnp.float64)).certified))
    ulps = [jnp.nextafter(x, jnp.asarray(s * jnp.inf, x.dtype)) for s in (1, -1)]
    flips["one ulp"] = np.sum(~np.asarray(batched(ulps[0]).certified & batched(ulps[1]).certified))
    assert sum(flips.values()) > 10, f"no state changes sides: {flips}"
    assert flips["one ulp"] > 10, flips

    # The committed plan, with its acceptance margins, replayed by another program under one ulp of noise.
    accept = jax.jit(jax.vmap(source.init))
    x = _boundary_states(
        lambda x: accept(x).certified, certified_states("smooth", 256)[0].astype(jnp.float32)[keep][out], far
    )
    state = accept(x)
    assert np.all(state.certified)
    again = jax.jit(jax.vmap(lambda s, x: source.fallback(x, s)))
    plant = jax.jit(lambda x, u: jax.lax.map(lambda xu: TASK.system.step(*xu), (x, u)))
    rng = np.random.default_rng(1)
    for _ in range(2 * implicit.horizon):
        x = plant(x, again(state, x))
        x = jnp.nextafter(x, jnp.asarray(np.where(rng.uniform(size=x.shape) < 0.5, -np.inf, np.inf), x.dtype))
        state = jax.vmap(source.after_fallback)(state)
        assert np.all(jax.vmap(TASK.safe_set.contains)(x))
    assert np.all(jax.vmap(implicit.policy.base.contains)(x))


def test_plan_is_read_only_up_to_its_length():
    source = lane_source("smooth")
    _x, state = certified_states("smooth", 64)
    one = jax.tree.map(lambda leaf: leaf[0], state)
    for _ in range(3):
        np.testing.assert_array_equal(one.next_action(), one.actions[int(one.age)])
        one = source.after_fallback(one)
    late = one
    for _ in range(50):
        late = late.replayed(late.expected)
    assert np.all(np.isfinite(late.next_action()))
    nan = jnp.full(3, jnp.nan)
    resting = source.implicit_set.policy.base.controller.equilibrium_input
    # Blind for longer than the plan: the equilibrium input, whatever it is worth then.
    np.testing.assert_array_equal(source.fallback(nan, late), resting)
    np.testing.assert_array_equal(source.fallback(nan, one), one.next_action())


def test_horizon_of_the_closed_form_braking_distance():
    """A cart towards a wall: braking fully from (x, v) is safe iff the discrete stopping distance fits."""
    cart = Cart()
    base = design_base_controller(cart, [1.0, 1.0], [1.0], level=0.05)
    brake = BackupPolicy(base, lambda x: jnp.clip(-x[1:] / 0.1, -1.0, 1.0))
    wall = SuperlevelSet(lambda x: 1.0 - x[0])
    implicit = ImplicitInvariantSet(brake, wall, 30)
    v = np.linspace(0.1, 2.0, 20)

    def reach(x, v):
        while v > 0:
            x, v = x + 0.1 * v, v - min(0.1, v)
        return x

    stop = np.array([reach(0.0, speed) for speed in v])
    for shift, safe in ((-1e-6, True), (1e-6, False)):
        states = jnp.stack([jnp.asarray(1.0 - stop + shift), jnp.asarray(v)], axis=1)
        flow = jax.vmap(implicit.flow)(states)
        np.testing.assert_array_equal(np.min(flow.margins[:, :, 0], axis=1) >= 0, safe)
