"""Tasks of one's own, completed: what they leave out is derived from the system and the safe set."""

from holdfast.certify import derive_defaults
from holdfast.interop.task_proof import robust_safety
from holdfast.tasks import RobustSafety, SafetySettings, Task

_EPISODE_HORIZONS, _SHORTEST_EPISODE = 4, 100


def complete_task(task: Task) -> Task:
    """The task with every setting that it left out derived from its system and its safe set.

    Name, state box, start box (unless it has starts of its own), LQR weights, horizon, length of an episode.

    Raises:
        ValueError, NotProvable: as `holdfast.certify.derive_defaults`.
    """
    safety, kind, missing = task.safety, type(task), {}
    own_starts = kind.sample_start is not Task.sample_start
    boxes = {name: getattr(task, name) for name in ("state_box", "start_box")}
    given = {name: box for name, box in boxes.items() if box.dimension}
    if isinstance(safety, RobustSafety):
        return _complete_robust(task, given)
    settings = (safety.state_cost, safety.input_cost, safety.horizon)
    if not (all(settings) and "state_box" in given and ("start_box" in given or own_starts)):
        found = derive_defaults(
            task.system,
            task.safe_set,
            **given,
            state_cost=safety.state_cost,
            input_cost=safety.input_cost,
            horizon=safety.horizon,
        )
        missing = {name: getattr(found, name) for name in boxes if name not in given}
        safety = SafetySettings(found.state_cost, found.input_cost, found.horizon, safety.level, safety.samples)
        missing["safety"] = safety
    if not task.name:
        missing["name"] = kind.__name__
    if not task.episode_steps:
        missing["episode_steps"] = max(_SHORTEST_EPISODE, _EPISODE_HORIZONS * safety.horizon)
    return task.completed(**missing) if missing else task


def _complete_robust(task: Task, given: dict) -> Task:
    """The same for a task with an invariant set: what is left out follows from the set."""
    missing: dict = {} if "state_box" in given else {"state_box": robust_safety(task).region.bounding_box()}
    if not task.name:
        missing["name"] = type(task).__name__
    if not task.episode_steps:
        missing["episode_steps"] = 2 * _SHORTEST_EPISODE
    return task.completed(**missing) if missing else task
