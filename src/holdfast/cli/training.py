"""The training pipeline: verify, phase 1, phase 2, with a checkpoint after every chunk worth keeping."""

import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.certify import Certificate, CertifiedBaseSet, NotProvable
from holdfast.cli.build import (
    Certified,
    arrays,
    backup_trainer,
    certify_task,
    load_task,
    make_guard,
    of_seed,
    physics_of,
    policy_trainer,
    require_useful_backup,
)
from holdfast.cli.config import SettledConfig, TrainConfig
from holdfast.cli.robust import is_robust
from holdfast.cli.timing import Stopwatch
from holdfast.learn import initialise, train
from holdfast.runs import RunDirectory, RunError, read_header, seed_keys
from holdfast.tasks import Task
from holdfast.types import Status

#: Seconds between checkpoints.
_KEEP_EVERY = 10.0
_CHUNK = 25

#: The obligation that stands for the level where there is an invariant set.
INVARIANT = "invariant under its controller"

Progress = Callable[[str, int, int, dict[str, Any]], None]


class Interrupt:
    """Turns the first Ctrl-C into a flag, so that training stops between chunks; a second one raises as usual.

    Attributes:
        requested: whether Ctrl-C was pressed.
        say: told what will happen, once.
    """

    def __init__(self, say: Callable[[str], None] = lambda words: None):
        self.requested, self.say = False, say

    def __enter__(self):
        try:
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        except ValueError:  # not in the main thread: nobody can press Ctrl-C at us
            self._previous = None
        return self

    def __exit__(self, *_):
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, *_):
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)
        self.say("stopping after this chunk; press Ctrl-C again to stop at once")


@dataclass
class Trained:
    """A run in memory.

    Attributes:
        task, config, certified: what was trained, how, and on what certified set.
        network: backup network, stacked over seeds; None where an invariant set needs no backup.
        policy: training state of phase 2, stacked over seeds.
        finished: whether both phases ran to their end.
        seconds: wall time by phase.
    """

    task: Task
    config: SettledConfig
    certified: Certified
    network: Any
    policy: Any
    finished: bool
    seconds: dict[str, float]


def train_run(config: TrainConfig, run: RunDirectory, *, resume: bool, progress: Progress, interrupt: Interrupt):
    """Verifies the task and trains both phases in `run`, or goes on where an earlier process stopped.

    Returns: `Trained`, or None if the interrupt came before phase 2 had a policy; the checkpoint is kept either way.

    Raises:
        NotProvable, TrainingDiverged, RunError, CheckpointMismatch: with the field, the value and the remedy. Nothing is
            written before the base set is proved.
    """
    task, watch = load_task(config.task), Stopwatch()
    settled = config.for_task(task)
    begun = resume and _position(run, task)["phase"] == "policy" and _position(run, task)["updates"] > 0
    warm = None if settled.warm_start is None or begun else warm_start(settled, task)
    certificate = kept_certificate(run, task) if resume else None
    with watch("verify"):
        progress("verify", 0, 1, {})
        level = settled.level if certificate is None else certified_level(certificate)
        certified = certify_task(task, level=level, horizon=settled.horizon)
        if settled.safeguard != "none":
            require_proof(certified.certificate)
        if certificate is None:
            run.write_certificate(certified.certificate.to_json())
        level = certified_level(certified.certificate)
        progress("verify", 1, 1, {} if level is None else {"level": level})
    if interrupt.requested:
        return None
    keys = run_keys(settled)
    identity = {"task": task.name, "physics": certified.certificate.physics, "seeds": settled.seeds}
    at = _position(run, task) if resume else _beginning(task)
    before = 0 if is_robust(task) else settled.backup_updates
    run.rewind_metrics(at["updates"] + (before if at["phase"] == "policy" else 0))
    keep = _Keeper(run, identity, before, progress, interrupt)

    network = None
    if isinstance(certified, CertifiedBaseSet):
        network = _train_backup(task, certified, settled, run, at, keep, keys, identity, watch)
        if interrupt.requested:
            return None
    start = at["updates"] if at["phase"] == "policy" else 0
    guard = make_guard(task, certified, network, settled)
    trainer = policy_trainer(task, guard, settled)
    state = initialise(trainer, jax.vmap(lambda k: jax.random.fold_in(k, 2))(keys))
    if warm is not None and not start:
        state = warmed(state, warm, str(settled.warm_start))
    if start:
        restored = _restore(run, {"network": network, "policy": state}, identity)
        network, state = restored["network"], restored["policy"]
        trainer = policy_trainer(task, make_guard(task, certified, network, settled), settled)
    updates = trainer.settings.updates
    with watch("policy"):
        on_chunk = keep.of_phase(
            "policy", updates, trainer.steps_per_update, lambda s: {"network": network, "policy": s}
        )
        state = train(trainer, state, updates=updates, start=start, chunk=min(_CHUNK, updates), on_chunk=on_chunk)
    return Trained(task, settled, certified, network, state, not interrupt.requested, watch.seconds)


def _train_backup(
    task, certified, settled: SettledConfig, run: RunDirectory, at, keep: "_Keeper", keys, identity, watch
):
    """Phase 1, from wherever it stands: the backup networks, stacked over seeds; not yet restored if phase 2 has begun."""
    trainer = backup_trainer(task, certified, settled)
    state = initialise(trainer, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys))
    if at["phase"] == "policy":
        return state.network
    if at["updates"]:
        state = _restore(run, {"backup": state}, identity)["backup"]
    with watch("backup"):
        on_chunk = keep.of_phase("backup", settled.backup_updates, 0, lambda s: {"backup": s})
        state = train(
            trainer, state, updates=settled.backup_updates, start=at["updates"], chunk=_CHUNK, on_chunk=on_chunk
        )
    if settled.safeguard != "none" and not keep.interrupt.requested:
        for index in range(settled.seeds):
            horizon = settled.horizon or task.safety.horizon
            require_useful_backup(task, certified, of_seed(state.network, index), horizon)
    return state.network


class _Keeper:
    """Logs a row and, now and then, a checkpoint after each chunk; always one at the end or at an interrupt."""

    def __init__(self, run: RunDirectory, identity: dict, before: int, progress: Progress, interrupt: Interrupt):
        self.run, self.identity, self.before = run, identity, before
        self.progress, self.interrupt = progress, interrupt
        self.begun = self.saved = time.monotonic()

    def of_phase(self, phase: str, updates: int, steps: int, tree: Callable[[Any], dict[str, Any]]):
        """What `train` calls after each chunk; an update takes `steps` environment steps."""

        def on_chunk(done: int, state: Any, metrics: dict[str, np.ndarray]) -> bool:
            now = time.monotonic()
            row = backup_row(done, metrics) if phase == "backup" else policy_row(done, metrics, self.before, steps)
            row |= {"wall_seconds": round(now - self.begun, 3)}
            self.run.append_metrics(row)
            self.progress(phase, done, updates, row)
            if done == updates or self.interrupt.requested or now - self.saved > _KEEP_EVERY:
                self.run.save_checkpoint(arrays(tree(state)), self.identity | {"phase": phase, "updates": done})
                self.saved = now
            return self.interrupt.requested

        return on_chunk


def backup_row(done: int, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """One line of metrics.jsonl in phase 1: means over the chunk, one number a seed."""
    row: dict[str, Any] = {"phase": "backup", "iteration": done}
    with np.errstate(all="ignore"):
        return row | {name: each.mean(axis=1).tolist() for name, each in metrics.items() if name != "nonfinite"}


def policy_row(done: int, metrics: dict[str, np.ndarray], before: int, steps: int) -> dict[str, Any]:
    """The same in phase 2, which came after `before` updates of phase 1 and takes `steps` environment steps an update."""
    with np.errstate(all="ignore"):
        means = {name: value.mean(axis=1).tolist() for name, value in metrics.items() if name != "violations"}
    violations = metrics["violations"].sum(axis=1)
    return (
        {"phase": "policy"}
        | means
        | {
            "iteration": before + done,
            "step": done * steps,
            "return_mean": means.pop("return"),
            "violations": (violations / (steps * metrics["violations"].shape[1])).tolist(),
            "violating_steps": violations.tolist(),
        }
    )


def _beginning(task: Task) -> dict[str, Any]:
    return {"phase": "policy" if is_robust(task) else "backup", "updates": 0}


def _position(run: RunDirectory, task: Task) -> dict[str, Any]:
    if not run.has_checkpoint:
        return _beginning(task)
    header = read_header(run.path / "checkpoint")
    return {"phase": header["phase"], "updates": int(header["updates"])}


def _restore(run: RunDirectory, like: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    saved, _ = run.load_checkpoint(arrays(like), identity)
    return eqx.combine(saved, like)


def load_run(run: RunDirectory, config: TrainConfig) -> Trained:
    """A trained run from its directory, against the physics of today's code.

    Raises:
        RunError: if phase 2 has not begun, or the certificate is of other physics.
        CheckpointMismatch: if the checkpoint is of another task, other physics or other settings.
    """
    task = load_task(config.task)
    settled = config.for_task(task)
    again = f"go on with `holdfast train {shlex.quote(settled.task)} --out {shlex.quote(str(run.path))} --resume`"
    certificate = kept_certificate(run, task)
    at = _position(run, task)
    if certificate is None or at["phase"] != "policy" or at["updates"] == 0:
        raise RunError(f"{run.path} stopped before it had a policy; {again}")
    certified = certify_task(task, level=certified_level(certificate), horizon=settled.horizon)
    if settled.safeguard != "none":
        require_proof(certified.certificate)
    keys = run_keys(settled)
    identity = {"task": task.name, "physics": certificate.physics, "seeds": settled.seeds}
    robust = not isinstance(certified, CertifiedBaseSet)
    network = None if robust else _blank(backup_trainer(task, certified, settled), keys).network
    trainer = policy_trainer(task, make_guard(task, certified, network, settled), settled)
    state = _blank(trainer, keys)
    restored = _restore(run, {"network": network, "policy": state}, identity)
    finished = at["updates"] >= trainer.settings.updates
    return Trained(task, settled, certified, restored["network"], restored["policy"], finished, {})


#: What a warm start takes over, where the algorithm has it; optimisers, replay and counts begin anew.
_WARM = ("actor", "critic", "target", "log_temperature")


def warm_start(config: SettledConfig, task: Task) -> Trained:
    """The run that `config.warm_start` names, if phase 2 of `config` can begin from it.

    Raises:
        RunError: if it is no trained run, or of another task, algorithm, network or number of seeds.
    """
    where, run = f"warm_start = {config.warm_start!r}", RunDirectory.open(str(config.warm_start))
    other = run.read_config(TrainConfig)
    if (theirs := load_task(other.task).name) != task.name:
        raise RunError(f"{where} is a run of task {theirs!r}, not {task.name!r}; give one of this task")
    settled = other.for_task(task)
    for name in ("algorithm", "hidden"):
        seen, wanted = getattr(settled, name), getattr(config, name)
        if seen != wanted:
            raise RunError(
                f"{where} has {name} = {seen}, and this run {wanted}; train one of them with the other's {name}"
            )
    if other.seeds not in (1, config.seeds):
        raise RunError(f"{where} has {other.seeds} seeds, and this run {config.seeds}; give a run with 1 or as many")
    return load_run(run, other)


def warmed(state: Any, warm: Trained, where: str) -> Any:
    """A fresh training state with the networks, the normaliser and the unit of rewards of a trained one.

    Raises:
        RunError: if a leaf has another shape.
    """

    def learned(policy):
        parts = [getattr(policy, name) for name in _WARM if hasattr(policy, name)]
        return [*parts, policy.experience.normaliser, policy.experience.reward_scale]

    def take(path, new, old):
        if not isinstance(new, jax.Array):
            return new
        # One seed starts many.
        wanted = jnp.broadcast_to(old, (new.shape[0], *old.shape[1:])) if old.shape[0] == 1 else old
        if wanted.shape != new.shape:
            raise RunError(
                f"warm_start = {where!r}: its {jax.tree_util.keystr(path)} has shape {old.shape[1:]} for each seed, and this "
                f"run {new.shape[1:]}; give a run with the same networks"
            )
        return wanted.astype(new.dtype)

    return eqx.tree_at(learned, state, jax.tree_util.tree_map_with_path(take, learned(state), learned(warm.policy)))


def kept_certificate(run: RunDirectory, task: Task) -> Certificate | None:
    """The run's certificate, or None if it was stopped before it had one; refuses one of other physics."""
    file = run.path / "certificate.json"
    if not file.is_file():
        return None
    try:
        certificate = Certificate.from_json(run.read_certificate())
        certified_level(certificate)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} is no certificate ({type(error).__name__}: {error}): restore it, or train again"
        ) from None
    physics = physics_of(task)
    if certificate.physics != physics:
        raise RunError(
            f"{run.path}: physics of {task.name} is {physics[:12]}, but the run's certificate is about "
            f"{certificate.physics[:12]}. The system's equations, bounds or safe set changed since: restore them, or train "
            "again in a new directory"
        )
    return certificate


def certified_level(certificate: Certificate) -> float | None:
    """The level of a base set; None for an invariant set, which has none."""
    if any(each.name == INVARIANT for each in certificate.obligations):
        return None
    return float(certificate["base set invariant"].numbers["level"])


def require_proof(certificate: Certificate) -> None:
    """A safeguard on an unproved set would accept nothing, so there would be nothing to learn."""
    level = certified_level(certificate)
    for obligation in certificate.obligations:
        if obligation.discharge in ("refuted", "not proved"):
            at = "" if level is None else f" at level = {level:g}"
            remedy = (
                "Give a smaller set, a controller that contracts more, or less noise"
                if level is None
                else "Without --level the largest provable level is looked for; if that fails too, give LQR weights that "
                "contract faster, or a system whose inputs do more"
            )
            raise NotProvable(f"'{obligation.name}' is {obligation.discharge}{at} ({obligation.method}). {remedy}")


def run_keys(config: TrainConfig) -> jax.Array:
    """A key for each seed. Seed s has the same key whether it is trained alone or among others."""
    return jnp.concatenate([seed_keys(seed, 1) for seed in range(config.seed, config.seed + config.seeds)])


def _blank(trainer: Any, keys: jax.Array) -> Any:
    """A training state of the right structure with zeros in it, stacked over seeds, without compiling anything."""
    rest, first = {}, of_seed(trainer, 0)

    def build(key):
        # The trainer is closed over: as an argument its NumPy arrays, shared by all seeds, would be traced too.
        learned, rest["of state"] = eqx.partition(first.init(key), lambda leaf: isinstance(leaf, jax.Array))
        return learned

    def zeros(leaf):
        shape = (len(keys), *leaf.shape)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), shape)
        return jnp.zeros(shape, leaf.dtype)

    return eqx.combine(jax.tree.map(zeros, jax.eval_shape(build, keys[0])), rest["of state"])


def training_safety(policy: Any) -> dict[str, Any]:
    """What the guard did in training, summed over seeds."""
    counts = np.asarray(policy.safety.statuses).sum(axis=0)
    interventions = int(counts.sum() - counts[Status.accepted] - counts[Status.unguarded])
    return {
        "steps": int(np.asarray(policy.safety.steps).sum()),
        "violations": int(np.asarray(policy.safety.violations).sum()),
        "unpromised_violations": int(np.asarray(policy.safety.unpromised_violations).sum()),
        "interventions": interventions,
        "uncertified_starts": int(np.asarray(policy.safety.uncertified_starts).sum()),
        "worst_margin": float(np.asarray(policy.safety.worst_margin).min()),
        "statuses": {status.name: int(counts[status]) for status in Status},
    }
