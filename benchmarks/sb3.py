"""Stable-Baselines3's PPO, SAC and TD3 behind the safeguard, with and without a penalty on interventions: no violation in
10^5 steps of training each, and none in 64 episodes after. PPO without a safeguard is trained for comparison.

The safeguard's backup is the base controller: nothing of holdfast is trained. `--picture` draws the curves of the results.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks._common import RESULTS, ROOT, parser, print_table, result_name, write_results
from holdfast.interop.analytic import analytic_safeguard
from holdfast.plots import LIGHT, to_png
from holdfast.plots.theme import figure_legend, new_figure
from holdfast.runs import Sink
from holdfast.safeguards import Safeguard
from holdfast.tasks import make_task

PENALTY = 10.0
CASES = [
    ("PPO", True, 0.0),
    ("PPO", True, PENALTY),
    ("PPO", False, 0.0),
    *((name, True, penalty) for name in ("SAC", "TD3") for penalty in (0.0, PENALTY)),
]
"""(algorithm, whether behind the safeguard, intervention penalty)."""
EVALUATION_SEED = 10_000


class Rows(Sink):
    """Keeps rows in memory."""

    def __init__(self):
        self.rows: list[dict[str, Any]] = []

    def write(self, row):
        self.rows.append(dict(row))


def settings_of(algorithm: str, quick: bool) -> dict[str, Any]:
    """Hyperparameters that are not the library's defaults: a batch of environments feeds fewer, larger updates."""
    if algorithm == "PPO":
        return {"n_steps": 16 if quick else 64, "batch_size": 256, "gamma": 0.98, "learning_rate": 1e-3}
    return {
        "learning_starts": 64 if quick else 2000,
        "gradient_steps": 1 if quick else 2,
        "gamma": 0.98,
        "learning_rate": 1e-3,
    }


def one_case(
    task: str, algorithm: str, guard: Safeguard | None, penalty: float, *, steps: int, environments: int, quick: bool
) -> dict[str, Any]:
    """Trains once, counts every step, and evaluates the trained policy without exploration."""
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.vec_env import VecNormalize

    from holdfast.interop.stable_baselines3 import SafetyCallback, TaskVecEnv

    torch.set_num_threads(1)
    begun = time.perf_counter()
    env = TaskVecEnv(task, environments, guard, penalty, seed=0)
    kept = Rows()
    tell = SafetyCallback(kept, every=max(environments, steps // 40))
    scaled = VecNormalize(env, gamma=0.98)  # observations and rewards of order one
    model = getattr(sb3, algorithm)("MlpPolicy", scaled, seed=0, device="cpu", **settings_of(algorithm, quick))
    model.learn(steps, callback=tell)
    seconds = time.perf_counter() - begun
    after = TaskVecEnv(task, environments, guard, seed=EVALUATION_SEED)
    returns = evaluated(lambda seen: model.predict(scaled.normalize_obs(seen), deterministic=True)[0], after)
    return {
        "algorithm": algorithm,
        "safeguard": guard is not None,
        "intervention_penalty": penalty,
        "training": count(env.safety),
        "evaluation": count(after.safety) | {"return_mean": float(np.mean(returns)), "episodes": len(returns)},
        "curve": kept.rows,
        "seconds": seconds,
    }


def evaluated(policy: Callable[[np.ndarray], np.ndarray], env: Any) -> np.ndarray:
    """Task returns of one episode of each environment, shape [B]."""
    observation, total = env.reset(), np.zeros(env.num_envs)
    for _ in range(env.envs.task.episode_steps):
        observation, _, over, infos = env.step(policy(observation))
        total += [info["task_reward"] for info in infos]
    assert over.all(), "episodes have one length"
    return total


def count(safety: Any) -> dict[str, Any]:
    """A `SafetyCount` as JSON."""
    return {
        "steps": safety.steps,
        "violations": safety.violations,
        "unpromised_violations": safety.unpromised_violations,
        "interventions": safety.interventions,
        "starts": safety.starts,
        "uncertified_starts": safety.uncertified_starts,
        "statuses": safety.statuses,
        "correction": safety.correction,
    }


def label(case: dict[str, Any]) -> str:
    """Words for one case."""
    if not case["safeguard"]:
        return f"{case['algorithm']}, no safeguard"
    return f"{case['algorithm']}, penalty {case['intervention_penalty']:g}"


def picture(task: str, cases: list[dict[str, Any]]) -> Figure:
    """Cost (minus the task return, on a log scale) and share of interventions over training steps."""
    figure, axes = new_figure(LIGHT, "wide", 2, row_height=2.2)
    colours = {"PPO": LIGHT.actual, "SAC": LIGHT.backup, "TD3": LIGHT.proposed}
    for case in cases:
        steps = [row["step"] for row in case["curve"]]
        dash = ":" if not case["safeguard"] else "--" if case["intervention_penalty"] else "-"
        look = {"color": colours[case["algorithm"]], "linestyle": dash, "linewidth": 1.6}
        returns = [np.nan if row["return_mean"] in (None, "NaN") else row["return_mean"] for row in case["curve"]]
        shown = np.isfinite(np.array(returns, float))
        axes[0, 0].plot(np.array(steps)[shown], -np.array(returns, float)[shown], label=label(case), **look)
        if case["safeguard"]:
            axes[1, 0].plot(steps, [100 * row["interventions"] for row in case["curve"]], **look)
    axes[0, 0].set(yscale="log", ylabel="cost (minus return)")
    axes[1, 0].set(ylabel="interventions (% of steps)", xlabel=f"environment steps of {task}")
    figure_legend(figure, LIGHT, "wide")
    return figure


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=float, default=None, help="of each training, 1e5 by default")
    arguments.add_argument("--environments", type=int, default=None, help="side by side, 64 by default")
    arguments.add_argument("--picture", type=Path, default=None, help="write the curves there as PNG")
    arguments.add_argument("--draw-only", action="store_true", help="draw the results that there are, train nothing")
    arguments = arguments.parse_args()
    task, quick = make_task(arguments.task).name, arguments.quick
    steps = int(arguments.steps or (1e3 if quick else 1e5))
    environments = arguments.environments or (16 if quick else 64)
    if arguments.draw_only:
        cases = json.loads((RESULTS / f"{result_name('sb3', task)}.json").read_text())["numbers"]["cases"]
    else:
        guard = analytic_safeguard(task, max_seconds=900.0)  # enough at low priority, too
        cases = []
        for algorithm, guarded, penalty in CASES:
            found = one_case(
                task,
                algorithm,
                guard if guarded else None,
                penalty,
                steps=steps,
                environments=environments,
                quick=quick,
            )
            print(f"{label(found)}: {found['training']['violations']} violations, {found['seconds']:.0f} s", flush=True)
            cases.append(found)
            write_results(
                __spec__.name,
                arguments,
                task=task,
                settings={
                    "steps": steps,
                    "environments": environments,
                    "backup": "base controller",
                    "hyperparameters": {name: settings_of(name, quick) for name in ("PPO", "SAC", "TD3")},
                },
                numbers={"cases": cases},
            )
    print_table(
        ("case", "training steps", "violations", "return after", "violations after", "interventions after", "s"),
        [
            (
                label(each),
                each["training"]["steps"],
                each["training"]["violations"],
                each["evaluation"]["return_mean"],
                each["evaluation"]["violations"],
                each["evaluation"]["interventions"] / each["evaluation"]["steps"],
                each["seconds"],
            )
            for each in cases
        ],
    )
    if arguments.picture:
        (ROOT / arguments.picture).write_bytes(to_png(picture(task, cases), dpi=110))
    if any(each["training"]["violations"] + each["evaluation"]["violations"] for each in cases if each["safeguard"]):
        raise SystemExit("a safeguarded training violated a constraint")


if __name__ == "__main__":
    main()
