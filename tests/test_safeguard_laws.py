"""Laws that every map and every source keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.safeguards import MAPS as NAMED
from holdfast.types import Status
from systems_for_tests import HALF, MAPS, TASK, bang_bang, batched_step, certified_states, lane_source, safeguard

COUNT = 192
EVERY = [("ray", "lqr"), ("per_input", "lqr"), ("boundary_projection", "lqr"), ("all", "smooth")]
every_map = pytest.mark.parametrize("maps, backup", EVERY)


def _run(maps, backup, u=None):
    x, state = certified_states(backup, COUNT)
    u = bang_bang(len(x)) if u is None else u
    return x, state, u, *batched_step(maps, backup)(state, x, u)


@every_map
def test_output_lies_in_the_box_and_keeps_the_certificate(maps, backup):
    x, _, _, answer, after = _run(maps, backup)
    assert np.all(np.abs(answer.action) <= HALF[None])
    assert np.all(after.certified)
    assert np.all(answer.margin >= 0)
    assert np.sum(answer.status == Status.corrected) >= 5
    corrected = np.flatnonzero(answer.status == Status.corrected)
    check = jax.jit(jax.vmap(lane_source(backup).check))
    # Verified by another program, without the acceptance margins' slack.
    assert np.all(check(x[corrected], answer.action[corrected]).margin >= -1e-9)


@every_map
def test_safe_actions_come_back_bit_for_bit(maps, backup):
    *_, u, answer, _ = _run(maps, backup)
    accepted = np.asarray(answer.status == Status.accepted)
    assert accepted.sum() > 50
    np.testing.assert_array_equal(np.asarray(answer.action)[accepted], np.asarray(u)[accepted])
    np.testing.assert_array_equal(np.asarray(answer.correction)[accepted], 0)


@every_map
def test_idempotent(maps, backup):
    x, state, _, answer, _ = _run(maps, backup)
    again, _ = batched_step(maps, backup)(state, x, answer.action)
    moved = np.any(np.asarray(again.action != answer.action), axis=1) & (answer.status != Status.fell_back)
    assert not moved.any(), f"{moved.sum()} safe actions were moved when they were proposed again"


@every_map
def test_batch_equals_loop_equals_eager(maps, backup):
    x, state, u, answer, after = _run(maps, backup)
    corrected = np.flatnonzero(answer.status == Status.corrected)[:3]
    accepted = np.flatnonzero(answer.status == Status.accepted)[:2]
    guard = safeguard(maps, backup)
    single = jax.jit(lambda s, x, u: guard.step(s, x, u))
    for i in [*corrected, *accepted]:
        one, plan = single(jax.tree.map(lambda leaf, i=i: leaf[i], state), x[i], u[i])
        assert one.status == answer.status[i]
        np.testing.assert_allclose(one.action, answer.action[i], rtol=1e-9, atol=1e-9)
        assert plan.length == after.length[i]
        k = int(plan.length)
        np.testing.assert_allclose(plan.actions[:k], after.actions[i, :k], rtol=1e-6, atol=1e-6)
    if maps != "ray":
        return
    i = int(accepted[0])
    eager, _ = guard.step(jax.tree.map(lambda leaf: leaf[i], state), x[i], u[i])
    np.testing.assert_array_equal(eager.action, answer.action[i])


@pytest.mark.parametrize("maps", ["ray"])
def test_batches_within_batches_give_the_same(maps):
    x, state, u, answer, _ = _run(maps, "lqr")
    fold = lambda tree: jax.tree.map(lambda leaf: leaf.reshape(4, -1, *leaf.shape[1:]), tree)  # noqa: E731
    nested, _ = jax.jit(jax.vmap(jax.vmap(safeguard(maps).step)))(fold(state), fold(x), fold(u))
    np.testing.assert_array_equal(nested.status.reshape(-1), answer.status)
    np.testing.assert_allclose(nested.action.reshape(-1, 2), answer.action, rtol=1e-9, atol=1e-9)


def test_without_a_history_it_is_a_step_from_a_fresh_commitment():
    """`guard` looks for a commitment only where the proposal fails: but for rounding, the answer may not tell."""
    guard = safeguard("ray")
    x, u = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(5), COUNT)), bang_bang(COUNT)
    u = u.at[:4].set(jnp.array([[jnp.nan, 0.0], [jnp.inf, 0.0], [9.0, 9.0], [1e300, 0.0]]))
    x = x.at[4].set(jnp.nan)

    @jax.jit
    @jax.vmap
    def both(x, u):
        return guard.guard(x, u), guard.step(guard.init(x), x, u)[0]

    short, whole = both(x, u)
    assert {Status.accepted, Status.corrected, Status.uncertified, Status.bad_action} <= set(np.asarray(short.status))
    np.testing.assert_array_equal(short.status, whole.status)
    np.testing.assert_array_equal(short.correction == 0, whole.correction == 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), short, whole)


@pytest.mark.parametrize("name", list(NAMED))
def test_declared_expansion_holds_where_the_safe_actions_are_convex(name):
    """|a(u) - a(v)| <= |u - v| in half-widths, for maps that declare it, up to the search's resolution."""
    if not NAMED[name].non_expansive:
        pytest.skip("not declared")
    x, state = certified_states("lqr", COUNT)
    step = batched_step(name)
    u, v = bang_bang(len(x)), bang_bang(len(x), seed=3) * 0.9
    a, b = step(state, x, u)[0], step(state, x, v)[0]
    distance = lambda p, q: np.linalg.norm(np.asarray(p - q) / HALF, axis=1)  # noqa: E731
    assert np.all(distance(a.action, b.action) <= 1.02 * distance(u, v) + 1e-3)


def test_projection_and_per_input_change_actions_less_than_the_ray():
    moved = {}
    for maps in MAPS:
        *_, _u, answer, after = _run(maps, "lqr")
        assert np.all(after.certified)
        distance = np.linalg.norm(np.asarray(answer.correction) / HALF, axis=1)
        moved[maps] = distance[np.asarray(answer.status) != Status.accepted].mean()
    assert moved["boundary_projection"] < moved["ray"]
    assert moved["per_input"] < moved["ray"]
    assert moved["all"] <= 1.001 * min(moved[maps] for maps in ("ray", "per_input", "boundary_projection"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("maps", ["boundary_projection"])
def test_total_for_any_numbers(maps, dtype):
    x, state = certified_states("lqr", COUNT)
    x = x[:8].astype(dtype)
    state = jax.jit(jax.vmap(lane_source().init))(x)
    bad_values = np.array([np.nan, np.inf, -np.inf, 1e30, 1.0, 1.0, 1.0, 1.0], dtype)
    u = jnp.asarray(np.stack([bad_values, np.zeros(8, dtype)], axis=1))
    bad_x = x.at[4, 0].set(jnp.nan).at[5, 1].set(jnp.inf).at[6, 2].set(-jnp.inf).at[7, 0].set(1e30)
    step = jax.jit(jax.vmap(safeguard(maps).step))
    answer, after = step(state, bad_x, u)
    assert np.all(np.isfinite(answer.action)) and np.all(np.abs(answer.action) <= HALF[None].astype(dtype))
    assert answer.action.dtype == dtype
    assert np.all(np.isfinite(answer.correction))
    assert list(answer.status[:3]) == [Status.bad_action] * 3
    assert list(answer.status[4:7]) == [Status.bad_state] * 3
    assert answer.status[3] in (Status.corrected, Status.fell_back)
    assert answer.status[7] == Status.fell_back
    assert np.all(after.certified)
    # Bad numbers, and no promise to fall back on.
    nothing = jax.jit(jax.vmap(lane_source().init))(jnp.full_like(x, 50.0))
    assert not np.any(nothing.certified)
    answer, after = step(nothing, jnp.full_like(bad_x, 50.0), u)
    assert np.all(answer.status == Status.uncertified)
    assert np.all(np.isfinite(answer.action)) and np.all(np.abs(answer.action) <= HALF[None])
    assert np.all(answer.margin == -np.inf) and not np.any(after.certified)


def test_an_uncertified_start_is_certified_as_soon_as_it_can_be():
    x, _ = certified_states("lqr", COUNT)
    nothing = jax.jit(jax.vmap(lane_source().init))(jnp.full_like(x, 50.0))
    for maps in ("per_input", "ray"):
        answer, after = batched_step(maps)(nothing, x, bang_bang(len(x)))
        # From a certified state some action is verified: the proposal, a correction, or the backup's.
        assert np.all(after.certified)
        assert not np.any(answer.status == Status.uncertified)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_replaying_the_plan_for_the_whole_horizon_and_beyond_stays_safe(dtype):
    x, _ = certified_states("smooth", COUNT)
    x = x.astype(dtype)
    guard = safeguard("ray", "smooth")
    state = jax.jit(jax.vmap(guard.init))(x)
    keep = np.flatnonzero(state.certified)
    x, state = jax.tree.map(lambda leaf: leaf[keep], (x, state))
    nan = jnp.full((len(x), 2), jnp.nan, x.dtype)
    step = jax.jit(jax.vmap(guard.step))
    plant = jax.jit(jax.vmap(TASK.system.step))
    margin = jax.jit(jax.vmap(TASK.safe_set.margin))
    for _ in range(2 * lane_source("smooth").implicit_set.horizon):
        answer, state = step(state, x, nan)
        assert np.all(answer.status == Status.bad_action)
        x = plant(x, answer.action)
        assert np.all(margin(x) >= 0)
