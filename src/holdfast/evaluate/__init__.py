"""What a run is worth: metrics with intervals, attacks, explanations, coverage, and the report of it all."""

from holdfast.evaluate.adversaries import (
    Adversary,
    BoundaryHugging,
    HeldCorners,
    Invalid,
    MarginDescent,
    NoisyPolicy,
    Uniform,
    default_adversaries,
)
from holdfast.evaluate.attack import attack
from holdfast.evaluate.attack_result import AttackResult
from holdfast.evaluate.comparison import (
    PairedComparison,
    compare_paired,
    curve_band,
    last_against_best,
    steps_to_share,
)
from holdfast.evaluate.coverage import Coverage, Slice, constrained_axes, invariant_slice, measure_coverage
from holdfast.evaluate.disturbances import (
    Disturbance,
    GradientChosen,
    HeldVertices,
    OneOf,
    UniformNoise,
    default_disturbances,
)
from holdfast.evaluate.episodes import (
    EpisodeResults,
    Evaluator,
    Trajectories,
    evaluate_noise,
    evaluate_policy,
    evaluate_seeds,
)
from holdfast.evaluate.interventions import Intervention, count_by_constraint, explain_interventions
from holdfast.evaluate.report import Report, environment, make_report
from holdfast.evaluate.statistics import (
    bootstrap_interval,
    clopper_pearson,
    interquartile_mean,
    lower_bound,
    rule_of_three,
    summarise,
    upper_bound,
)

__all__ = [
    "Adversary",
    "AttackResult",
    "BoundaryHugging",
    "Coverage",
    "Disturbance",
    "EpisodeResults",
    "Evaluator",
    "GradientChosen",
    "HeldCorners",
    "HeldVertices",
    "Intervention",
    "Invalid",
    "MarginDescent",
    "NoisyPolicy",
    "OneOf",
    "PairedComparison",
    "Report",
    "Slice",
    "Trajectories",
    "Uniform",
    "UniformNoise",
    "attack",
    "bootstrap_interval",
    "clopper_pearson",
    "compare_paired",
    "constrained_axes",
    "count_by_constraint",
    "curve_band",
    "default_adversaries",
    "default_disturbances",
    "environment",
    "evaluate_noise",
    "evaluate_policy",
    "evaluate_seeds",
    "explain_interventions",
    "interquartile_mean",
    "invariant_slice",
    "last_against_best",
    "lower_bound",
    "make_report",
    "measure_coverage",
    "rule_of_three",
    "steps_to_share",
    "summarise",
    "upper_bound",
]
