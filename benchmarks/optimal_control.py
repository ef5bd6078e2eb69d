"""Open-loop optimal control under the constraint: what a policy's return is compared with.

It knows the start and the whole reference. All inputs of an episode are optimised by gradients through the simulator
(Adam, cosine decay), with a penalty on margins below 3 mm (3 mrad) that grows a hundredfold. From the nominal start (where
the reference starts) the search begins at many smooth random input sequences around the equilibrium input, half of them as
corrections of the LQR that tracks the reference. From starts of the evaluation it begins at the best ones found there,
and once more at the answers from the nearest other starts; the start is moved from there to where it belongs in the first
half of the iterations. An answer counts only if no margin along it is negative, without tolerance, in a second program;
the best of them is kept. Local optimisation: the true optimum may be better still.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from benchmarks._common import EVALUATION_SEED, parser, print_table, write_results
from holdfast.backup import design_base_controller
from holdfast.tasks import Task, make_task

KNOTS = 6
"""Points between which the random input sequences are interpolated."""
CARRIED = 2
"""Answers from elsewhere at which the search from a start begins, in each of two rounds."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--starts", type=int, default=None, help="starts of the evaluation, 64 by default")
    arguments.add_argument(
        "--candidates", type=int, default=None, help="searches from the nominal start, 16 by default"
    )
    arguments.add_argument("--iterations", type=int, default=None, help="of each search, 6000 by default")
    arguments = arguments.parse_args()
    if arguments.run is not None:
        raise SystemExit("optimal_control needs no policy: leave out --run, give --task")
    starts = arguments.starts or (2 if arguments.quick else 64)
    candidates = arguments.candidates or (4 if arguments.quick else 16)
    iterations = arguments.iterations or (400 if arguments.quick else 6000)
    task = make_task(arguments.task)
    search = Search(task, iterations)
    nominal, carried = search.from_nominal(candidates)
    found = search.from_starts(starts, carried)
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    names = ("return", *task.metric_units, "worst_margin")
    rows = [(name, nominal[name], mean[name], float(np.min(found[name])), float(np.max(found[name]))) for name in names]
    print_table(("optimal control", "nominal start", f"mean of {starts} starts", "least", "largest"), rows)
    write_results(
        __spec__.name,
        arguments,
        task=task.name,
        settings={
            "starts": starts,
            "candidates from the nominal start": candidates,
            "candidates from each start": 2 * CARRIED,
            "iterations": iterations,
            "start states": "of the evaluation, in order",
            "nominal start": "the reference's first state",
            "dtype": "float32",
        },
        numbers={
            "nominal": nominal,
            "mean": mean,
            "worst_margin": min(nominal["worst_margin"], float(np.min(found["worst_margin"]))),
            "per_start": {name: values.tolist() for name, values in found.items()},
        },
    )


class Answer(NamedTuple):
    """Input sequences as the search holds them: u_t = centre + half_widths tanh(z_t + tracks * law(x_t, t)).

    Attributes:
        z: shape [T, m].
        tracks: 1 if they are corrections of the tracking law, 0 if they are inputs, shape [].
        value: the return, -inf where a margin is negative, shape [].
    """

    z: Float[Array, "T m"]
    tracks: Float[Array, ""]
    value: Float[Array, ""]


class Search:
    """The search for one task; compiled once for each number of candidates.

    Args:
        task: what is driven; its context must be the same in every episode.
        iterations: gradient steps of a search.
    """

    tighten, clear, weights, rates, clip = 3e-3, 1e-5, (1e2, 1e4), (0.1, 0.02), 10.0
    """Margin below which the penalty begins and the least that an answer keeps, in each margin's unit; weight of the
    penalty at first and in the end; Adam's rate at first, from anywhere and from an answer that is nearly right; largest
    norm of a gradient."""

    def __init__(self, task: Task, iterations: int):
        self.task, self.iterations = task, iterations
        system = task.system
        base = design_base_controller(system, np.asarray(task.safety.state_cost), np.asarray(task.safety.input_cost))
        self.gain = np.asarray(base.controller.gain, np.float32)
        self.half = np.asarray(system.input_box.half_widths, np.float32)
        self.centre = np.asarray(system.input_box.centre, np.float32)
        rest = (np.asarray(base.controller.equilibrium_input, np.float32) - self.centre) / self.half
        self.rest = np.arctanh(np.clip(rest, -0.99, 0.99))
        self.context = task.sample_context(jax.random.key(0))
        self.nominal = task.reference(jnp.zeros((), jnp.int32), self.context).astype(jnp.float32)
        self._improve = jax.jit(jax.vmap(self._improved, in_axes=(0, 0, 0, None)))
        self._judge = jax.jit(jax.vmap(self._judged))

    def from_nominal(self, candidates: int) -> tuple[dict[str, float], Answer]:
        """The best answer from where the reference starts, as numbers by name, and the best `CARRIED` to begin with."""
        keys = jax.random.split(jax.random.key(0), candidates)
        first = jax.vmap(self._drawn)(keys, (jnp.arange(candidates) % 2).astype(jnp.float32))
        x = jnp.broadcast_to(self.nominal, (candidates, *self.nominal.shape))
        answers = self._improve(first, x, x, self.rates[0])
        numbers = {name: np.asarray(values) for name, values in self._judge(answers, x).items()}
        order = np.argsort(-numbers["return"])
        self._require(numbers["return"][order[:1]])
        best = {name: float(values[order[0]]) for name, values in numbers.items()}
        return best, jax.tree.map(lambda leaf: leaf[order[:CARRIED]], answers)

    def from_starts(self, count: int, first: Answer) -> dict[str, np.ndarray]:
        """The best answers from the evaluation's first `count` starts, as numbers by name, shape [count]."""

        def start(index):
            key, _ = jax.random.split(jax.random.fold_in(jax.random.key(EVALUATION_SEED), index))
            return self.task.sample_start(key).astype(jnp.float32)

        x = jax.vmap(start)(jnp.arange(count, dtype=jnp.int32))
        apart = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(x)[None], axis=2)
        nearest = np.argsort(apart, axis=1)[:, np.arange(1, CARRIED + 1) % count]
        origin = jnp.broadcast_to(self.nominal, (count, CARRIED, *self.nominal.shape))
        best = self._best(jax.tree.map(lambda leaf: jnp.stack([leaf] * count), first), origin, x)
        others = jax.tree.map(lambda leaf: leaf[nearest], best[0])
        again = self._best(others, x[nearest], x)
        better = again[1]["return"] > best[1]["return"]
        found = {name: np.where(better, again[1][name], values) for name, values in best[1].items()}
        self._require(found["return"])
        return found

    def _best(self, first: Answer, origin, x) -> tuple[Answer, dict[str, np.ndarray]]:
        """The best answer from each start x [S, n] of searches that begin at answers [S, C] for starts [S, C, n]."""
        count = len(x)
        first, origin = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (first, origin))
        x = jnp.repeat(x, CARRIED, axis=0)
        answers = self._improve(first, origin, x, self.rates[1])
        numbers = {name: np.asarray(v).reshape(count, CARRIED) for name, v in self._judge(answers, x).items()}
        best = np.argmax(numbers["return"], axis=1)
        chosen = jax.tree.map(lambda leaf: leaf[np.arange(count) * CARRIED + best], answers)
        return chosen, {name: values[np.arange(count), best] for name, values in numbers.items()}

    def _require(self, returns: np.ndarray) -> None:
        if not np.all(np.isfinite(returns)):
            raise SystemExit(
                f"{self.task.name}: from {np.sum(~np.isfinite(returns))} of {len(returns)} starts no search ended with all "
                "margins >= 0; give more --iterations or more --candidates"
            )

    def _drawn(self, key, tracks) -> Answer:
        """A smooth random sequence around the equilibrium input, of a random size; the smaller the more it tracks."""
        size_key, knot_key = jax.random.split(key)
        size = jax.random.uniform(size_key, ()) * jnp.where(tracks > 0, 0.3, 1.0)
        knots = size * jax.random.normal(knot_key, (KNOTS, len(self.half)), jnp.float32)
        at = jnp.linspace(0.0, KNOTS - 1, self.task.episode_steps)
        z = jax.vmap(lambda c: jnp.interp(at, jnp.arange(KNOTS), c), in_axes=1, out_axes=1)(knots)
        return Answer(z + self.rest, tracks, jnp.asarray(-jnp.inf, jnp.float32))

    def _roll(self, answer: Answer, x0):
        """States [T, n] after each input, and the return."""
        task, system = self.task, self.task.system

        def advance(x, step):
            z, t = step
            wanted = task.reference(t + 1, self.context).astype(x.dtype)
            law = -(self.gain @ (system.bounded_error(x) - system.bounded_error(wanted))) / self.half
            u = self.centre + self.half * jnp.tanh(z + answer.tracks * law)
            following = system.step(x, u)
            return following, (following, task.reward(x, u, following, t, self.context))

        times = jnp.arange(task.episode_steps, dtype=jnp.int32)
        _, (states, rewards) = jax.lax.scan(advance, x0, (answer.z, times))
        return states, jnp.sum(rewards).astype(x0.dtype)

    def _improved(self, answer: Answer, x_first, x0, rate) -> Answer:
        """The best answer with all margins >= `clear` that was met on the way, else the last one with value -inf.

        The start moves from x_first to x0 in the first half of the iterations; answers count where it is x0.
        """
        decay = optax.cosine_decay_schedule(1.0, self.iterations, alpha=0.01)
        optimiser = optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(decay))
        low, high = self.weights

        def loss(z, weight, x):
            states, value = self._roll(answer._replace(z=z), x)
            margins = jax.vmap(self.task.safe_set.margin)(states)
            penalty = weight * jnp.sum(jax.nn.relu(self.tighten - margins) ** 2)
            return penalty - value, (value, jnp.all(margins >= self.clear))

        def improve(carry, i):
            z, state, best = carry
            done, share = 2 * i >= self.iterations, (i / self.iterations).astype(x0.dtype)
            weight = low * (high / low) ** share
            x = jnp.where(done, x0, x_first + 2 * share * (x0 - x_first))
            (_, (value, safe)), gradient = jax.value_and_grad(loss, has_aux=True)(z, weight, x)
            better = done & safe & (value > best.value)
            best = best._replace(z=jnp.where(better, z, best.z), value=jnp.where(better, value, best.value))
            updates, state = optimiser.update(gradient, state)
            return (z + rate * updates, state, best), None

        start = (answer.z, optimiser.init(answer.z), answer._replace(value=jnp.asarray(-jnp.inf, jnp.float32)))
        (z, _, best), _ = jax.lax.scan(improve, start, jnp.arange(self.iterations, dtype=jnp.int32))
        return best._replace(z=jnp.where(jnp.isfinite(best.value), best.z, z))

    def _judged(self, answer: Answer, x0) -> dict[str, Array]:
        """Return (-inf where a margin is negative), metrics and smallest margin, in a program of its own."""
        states, value = self._roll(answer, x0)
        margins = jax.vmap(self.task.safe_set.margin)(states)
        metrics = self.task.metrics(jnp.concatenate([x0[None], states]), self.context)
        safe = jnp.all(margins >= 0) & jnp.isfinite(value)
        return metrics | {"return": jnp.where(safe, value, -jnp.inf), "worst_margin": jnp.min(margins)}


if __name__ == "__main__":
    main()
