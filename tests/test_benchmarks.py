"""The published layer that benchmarks compare with is right, and kept results are strict JSON that says how it was made."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import BackupPolicy, design_base_controller
from holdfast.solvers import SolverStatus, project
from holdfast.systems import Unicycle
from holdfast.tasks import make_task

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
KEYS = {"benchmark", "command", "date", "quick", "settings", "numbers", "environment"}


def make_layer(dt=0.05, horizon=12, **settings):
    pytest.importorskip("qpax", reason="the published layer is solved by qpax: install the extra 'bench'")
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks._published_layer import PublishedLayer
    finally:
        sys.path.remove(str(ROOT))
    base = design_base_controller(Unicycle(dt=dt), np.ones(3), np.array([0.01, 0.5]))
    return PublishedLayer(BackupPolicy(base), make_task("lane-keeping").safe_set, horizon, **settings)


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    return jnp.asarray(np.array([0.0, 5.0, 0.0]) + np.array([1.2, 0.3, 0.3]) * rng.uniform(-1, 1, (16, 3)))


def sensitivity_error(dt, seconds, x):
    """Largest error of the last Q against central differences of the flow."""
    layer = make_layer(dt, round(seconds / dt))
    flow, step = jax.jit(jax.vmap(lambda x: layer.flow(x)[-1])), 1e-6
    moved = x[None] + step * np.concatenate([np.eye(3), -np.eye(3)])
    ends = np.asarray(flow(moved))
    differences = ((ends[:3] - ends[3:]) / (2 * step)).T
    found = jax.jit(lambda x: layer.sensitivities(layer.flow(x))[-1])(x)
    return np.max(np.abs(np.asarray(found) - differences))


def test_sensitivity_converges_to_finite_differences_of_the_flow():
    x = jnp.array([0.4, 5.1, 0.1])
    coarse, fine = sensitivity_error(0.004, 0.2, x), sensitivity_error(0.002, 0.2, x)
    # Matrix exponential and explicit Euler agree to first order in dt: half the step, half the error.
    assert fine < 0.02
    assert 1.7 < coarse / fine < 2.3


def test_rows_are_the_derivative_of_the_margins_along_the_flow(states):
    layer, u, step = make_layer(0.002, 60), jnp.array([3.0, -0.7]), 1e-6

    @jax.jit
    @jax.vmap
    def both(x):
        motion = layer._derivative(x, u)
        margins = lambda x: jax.vmap(layer.safe_set.margin)(layer.flow(x))  # noqa: E731
        base = lambda x: layer.policy.base.margin(layer.flow(x)[-1])  # noqa: E731
        rate = (margins(x + step * motion) - margins(x - step * motion)) / (2 * step)
        base_rate = (base(x + step * motion) - base(x - step * motion)) / (2 * step)
        nodes = layer.flow(x)
        own = jax.vmap(lambda n: jax.jvp(layer.safe_set.margin, (n,), (layer.closed_loop(n),))[1])(nodes)
        wanted = jnp.concatenate([(rate - own + 4 * margins(x)).reshape(-1), (base_rate + 2 * base(x))[None]])
        A, b = layer.rows(x)
        return A @ u - b, wanted

    found, wanted = both(states)
    np.testing.assert_allclose(found[:, :-1], wanted[:, :-1], atol=0.03)
    # The base margin is steep: 1 - V/c with c = 1.
    np.testing.assert_allclose(found[:, -1], wanted[:, -1], rtol=0.03, atol=0.3)


def test_the_backup_action_satisfies_the_safe_set_rows_where_the_flow_is_safe(states):
    layer = make_layer(0.002, 60)
    A, b = jax.jit(jax.vmap(layer.rows))(states)
    h = jax.vmap(lambda x: jnp.min(jax.vmap(layer.safe_set.margin)(layer.flow(x))))(states)
    u = jax.vmap(layer.policy)(states)
    slack = jnp.min(jnp.sum(A * u[:, None], axis=2)[:, :-1] - b[:, :-1], axis=1)
    assert bool(jnp.all(h > 0.05))
    assert bool(jnp.all(slack > 0))


def test_the_quadratic_program_agrees_with_our_solver(states):
    layer = make_layer(slack_weight=1e7, tolerance=1e-6)
    box = layer.policy.base.system.input_box
    half = jnp.asarray(box.half_widths)
    u = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (len(states), 2))) * half[None]

    @jax.jit
    @jax.vmap
    def both(x, u):
        A, b = layer.rows(x)
        lower, upper = box.bounds(x.dtype)
        return layer.solve(x, u), project(u / half, A * half[None], b, lower / half, upper / half)

    with jax.numpy_rank_promotion("allow"):  # qpax promotes ranks inside
        answer, ours = both(states, u)
    solvable = np.asarray(ours.status == SolverStatus.solved)
    changed = np.max(np.abs(np.asarray(ours.value - u / half[None])), axis=1) > 1e-3
    assert np.sum(solvable & changed) >= 3
    assert bool(jnp.all(answer.converged[solvable]))
    np.testing.assert_allclose((answer.action / half[None])[solvable], ours.value[solvable], atol=1e-4)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_are_strict_json_with_the_command_that_makes_them(file):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = file.read_text(encoding="utf-8")
    document = json.loads(text, parse_constant=refuse)
    assert set(document) - {"non_finite"} == KEYS
    assert document["benchmark"] == file.stem
    assert document["command"].startswith(f"python -m benchmarks.{file.stem}")
    assert (ROOT / "benchmarks" / f"{file.stem}.py").is_file()
    assert not document["quick"], "smoke tests do not belong here"
    assert {"versions", "device", "precision"} <= set(document["environment"])
    assert not any(place in text for place in ("/home/", "/work/", "/tmp/", "/root/", "/Users/"))
