"""From a task's plain settings to its certified base set, its safeguard and its trainers."""

import math
from collections.abc import Callable
from dataclasses import fields

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import BackupNetwork, BackupPolicy, ImplicitInvariantSet
from holdfast.certify import CertifiedBaseSet, CertifiedInvariantSet
from holdfast.cli.config import PUBLISHED_SETTINGS, SettledConfig
from holdfast.cli.own import load_own
from holdfast.interop.task_proof import Certified, certify_task, physics_of
from holdfast.learn import ALGORITHMS, BACKUP_TRAININGS, BackupTrainer
from holdfast.safeguards import (
    LAYERS,
    MAPS,
    MASKS,
    BackupCBF,
    BackupSource,
    BarrierFilter,
    GatekeeperSource,
    HalfSpaces,
    InvariantSource,
    LayerFirst,
    ModelPredictiveShield,
    RayMask,
    Safeguard,
)
from holdfast.tasks import Disturb, Task, make_task
from holdfast.types import Guard, Unguarded

__all__ = ["Certified", "certify_task", "physics_of"]  # from where everything else is built

#: States on which a backup is looked at, and the share of those outside the base set that it has to certify.
_USEFUL_SAMPLES, _USEFUL_SHARE = 4096, 0.01
#: The share of a horizon for which a gatekeeper holds a proposal: one tenth.
_HELD = 10


def load_task(spec: str) -> Task:
    """The task called `spec`, or the class NAME of a file given as FILE.py:NAME, checked and completed.

    Raises:
        UnknownTask: if there is no such task; for files see `load_own`.
    """
    return load_own(spec) if ".py" in spec else make_task(spec)


def backup_trainer(task: Task, certified: CertifiedBaseSet, config: SettledConfig) -> BackupTrainer:
    """Phase 1."""
    kind, settings = BACKUP_TRAININGS[config.backup_training]
    horizon = config.horizon or task.safety.horizon
    return kind(certified.base_set, task.safe_set, task.sample_state, horizon, settings(updates=config.backup_updates))


def implicit_set(
    task: Task, certified: CertifiedBaseSet, network: BackupNetwork | None, horizon: int
) -> ImplicitInvariantSet:
    """S_N of a learned backup, or of the analytic one where `network` is None."""
    return ImplicitInvariantSet(BackupPolicy(certified.base_set, network), task.safe_set, horizon)


class NotUseful(ValueError):
    """The backup certifies next to nothing beyond the base set."""


def require_useful_backup(task: Task, certified: CertifiedBaseSet, network: BackupNetwork | None, horizon: int) -> None:
    """Refuses a backup that certifies nearly none of the safe states outside the base set (a sample of `sample_state`).

    Raises:
        NotUseful: with the shares of what goes wrong, and what to give.
    """
    implicit = implicit_set(task, certified, network, horizon)

    def look(key):
        x = task.sample_state(key)
        plan, flow = implicit.plan(x, certified.acceptance), implicit.flow(x)
        outside = task.safe_set.contains(x) & ~certified.base_set.contains(x)
        arrives = jnp.cumsum(flow.base_margins >= 0) > 0
        stays = jnp.all(jnp.all(flow.margins >= 0, axis=1) | arrives)
        return outside, plan.certified, stays, arrives[-1]

    keys = jax.random.split(jax.random.key(0), _USEFUL_SAMPLES)
    outside, *seen = (np.asarray(each) for each in jax.jit(jax.vmap(look))(keys))
    if not outside.any():
        return
    found, stays, arrives = (each[outside] for each in seen)
    if found.mean() >= _USEFUL_SHARE:
        return
    which = "base controller as backup" if network is None else "learned backup"
    late, unsafe = np.mean(stays & ~arrives), np.mean(~stays)
    rounding = np.mean(stays & arrives & ~found)
    learning = "`holdfast train` to learn a better backup" if network is None else "more --backup-updates"
    remedies = [
        (late, f"{learning}, a longer horizon (safety.horizon, --horizon; now {horizon}) or a smaller state_box"),
        (unsafe, f"{learning}, or a state_box closer to what can be stopped"),
        (rounding, "a smaller state_box or a shorter horizon, so that rounding along a plan needs less margin"),
    ]
    box, names = task.state_box, task.system.state_names
    ranges = ", ".join(f"{name} {low:g}..{high:g}" for name, low, high in zip(names, box.lower, box.upper))
    raise NotUseful(
        f"backup: the {which} certifies {found.mean():.2%} of the safe states outside the base set, so a safeguard would allow "
        f"next to nothing. Of them, {late:.0%} do not arrive in the base set within horizon = {horizon} steps, {unsafe:.0%} "
        f"become unsafe on the way, {rounding:.0%} arrive without the margins that rounding asks for. The state_box is "
        f"{ranges}. Give {max(remedies)[1]}; a coordinate that is an angle belongs into `angles`. A run that was begun keeps "
        "its settings: give a new --out"
    )


def make_guard(task: Task, certified: Certified, network: BackupNetwork | None, config: SettledConfig) -> Guard:
    """The guard that the config asks for: a safeguard of ours, the published layer, another's method, or none.

    Raises:
        ValueError: for one that the task has not (barrier rows by hand, or a backup where an invariant set needs none), or a
            gradient that is not the guard's.
    """
    box = task.system.input_box
    if config.safeguard == "none":
        return Unguarded(box.lower, box.upper)
    if config.safeguard == "barrier":
        return _barrier(task)
    if isinstance(certified, CertifiedInvariantSet):
        if config.safeguard in (*LAYERS, "shield", "gatekeeper"):
            raise ValueError(
                f"safeguard = {config.safeguard!r}; {task.name} is kept by a robust control invariant set and has no backup "
                f"to look at: give one of {', '.join(MAPS)}"
            )
        source = InvariantSource(certified.invariant, certified.acceptance)
    else:
        horizon = config.horizon or task.safety.horizon
        prefix = max(1, horizon // _HELD) if config.safeguard == "gatekeeper" else 0
        implicit = implicit_set(task, certified, network, horizon - prefix)
        if config.safeguard == "shield":
            return ModelPredictiveShield(BackupSource(implicit, None))
        source = BackupSource(implicit, certified.acceptance)
        if config.safeguard in LAYERS:
            layer = BackupCBF(implicit, config.safe_gain, config.base_gain, gradient=config.gradient)
            if config.safeguard == "backup_cbf":
                return layer
            exact = "exact" if config.gradient == "relaxed" else config.gradient
            return Safeguard(source, (), exact, mask=LayerFirst(layer))
        if prefix:
            source = GatekeeperSource(implicit, certified.acceptance, prefix)
    if config.gradient == "relaxed":
        raise ValueError(f"gradient = 'relaxed' is of the published layer ({', '.join(LAYERS)}); give 'exact'")
    if config.safeguard in ("committed_shield", "gatekeeper"):
        return Safeguard(source, (), config.gradient)
    if config.safeguard in MASKS:
        mask = RayMask(MASKS[config.safeguard], config.centre)
        return Safeguard(source, (MAPS["ray"](),), config.gradient, mask=mask)
    names = list(MAPS) if config.safeguard == "all" else [config.safeguard]
    return Safeguard(source, tuple(MAPS[name]() for name in names), config.gradient)


def _barrier(task: Task) -> BarrierFilter:
    rows, resort = (getattr(task, name, None) for name in ("barrier_rows", "braking"))
    if rows is None or resort is None:
        raise ValueError(
            f"safeguard = 'barrier'; nobody has derived control barrier rows for {task.name}: give it a method "
            "barrier_rows(x) -> (A, b) of A u >= b and a method braking(x) -> u, or another safeguard"
        )
    return BarrierFilter(_Rows(rows), task.system.input_box, resort)


class _Rows(eqx.Module):
    """A task's barrier rows as half-spaces."""

    rows: Callable

    def __call__(self, x):
        return HalfSpaces(*self.rows(x))


def policy_trainer(task: Task, guard: Guard, config: SettledConfig, disturb: Disturb | None = None):
    """Phase 2: the algorithm's trainer, with every setting of it that the config has. `disturb` chooses the disturbances."""
    kind, settings = ALGORITHMS[config.algorithm]
    given = {each.name: getattr(config, each.name) for each in fields(settings) if hasattr(config, each.name)}
    if config.recipe == "published":
        given |= PUBLISHED_SETTINGS[config.algorithm]
    trainer = kind(task, guard, settings(**given), disturb=disturb)
    if config.steps is None:
        return trainer
    given["updates"] = math.ceil(config.steps / trainer.steps_per_update)
    return kind(task, guard, settings(**given), disturb=disturb)


def of_seed(tree, index: int):
    """One seed's part of a stacked tree: JAX arrays carry the seed axis, everything else is shared."""
    return jax.tree.map(lambda leaf: leaf[index] if isinstance(leaf, jax.Array) else leaf, tree)


def arrays(tree):
    """The JAX arrays of a tree (or their shapes): what a checkpoint keeps."""
    return eqx.filter(tree, lambda leaf: isinstance(leaf, jax.Array | jax.ShapeDtypeStruct))
