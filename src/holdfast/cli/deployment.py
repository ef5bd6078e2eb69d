"""A trained run as what acts: a policy, and the guard that it acts through."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.certify import Certificate
from holdfast.cli.build import make_guard, of_seed
from holdfast.cli.config import TrainConfig
from holdfast.cli.training import load_run
from holdfast.runs import RunDirectory
from holdfast.tasks import Task
from holdfast.types import Guard


@dataclass(frozen=True)
class Deployed:
    """One seed of a run.

    Attributes:
        task: what it was trained on.
        policy: observation [o] (`task.observe`) -> proposed action [m]. Not safe by itself.
        guard: `init(x)`, `step(plan, x, action)`: a `Safeguard`, unless the run was trained with another guard or none.
        certificate: what was proved of the guard's sets, checked, sampled and assumed.
        config: settings of the run.
    """

    task: Task
    policy: Any
    guard: Guard
    certificate: Certificate
    config: TrainConfig


def load_trained(run: str | Path | RunDirectory, index: int = 0) -> Deployed:
    """Policy and safeguard of a run that `holdfast train` made, for a program of one's own or another library.

    The guard's proof is made again, in seconds, and must be of the physics of today's code.

    Args:
        run: the run's directory.
        index: which of the run's seeds, counted from 0.

    Raises:
        ValueError: for a seed that the run has not.
        RunError: if the directory is no run, has no policy yet, or has the certificate of other physics.
        CheckpointMismatch: if the checkpoint is of another task, other physics or other settings.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory.open(Path(run))
    config = run.read_config(TrainConfig)
    if not 0 <= index < config.seeds:
        raise ValueError(f"index = {index}; the run has {config.seeds} seed(s), counted from 0")
    trained = load_run(run, config)
    guard = make_guard(trained.task, trained.certified, of_seed(trained.network, index), trained.config)
    policy = of_seed(trained.policy.policy, index)
    return Deployed(trained.task, policy, guard, trained.certified.certificate, trained.config)
