"""Paired comparisons and learning-curve numbers, against closed forms and synthetic data."""

import time

import numpy as np
import pytest
from scipy import stats

from holdfast.evaluate import compare_paired, curve_band, interquartile_mean, last_against_best, steps_to_share
from holdfast.evaluate.comparison import _crossed_iqm, _multiplicities


def crossed(rng, seeds, starts, shift=0.0, spread=(1.0, 0.5, 0.3)):
    """Returns of two methods [S, E]: common starts, seeds that differ, and noise of their own."""
    of_seed, of_start, own = spread
    common = -20 + 5 * rng.normal(size=(1, starts))
    method = common + shift + of_seed * rng.normal(size=(seeds, 1)) + own * rng.normal(size=(seeds, starts))
    method = method + of_start * rng.normal(size=(1, starts))
    return method, common + own * rng.normal(size=(seeds, starts))


def test_iqm_of_a_resample_is_that_of_the_drawn_values():
    rng = np.random.default_rng(0)
    for shape in ((3, 7), (1, 5), (4, 1), (2, 2)):
        values = np.round(rng.normal(size=shape), 1)  # with ties
        seeds, starts = (_multiplicities(rng, 20, count) for count in shape)
        found = _crossed_iqm(values, seeds, starts)
        for k in range(20):
            drawn = values[np.repeat(np.arange(shape[0]), seeds[k])][:, np.repeat(np.arange(shape[1]), starts[k])]
            assert found[k] == pytest.approx(interquartile_mean(drawn.ravel()), abs=1e-12)


def test_a_constant_difference_is_found_exactly():
    baseline = np.full((10, 50), -8.0)
    found = compare_paired(baseline - 0.2, baseline)
    assert found.difference == pytest.approx(-0.2) and found.interval == pytest.approx((-0.2, -0.2))
    assert found.relative == pytest.approx(-0.025) and found.relative_interval == pytest.approx((-0.025, -0.025))
    assert found.not_below() and not found.not_below(-0.02)
    assert (found.baseline, found.seeds, found.starts) == (-8.0, 10, 50)
    same = compare_paired(np.zeros((3, 4)), np.zeros((3, 4)))
    assert same.relative == 0 and same.relative_interval == (0, 0)


def test_pairing_removes_what_starts_and_seeds_have_in_common():
    rng = np.random.default_rng(1)
    baseline = 10 * rng.normal(size=(10, 1)) + 30 * rng.normal(size=(1, 200)) - 100
    low, high = compare_paired(baseline + 0.1, baseline).interval
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)


def test_an_interval_from_one_seed_is_over_starts():
    rng = np.random.default_rng(2)
    baseline, difference = np.full((1, 400), -50.0), rng.normal(size=(1, 400))
    found = compare_paired(baseline + difference, baseline)
    drawn = rng.choice(difference[0], (4000, 400))
    expected = np.quantile(interquartile_mean(drawn), [0.025, 0.975])
    np.testing.assert_allclose(found.interval, expected, atol=0.02)
    assert "1 seed x 400 common starts" in found.sentence()


def test_sentences_say_what_is_shown_and_what_is_not():
    baseline = np.full((6, 5), -100.0)
    words = compare_paired(baseline + 1, baseline).sentence(method="Ray mask", baseline="unsafe SHAC")
    assert words.startswith("Ray mask against unsafe SHAC: IQM difference +1.00 %") and words.endswith(
        "not below -5 %."
    )
    assert compare_paired(baseline - 9, baseline).sentence().endswith(": below -5 %.")
    wide = compare_paired(baseline + np.array([[-20.0], [20.0]] * 3), baseline)
    assert wide.sentence().endswith("so that is not shown.") and not wide.not_below()
    few = compare_paired(baseline[:3], baseline[:3]).sentence()
    assert (
        "covers less often" in few and "nothing about others" in compare_paired(baseline[:1], baseline[:1]).sentence()
    )
    diverged = baseline.copy()
    diverged[0, 0] = np.nan
    lost = compare_paired(diverged, baseline)
    assert np.isnan(lost.relative) and not lost.not_below() and "cannot be compared" in lost.sentence()
    assert "cannot be compared" in compare_paired(baseline, 0 * baseline).sentence()
    with pytest.raises(ValueError, match=r"method \(6, 5\), baseline \(6, 4\)"):
        compare_paired(baseline, baseline[:, :4])


@pytest.mark.parametrize(("seeds", "spread"), [(10, (1.0, 0.5, 0.3)), (5, (1.0, 0.0, 0.3)), (10, (0.0, 1.0, 1.0))])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, spread):
    """500 experiments: the share of 95 % intervals that hold the truth is at least 0.93; 0.93 - 3 sigma is 0.896."""
    rng = np.random.default_rng(3)
    held, narrow = 0, 0
    for k in range(500):
        method, baseline = crossed(rng, seeds, 40, shift=0.7, spread=spread)
        low, high = compare_paired(method, baseline, resamples=400, seed=k).interval
        held += low <= 0.7 <= high
        # What treating all pairs as independent would say.
        spread_of_mean = (method - baseline).std() / np.sqrt(method.size)
        narrow += abs((method - baseline).mean() - 0.7) <= 1.96 * spread_of_mean
    assert held >= 0.93 * 500
    assert narrow < 0.8 * 500 and narrow < held


def test_small_samples_widen_the_interval_as_a_t_interval_does():
    rng = np.random.default_rng(4)
    method, baseline = crossed(rng, 10, 30)
    wide, plain = (compare_paired(method, baseline, small_sample=small) for small in (True, False))
    width = [np.diff(found.interval)[0] for found in (wide, plain)]
    assert width[0] / width[1] == pytest.approx(stats.t.ppf(0.975, 9) * np.sqrt(10 / 9) / 1.96, rel=0.15)


def test_ten_seeds_times_a_thousand_starts_take_about_a_second():
    method, baseline = crossed(np.random.default_rng(5), 10, 1000)
    begin = time.process_time()
    found = compare_paired(method, baseline)
    assert time.process_time() - begin < 10  # about one; the rest is for busy machines
    assert compare_paired(method, baseline) == found


def test_last_against_best():
    rng = np.random.default_rng(6)
    curve = np.array([-100.0, -30.0, -10.0, -10.2])[:, None, None] + 0.01 * rng.normal(size=(4, 6, 20))
    found, best = last_against_best(curve)
    assert best == 2 and found.relative == pytest.approx(-0.02, abs=0.002) and found.not_below()
    curve[3] -= 5
    assert not last_against_best(curve)[0].not_below()
    curve[2, 0, 0] = np.nan  # an evaluation with a diverged episode is not the best one
    assert last_against_best(curve)[1] == 3
    with pytest.raises(ValueError, match="evaluations, seeds, starts"):
        last_against_best(curve[0])


def test_steps_to_a_share_of_the_gain():
    steps = np.arange(5) * 100.0
    assert steps_to_share(steps, [-100, -50, -5.1, -5, 0]) == 300  # 95 % of the gain is reached at -5
    assert steps_to_share(steps, [-100, -50, -5.0, -5, 0]) == 200
    assert steps_to_share(steps, [-1, -2, -3, -4, -5]) == 0
    assert steps_to_share(steps, [-100, 0, -90, -90, -90]) == 100  # says when, not whether it stayed
    of_seeds = np.array([[-100, -100], [-10, -90], [0, -8], [0, 0], [np.nan, 5]], float)
    assert steps_to_share(steps, of_seeds) == 200
    assert np.isnan(steps_to_share(steps[:1], [np.nan]))
    with pytest.raises(ValueError, match="steps_to_share"):
        steps_to_share(steps, np.zeros(4))


def test_bands_of_curves():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(3, 8))
    values[2] = np.nan
    values[1, 0] = np.inf
    centre, low, high = curve_band(values)
    assert centre[0] == pytest.approx(interquartile_mean(values[0])) and low[0] < centre[0] < high[0]
    assert (
        centre[1] == pytest.approx(interquartile_mean(values[1, 1:])) and np.isnan([centre[2], low[2], high[2]]).all()
    )
    one = curve_band(values[:1, :1], statistic=np.mean)
    assert one[0] == one[1] == one[2] == values[0, 0]
