"""Ten seeds of lane keeping, 1000 episodes each: metrics, violations, and how much of the viability kernel is certified.

Beside the learned policies stands a line to compare with: optimal control, open loop, that knows the start and the whole
reference. The 400 inputs of an episode are optimised by gradients through the simulator, with a penalty on margins below
3 mm (3 mrad) as the constraint, from start states of the evaluation.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._common import (
    EVALUATION_SEED,
    implicit_sets,
    load,
    parser,
    print_table,
    run_path,
    write_results,
)
from holdfast.evaluate import measure_coverage
from holdfast.tasks import Task

TARGETS = {"y_rmse": 0.38, "v_rmse": 0.45, "psi_rmse": 0.11, "kernel_share": 0.97}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=None, help="states of the coverage, 1,000,000 by default")
    arguments.add_argument("--starts", type=int, default=None, help="starts of the optimal control, 64 by default")
    arguments = arguments.parse_args()
    samples = arguments.samples or (50_000 if arguments.quick else 1_000_000)
    starts, iterations = (arguments.starts or 4, 300) if arguments.quick else (arguments.starts or 64, 4000)
    options = ("--seeds", "2" if arguments.quick else "10")
    path = run_path(arguments, label="lane-keeping-seeds", train=options)
    trained, report = load(path), json.loads((path / "report.json").read_text())
    metrics = {name: each | {"worst_seed": max(each["per_seed"], key=abs)} for name, each in report["metrics"].items()}
    print_table(
        ("metric", "mean", "IQM", "95 % low", "high", "worst seed", "target"),
        [
            (name, m["mean"], m["iqm"], *m["ci95"], m["worst_seed"], str(TARGETS.get(name, "")))
            for name, m in metrics.items()
        ],
    )
    for words, safety in (("evaluation", report["safety"]), ("training", report["training_safety"])):
        print(f"{words}: {safety['violations']} violations in {safety['steps']:,} guarded steps")

    coverage = []
    for index in range(trained.config.seeds):
        learned, analytic = implicit_sets(trained, index)
        found = measure_coverage(
            trained.task,
            learned,
            analytic if index == 0 else None,
            acceptance=trained.certified.acceptance,
            samples=samples,
        )
        coverage.append(found.to_json())
    rows = [(str(i), c["kernel_share"], c["certified"], c["outside_kernel"], c["starts_certified"])
            for i, c in enumerate(coverage)]  # fmt: skip
    first = coverage[0]
    rows.append(("analytic", first["kernel_share_analytic"], first["analytic"], "", ""))
    print_table(("seed", "share of kernel", "of safe set", "outside kernel", "of starts"), rows)

    optimum = optimal_control(trained.task, starts, iterations)
    names = ("return", *trained.task.metric_units)
    print_table(("optimal control", "mean"), [(name, optimum[name]) for name in (*names, "worst_margin")])
    shares = [each["kernel_share"] for each in coverage]
    write_results(
        __spec__.name,
        arguments,
        settings={
            "training": f"holdfast train lane-keeping --seeds {trained.config.seeds}",
            "seeds": trained.config.seeds,
            "episodes for each seed": report["safety"]["episodes"] // trained.config.seeds,
            "coverage samples": samples,
            "optimal control": {"starts": starts, "iterations": iterations},
        },
        numbers={
            "targets": TARGETS,
            "published": report.get("published"),
            "metrics": metrics,
            "safety": report["safety"],
            "training_safety": report["training_safety"],
            "wall_seconds": report["wall_seconds"],
            "kernel_share": {"mean": float(np.mean(shares)), "min": min(shares), "per_seed": shares},
            "kernel_share_analytic": first["kernel_share_analytic"],
            "outside_kernel": sum(each["outside_kernel"] for each in coverage),
            "coverage": coverage,
            "optimal_control": optimum,
        },
    )


def optimal_control(task: Task, starts: int, iterations: int) -> dict[str, float]:
    """Open-loop optimal control under the constraint, for the first start states of the evaluation; float32.

    Inputs are centre + half_widths tanh(z + a hand-made tracking law), so that they stay in the box and the search
    begins near the lane. Local optimisation: the true optimum may be better still.

    Returns: mean return and task metrics, and the smallest margin on any path.
    """
    system = task.system
    half = jnp.asarray(system.input_box.half_widths, jnp.float32)
    tighten, weight = 0.003, 1e4

    def law(x, t):
        y_ref, v_ref, _ = task.reference(t + 1, ())
        return jnp.stack([v_ref - x[1], 1.5 * (jnp.clip(y_ref, -1.7, 1.7) - x[0]) - 3 * x[2]])

    def roll(z, x0):
        def advance(x, step):
            z, t = step
            u = half * jnp.tanh(z + law(x, t))
            following = system.step(x, u)
            return following, (following, task.reward(x, u, following, t, ()))

        _, (states, rewards) = jax.lax.scan(advance, x0, (z, jnp.arange(task.episode_steps)))
        return states, rewards, jax.vmap(task.safe_set.margin)(states)

    def loss(z, x0):
        _, rewards, margins = roll(z, x0)
        return -jnp.sum(rewards) + weight * jnp.sum(jax.nn.relu(tighten - margins) ** 2)

    optimiser = optax.adam(optax.cosine_decay_schedule(0.05, iterations, alpha=0.02))

    def solve(index):
        start_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(EVALUATION_SEED), index))
        x0 = task.sample_start(start_key).astype(jnp.float32)
        z = jnp.zeros((task.episode_steps, system.input_size), jnp.float32)

        def improve(carry, _):
            z, state = carry
            updates, state = optimiser.update(jax.grad(loss)(z, x0), state)
            return (optax.apply_updates(z, updates), state), None

        (z, _), _ = jax.lax.scan(improve, (z, optimiser.init(z)), None, length=iterations)
        states, rewards, margins = roll(z, x0)
        return task.metrics(jnp.concatenate([x0[None], states]), ()) | {
            "return": jnp.sum(rewards),
            "worst_margin": jnp.min(margins),
        }

    found = jax.device_get(jax.jit(jax.vmap(solve))(jnp.arange(starts, dtype=jnp.int32)))
    return {name: float(np.min(v) if name == "worst_margin" else np.mean(v)) for name, v in found.items()}


if __name__ == "__main__":
    main()
