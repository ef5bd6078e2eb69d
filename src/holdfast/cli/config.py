"""What a training run is asked to do."""

from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `holdfast train`; the run keeps them in config.json.

    Attributes:
        task: a task's name, or FILE.py:NAME for one of your own.
        algorithm: how the policy is learned.
        safeguard: which maps correct rejected actions ("all": the nearest of every map's candidates; "none": no
            safeguard, for comparison).
        gradient: derivative of a corrected action.
        placement: the safeguard sits in the policy (learning differentiates through it) or in the environment.
        seed: first seed.
        seeds: how many seeds are trained side by side in one program.
        level: level of the base set; the largest that can be proved if not given.
        horizon: steps of the backup flow; the task's own if not given.
        backup_updates: gradient steps of phase 1.
        updates: gradient steps of phase 2.
        environments: episodes side by side.
        window: steps differentiated through.
        discount: of rewards.
        actor_rate: peak learning rate of the policy.
        initial_std: exploration noise at the start, before the tanh.
        restart: probability of cutting a training episode short at each step, so that starts are not rare.
        intervention_penalty: weight of the squared correction, in units of the input box's half-widths.
        margin_penalty: weight of small safe-set margins.
        episodes: evaluation episodes for each seed.
    """

    task: tyro.conf.Positional[str]
    algorithm: Literal["shac"] = "shac"
    safeguard: Literal["all", "ray", "boundary_projection", "per_input", "none"] = "ray"
    gradient: Literal["exact", "straight_through", "stopped"] = "exact"
    placement: Literal["policy", "environment"] = "policy"
    seed: int = 0
    seeds: int = 1
    level: float | None = None
    horizon: int | None = None
    backup_updates: int = 300
    updates: int = 600
    environments: int = 48
    window: int = 16
    discount: float = 0.95
    actor_rate: float = 7e-3
    initial_std: float = 0.05
    restart: float = 0.003
    intervention_penalty: float = 0.1
    margin_penalty: float = 0.0
    episodes: int = 1000

    def __post_init__(self):
        counts = ("seeds", "backup_updates", "updates", "environments", "window", "episodes")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give a whole number >= 1")
        if not 0 < self.discount < 1:
            raise ValueError(f"discount = {self.discount}; give a number between 0 and 1")
        for name in ("actor_rate", "initial_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}; give a number > 0")
        for name in ("intervention_penalty", "margin_penalty", "restart"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}; give a number >= 0")
        if self.restart > 1:
            raise ValueError(f"restart = {self.restart}; give a probability from 0 to 1")
        if not 0 <= self.seed <= 2**32 - self.seeds:
            raise ValueError(f"seed = {self.seed}; give a whole number from 0 to 2^32 - {self.seeds}")
        if self.level is not None and not 0 < self.level < float("inf"):
            raise ValueError(f"level = {self.level}; give a finite number > 0")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon = {self.horizon}; give a whole number of steps >= 1")
