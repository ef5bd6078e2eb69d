"""Statistics that evaluations are reported with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of the values along `axis`; with fewer than four values, their mean.

    Source: Agarwal et al., *Deep RL at the Edge of the Statistical Precipice* (2021).
    """
    return stats.trim_mean(np.asarray(values, np.float64), 0.25, axis=axis)


def bootstrap_interval(
    values: np.ndarray,
    *,
    statistic: Callable = np.mean,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of values [k]; (nan, nan) where a value is not finite.

    Args:
        values: one number a seed (or an episode), shape [k]; with k = 1 the interval is that one point.
        statistic: called as statistic(samples [.., k], axis=-1).
        confidence: of the two-sided interval.
        resamples: resamples with replacement.
        seed: of numpy's generator, so that a report can be recomputed.

    Raises:
        ValueError: if there is no value.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"bootstrap_interval: values has shape {values.shape}; give a vector with at least one number")
    if not np.all(np.isfinite(values)):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    # In blocks: 4000 resamples of 10^5 episodes at once would not fit into memory.
    block = max(1, 4_000_000 // values.size)
    found = []
    for start in range(0, resamples, block):
        rows = rng.integers(values.size, size=(min(block, resamples - start), values.size))
        found.append(statistic(values[rows], axis=-1))
    tail = 0.5 * (1 - confidence)
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a probability, from the quantiles of the beta distribution.

    Source: Clopper and Pearson (1934).

    Raises:
        ValueError: unless 0 <= successes <= trials and trials > 0.
    """
    tail = 0.5 * (1 - confidence)
    return lower_bound(successes, trials, 1 - tail), upper_bound(successes, trials, 1 - tail)


def upper_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson upper bound of a probability. With no success in n trials it is close to 3/n."""
    _check(successes, trials)
    if successes == trials:
        return 1.0
    return float(stats.beta.ppf(confidence, successes + 1, trials - successes))


def lower_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson lower bound of a probability."""
    _check(successes, trials)
    if successes == 0:
        return 0.0
    return float(stats.beta.ppf(1 - confidence, successes, trials - successes + 1))


def rule_of_three(trials: int) -> float:
    """3/n, at most 1: the 95 % upper bound of the probability of something that n trials never showed."""
    _check(0, trials)
    return min(1.0, 3.0 / trials)


def summarise(per_seed: Sequence[np.ndarray], *, seed: int = 0) -> dict:
    """One metric over seeds: {mean, iqm, ci95, per_seed}.

    Args:
        per_seed: values of each seed's episodes, shape [episodes] each.
        seed: of the bootstrap.

    Returns:
        `per_seed`: each seed's mean. `mean` and `iqm`: of those; with one seed, of its episodes. `ci95`: bootstrap 95 %
        interval of `mean`, over seeds; with one seed, over episodes. NaN where an episode has no finite value.
    """
    means = [float(np.mean(np.asarray(values, np.float64))) for values in per_seed]
    sample = np.asarray(means if len(means) > 1 else per_seed[0], np.float64)
    # Sorting NaN to the end would let a trimmed mean drop it: say NaN instead.
    iqm = float(interquartile_mean(sample)) if np.all(np.isfinite(sample)) else float("nan")
    return {
        "mean": float(np.mean(sample)),
        "iqm": iqm,
        "ci95": list(bootstrap_interval(sample, seed=seed)),
        "per_seed": means,
    }


def _check(successes: int, trials: int) -> None:
    if not (trials > 0 and 0 <= successes <= trials):
        raise ValueError(f"{successes} successes in {trials} trials; give 0 <= successes <= trials and trials > 0")
