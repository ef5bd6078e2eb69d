"""The published layer that benchmarks compare with is right, so are the searches and timings of the benchmarks, and kept
results are strict JSON that says how it was made."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import _readme, optimal_control, scaling, seeds
from benchmarks.__main__ import BENCHMARKS
from benchmarks._common import result_name

from holdfast.backup import BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.systems import Unicycle
from holdfast.tasks import LaneKeeping, make_task, task_names

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
KEYS = {"benchmark", "command", "date", "quick", "settings", "numbers", "environment"}


def make_layer(dt=0.05, horizon=12, **settings):
    pytest.importorskip("qpax", reason="the published layer is solved by qpax: install the extra 'bench'")
    from benchmarks._published_layer import PublishedLayer

    base = design_base_controller(Unicycle(dt=dt), np.ones(3), np.array([0.01, 0.5]))
    return PublishedLayer.of(
        ImplicitInvariantSet(BackupPolicy(base), make_task("lane-keeping").safe_set, horizon), **settings
    )


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    return jnp.asarray(np.array([0.0, 5.0, 0.0]) + np.array([1.2, 0.3, 0.3]) * rng.uniform(-1, 1, (16, 3)))


def sensitivity_error(dt, seconds, x):
    """Largest error of the last Q against central differences of the flow."""
    layer = make_layer(dt, round(seconds / dt))
    flow, step = jax.jit(jax.vmap(lambda x: layer.layer.flow(x)[-1])), 1e-6
    moved = x[None] + step * np.concatenate([np.eye(3), -np.eye(3)])
    ends = np.asarray(flow(moved))
    differences = ((ends[:3] - ends[3:]) / (2 * step)).T
    found = jax.jit(lambda x: layer.sensitivities(layer.layer.flow(x))[-1])(x)
    return np.max(np.abs(np.asarray(found) - differences))


def test_sensitivity_converges_to_finite_differences_of_the_flow():
    x = jnp.array([0.4, 5.1, 0.1])
    coarse, fine = sensitivity_error(0.004, 0.2, x), sensitivity_error(0.002, 0.2, x)
    # Matrix exponential and explicit Euler agree to first order in dt: half the step, half the error.
    assert fine < 0.02
    assert 1.7 < coarse / fine < 2.3


def test_exponentials_are_the_flows_derivative_to_first_order(states):
    layer = make_layer(0.002, 60)
    (A, b), (A_exact, b_exact) = jax.jit(jax.vmap(lambda x: (layer.rows(x), layer.layer.rows(x))))(states)
    u = jnp.array([3.0, -0.7])
    found, wanted = (np.asarray(A @ u - b) for A, b in ((A, b), (A_exact, b_exact)))
    np.testing.assert_allclose(found[:, :-1], wanted[:, :-1], atol=0.03)
    # The base margin is steep: 1 - V/c with c = 1.
    np.testing.assert_allclose(found[:, -1], wanted[:, -1], rtol=0.03, atol=0.3)


def test_qpax_and_our_solver_find_the_same_action(states):
    layer = make_layer(tolerance=1e-6, exponentials=False)
    half = jnp.asarray(layer.layer.input_box.half_widths)
    u = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (len(states), 2))) * half[None]
    with jax.numpy_rank_promotion("allow"):  # qpax promotes ranks inside
        theirs, ours = jax.jit(jax.vmap(lambda x, u: (layer.solve(x, u), layer.layer.answer(x, u))))(states, u)
    assert bool(jnp.all(theirs.converged & ours.solved))
    changed = np.max(np.abs(np.asarray(ours.action - u) / np.asarray(half)), axis=1) > 1e-3
    assert np.sum(changed) >= 3 and np.sum(np.asarray(ours.slack) > 1e-5) >= 1
    np.testing.assert_allclose(theirs.action / half[None], ours.action / half[None], atol=1e-4)
    np.testing.assert_allclose(theirs.slack, ours.slack, atol=1e-5)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_are_strict_json_with_the_command_that_makes_them(file):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = file.read_text(encoding="utf-8")
    document = json.loads(text, parse_constant=refuse)
    assert set(document) - {"non_finite"} == KEYS
    name, task = document["benchmark"], document["settings"].get("task")
    assert file.stem == result_name(name, task)
    about = "" if task is None else f" --task {task}"
    assert document["command"] in (f"python -m benchmarks.{name}{about}", f"python -m benchmarks.{name} --run RUN")
    assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    assert not document["quick"], "smoke tests do not belong here"
    assert {"versions", "device", "precision"} <= set(document["environment"])
    assert not any(place in text for place in ("/home/", "/work/", "/tmp/", "/root/", "/Users/"))


@pytest.mark.parametrize("name", task_names())
def test_optimal_control_of_a_task_is_what_its_results_file_says(name):
    task, file = make_task(name), ROOT / "benchmarks" / "results" / f"{result_name('optimal_control', name)}.json"
    assert bool(task.optimal_control) == file.is_file(), f"{name}.optimal_control and {file.name} belong together"
    if not task.optimal_control:
        return
    numbers = json.loads(file.read_text(encoding="utf-8"))["numbers"]
    assert task.optimal_control.keys() == {"return", *task.metric_units}
    for metric, value in task.optimal_control.items():
        assert value == pytest.approx(numbers["mean"][metric], rel=1e-3), metric
    assert numbers["worst_margin"] >= 0


class ShortLane(LaneKeeping):
    """Lane keeping for one and a half seconds, next to the left edge, where its reference goes beyond."""

    episode_steps = 30

    def reference(self, t, context):
        return super().reference(t + 30, context)


def test_optimal_control_keeps_every_margin_and_beats_the_tracking_law():
    task = ShortLane()
    search = optimal_control.Search(task, iterations=400)
    x = jnp.array([[1.6, 5.0, 0.2]], jnp.float32)
    law = optimal_control.Answer(jnp.tile(search.rest, (1, 30, 1)), jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32))
    before = search._judge(law, x)
    answer = search._improve(law, x, x, search.rates[0])
    after = search._judge(answer, x)
    assert before["worst_margin"] < 0 and before["return"] == -jnp.inf, "the law alone leaves the lane"
    assert after["worst_margin"] >= 0 and jnp.isfinite(after["return"])
    # An own loop over the same inputs, in float64 but for rounding: return and margins are what the search says.
    state, total = np.asarray(x[0], np.float64), 0.0
    for t in range(30):
        wanted = task.reference(t + 1, ())
        u = search.half * np.tanh(answer.z[0, t] - search.gain @ np.asarray(state - wanted) / search.half)
        following = task.system.step(jnp.asarray(state), jnp.asarray(u, jnp.float64))
        total += float(task.reward(jnp.asarray(state), jnp.asarray(u, jnp.float64), following, t, ()))
        state = np.asarray(following)
        assert np.all(task.safe_set.margin(following) >= -1e-4)
    assert total == pytest.approx(float(after["return"][0]), rel=1e-4)


def test_optimal_control_without_a_safe_answer_is_refused():
    search = optimal_control.Search(ShortLane(), iterations=1)
    with pytest.raises(SystemExit, match="1 of 2 starts"):
        search._require(np.array([-1.0, -np.inf]))


def test_the_scaling_benchmark_times_what_it_says():
    # `programs_of` raises unless every proposal is accepted by one safeguard and rejected by the other.
    programs, arguments = scaling.programs_of(make_task("lane-keeping"), horizon=3, batch=4)
    assert tuple(programs) == scaling.PARTS and {len(leaf) for leaf in jax.tree.leaves(arguments)} == {4}
    times = {part: {"median_us": 10.0 + i} for i, part in enumerate(scaling.PARTS)}
    measured = [
        {"task": name, "states": n, "horizon": horizon, "batch": times, "single": times}
        for name, n, horizon in (("a", 3, 50), ("a", 3, 100), ("b", 10, 50))
    ]
    proofs = {"a": {"states": 3, "seconds": 1.0, "level": 1.0}, "b": {"states": 10, "seconds": 9.0, "level": None}}
    figure = scaling.scaling_figure(measured, proofs, 50)
    assert len(figure.axes) == 4 and all(ax.get_xscale() == ax.get_yscale() == "log" for ax in figure.axes)
    words = dict((row[0], row[3]) for row in _readme._scaling({"measured": measured, "proofs": proofs}, None))
    assert words["proof of the base set from nothing"] == "1 of 2 tasks; 3 states 1.0 s"


def test_what_was_not_measured_is_named_in_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(_readme, "RESULTS", tmp_path)
    monkeypatch.setattr(_readme, "REPRODUCED", tmp_path)
    rows = _readme.table().splitlines()[2:]
    assert all(_readme.MISSING in row for row in rows)
    for name, options in BENCHMARKS:  # optimal control stands in the row of the return
        assert name == "optimal_control" or any(
            f"`python -m benchmarks.{' '.join([name, *options])}`" in r for r in rows
        )


def test_the_gap_to_optimal_control_is_a_share_of_it():
    assert seeds.return_gap(-385.0, -368.0) == pytest.approx(17 / 368)
    assert seeds.return_gap(-1.0, None) is None
    assert seeds.worst("return", [-3.0, -5.0]) == -5.0 and seeds.worst("y_rmse", [0.3, 0.5]) == 0.5
