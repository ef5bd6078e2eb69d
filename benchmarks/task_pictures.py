"""The pictures of docs/tasks.md: each task's scene during an episode under its base controller, nothing learned or proved.

    python -m benchmarks.task_pictures [TASK ...]

They show what a task looks like, not what a policy can do in it.
"""

import sys

import imageio.v3 as imageio
import jax
import numpy as np

from benchmarks._common import ROOT
from holdfast.backup import design_base_controller
from holdfast.plots import Snapshot
from holdfast.tasks import RobustSafety, Task, make_task, task_names

#: Share of the episode that has been, at most this many steps.
SHARE, MOST = 0.5, 60


def controller(task: Task):
    """x [n] -> u [m] that keeps the task where it is."""
    safety = task.safety
    if isinstance(safety, RobustSafety):
        return safety.controller
    return design_base_controller(task.system, safety.state_cost, safety.input_cost, 1.0).action


def picture(task: Task) -> np.ndarray:
    """The frame, shape [height, width, 3], uint8."""
    act, system = controller(task), task.system
    steps, begin = min(MOST, max(1, int(SHARE * task.episode_steps))), jax.random.key(3)

    @jax.jit
    def episode():
        def advance(x, _):
            x = system.step(x, act(x))
            return x, x

        start = task.sample_start(begin)
        return start, jax.lax.scan(advance, start, None, length=steps)[1]

    start, later = episode()
    context = task.sample_context(jax.random.fold_in(begin, 1))
    return Snapshot(task, dpi=90).frame(np.concatenate([np.asarray(start)[None], np.asarray(later)]), context)


def main() -> None:
    folder = ROOT / "docs" / "tasks"
    folder.mkdir(exist_ok=True)
    for name in sys.argv[1:] or task_names():
        imageio.imwrite(folder / f"{name}.png", picture(make_task(name)))
        print(folder / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
