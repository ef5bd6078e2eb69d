"""What a training run is asked to do."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import tyro

from holdfast.tasks import RobustSafety, Task

SafeguardName = Literal[
    "all",
    "ray",
    "boundary_projection",
    "per_input",
    "ray_mask",
    "hyperbolic_ray_mask",
    "backup_cbf",
    "backup_cbf_verified",
    "shield",
    "committed_shield",
    "gatekeeper",
    "barrier",
    "none",
]
Centre = Literal["backup", "chebyshev", "chord", "zonotope"]
Algorithm = Literal["shac", "ppo", "sac"]
BackupTraining = Literal["simulator", "td3"]
GradientMode = Literal["exact", "relaxed", "straight_through", "stopped"]

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
#: Where a way to train the backup has other defaults than training through the simulator.
BACKUP_DEFAULTS: dict[str, dict[str, Any]] = {"simulator": {}, "td3": {"backup_updates": 4000}}
#: Phase 2 as PS2-RL (arXiv 2606.14536) has it, as far as it says; learning rates are the usual ones of SAC and PPO.
PUBLISHED: dict[str, dict[str, Any]] = {
    algorithm: {
        "safeguard": "backup_cbf",
        "steps": 1e6,
        "discount": 0.99,
        "actor_rate": 3e-4,
        "hidden": (128, 128),
        "restart": 0.0,
        "practice": 0.0,
        "lost": float("inf"),
        "intervention_penalty": 0.0,
        "margin_penalty": 0.0,
    }
    for algorithm in ("sac", "ppo")
}
#: The same for settings that only one algorithm has.
PUBLISHED_SETTINGS: dict[str, dict[str, Any]] = {
    "sac": {
        "batch": 64,
        "update_ratio": 1 / 8,
        "target_smoothing": 0.005,
        "critic_rate": 3e-4,
        "temperature_rate": 3e-4,
        "target_entropy": -1.0,
        "replay": 300_000,
    },
    "ppo": {"critic_rate": 3e-4},
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `holdfast train`; the run keeps them in config.json. What is None or "task" is the task's own
    (`Task.training`), else the library's default.

    Attributes:
        task: a task's name, or FILE.py:NAME for one of your own.
        algorithm: how the policy is learned.
        recipe: whose settings: the library's and the task's ("own"), or phase 2 as published, for sac and ppo: its layer,
            discount, network, batch, update ratio and steps. What is given goes before either.
        warm_start: a run of the same task, algorithm and networks (say, an unsafe tracker) from whose policy and critics
            phase 2 begins.
        safeguard: which maps correct rejected actions ("all": the nearest of every map's candidates), or which mask
            deforms every action ("ray_mask", "hyperbolic_ray_mask"); "backup_cbf": the published layer, which proves
            nothing, and "backup_cbf_verified": its answer is verified, or the committed plan replaces it; "none": no
            safeguard, for comparison. Others to compare with: model-predictive shielding as published ("shield") and with
            our commitment ("committed_shield"), "gatekeeper", and control barrier rows by hand where the task has them
            ("barrier").
        centre: the safe action from which a mask's rays start.
        gradient: derivative of a corrected action; "relaxed" is of the published layer.
        placement: the safeguard sits in the policy (learning differentiates through it) or in the environment.
        seed: first seed.
        seeds: how many seeds are trained side by side in one program.
        level: level of the base set; the largest that can be proved if not given.
        horizon: steps of the backup flow; the task's own if not given.
        safe_gain: class-K gain of the published layer's safe-set rows, 1/s.
        base_gain: the same of its base-set row.
        backup_training: how the backup is learned in phase 1: by differentiating through the simulator, or by TD3 on the
            value of safe arrival, as PS2-RL does.
        backup_updates: updates of phase 1; the defaults of the two ways differ.
        updates: updates of phase 2.
        steps: environment steps of phase 2, in place of `updates`; rounded up to whole updates.
        environments: episodes side by side.
        window: steps of every episode that an update sees: SHAC differentiates through them, PPO collects them.
        discount: of rewards.
        actor_rate: peak learning rate of the policy.
        hidden: hidden layers of policy and critics.
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
    recipe: Literal["own", "published"] = "own"
    warm_start: str | None = None
    safeguard: SafeguardName | Literal["task"] = "task"
    centre: Literal["task", "backup", "chebyshev", "chord", "zonotope"] = "task"
    gradient: GradientMode | Literal["task"] = "task"
    placement: Literal["policy", "environment"] = "policy"
    seed: int = 0
    seeds: int = 1
    level: float | None = None
    horizon: int | None = None
    safe_gain: float = 4.0
    base_gain: float = 2.0
    backup_training: BackupTraining = "simulator"
    backup_updates: int | None = None
    updates: int | None = None
    steps: float | None = None
    environments: int | None = None
    window: int | None = None
    discount: float | None = None
    actor_rate: float | None = None
    hidden: tuple[int, ...] | None = None
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
        positive = ("actor_rate", "initial_std", "lost", "gradient_limit", "steps", "safe_gain", "base_gain")
        for name in (*positive, "multiplier_rate"):
            self._require(name, lambda value: value > 0, "give a number > 0")
        for name in ("intervention_penalty", "margin_penalty", "violation_penalty", "violation_limit", "restart"):
            self._require(name, lambda value: value >= 0, "give a number >= 0")
        for name in ("restart", "practice"):
            self._require(name, lambda value: 0 <= value <= 1, "give a probability from 0 to 1")
        self._require(
            "seed", lambda v: 0 <= v <= 2**32 - self.seeds, f"give a whole number from 0 to 2^32 - {self.seeds}"
        )
        self._require("hidden", lambda sizes: min(sizes, default=0) >= 1, "give sizes >= 1, as 64 64")
        if self.recipe == "published" and self.algorithm not in PUBLISHED:
            raise ValueError(
                f"recipe = 'published' with algorithm = {self.algorithm!r}: it is of {' and '.join(PUBLISHED)}; give --algorithm"
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
        "ppo" or "sac" is for those alone, and so is what it holds under "td3".

        Raises:
            ValueError: if `task.training` has a name that is no setting, or a value that is none; or if a backup is to be
                trained in a way of its own where there is none.
        """
        settings = list(SettledConfig.__annotations__)
        if self.backup_training != "simulator" and isinstance(task.safety, RobustSafety):
            raise ValueError(
                f"backup_training = {self.backup_training!r}; {task.name} is kept by a robust control invariant set, which "
                "needs no backup: leave it out"
            )
        named = ALGORITHM_DEFAULTS | BACKUP_DEFAULTS
        shared = {name: value for name, value in task.training.items() if name not in named}
        own = dict(task.training.get(self.algorithm, {})) | dict(task.training.get(self.backup_training, {}))
        unknown = sorted((set(shared) | set(own)) - set(settings))
        if unknown:
            raise ValueError(
                f"{type(task).__name__}.training has {', '.join(map(repr, unknown))}; the settings are: {', '.join(settings)}"
            )
        if self.algorithm != "shac":
            shared = {name: value for name, value in shared.items() if name not in _TUNED_FOR_SHAC}
        if self.backup_training != "simulator":
            shared.pop("backup_updates", None)  # tuned for the simulator
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in given.items() if value not in (None, "task")}
        published = dict(PUBLISHED[self.algorithm]) if self.recipe == "published" else {}
        if self.updates is not None:
            published.pop("steps", None)
        defaults = ALGORITHM_DEFAULTS[self.algorithm] | BACKUP_DEFAULTS[self.backup_training]
        return SettledConfig(**defaults | shared | own | published | given)


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
    hidden: tuple[int, ...] = (64, 64)
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
