"""The power-loop task against a numpy re-implementation of its published definition, and its backup."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from holdfast.backup import BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.learn import SafeArrivalSettings, SafeArrivalTrainer, initialise, train
from holdfast.plots.scene_view import SceneView
from holdfast.tasks import make_task, task_names
from holdfast.tasks.power_loop import attitude_error

TASK = make_task("power-loop")
STEPS = np.arange(106)


@pytest.fixture(scope="module")
def wanted():
    """States [106, 10] and rates [106, 3] of the reference, from the published formulas."""
    t = 0.02 * STEPS
    theta = 3 * t + np.pi
    pitch = np.unwrap(np.arctan2(-13.5 * np.sin(theta), -13.5 * np.cos(theta) + 9.81))
    states = np.zeros((106, 10))
    states[:, 0], states[:, 2] = 1.5 * np.sin(theta), 2 + 1.5 * np.cos(theta)
    states[:, 3], states[:, 5] = 4.5 * np.cos(theta), -4.5 * np.sin(theta)
    states[:, 6], states[:, 8] = np.cos(pitch / 2), np.sin(pitch / 2)
    rates = np.zeros((106, 3))
    rates[:, 1] = np.gradient(pitch, t, edge_order=2)
    return states, rates


def some_states(count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 10))
    x[:, 6:] /= np.linalg.norm(x[:, 6:], axis=1, keepdims=True)
    return x


def test_it_is_in_the_registry():
    assert "power-loop" in task_names() and TASK.episode_steps == 106
    assert TASK.published == {"p_rmse": 0.60, "v_rmse": 0.96, "att_rmse": 0.45}


def test_reference(wanted):
    states, rates = wanted
    ours = jax.vmap(TASK.reference, in_axes=(0, None))(jnp.arange(106), ())
    np.testing.assert_allclose(ours, states, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(TASK.reference_rates)(jnp.arange(106)), rates, atol=1e-12)
    np.testing.assert_array_equal(TASK.reference(jnp.asarray(200), ()), TASK.reference(jnp.asarray(105), ()))
    assert 3.49 < states[:, 2].max() <= 3.5  # above the ceiling...
    top = int(states[:, 2].argmax())
    assert Rotation.from_quat(states[top, 6:], scalar_first=True).as_matrix()[2, 2] < 0  # ... and inverted


def test_reward(wanted):
    states, rates = wanted
    x, rng = some_states(1)[0], np.random.default_rng(5)
    for t in (0, 40, 104, 105):
        x_next, u = some_states(1, seed=t)[0], rng.uniform(TASK.system.input_box.lower, TASK.system.input_box.upper)
        k = min(t + 1, 105)
        e = states[k] - x_next
        turn = (
            Rotation.from_quat(states[k, 6:], scalar_first=True)
            * Rotation.from_quat(x_next[6:], scalar_first=True).inv()
        )
        att = turn.as_quat(canonical=True, scalar_first=True)[1:]
        dw = u[1:] - (rates[min(t, 105)] + rates[k]) / 2
        cost = 2.5 * (e[0] ** 2 + e[1] ** 2) + 2 * e[2] ** 2 + 4 * (e[3:6] @ e[3:6]) + 16 * att @ att
        cost += 0.1 * dw[0] ** 2 + 0.2 * dw[1] ** 2 + 0.05 * dw[2] ** 2 + 0.01 * u[0] ** 2 + 0.01 * (u[1:] @ u[1:])
        ours = TASK.reward(jnp.asarray(x), jnp.asarray(u), jnp.asarray(x_next), jnp.asarray(t), ())
        np.testing.assert_allclose(ours, -cost, rtol=1e-12)


def test_metrics(wanted):
    states, _ = wanted
    flown = some_states(107)
    aim = states[np.minimum(np.arange(1, 107), 105)]
    gap = aim - flown[1:]
    turn = (
        Rotation.from_quat(aim[:, 6:], scalar_first=True) * Rotation.from_quat(flown[1:, 6:], scalar_first=True).inv()
    )
    expected = {
        "p_rmse": np.sqrt(np.mean(np.sum(gap[:, :3] ** 2, axis=1))),
        "v_rmse": np.sqrt(np.mean(np.sum(gap[:, 3:6] ** 2, axis=1))),
        "att_rmse": np.sqrt(np.mean(turn.magnitude() ** 2)),
    }
    ours = TASK.metrics(jnp.asarray(flown), ())
    assert ours.keys() == expected.keys() == TASK.metric_units.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-12)


def test_published_floor(wanted):
    """Height clipped at the ceiling, everything else perfect: p-RMSE 0.186 (TASKS)."""
    states = np.concatenate([wanted[0], wanted[0][-1:]])
    states[:, 2] = np.minimum(states[:, 2], 3.0)
    ours = TASK.metrics(jnp.asarray(states), ())
    np.testing.assert_allclose(ours["p_rmse"], 0.186, atol=2e-3)
    assert ours["v_rmse"] == 0 and ours["att_rmse"] < 1e-7


def test_attitude_error_does_not_care_for_the_sign():
    q, r = some_states(20)[:, 6:], some_states(20, seed=1)[:, 6:]
    ours = jax.vmap(attitude_error)(q, r)
    np.testing.assert_allclose(jax.vmap(attitude_error)(-q, r), ours)
    np.testing.assert_allclose(jax.vmap(attitude_error)(q, q), np.zeros((20, 3)), atol=1e-15)


def test_starts_and_sampled_states(wanted):
    keys = jax.random.split(jax.random.key(0), 500)
    starts = np.asarray(jax.vmap(TASK.sample_start)(keys))
    assert (np.abs(starts[:, :3] - wanted[0][0, :3]) <= 0.1 + 1e-12).all() and np.ptp(starts[:, 0]) > 0.19
    np.testing.assert_allclose(starts[:, 3:], np.tile(wanted[0][0, 3:], (500, 1)), atol=1e-12)
    x = np.asarray(jax.vmap(TASK.sample_state)(keys))
    assert (x[:, 2] >= 0).all() and (x[:, 2] <= 3).all() and (np.abs(x[:, 3:6]) <= 6).all()
    np.testing.assert_allclose(np.linalg.norm(x[:, 6:], axis=1), 1, atol=1e-12)
    # Uniform attitude: the body's z axis points anywhere, with mean zero.
    up = Rotation.from_quat(x[:, 6:], scalar_first=True).as_matrix()[:, :, 2]
    assert np.abs(up.mean(0)).max() < 0.1 and up[:, 2].min() < -0.9
    assert jax.vmap(TASK.state_box.contains)(jnp.asarray(x)).all()


def test_observation():
    x = jnp.asarray(some_states(1)[0])
    seen = TASK.observe(x, jnp.asarray(30), ())
    assert seen.shape == (TASK.observation_size,) == (35,)
    np.testing.assert_array_equal(seen[:10], x)
    np.testing.assert_allclose(seen[23:26], [0.6, np.sin(2 * np.pi * 30 / 105), np.cos(2 * np.pi * 30 / 105)])
    np.testing.assert_allclose(seen[26:32], seen[10:16] - x[:6])
    np.testing.assert_allclose(seen[32:], attitude_error(seen[16:20], x[6:]))


def test_nominal_input_flies_the_reference_where_nothing_is_in_the_way():
    """Open loop, from its start: the reference's own thrust and rates, found from the observation, follow it to 0.4 m."""
    x = jnp.asarray(TASK.reference(0, ()))
    worst = 0.0
    follow = jax.jit(lambda x, t: TASK.system.step(x, TASK.nominal(TASK.observe(x, t, ()))))
    for t in range(105):
        x = follow(x, jnp.asarray(t))
        worst = max(worst, float(jnp.linalg.norm(x[:3] - TASK.reference(t + 1, ())[:3])))
    assert worst < 0.4 and x[6] < -0.99


def test_practice_is_on_the_loop_and_under_the_ceiling():
    x, t = jax.vmap(TASK.sample_practice)(jax.random.split(jax.random.key(3), 256))
    gap = x - jax.vmap(lambda t: TASK.reference(t, ()))(t)
    assert np.all(np.abs(gap[:, :2]) <= 0.1) and np.all(x[:, 2] < 3.0) and np.all(gap[:, 3:] == 0)
    assert np.min(t) < 10 and np.max(t) > 95


def test_stoppable_is_what_full_braking_can_do():
    """Any thrust at any attitude leaves more height than five g downwards; the bound is monotone in height and speed."""
    x = np.asarray(jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(1), 4000)))
    stoppable = np.asarray(jax.jit(jax.vmap(TASK.stoppable))(jnp.asarray(x)))
    v, z = np.maximum(x[:, 5], 0), x[:, 2]
    continuous = z + v**2 / (10 * 9.81) <= 3
    assert stoppable[v == 0].all() and (stoppable == continuous).mean() > 0.99
    assert 0.97 < stoppable.mean() < 0.99


def test_scene_keeps_its_shapes_and_can_be_drawn():
    from matplotlib.figure import Figure

    from holdfast.plots.theme import LIGHT

    states = np.asarray(jax.vmap(TASK.reference, in_axes=(0, None))(jnp.arange(107), ()))
    futures = {"backup": states[:30], "proposed": np.full((5, 10), np.nan)}
    figure = Figure()
    view = SceneView(figure.subplots(), TASK.scene(states, 0, (), futures), LIGHT)
    for t in (1, 50, 106):
        view.update(TASK.scene(states, t, (), futures))
    # The body's axis and its thrust are unit vectors in this plane, as the reference flies in it.
    bar = next(s for s in TASK.scene(states, 52, (), futures).shapes if s.role == "body")
    np.testing.assert_allclose(np.linalg.norm(bar.points[1] - bar.points[0]), 0.56)


def test_phase_one_learns():
    """Toy size: a minute fraction of the default training already saves more than the analytic backup does."""
    safety, horizon = TASK.safety, 50
    base = design_base_controller(TASK.system, np.asarray(safety.state_cost), np.asarray(safety.input_cost), level=25.0)
    settings = SafeArrivalSettings(updates=150, batch=64, hidden=(32,))
    trainer = SafeArrivalTrainer(base, TASK.safe_set, TASK.sample_state, horizon, settings)
    state = train(trainer, initialise(trainer, jax.random.split(jax.random.key(0), 1)), updates=150, chunk=150)
    network = jax.tree.map(lambda leaf: leaf[0] if isinstance(leaf, jax.Array) else leaf, state.network)
    x = jax.vmap(TASK.sample_state)(jax.random.split(jax.random.key(1), 500))

    @eqx.filter_jit
    def share(outside, x):
        implicit = ImplicitInvariantSet(BackupPolicy(base, outside), TASK.safe_set, horizon)
        return jnp.mean(jax.vmap(implicit.contains)(x))

    assert share(network, x) > share(None, x) + 0.05
