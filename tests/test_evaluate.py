"""Episodes, statistics, explanations, coverage and reports."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import AcceptanceMargins, BackupPolicy, ImplicitInvariantSet, design_base_controller
from holdfast.certify.certificate import Certificate, Obligation
from holdfast.evaluate import (
    Evaluator,
    Report,
    bootstrap_interval,
    clopper_pearson,
    constrained_axes,
    count_by_constraint,
    evaluate_policy,
    evaluate_seeds,
    explain_interventions,
    interquartile_mean,
    invariant_slice,
    lower_bound,
    make_report,
    measure_coverage,
    rule_of_three,
    summarise,
    upper_bound,
)
from holdfast.safeguards import BackupSource, Ray, Safeguard
from holdfast.tasks import make_task
from holdfast.types import Status, Unguarded

STEPS, HORIZON = 60, 40
TASK = make_task("lane-keeping")
BASE = design_base_controller(TASK.system, TASK.safety.state_cost, TASK.safety.input_cost, level=1.05)
IMPLICIT = ImplicitInvariantSet(BackupPolicy(BASE, None), TASK.safe_set, HORIZON)
SAFEGUARD = Safeguard(BackupSource(IMPLICIT, AcceptanceMargins(np.full(4, 1e-4), 1e-3)), (Ray(),))
UNGUARDED = Unguarded(jnp.asarray(TASK.system.input_box.lower), jnp.asarray(TASK.system.input_box.upper))


class Tracker(eqx.Module):
    """Follows the reference out of the lane."""

    gain: jax.Array

    def __call__(self, observation):
        y, v, psi, y_ref, v_ref, psi_ref = observation[:6]
        heading = jnp.clip(psi_ref + 0.5 * (y_ref - y), -1.2, 1.2)
        return jnp.stack([2 * (v_ref - v), self.gain * (heading - psi)])


TRACKER = Tracker(jnp.asarray(2.0))


def broken_policy(observation):
    return jnp.full(2, jnp.nan)


@pytest.fixture(scope="module")
def guarded():
    return Evaluator(TASK, SAFEGUARD, TRACKER, batch=8, keep=3, steps=STEPS)


@pytest.fixture(scope="module")
def results(guarded):
    return guarded(SAFEGUARD, TRACKER, seed=1, episodes=10)


@pytest.fixture(scope="module")
def unsafe_results():
    return evaluate_policy(TASK, UNGUARDED, TRACKER, seed=1, episodes=6, keep=2, steps=STEPS)


def test_guarded_episodes_are_safe_and_the_policy_is_not(results, unsafe_results):
    assert results.violations.sum() == 0 and results.worst_margin.min() > 0
    assert results.interventions.sum() > 0 and not results.diverged.any()
    assert unsafe_results.violations.sum() > 0 and unsafe_results.worst_margin.min() < 0
    assert unsafe_results.status_counts()["unguarded"] == 6 * STEPS
    # The same episode starts the same with or without a safeguard.
    np.testing.assert_array_equal(results.trajectories.states[:2, 0], unsafe_results.trajectories.states[:2, 0])


def test_episodes_do_not_depend_on_the_batch(results):
    other = evaluate_policy(TASK, SAFEGUARD, TRACKER, seed=1, episodes=5, batch=3, keep=2, steps=STEPS)
    np.testing.assert_array_equal(other.statuses, results.statuses[:5])
    np.testing.assert_array_equal(other.violations, results.violations[:5])
    np.testing.assert_allclose(other.worst_margin, results.worst_margin[:5], rtol=1e-9)
    for name, values in other.metrics.items():
        np.testing.assert_allclose(values, results.metrics[name][:5], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(other.trajectories.states, results.trajectories.states[:2], rtol=1e-9)


def test_more_episodes_only_append(guarded, results):
    fewer = guarded(SAFEGUARD, TRACKER, seed=1, episodes=2)
    assert fewer.episodes == 2 and fewer.trajectories.states.shape == (2, STEPS + 1, 3)
    assert fewer.compile_seconds == 0
    for name, values in fewer.metrics.items():
        np.testing.assert_array_equal(values, results.metrics[name][:2])


def test_summary_agrees_with_the_kept_trajectories(results, unsafe_results):
    for each in (results, unsafe_results):
        kept = each.trajectories
        count = len(kept.states)
        np.testing.assert_array_equal(each.violations[:count], (kept.margins < 0).any(axis=2).sum(axis=1))
        np.testing.assert_array_equal(each.worst_margin[:count], kept.margins.min(axis=1))
        np.testing.assert_allclose(each.metrics["return"][:count], kept.reward.sum(axis=1), rtol=1e-9)
        error = (kept.states - kept.reference)[:, 1:, 0]
        np.testing.assert_allclose(each.metrics["y_rmse"][:count], np.sqrt((error**2).mean(axis=1)), rtol=1e-6)
        np.testing.assert_array_equal(each.statuses.sum(axis=1), STEPS)
        accepted = kept.status == Status.accepted
        np.testing.assert_array_equal(kept.applied[accepted], kept.proposed[accepted])
        assert kept.times[1] == pytest.approx(0.05)


def test_one_program_serves_several_seeds(guarded, results):
    program = guarded._program
    same = guarded(SAFEGUARD, Tracker(jnp.asarray(2.0)), seed=1, episodes=10)
    other = guarded(SAFEGUARD, Tracker(jnp.asarray(1.0)), seed=1, episodes=10)
    # Acceptance margins differ from seed to seed and need no new program either.
    strict = eqx.tree_at(lambda s: s.source.acceptance, SAFEGUARD, AcceptanceMargins(np.full(4, 0.1), 1e-3))
    wide = guarded(strict, TRACKER, seed=1, episodes=10)
    assert guarded._program is program
    np.testing.assert_array_equal(same.metrics["y_rmse"], results.metrics["y_rmse"])
    assert (other.metrics["y_rmse"] != results.metrics["y_rmse"]).all()
    assert wide.worst_margin[:, :2].min() > 0.05 > results.worst_margin[:, :2].min()


def test_seeds_need_a_guard_each():
    with pytest.raises(ValueError, match="1 guards for 2 policies"):
        evaluate_seeds(TASK, [SAFEGUARD], [TRACKER, TRACKER])


def test_nan_proposals_are_named_and_safe():
    broken = evaluate_policy(TASK, SAFEGUARD, broken_policy, episodes=3, steps=STEPS)
    assert broken.status_counts()["bad_action"] == 3 * STEPS
    assert broken.violations.sum() == 0 and not broken.diverged.any()
    assert broken.fallbacks.sum() == 3 * STEPS


def test_a_diverged_plant_is_a_violation():
    broken = evaluate_policy(TASK, UNGUARDED, broken_policy, episodes=2, keep=1, steps=5)
    assert broken.diverged.all() and (broken.violations == 5).all()
    assert np.isneginf(broken.worst_margin).all() and np.isnan(broken.metrics["return"]).all()
    report = make_report(TASK, [broken], algorithm="none", safeguard="none", seeds=[0])
    assert any("diverged" in note for note in report.notes)
    text = json.dumps(report.to_json(), allow_nan=False)
    back = Report.from_json(json.loads(text))
    assert np.isnan(back.metrics["return"]["mean"]) and back.safety["worst_margin"]["heading left"] == -np.inf
    assert back.to_json() == report.to_json()


def test_uncertified_starts_are_counted_not_resampled():
    short = eqx.tree_at(
        lambda s: s.source.implicit_set, SAFEGUARD, ImplicitInvariantSet(IMPLICIT.policy, TASK.safe_set, 1)
    )
    results = evaluate_policy(TASK, short, TRACKER, episodes=6, steps=5)
    inside = jax.vmap(lambda x: short.init(x).certified)(jnp.asarray(results.trajectories.states[:, 0]))
    assert results.uncertified_starts.any()
    np.testing.assert_array_equal(results.uncertified_starts[:4], ~np.asarray(inside))


# Explanations


def test_every_intervention_is_explained(results):
    kept = results.trajectories
    found = explain_interventions(TASK, SAFEGUARD, kept)
    assert len(found) == np.isin(kept.status, [1, 2, 3, 4]).sum() > 0
    counts = count_by_constraint(found)
    assert sum(counts.values()) == len(found) and "left lane edge" in counts
    for each in found:
        if each.time_to_violation is not None:
            # Oracle: the proposed action, then the backup, step by step.
            x = TASK.system.step(jnp.asarray(each.state), TASK.system.input_box.clip(jnp.asarray(each.proposed)))
            for _ in range(round(each.time_to_violation / kept.dt) - 1):
                assert TASK.safe_set.contains(x)
                x = TASK.system.step(x, IMPLICIT.policy(x))
            margin = TASK.safe_set.margin(x)
            assert margin.min() < 0
            assert TASK.safe_set.names[int(margin.argmin())] == each.constraint
            break
    assert explain_interventions(TASK, UNGUARDED, kept) == []


def test_causes_that_are_no_constraint(results):
    short = ImplicitInvariantSet(IMPLICIT.policy, TASK.safe_set, 10)
    states = np.array([[[0.0, 5.0, 0.0], [0.0, 5.0, 0.0], [0.0, 12.0, 0.0], [0, 5.0, 0]]])
    proposed = np.array([[[np.nan, 0.0], [0.0, 3.0], [0.0, 0.0]]])
    made = type(results.trajectories)(
        states, states, proposed, np.zeros((1, 3, 2)), np.array([[3, 1, 2]]), np.ones((1, 4, 4)), np.zeros((1, 3)), 0.05
    )
    guard = eqx.tree_at(lambda s: s.source.implicit_set, SAFEGUARD, short)
    found = explain_interventions(TASK, guard, made)
    assert [each.constraint for each in found] == ["not finite", "input box", "arrival"]
    assert all(each.time_to_violation is None for each in found)
    assert found[1].time == pytest.approx(0.05) and found[2].status == "fell_back"


# Coverage


def test_coverage_lies_between_base_set_and_kernel():
    # A bound that is the kernel itself must give the kernel's numbers.
    bounded = type("Bounded", (type(TASK),), {"possibly_viable": lambda self, x: self.viable(x)})()
    coverage = measure_coverage(bounded, IMPLICIT, IMPLICIT, samples=8000, starts=4000, dtype=jnp.float64)
    assert (coverage.possible, coverage.possible_share, coverage.outside_possible) == (
        coverage.viable,
        coverage.kernel_share,
        coverage.outside_kernel,
    )
    assert coverage.outside_kernel == 0
    assert 0 < coverage.base_set < coverage.certified < coverage.viable < 1
    assert coverage.viable == pytest.approx(0.755, abs=0.02)  # 75.5 % in 10^6 samples
    assert (
        coverage.kernel_share == coverage.kernel_share_analytic == pytest.approx(coverage.certified / coverage.viable)
    )
    assert coverage.certified_ci95[0] < coverage.certified < coverage.certified_ci95[1]
    assert coverage.starts_lower_bound < coverage.starts_certified <= 1
    json.dumps(coverage.to_json(), allow_nan=False)


def test_slices_are_nested():
    assert constrained_axes(TASK) == (0, 2)
    grid = invariant_slice(TASK, IMPLICIT, resolution=21, dtype=jnp.float64)
    assert grid.names == ("y", "psi") and grid.units == ("m", "rad") and grid.certified.shape == (21, 21)
    assert not (grid.base & ~grid.certified).any()
    assert not (grid.certified & ~grid.viable).any()
    assert not (grid.viable & ~grid.safe).any()
    # Rows follow the second axis: at psi = 0 and y = 0 the base set; at psi = pi/3 a car at the left edge is lost.
    assert grid.base[10, 10] and not grid.viable[-1, -1] and grid.viable[0, -1]
    with pytest.raises(ValueError, match="axes"):
        invariant_slice(TASK, IMPLICIT, axes=(1, 1))


# Statistics


def test_statistics_against_known_values():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == pytest.approx(3.5)
    assert interquartile_mean(np.array([1.0, 3.0])) == 2
    # Clopper and Pearson, tables: 0 and 2 of 10.
    np.testing.assert_allclose(clopper_pearson(0, 10), (0, 0.30849710781), rtol=1e-9)
    np.testing.assert_allclose(clopper_pearson(2, 10), (0.0252107263268, 0.556095462307), rtol=1e-9)
    assert clopper_pearson(10, 10)[1] == 1.0
    assert upper_bound(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert upper_bound(0, 1000) < rule_of_three(1000) == 0.003
    assert lower_bound(1000, 1000) == pytest.approx(0.05 ** (1 / 1000))
    assert rule_of_three(1) == 1.0
    with pytest.raises(ValueError, match="trials"):
        upper_bound(3, 2)


def test_bootstrap_interval_of_a_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert np.isnan(bootstrap_interval(np.array([1.0, np.nan]))).all()
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval(np.array([]))


def test_summaries_over_seeds_and_over_episodes():
    several = summarise([np.array([1.0, 3.0]), np.array([4.0, 4.0])])
    assert several["per_seed"] == [2.0, 4.0] and several["mean"] == 3.0 and several["ci95"] == [2.0, 4.0]
    single = summarise([np.arange(101.0)])
    assert single["per_seed"] == [50.0] and single["ci95"][0] < 50 < single["ci95"][1]
    assert np.isnan(summarise([np.array([1.0, 2.0, 3.0, 4.0, np.nan])])["iqm"])


# Report


def test_a_report_survives_its_file(results, tmp_path):
    certificate = Certificate(
        "lane-keeping", "abc", (Obligation("model", "F is right", "assumed", "none", {"a": [1]}),)
    )
    report = make_report(
        TASK,
        [results, results],
        algorithm="shac",
        safeguard="backup, ray",
        seeds=np.array([0, 1]),
        wall_seconds={"policy": np.float32(1.5)},
        training_safety={"steps": np.int64(5), "violations": 0, "interventions": 1},
        interventions=explain_interventions(TASK, SAFEGUARD, results.trajectories),
        certificate=certificate,
        published={"y_rmse": 0.52},
        optimal_control={"return": -368.0},
    )
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]
    assert report.metric_units["y_rmse"] == "m" and set(report.metrics) == {"y_rmse", "v_rmse", "psi_rmse", "return"}
    assert report.safety["violations"] == 0 and report.safety["violation_bound"] == 3 / 20
    assert report.safety["steps"] == 20 * STEPS == sum(report.safety["statuses"].values())
    assert set(report.wall_seconds) == {"compile", "backup", "policy", "verify", "evaluate"}
    assert report.wall_seconds["backup"] is None and report.wall_seconds["policy"] == 1.5
    assert report.environment["precision"] == "float64"
    assert Certificate.from_json(report.certificate) == certificate
    assert sum(report.interventions["by_constraint"].values()) == report.interventions["explained"]
    with pytest.raises(ValueError, match="fields"):
        Report.from_json({"task": "x"})


def test_violations_reach_the_report(unsafe_results):
    report = make_report(TASK, [unsafe_results], algorithm="shac", safeguard="none", seeds=[0])
    assert report.safety["violations"] == unsafe_results.violations.sum() > 0
    assert report.safety["violation_bound"] > report.safety["violating_episodes"] / 6 or (
        report.safety["violation_bound"] == 1
    )
    assert any("violate" in note for note in report.notes)
