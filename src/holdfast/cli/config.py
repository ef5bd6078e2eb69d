"""What a training run is asked to do."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import tyro

from holdfast.tasks import Task

SafeguardName = Literal[
    "all",
    "ray",
    "boundary_projection",
    "per_input",
    "ray_mask",
    "hyperbolic_ray_mask",
    "shield",
    "committed_shield",
    "gatekeeper",
    "barrier",
    "none",
]
Centre = Literal["backup", "chebyshev", "chord", "zonotope"]
Algorithm = Literal["shac", "ppo", "sac"]
GradientMode = Literal["exact", "straight_through", "stopped"]

#: What other algorithms need other numbers for.
_TUNED_FOR_SHAC = ("updates", "environments", "window", "actor_rate", "critic_steps", "initial_std", "gradient_limit")
#: Where an algorithm's defaults are not SHAC's.
ALGORITHM_DEFAULTS: dict[str, dict[str, Any]] = {
    "shac": {},
    "ppo": {"updates": 100, "environments": 32, "window": 32, "actor_rate": 3e-3, "initial_std": 0.5},
    "sac": {
        "updates": 800,
        "environments": 16,
        "window": 8,
        "actor_rate": 1e-3,
        "initial_std": 0.5,
        "lost": 10.0,
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `holdfast train`; the run keeps them in config.json. What is None or "task" is the task's own
    (`Task.training`), else the library's default.

    Attributes:
        task: a task's name, or FILE.py:NAME for one of your own.
        algorithm: how the policy is learned.
        safeguard: which maps correct rejected actions ("all": the nearest of every map's candidates), or which mask
            deforms every action ("ray_mask", "hyperbolic_ray_mask"); "none": no safeguard, for comparison. Others to
            compare with: model-predictive shielding as published ("shield") and with our commitment ("committed_shield"),
            "gatekeeper", and control barrier rows by hand where the task has them ("barrier").
        centre: the safe action from which a mask's rays start.
        gradient: derivative of a corrected action.
        placement: the safeguard sits in the policy (learning differentiates through it) or in the environment.
        seed: first seed.
        seeds: how many seeds are trained side by side in one program.
        level: level of the base set; the largest that can be proved if not given.
        horizon: steps of the backup flow; the task's own if not given.
        backup_updates: gradient steps of phase 1.
        updates: updates of phase 2.
        steps: environment steps of phase 2, in place of `updates`; rounded up to whole updates.
        environments: episodes side by side.
        window: steps of every episode that an update sees: SHAC differentiates through them, PPO collects them.
        discount: of rewards.
        actor_rate: peak learning rate of the policy.
        critic_steps: critic updates for each update of the policy.
        initial_std: exploration noise at the start, before the tanh.
        restart: probability of cutting a training episode short at each step, so that starts are not rare.
        practice: share of training episodes that begin in the middle of the task.
        lost: a training episode ends where a step costs more than this many times what doing nothing costs.
        gradient_limit: longest derivative by a state that is passed back over a step.
        intervention_penalty: weight of the squared correction, in units of the input box's half-widths.
        margin_penalty: weight of small safe-set margins.
        violation_penalty: what a step into a violation costs, in units of scaled rewards.
        violation_limit: share of steps that may violate; if given, the cost of a violation is a Lagrange multiplier.
        multiplier_rate: how much the multiplier rises for each violating step beyond the limit.
        episodes: evaluation episodes for each seed.
    """

    task: tyro.conf.Positional[str]
    algorithm: Algorithm = "shac"
    safeguard: SafeguardName | Literal["task"] = "task"
    centre: Literal["task", "backup", "chebyshev", "chord", "zonotope"] = "task"
    gradient: Literal["task", "exact", "straight_through", "stopped"] = "task"
    placement: Literal["policy", "environment"] = "policy"
    seed: int = 0
    seeds: int = 1
    level: float | None = None
    horizon: int | None = None
    backup_updates: int | None = None
    updates: int | None = None
    steps: float | None = None
    environments: int | None = None
    window: int | None = None
    discount: float | None = None
    actor_rate: float | None = None
    critic_steps: int | None = None
    initial_std: float | None = None
    restart: float | None = None
    practice: float | None = None
    lost: float | None = None
    gradient_limit: float | None = None
    intervention_penalty: float | None = None
    margin_penalty: float | None = None
    violation_penalty: float | None = None
    violation_limit: float | None = None
    multiplier_rate: float | None = None
    episodes: int = 1000

    def __post_init__(self):
        for name in ("seeds", "backup_updates", "updates", "environments", "window", "critic_steps", "episodes"):
            self._require(name, lambda value: value >= 1, "give a whole number >= 1")
        self._require("discount", lambda value: 0 < value < 1, "give a number between 0 and 1")
        for name in ("actor_rate", "initial_std", "lost", "gradient_limit", "steps", "multiplier_rate"):
            self._require(name, lambda value: value > 0, "give a number > 0")
        for name in ("intervention_penalty", "margin_penalty", "violation_penalty", "violation_limit", "restart"):
            self._require(name, lambda value: value >= 0, "give a number >= 0")
        for name in ("restart", "practice"):
            self._require(name, lambda value: 0 <= value <= 1, "give a probability from 0 to 1")
        self._require(
            "seed", lambda v: 0 <= v <= 2**32 - self.seeds, f"give a whole number from 0 to 2^32 - {self.seeds}"
        )
        self._require("level", lambda value: 0 < value < float("inf"), "give a finite number > 0")
        self._require("horizon", lambda value: value >= 1, "give a whole number of steps >= 1")

    def _require(self, name: str, holds, remedy: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} = {value}; {remedy}")

    def for_task(self, task: Task) -> "SettledConfig":
        """The same with what was not given filled in: from `task.training`, else the algorithm's and the library's defaults.

        `task.training` holds settings of SHAC and settings that mean the same whatever the algorithm; what it holds under
        "ppo" or "sac" is for those alone.

        Raises:
            ValueError: if `task.training` has a name that is no setting, or a value that is none.
        """
        settings = list(SettledConfig.__annotations__)
        shared = {name: value for name, value in task.training.items() if name not in ALGORITHM_DEFAULTS}
        own = dict(task.training.get(self.algorithm, {}))
        unknown = sorted((set(shared) | set(own)) - set(settings))
        if unknown:
            raise ValueError(
                f"{type(task).__name__}.training has {', '.join(map(repr, unknown))}; the settings are: {', '.join(settings)}"
            )
        if self.algorithm != "shac":
            shared = {name: value for name, value in shared.items() if name not in _TUNED_FOR_SHAC}
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in given.items() if value not in (None, "task")}
        return SettledConfig(**ALGORITHM_DEFAULTS[self.algorithm] | shared | own | given)


@dataclass(frozen=True)
class SettledConfig(TrainConfig):
    """Settings with nothing left open; the defaults here are the library's, for tasks without settings of their own."""

    safeguard: SafeguardName = "ray"
    centre: Centre = "backup"
    gradient: GradientMode = "exact"
    backup_updates: int = 300
    updates: int = 600
    environments: int = 48
    window: int = 16
    discount: float = 0.95
    actor_rate: float = 7e-3
    critic_steps: int = 8
    initial_std: float = 0.05
    restart: float = 0.003
    practice: float = 0.0
    lost: float = float("inf")
    gradient_limit: float = float("inf")
    intervention_penalty: float = 0.1
    margin_penalty: float = 0.0
    violation_penalty: float = 0.0
    violation_limit: float = float("inf")
    multiplier_rate: float = 1e-4
