"""Why certified means holding a committed plan: the implicit set flips where the plan stays safe.

Boundary states of the certified set are found by bisection between a certified and an uncertified state, down to
neighbouring float32 numbers. There the set is evaluated again: by a batched program, by a single-state program, and at
the neighbours one unit in the last place away. Where any of these disagrees with the evaluation that committed the plan,
the plan is replayed through a plant in another compiled program, with noise of one unit in the last place at every step,
and every sample is checked without tolerance. Along the way the set is evaluated once more at every state, to count how
often a safeguard that trusts re-evaluation would have lost its promise.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._common import guard_of, parser, print_table, trained_run, write_results
from holdfast.safeguards import Safeguard
from holdfast.tasks import Task


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=None, help="boundary states, 20,000 by default")
    arguments.add_argument("--steps", type=int, default=400, help="replayed steps of each plan")
    arguments.add_argument("--noises", type=int, default=None, help="noise sequences for each plan, 4 by default")
    arguments = arguments.parse_args()
    count = arguments.count or (500 if arguments.quick else 20_000)
    noises = arguments.noises or (2 if arguments.quick else 4)
    trained = trained_run(arguments)
    task, guard = trained.task, guard_of(trained)
    if task.system.manifold(jnp.asarray(task.system.equilibrium()[0])).size:
        raise SystemExit(f"{task.name}: states lie on a manifold, and bisection between two of them leaves it")
    x = boundary_states(task, guard, count)
    flips = find_flips(guard, x)
    any_flip = np.any(list(flips.values()), axis=0)
    x = jnp.asarray(x[any_flip])
    numbers = {
        "boundary_states": count,
        "flips": {name: int(each.sum()) for name, each in flips.items()},
        "states_with_a_flip": int(any_flip.sum()),
    }
    if len(x):
        numbers["replay"] = replay(task, guard, x, steps=arguments.steps, noises=noises)
    rows = [("boundary states", count), *numbers["flips"].items(), ("any of these", numbers["states_with_a_flip"])]
    rows += [(f"replayed: {name}", value) for name, value in numbers.get("replay", {}).items()]
    print_table(("evaluated again, the set flips", "states"), rows)
    write_results(
        __spec__.name,
        arguments,
        task=task.name,
        settings={
            "horizon": guard.source.implicit_set.horizon,
            "dtype": "float32",
            "replayed steps": arguments.steps,
            "noise sequences": noises,
        },
        numbers=numbers,
    )
    if numbers.get("replay", {}).get("violations", 0):
        raise SystemExit("a committed plan violated a constraint")


def boundary_states(task: Task, guard: Safeguard, count: int, seed: int = 0) -> np.ndarray:
    """Certified states with an uncertified neighbour a few units in the last place away, float32, shape [count, n]."""
    states = jax.jit(jax.vmap(task.sample_state))(jax.random.split(jax.random.key(seed), 6 * count))
    states = np.asarray(states, np.float32)
    certified = certifier(guard)
    inside = np.asarray(certified(states))
    low, high = states[inside], states[~inside]
    if not len(low) or not len(high):
        raise SystemExit("all states or none are certified: there is no boundary to look at")
    low, high = np.resize(low, (count, low.shape[1])), np.resize(high, (count, high.shape[1]))
    for _ in range(40):
        middle = (0.5 * (low.astype(np.float64) + high)).astype(np.float32)
        inside = np.asarray(certified(middle))[:, None]
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return low


def certifier(guard: Safeguard):
    """The batched program: states [B, n] -> whether a plan from there is accepted, [B]."""
    return jax.jit(jax.vmap(lambda x: guard.init(x).certified))


def find_flips(guard: Safeguard, x: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the certified states [B, n] are not certified when looked at again, by how they were looked at, [B]."""
    batched = certifier(guard)
    single = jax.jit(lambda x: guard.init(x).certified)
    promised = np.asarray(batched(x))
    flips = {"by a single-state program": np.asarray([bool(single(each)) for each in x]) != promised}
    parts = [np.asarray(batched(part)) for part in np.array_split(x, 7)]
    flips["by a batch of another size"] = np.concatenate(parts) != promised
    moved = np.zeros(len(x), bool)
    for axis in range(x.shape[1]):
        for towards in (-np.inf, np.inf):
            neighbour = x.copy()
            neighbour[:, axis] = np.nextafter(x[:, axis], np.float32(towards))
            moved |= np.asarray(batched(neighbour)) != promised
    flips["by one unit in the last place"] = moved
    return flips


def replay(task: Task, guard: Safeguard, x, *, steps: int, noises: int) -> dict[str, int | float]:
    """Replays the plans committed at states [B, n] for `steps` steps under noise, `noises` times each.

    Plan and plant are two compiled programs; a third one evaluates the set again at every state of the way.

    Returns: counts over all plans, noises and samples; margins in the units of each constraint.
    """
    source, system = guard.source, task.system
    x = jnp.repeat(x, noises, axis=0)
    commitment = jax.jit(jax.vmap(guard.init))(x)
    held = np.asarray(commitment.certified)
    # A repeated batch is another program again: what it does not certify was never promised by it.
    x, commitment = jax.tree.map(lambda leaf: leaf[held], (x, commitment))

    @jax.jit
    def act(x, commitment):
        return jax.vmap(source.fallback)(x, commitment), jax.vmap(source.after_fallback)(commitment)

    @jax.jit
    def move(x, u, key):
        following = jax.vmap(system.step)(x, u)
        direction = jax.random.randint(key, x.shape, -1, 2)
        towards = jnp.where(direction > 0, jnp.inf, -jnp.inf).astype(x.dtype)
        noisy = jnp.where(direction == 0, following, jnp.nextafter(following, towards))
        # What the system itself clips, noise does not undo.
        post_step = getattr(system, "post_step", lambda x: x)
        noisy = jnp.where(jax.vmap(post_step)(noisy) == following, following, noisy)
        return noisy, jax.vmap(task.safe_set.margin)(noisy), jax.vmap(source.implicit_set.policy.base.margin)(noisy)

    certified = certifier(guard)
    violations, lost, worst = 0, np.zeros(len(x), bool), np.inf
    base = None
    for k in range(steps):
        u, commitment = act(x, commitment)
        x, margins, base = move(x, u, jax.random.fold_in(jax.random.key(1), k))
        safe = np.all(np.asarray(margins) >= 0, axis=1) & np.all(np.isfinite(np.asarray(x)), axis=1)
        violations += int(np.sum(~safe))
        worst = min(worst, float(np.min(np.asarray(margins))))
        if k < source.implicit_set.horizon:
            lost |= ~np.asarray(certified(x))
    return {
        "plans": len(x),
        "samples": len(x) * steps,
        "violations": violations,
        "worst_margin": worst,
        "outside the base set at the end": int(np.sum(~(np.asarray(base) >= 0))),
        "plans that re-evaluation would have dropped": int(lost.sum()),
    }


if __name__ == "__main__":
    main()
