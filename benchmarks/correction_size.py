"""How much each map changes an action: `ray`, `boundary_projection`, `per_input`, and the nearest of all.

Every map answers the same rejected proposals at the same states with the same commitment, met in closed loops that are
pushed against the boundary of the certified set: held corners of the input box, and actions just beyond the margin.
Size is |applied - proposed| in units of the input box's half-widths.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._common import PUSHES, SAFEGUARDS, guard_of, parser, print_table, pushed, trained_run, write_results
from holdfast.types import Status


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=None, help="situations of each kind, 10,000 by default")
    arguments = arguments.parse_args()
    count = arguments.count or (500 if arguments.quick else 10_000)
    trained = trained_run(arguments)
    task = trained.task
    plants, steps = (128, 50) if arguments.quick else (1024, 150)
    rejected = pushed(task, guard_of(trained, "all"), plants=plants, steps=steps)
    half = jnp.asarray(task.system.input_box.half_widths, jnp.float32)
    numbers = {}
    for kind, push in enumerate(PUSHES):
        situations = rejected.where(np.asarray(rejected.kind) == kind)
        found = len(situations)
        situations = situations.draw(min(count, found))
        sizes, fell_back = {}, {}
        for name in SAFEGUARDS:
            step = jax.jit(jax.vmap(guard_of(trained, name).step))
            answer, _ = step(situations.commitment, situations.x, situations.u)
            sizes[name] = np.asarray(jnp.sqrt(jnp.sum((answer.correction / half) ** 2, axis=1)), np.float64)
            fell_back[name] = float(np.mean(np.asarray(answer.status) == Status.fell_back))
        numbers[push] = {"situations": len(situations), "maps": compare(sizes, fell_back)}
    for push, each in numbers.items():
        rows = [
            (name, m["mean"], m["median"], m["q90"], m["smallest"], m["not_above_ray"], m["fell_back"])
            for name, m in each["maps"].items()
        ]
        print_table((push, "mean", "median", "90 %", "smallest", "<= ray", "fell back"), rows)
    write_results(
        __spec__.name,
        arguments,
        task=task.name,
        settings={
            "dtype": "float32",
            "unit": "half-widths of the input box, Euclidean",
            "smallest": "share of situations in which no other single map changed the action less (ties count for each)",
        },
        numbers=numbers,
    )


def compare(sizes: dict[str, np.ndarray], fell_back: dict[str, float], tie: float = 1e-3) -> dict:
    """Statistics of corrections [B] by map; sizes closer than `tie` count as equal (searches stop at 1e-3)."""
    single = [name for name in sizes if name != "all"]
    least = np.min([sizes[name] for name in single], axis=0)
    return {
        name: {
            "mean": float(size.mean()),
            "median": float(np.median(size)),
            "q90": float(np.quantile(size, 0.9)),
            "smallest": float(np.mean(size <= least + tie)),
            "not_above_ray": float(np.mean(size <= sizes["ray"] + tie)),
            "fell_back": fell_back[name],
        }
        for name, size in sizes.items()
    }


if __name__ == "__main__":
    main()
