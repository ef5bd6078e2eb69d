"""Environment steps per second of SAC with the published settings, by what stands between policy and plant.

Published: one gradient step (batch 64, networks 128 x 2) for every 8 environment steps; projected actions in collection,
actor loss and critic target; about 60 steps per second on a V100 for lane keeping, 31 for the power loop. Here the same
ratio through: no safeguard, our exact safeguard, the published layer (library form), the same verified, and the published
layer as it was published (matrix exponentials, qpax). The backup network has random weights where no --run is given; its
cost does not depend on them, but how often actions are corrected does: the share of interventions is in the results.

Guards take turns, so that a slow spell of the machine meets all of them. Beside the wall clock, steps per second of
processor time are given (all threads of the process together), which a busy machine disturbs least: a program on a core
of its own runs at least that fast.
"""

import dataclasses
import sys
import time

import jax
import numpy as np

from benchmarks._common import load, parser, print_table, write_results
from holdfast.backup import BackupNetwork
from holdfast.cli.build import backup_trainer, certify_task, load_task, make_guard, of_seed, policy_trainer
from holdfast.cli.config import TrainConfig
from holdfast.learn import initialise
from holdfast.learn.loop import compiled

PUBLISHED = {"lane-keeping": 60.0, "power-loop": 31.0}
"""Environment steps per second on a V100."""
GUARDS = ("none", "ray", "boundary_projection", "backup_cbf", "backup_cbf_verified", "qpax")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--horizon", type=int, default=20, help="of the backup; the published one of lane keeping")
    arguments.add_argument("--guards", nargs="*", default=None, help=f"some of {', '.join(GUARDS)}; all by default")
    arguments.add_argument("--rounds", type=int, default=None, help="timed pieces of every guard, 8 by default")
    arguments.add_argument("--updates", type=int, default=None, help="updates in a piece, 25 by default: 3200 steps")
    arguments = arguments.parse_args()
    rounds, updates = (
        arguments.rounds or (1 if arguments.quick else 8),
        arguments.updates or (2 if arguments.quick else 25),
    )
    task, certified, network = backup_of(arguments)
    names = tuple(arguments.guards or (GUARDS[:4] if arguments.quick else GUARDS))
    trainers = {name: trainer_of(task, certified, network, name, arguments.horizon) for name in names}
    # The published layer as it was published is so slow that a tenth of it has to do.
    size = {name: max(1, updates // 10) if name == "qpax" else updates for name in names}
    pieces = {name: Piece(trainer, size[name]) for name, trainer in trainers.items()}
    for _ in range(rounds):
        for name, piece in pieces.items():
            piece.run()
            print(name, piece.numbers(), file=sys.stderr, flush=True)
    found = {name: piece.numbers() for name, piece in pieces.items()}
    rows = [
        (name, each["steps_per_second"], each["steps_per_cpu_second"], each["interventions"], each["steps"])
        for name, each in found.items()
    ]
    print_table(("guard", "steps/s", "steps/cpu s", "interventions", "steps"), rows)
    trainer = trainers[names[0]]
    settings = {f.name: getattr(trainer.settings, f.name) for f in dataclasses.fields(trainer.settings)}
    write_results(
        __spec__.name,
        arguments,
        task=task.name,
        settings={
            "horizon": arguments.horizon,
            "sac": settings,
            "gradient_steps_per_environment_step": trainer.settings.gradient_steps / trainer.steps_per_update,
            "rounds": rounds,
            "updates_in_a_piece": size,
            "dtype": "float32",
            "backup": "of the run" if arguments.run else "random weights",
        },
        numbers={"published_steps_per_second_on_a_v100": PUBLISHED.get(task.name), "guards": found},
    )


def backup_of(arguments):
    """(task, its certified base set at the horizon, a backup network)."""
    if arguments.run is not None:
        trained = load(arguments.run)
        task, network = trained.task, of_seed(trained.network, 0)
        level = trained.certified.base_set.ellipsoid.level
        return task, certify_task(task, level=level, horizon=arguments.horizon), network
    task = load_task(arguments.task)
    certified = certify_task(task, level=None, horizon=arguments.horizon)
    trainer = backup_trainer(task, certified, TrainConfig(arguments.task).for_task(task))
    network: BackupNetwork = trainer.init(jax.random.key(0)).network
    return task, certified, network


def trainer_of(task, certified, network, name: str, horizon: int):
    """SAC as published, through one guard."""
    config = TrainConfig(
        task.name,
        algorithm="sac",
        recipe="published",
        safeguard="backup_cbf" if name == "qpax" else name,
        horizon=horizon,
    ).for_task(task)
    guard = make_guard(task, certified, network, config)
    if name == "qpax":
        from benchmarks._published_layer import PublishedLayer

        guard = PublishedLayer(guard)
    trainer = policy_trainer(task, guard, config)
    return dataclasses.replace(trainer, settings=dataclasses.replace(trainer.settings, warm_up=1))


class Piece:
    """A training that goes on a piece at a time, timed; its first piece compiles and is not counted."""

    def __init__(self, trainer, updates: int):
        self.trainer, self.updates, self.done = jax.tree.map(stacked, trainer), updates, 0
        self.state = initialise(self.trainer, jax.random.split(jax.random.key(0), 1))
        self.wall, self.cpu, self.interventions = [], [], []
        self.program = None

    def run(self) -> None:
        """One more piece."""
        if self.program is None:
            self.program = compiled(self.trainer, self.state)
            self.state, _ = jax.block_until_ready(self.program(self.state, self.updates))
        begin, cpu = time.perf_counter(), time.process_time()
        self.state, metrics = jax.block_until_ready(self.program(self.state, self.updates))
        self.wall.append(time.perf_counter() - begin)
        self.cpu.append(time.process_time() - cpu)
        self.interventions.append(float(np.mean(metrics["interventions"])))
        if np.any(np.asarray(metrics["nonfinite"]) > 0):
            raise SystemExit("gradients were not finite")

    def numbers(self) -> dict:
        """Rates: over all pieces, and of the quickest."""
        steps = self.updates * self.trainer.steps_per_update
        return {
            "steps_per_second": steps * len(self.wall) / sum(self.wall),
            "steps_per_second_best_piece": steps / min(self.wall),
            "steps_per_cpu_second": steps * len(self.cpu) / sum(self.cpu),
            "interventions": float(np.mean(self.interventions)),
            "steps": steps * len(self.wall),
        }


def stacked(leaf):
    """A leading seed axis of one for what is learned."""
    return leaf[None] if isinstance(leaf, jax.Array) else leaf


if __name__ == "__main__":
    main()
