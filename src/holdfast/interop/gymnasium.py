"""Every task as a Gymnasium environment, and a safeguard around anybody's.

    import gymnasium
    from holdfast.interop.gymnasium import register

    register()
    env = gymnasium.make("holdfast/LaneKeeping-v0", guard=safeguard)
    envs = gymnasium.make_vec("holdfast/LaneKeeping-v0", num_envs=64, guard=safeguard)

Importing registers nothing (Gymnasium 1.0 gave up entry points that do): call `register`.
"""

import gymnasium

from holdfast.interop.safeguard_wrapper import SafeguardWrapper
from holdfast.interop.task_env import TaskEnv
from holdfast.interop.task_vector_env import TaskVectorEnv
from holdfast.tasks import task_names

__all__ = ["SafeguardWrapper", "TaskEnv", "TaskVectorEnv", "environment_id", "register"]


def environment_id(task: str) -> str:
    """The id of a task's environment: "lane-keeping" -> "holdfast/LaneKeeping-v0"."""
    return f"holdfast/{''.join(word.capitalize() for word in task.split('-'))}-v0"


def register() -> list[str]:
    """Registers all tasks that are not registered yet, with their vector versions; returns the ids of all."""
    ids = [environment_id(name) for name in task_names()]
    for task, each in zip(task_names(), ids):
        if each not in gymnasium.registry:
            gymnasium.register(
                id=each,
                entry_point="holdfast.interop.gymnasium:TaskEnv",
                vector_entry_point="holdfast.interop.gymnasium:TaskVectorEnv",
                kwargs={"task": task},
            )
    return ids
