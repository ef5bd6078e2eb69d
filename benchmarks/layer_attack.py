"""Does the published layer keep the plant in the implicit set? Closed loops under adversaries, with our check behind it and
without.

Plants start at certified states; every adversary drives its share of them through the published layer alone
(`BackupCBF`), and the same plants through the layer whose answer is verified (`backup_cbf_verified`). After every step the
successor is looked at from outside: is its backup flow safe, and does it arrive, without any acceptance margin, in
float64? Counted are steps from inside to outside (leavings), plants that ever left and when they first did, time spent
outside, and violated constraints, with no tolerance. Adversaries: the run's own policy (with 30 % noise, and as it is),
uniform, held corners, gradient descent on the margins, boundary-hugging. Writes TASK_layer_attack.png beside the results.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks._common import (
    QUICK_RESULTS,
    RESULTS,
    implicit_sets,
    parser,
    policy_of,
    print_table,
    result_name,
    trained_run,
    write_results,
)
from holdfast.evaluate import Adversary, NoisyPolicy, default_adversaries
from holdfast.plots import LIGHT, to_png
from holdfast.plots.theme import figure_legend, new_figure
from holdfast.safeguards import BackupCBF, BackupSource, LayerFirst, Safeguard
from holdfast.tasks import Task
from holdfast.types import Status

GUARDS = ("backup_cbf", "backup_cbf_verified")


class OwnPolicy(NoisyPolicy):
    """The trained policy as it is."""

    name: ClassVar = "policy, no noise"
    noise: float = 0.0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--plants", type=int, default=None, help="closed loops of each adversary, 64 by default")
    arguments.add_argument("--steps", type=int, default=None, help="steps of each, 2000 by default")
    arguments = arguments.parse_args()
    plants, steps = (
        arguments.plants or (16 if arguments.quick else 64),
        arguments.steps or (200 if arguments.quick else 2000),
    )
    trained = trained_run(arguments)  # in its own precision
    jax.config.update("jax_enable_x64", True)
    task, policy = trained.task, policy_of(trained)
    implicit, _ = implicit_sets(trained)
    layer = BackupCBF(implicit)
    verified = Safeguard(BackupSource(implicit, trained.certified.acceptance), (), mask=LayerFirst(layer))
    adversaries = [each for each in default_adversaries(task, layer, policy) if each.name != "invalid"]
    adversaries.append(OwnPolicy(task, policy, task.sample_context(jax.random.key(0))))
    names = [each.name for each in adversaries]
    starts = certified_starts(task, verified, plants * len(adversaries))
    found, curves, rows = {}, {}, []
    for name, guard in zip(GUARDS, (layer, verified)):
        seen = loops(task, guard, implicit, adversaries, starts, steps)
        whole = counts(task, seen, np.arange(len(starts)))
        each = {n: counts(task, seen, np.arange(len(starts)) // plants == i) for i, n in enumerate(names)}
        found[name] = whole | {"adversaries": each}
        curves[name] = {n: outside_share(seen, plants, i) for i, n in enumerate(names)}
        rows += [table_row(name, n, c) for n, c in (each | {"all": whole}).items()]
    headings = (
        "guard",
        "adversary",
        "steps",
        "leavings",
        "share outside",
        "plants left",
        "first (median)",
        "violations",
    )
    print_table(headings, rows)
    write_results(
        __spec__.name,
        arguments,
        task=task.name,
        settings={
            "horizon": implicit.horizon,
            "gains": [layer.safe_gain, layer.base_gain],
            "slack_weight": layer.slack_weight,
            "plants of each adversary": plants,
            "steps of each plant": steps,
            "dtype": "float64",
            "trained": {"algorithm": trained.config.algorithm, "safeguard": trained.config.safeguard},
        },
        numbers=found,
    )
    folder = QUICK_RESULTS if arguments.quick else RESULTS
    picture = folder / f"{result_name('layer_attack', task.name)}.png"
    picture.write_bytes(to_png(leaving_figure(curves, task.system.dt)))
    if found[GUARDS[1]]["leavings"] or found[GUARDS[1]]["violations"]:
        raise SystemExit("the verified layer was broken")


def certified_starts(task: Task, guard: Safeguard, count: int) -> jax.Array:
    """States with a plan, shape [count, n]: half of `sample_state`, half of `sample_start`, mixed."""
    states = jax.vmap(task.sample_state)(jax.random.split(jax.random.key(0), 8 * count))
    starts = jax.vmap(task.sample_start)(jax.random.split(jax.random.key(1), count))
    program = jax.jit(jax.vmap(lambda x: guard.init(x).certified))
    found = [np.asarray(x, np.float64)[np.asarray(program(x))] for x in (states, starts)]
    mixed = np.concatenate([np.resize(x, (count // 2 + 1, x.shape[1])) for x in found])
    return jnp.asarray(np.random.default_rng(0).permutation(mixed)[:count])


def loops(task: Task, guard: Any, implicit: Any, adversaries: list[Adversary], starts: jax.Array, steps: int) -> dict:
    """Closed loops of all plants: whether each successor lies in the implicit set, its margins, statuses, [T, B, ...].

    Whether it lies inside is seen by a program of its own, from the states that were stored.
    """
    share = len(starts) // len(adversaries)

    @jax.jit
    def fly(starts):
        def advance(carry, t):
            x, state, u = carry
            keys = jax.random.split(jax.random.fold_in(jax.random.key(2), t), len(starts))
            parts = []
            for i, adversary in enumerate(adversaries):
                rows = slice(i * share, (i + 1) * share)
                parts.append(jax.vmap(adversary, in_axes=(0, 0, 0, None))(keys[rows], x[rows], u[rows], t))
            u = jnp.concatenate(parts)
            answer, state = jax.vmap(guard.step)(state, x, u)
            x = jax.vmap(task.system.step)(x, answer.action)
            return (x, state, u), (x, jax.vmap(task.safe_set.margin)(x), answer.status)

        u = jnp.zeros((len(starts), task.system.input_size), starts.dtype)
        carry = starts, jax.vmap(guard.init)(starts), u
        return jax.lax.scan(advance, carry, jnp.arange(steps, dtype=jnp.int32))[1]

    x, margins, status = fly(starts)
    look = jax.jit(lambda x: jax.lax.map(lambda row: jax.vmap(implicit.contains)(row), x))
    return {"inside": np.asarray(look(x)), "margins": np.asarray(margins), "status": np.asarray(status)}


def counts(task: Task, seen: dict, plants: np.ndarray) -> dict:
    """What happened to some plants."""
    inside, margins, status = (seen[name][:, plants] for name in ("inside", "margins", "status"))
    before = np.concatenate([np.ones((1, inside.shape[1]), bool), inside[:-1]])
    left = ~inside.all(axis=0)
    first = np.argmin(inside, axis=0)[left]
    violated = ~np.all(margins >= 0, axis=2)
    return {
        "steps": int(inside.size),
        "leavings": int(np.sum(before & ~inside)),
        "leavings_share_of_steps_from_inside": float(np.sum(before & ~inside) / max(1, before.sum())),
        "share_of_steps_outside": float(np.mean(~inside)),
        "plants": int(inside.shape[1]),
        "plants_left": int(left.sum()),
        "first_leaving_step": {
            "earliest": int(first.min()) if left.any() else None,
            "median": float(np.median(first)) if left.any() else None,
        },
        "violations": int(violated.sum()),
        "violating_plants": int(violated.any(axis=0).sum()),
        "worst_margin": dict(zip(task.safe_set.names, margins.min(axis=(0, 1)).tolist())),
        "statuses": {each.name: int(np.sum(status == each)) for each in Status},
    }


def outside_share(seen: dict, plants: int, index: int) -> np.ndarray:
    """Share of one adversary's plants that have left by each step, shape [T]."""
    inside = seen["inside"][:, index * plants : (index + 1) * plants]
    return np.mean(np.cumsum(~inside, axis=0) > 0, axis=1)


def table_row(guard: str, adversary: str, found: dict) -> tuple:
    first = found["first_leaving_step"]["median"]
    return (
        guard,
        adversary,
        found["steps"],
        found["leavings"],
        found["share_of_steps_outside"],
        f"{found['plants_left']} of {found['plants']}",
        "-" if first is None else f"{first:g}",
        found["violations"],
    )


def leaving_figure(curves: dict[str, dict[str, np.ndarray]], dt: float) -> Figure:
    """Share of plants that have ever left the implicit set, against time: the layer alone, and verified."""
    figure, axes = new_figure(LIGHT, "wide", 1, 2, row_height=3.0, share_x=False)
    colours = (LIGHT.actual, LIGHT.backup, LIGHT.corrected, LIGHT.analytic, LIGHT.unsafe, LIGHT.muted)
    titles = {"backup_cbf": "published layer", "backup_cbf_verified": "the same, verified"}
    top = 100 * max(curve[-1] for found in curves.values() for curve in found.values()) or 1.0
    for ax, (guard, found) in zip(np.ravel(axes), curves.items()):
        for (name, curve), colour in zip(found.items(), colours):
            ax.plot(
                dt * (1 + np.arange(len(curve))), 100 * curve, color=colour, label=name if guard == GUARDS[0] else None
            )
        ax.set(
            xlabel="time (s)", ylabel="plants that have left (%)", title=titles[guard], ylim=(-0.02 * top, 1.05 * top)
        )
    figure_legend(figure, LIGHT, "wide")
    return figure


if __name__ == "__main__":
    main()
