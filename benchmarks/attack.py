"""Attacked steps on a trained run, by all adversaries, in float32: 10^7 for lane keeping, 10^6 for other tasks.

The plant runs in another compiled program than the safeguard, with noise of one unit in the last place on every state;
violations have no tolerance.
"""

import sys

import jax.numpy as jnp

from benchmarks._asked import asked
from benchmarks._common import guard_of, parser, policy_of, print_table, trained_run, write_results
from holdfast.evaluate import attack


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=float, default=None, help="as many as were asked of the task, else 1e6")
    arguments.add_argument("--plants", type=int, default=None, help="closed loops side by side, 2048 by default")
    arguments = arguments.parse_args()
    plants = arguments.plants or (256 if arguments.quick else 2048)
    trained = trained_run(arguments)
    steps = int(arguments.steps or (1e5 if arguments.quick else asked(trained.task.name).get("attack_steps", 1e6)))

    def progress(done: int, total: int, violations: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} steps, {violations} violations", end="", file=sys.stderr)

    guard, policy = guard_of(trained), policy_of(trained)
    found = attack(
        trained.task, guard, steps=steps, batch=plants, policy=policy, dtype=jnp.float32, progress=progress
    ).to_json()
    rows = [
        (name, each["steps"], each["violations"], each["certified_steps"], min(each["worst_margin"].values()))
        for name, each in (found["adversaries"] | {f"noise: {k}": v for k, v in found["disturbances"].items()}).items()
    ]
    print_table(("adversary", "steps", "violations", "holding a plan", "worst margin"), rows)
    print(f"{found['steps']:,} steps, {found['violations']} violations, {found['microseconds_per_step']:.2f} us a step")
    write_results(
        __spec__.name,
        arguments,
        task=trained.task.name,
        settings={"safeguard": trained.config.safeguard, "steps": steps, "plants": plants},
        numbers=found,
    )
    if found["violations"] or found["certified_steps"] != found["steps"]:
        raise SystemExit("the safeguard was broken")


if __name__ == "__main__":
    main()
