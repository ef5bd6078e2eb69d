"""Paired comparisons of two methods over seeds and common starts, and what a learning curve says of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from holdfast.evaluate.statistics import interquartile_mean

_ENOUGH_SEEDS = 5  # the interval lies between the least and the largest seed: three of them cannot hold the truth often


@dataclass(frozen=True)
class PairedComparison:
    """How much larger a method's values are than a baseline's, pair by pair. Larger is better.

    Attributes:
        difference: IQM over all seeds and starts of (method - baseline).
        interval: its bootstrap interval.
        baseline: IQM of the baseline over all seeds and starts.
        relative: difference / |baseline|.
        relative_interval: its bootstrap interval; numerator and denominator are resampled together.
        confidence: of both intervals.
        seeds, starts: how many of each were paired.

    All numbers are NaN where a value is not finite (a diverged episode): such methods cannot be compared.
    """

    difference: float
    interval: tuple[float, float]
    baseline: float
    relative: float
    relative_interval: tuple[float, float]
    confidence: float
    seeds: int
    starts: int

    def not_below(self, limit: float = -0.05) -> bool:
        """Whether the whole relative interval lies at or above `limit`; False where it is not a number."""
        return self.relative_interval[0] >= limit

    def sentence(self, limit: float = -0.05, method: str = "the method", baseline: str = "the baseline") -> str:
        """What was found, for a report: the relative difference, its interval, and whether that is not below `limit`."""
        pairs = f"{self.seeds} seed{'s' * (self.seeds != 1)} x {self.starts} common start{'s' * (self.starts != 1)}"
        if not math.isfinite(self.relative):
            return f"{method} cannot be compared with {baseline}: a return is not finite, or the baseline's is 0 ({pairs})."
        low, high = (_percent(each) for each in self.relative_interval)
        found = (
            f"{method} against {baseline}: IQM difference {_percent(self.relative)} of the baseline's IQM, "
            f"{100 * self.confidence:g} % interval {low} to {high} ({pairs})"
        )
        if self.not_below(limit):
            verdict = f"not below {100 * limit:g} %."
        elif self.relative_interval[1] < limit:
            verdict = f"below {100 * limit:g} %."
        else:
            verdict = f"the interval reaches below {100 * limit:g} %, so that is not shown."
        return f"{found}: {verdict}{self._caution()}"

    def _caution(self) -> str:
        if self.seeds == 1:
            return " One seed says nothing about others."
        if self.seeds < _ENOUGH_SEEDS:
            return f" Fewer than {_ENOUGH_SEEDS} seeds: the interval covers less often than it says."
        return ""


def compare_paired(
    method: np.ndarray,
    baseline: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    small_sample: bool = True,
    seed: int = 0,
) -> PairedComparison:
    """Compares returns [S, E] of two methods that were trained with the same S seeds and ran from the same E starts.

    IQM and bootstrap as Agarwal et al. (2021, rliable) recommend, with one difference: their strata (tasks) hold runs that
    are independent, whereas all episodes of a seed share one policy and all seeds share the starts. So seeds and starts
    are resampled each, and every resampled seed meets every resampled start (the pigeonhole bootstrap for crossed
    factors, Owen 2007), which keeps the variance of both and errs on the side of wide intervals. To resample S E
    differences as if they were independent would make the interval far too narrow.

    Args:
        method, baseline: returns, shape [S, E]; row s is seed s, column e is start e, in both.
        confidence: of the two-sided intervals.
        resamples: resamples with replacement.
        small_sample: widen the percentiles as a t interval with S - 1 degrees of freedom would (Hesterberg 2015,
            "expanded percentiles"). Where seeds differ most, 95 % intervals of 10, 5 and 3 seeds then hold the truth in
            0.96, 0.93 and 0.84 of experiments, and else in 0.92, 0.87 and 0.77. With one seed, the starts count instead.
        seed: of numpy's generator, so that a table can be recomputed.

    Raises:
        ValueError: if the shapes differ, are not [S, E], or are empty.
    """
    method, baseline = (np.asarray(each, np.float64) for each in (method, baseline))
    if method.ndim != 2 or method.shape != baseline.shape or method.size == 0:
        raise ValueError(
            f"compare_paired: method {method.shape}, baseline {baseline.shape}; give two arrays [seeds, starts] of one "
            "shape, the same seeds and starts in the same places"
        )
    seeds, starts = method.shape
    difference = method - baseline
    if not np.all(np.isfinite(difference)):
        nowhere = (math.nan, math.nan)
        return PairedComparison(math.nan, nowhere, math.nan, math.nan, nowhere, confidence, seeds, starts)
    rng = np.random.default_rng(seed)
    drawn = [_multiplicities(rng, resamples, count) for count in (seeds, starts)]
    differences, baselines = (_crossed_iqm(values, *drawn) for values in (difference, baseline))
    iqm, scale = (float(interquartile_mean(values.ravel())) for values in (difference, baseline))
    # One seed says nothing about others: then the starts are the sample.
    sample = seeds if seeds > 1 else starts
    tails = _tails(confidence, sample if small_sample else None)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(differences == 0, 0.0, differences / np.abs(baselines))
        relative = float(np.float64(iqm) / abs(scale)) if iqm else 0.0
    return PairedComparison(
        iqm,
        _quantiles(differences, tails),
        scale,
        relative,
        _quantiles(ratios, tails),
        confidence,
        seeds,
        starts,
    )


def last_against_best(returns: np.ndarray, **options) -> tuple[PairedComparison, int]:
    """The last of K evaluations against the best of them, paired like `compare_paired`; and which one was best.

    The best is the evaluation with the largest IQM over all seeds and starts, chosen from the same numbers: that flatters
    it, so the comparison errs against the last.

    Args:
        returns: shape [K, S, E], evaluations in the order of training; E = 1 where only means were kept.
        options: of `compare_paired`.

    Raises:
        ValueError: if `returns` is not [K, S, E] or empty.
    """
    returns = np.asarray(returns, np.float64)
    if returns.ndim != 3 or returns.size == 0:
        raise ValueError(f"last_against_best: returns {returns.shape}; give [evaluations, seeds, starts]")
    iqm = interquartile_mean(returns.reshape(len(returns), -1))
    # Sorting NaN to the end would let a trimmed mean drop it.
    iqm = np.where(np.isfinite(returns).all(axis=(1, 2)), iqm, -np.inf)
    best = int(np.argmax(iqm))
    return compare_paired(returns[-1], returns[best], **options), best


def steps_to_share(steps: np.ndarray, returns: np.ndarray, share: float = 0.95) -> float:
    """Environment steps to 95 % of what training gained; NaN without a finite evaluation.

    Definition: the steps of the first evaluation whose mean return over seeds is at least r_first + share (r_best -
    r_first), where r_first and r_best are the first and the largest mean return. It says when, not whether it stayed there
    (`last_against_best` does). Where training gained nothing, these are the steps of the first evaluation.

    Args:
        steps: environment steps at the evaluations, shape [K], ascending.
        returns: returns, shape [K] or [K, S]. Evaluations at which a seed's return is not finite are left out.
        share: of the gain.

    Raises:
        ValueError: if the shapes do not fit.
    """
    steps, returns = np.asarray(steps, np.float64), np.asarray(returns, np.float64)
    if steps.ndim != 1 or returns.shape[:1] != steps.shape or returns.ndim > 2:
        raise ValueError(
            f"steps_to_share: steps {steps.shape}, returns {returns.shape}; give [K] and [K] or [K, seeds]"
        )
    mean = returns.reshape(len(steps), -1).mean(axis=1)
    steps, mean = steps[np.isfinite(mean)], mean[np.isfinite(mean)]
    if not len(steps):
        return math.nan
    return float(steps[np.argmax(mean >= mean[0] + share * (mean.max() - mean[0]))])


def curve_band(
    values: np.ndarray,
    *,
    statistic: Callable = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic over seeds at each of K evaluations, and its pointwise percentile bootstrap band: three arrays [K].

    Seeds that are not finite at an evaluation are left out there; NaN where none is left.

    Args:
        values: shape [K, S].
        statistic: called as statistic(samples [..., S], axis=-1).
        confidence, resamples, seed: of the bootstrap.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    centre, low, high = (np.full(len(values), np.nan) for _ in range(3))
    tails = _tails(confidence, None)
    # Evaluations with the same seeds are resampled together: whole curves, as the seeds they belong to.
    for pattern in np.unique(finite, axis=0):
        if not pattern.any():
            continue
        rows = np.flatnonzero((finite == pattern).all(axis=1))
        kept = values[rows][:, pattern]
        centre[rows] = statistic(kept, axis=-1)
        drawn = np.random.default_rng(seed).integers(kept.shape[1], size=(resamples, kept.shape[1]))
        for row, each in zip(rows, kept):
            low[row], high[row] = _quantiles(statistic(each[drawn], axis=-1), tails)
    return centre, low, high


def _multiplicities(rng: np.random.Generator, resamples: int, count: int) -> np.ndarray:
    """How often each of `count` things is drawn in each resample, shape [resamples, count]."""
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples)


def _crossed_iqm(values: np.ndarray, seeds: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """IQM of each resample, shape [R], of values [S, E] of which seed s and start e are drawn seeds[:, s] and starts[:, e]
    times. The values are sorted once; how often each is drawn does the rest."""
    order = np.argsort(values, axis=None)
    sorted_values = values.ravel()[order]
    row, column = np.unravel_index(order, values.shape)
    cut = int(0.25 * values.size)
    found = []
    # In blocks: all resamples of 10^4 pairs at once would take some hundred MB.
    block = max(1, 2_000_000 // values.size)
    for begin in range(0, len(seeds), block):
        drawn = slice(begin, begin + block)
        upto = np.cumsum(seeds[drawn][:, row] * starts[drawn][:, column], axis=1, dtype=np.int64)
        inside = np.clip(upto, cut, values.size - cut)
        weights = np.diff(inside, axis=1, prepend=cut)
        found.append(weights @ sorted_values / (values.size - 2 * cut))
    return np.concatenate(found)


def _tails(confidence: float, sample: int | None) -> tuple[float, float]:
    """Lower and upper quantile of the interval, further out for a small sample."""
    tail = 0.5 * (1 - confidence)
    if sample is not None and sample > 1:
        tail = float(stats.norm.cdf(stats.t.ppf(tail, sample - 1) * math.sqrt(sample / (sample - 1))))
    return tail, 1 - tail


def _quantiles(values: np.ndarray, tails: tuple[float, float]) -> tuple[float, float]:
    if np.isnan(values).any():
        return math.nan, math.nan
    # An infinite ratio must not be interpolated to NaN.
    low, high = np.quantile(values, tails[0], method="lower"), np.quantile(values, tails[1], method="higher")
    return float(low), float(high)


def _percent(share: float) -> str:
    return f"{100 * share:+.2f} %"
