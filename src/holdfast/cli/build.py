"""From a task's plain settings to its certified base set, its safeguard and its trainers."""

import importlib.util
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import BackupNetwork, BackupPolicy, ImplicitInvariantSet
from holdfast.certify import CertifiedBaseSet, certify_base_set
from holdfast.cli.config import TrainConfig
from holdfast.learn import SafeArrivalSettings, SafeArrivalTrainer, ShacSettings, ShacTrainer
from holdfast.runs import physics_hash
from holdfast.safeguards import MAPS, BackupSource, Safeguard
from holdfast.tasks import Task, UnknownTask, make_task
from holdfast.types import Guard, Unguarded


def load_task(spec: str) -> Task:
    """The task called `spec`, or the class NAME of a file given as FILE.py:NAME.

    Raises:
        UnknownTask: if there is no such task, file or class, the file does not import, or the class cannot be made.
    """
    if ".py" not in spec:
        return make_task(spec)
    file, _, name = spec.partition(":")
    if not name:
        raise UnknownTask(f"task = {spec!r}: name the class as well, as in {file}:MyTask")
    path = Path(file)
    if not path.is_file():
        raise UnknownTask(f"task = {spec!r}: there is no file {file}")
    module_spec = importlib.util.spec_from_file_location(f"holdfast_task_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UnknownTask(f"task = {spec!r}: {file} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        sys.modules[module_spec.name] = module  # dataclasses look up annotations there
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UnknownTask(f"task = {spec!r}: {file} does not import: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        tasks = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Task) and v is not Task]
        raise UnknownTask(f"task = {spec!r}: {file} has no task {name}; its tasks are: {', '.join(tasks) or 'none'}")
    try:
        task = found()
    except Exception as error:
        raise UnknownTask(
            f"task = {spec!r}: {name}() fails: {type(error).__name__}: {error}. Give every field a default, so that the "
            "class can be made without arguments"
        ) from error
    # Training tells seeds apart by their JAX arrays; a task's own numbers are shared by all of them.
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, task)


def physics_of(task: Task) -> str:
    """Hash of all that a certificate rests on: the step, the safe set, the coordinates and the bounds."""
    system = task.system
    x = jax.ShapeDtypeStruct((system.state_size,), jnp.float64)
    u = jax.ShapeDtypeStruct((system.input_size,), jnp.float64)
    functions = {
        "step": (system.step, (x, u)),
        "error": (system.error, (x,)),
        "margin": (task.safe_set.margin, (x,)),
    }
    e = jax.eval_shape(system.error, x)
    functions |= {"lift": (system.lift, (e,)), "error_step": (system.error_step, (e, u))}
    boxes = [[box.lower, box.upper] for box in (system.input_box, task.state_box)]
    safety = [np.asarray(task.safety.state_cost), np.asarray(task.safety.input_cost), task.safety.horizon]
    return physics_hash(functions, [boxes, safety, [np.asarray(v) for v in system.equilibrium()]])


def certify_task(
    task: Task, *, level: float | None, horizon: int | None, max_seconds: float = 60.0
) -> CertifiedBaseSet:
    """The certified base set of a task; raises as `certify_base_set` does."""
    return certify_base_set(
        task.system,
        task.safe_set,
        task.state_box,
        state_cost=np.asarray(task.safety.state_cost),
        input_cost=np.asarray(task.safety.input_cost),
        horizon=horizon or task.safety.horizon,
        level=task.safety.level if level is None else level,
        physics=physics_of(task),
        max_seconds=max_seconds,
    )


def backup_trainer(task: Task, certified: CertifiedBaseSet, config: TrainConfig) -> SafeArrivalTrainer:
    """Phase 1."""
    settings = SafeArrivalSettings(updates=config.backup_updates)
    horizon = config.horizon or task.safety.horizon
    return SafeArrivalTrainer(certified.base_set, task.safe_set, task.sample_state, horizon, settings)


def implicit_set(
    task: Task, certified: CertifiedBaseSet, network: BackupNetwork | None, horizon: int
) -> ImplicitInvariantSet:
    """S_N of a learned backup, or of the analytic one where `network` is None."""
    return ImplicitInvariantSet(BackupPolicy(certified.base_set, network), task.safe_set, horizon)


def make_guard(
    task: Task, certified: CertifiedBaseSet, network: BackupNetwork | None, config: TrainConfig
) -> Safeguard | Unguarded:
    """The safeguard that the config asks for."""
    if config.safeguard == "none":
        box = task.system.input_box
        return Unguarded(box.lower, box.upper)
    names = list(MAPS) if config.safeguard == "all" else [config.safeguard]
    implicit = implicit_set(task, certified, network, config.horizon or task.safety.horizon)
    source = BackupSource(implicit, certified.acceptance)
    return Safeguard(source, tuple(MAPS[name]() for name in names), config.gradient)


def policy_trainer(task: Task, guard: Guard, config: TrainConfig) -> ShacTrainer:
    """Phase 2."""
    settings = ShacSettings(
        updates=config.updates,
        environments=config.environments,
        window=config.window,
        discount=config.discount,
        actor_rate=config.actor_rate,
        critic_steps=config.critic_steps,
        initial_std=config.initial_std,
        intervention_penalty=config.intervention_penalty,
        margin_penalty=config.margin_penalty,
        restart=config.restart,
        practice=config.practice,
        lost=config.lost,
        gradient_limit=config.gradient_limit,
        placement=config.placement,
    )
    return ShacTrainer(task, guard, settings)


def of_seed(tree, index: int):
    """One seed's part of a stacked tree: JAX arrays carry the seed axis, everything else is shared."""
    return jax.tree.map(lambda leaf: leaf[index] if isinstance(leaf, jax.Array) else leaf, tree)


def arrays(tree):
    """The JAX arrays of a tree (or their shapes): what a checkpoint keeps."""
    return eqx.filter(tree, lambda leaf: isinstance(leaf, jax.Array | jax.ShapeDtypeStruct))
