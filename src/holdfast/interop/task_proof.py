"""What a task promises, proved: its base set, or its robust control invariant set, and the hash of its physics."""

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.certify import (
    CertifiedBaseSet,
    CertifiedInvariantSet,
    Interval,
    Obligation,
    certify_base_set,
    certify_invariant_set,
    interval_eval,
    sample_base_set,
)
from holdfast.certify.duality import bounding_box
from holdfast.runs import physics_hash
from holdfast.sets import LocallyConvex, Polytope, Zonotope
from holdfast.tasks import RobustSafety, Task

Certified = CertifiedBaseSet | CertifiedInvariantSet


def physics_of(task: Task) -> str:
    """Hash of all that a certificate rests on: the step, the safe set, the coordinates and the bounds."""
    system = task.system
    x = jax.ShapeDtypeStruct((system.state_size,), jnp.float64)
    u = jax.ShapeDtypeStruct((system.input_size,), jnp.float64)
    functions = {"step": (system.step, (x, u)), "margin": (task.safe_set.margin, (x,))}
    boxes = [system.input_box, task.state_box]
    if isinstance(task.safety, RobustSafety):
        noise = system.noise_box
        functions |= {"piece": (task.safety.region.piece, (x,)), "controller": (task.safety.controller, (x,))}
        if noise.dimension:
            functions["step"] = (system.step, (x, u, jax.ShapeDtypeStruct((noise.dimension,), jnp.float64)))
            boxes.append(noise)
        return physics_hash(functions, [[box.lower, box.upper] for box in boxes])
    functions["error"] = (system.error, (x,))
    e = jax.eval_shape(system.error, x)
    functions |= {"lift": (system.lift, (e,)), "error_step": (system.error_step, (e, u))}
    safety = [np.asarray(task.safety.state_cost), np.asarray(task.safety.input_cost), task.safety.horizon]
    bounds = [[box.lower, box.upper] for box in boxes]
    constants = [bounds, safety, [np.asarray(v) for v in system.equilibrium()]]
    return physics_hash(functions, [*constants, list(system.angles)] if system.angles else constants)


def certify_task(
    task: Task, *, level: float | None = None, horizon: int | None = None, max_seconds: float = 60.0
) -> Certified:
    """The certified base set of a task, or its certified robust control invariant set.

    Args:
        task: with all its settings; `complete_task` derives what a task of one's own leaves out.
        level: of the base set; the task's, else the largest that can be proved.
        horizon: steps of the backup flow; the task's own if not given.
        max_seconds: for each search of the proof.

    A task whose settings ask for `samples` has its base set tried instead of proved: the certificate does not hold.

    Raises:
        ValueError: if a level or a horizon is asked of an invariant set, which has none, or none is given for sampling.
        NotProvable and others: as `certify_base_set` and `certify_robust_task` do.
    """
    if isinstance(task.safety, RobustSafety):
        for name, value in (("level", level), ("horizon", horizon)):
            if value is not None:
                raise ValueError(
                    f"{name} = {value}; {task.name} is kept by a robust control invariant set, which has none: leave it out"
                )
        return certify_robust_task(task, physics=physics_of(task), max_seconds=max_seconds)
    level = task.safety.level if level is None else level
    subject = (task.system, task.safe_set, task.state_box)
    settings: dict = {
        "state_cost": np.asarray(task.safety.state_cost),
        "input_cost": np.asarray(task.safety.input_cost),
        "horizon": horizon or task.safety.horizon,
        "physics": physics_of(task),
    }
    if task.safety.samples:
        if level is None:
            raise ValueError(
                f"level = None; {task.name} asks for samples = {task.safety.samples}, and sampling finds no level: give one"
            )
        return sample_base_set(*subject, **settings, level=level, samples=task.safety.samples)
    return certify_base_set(*subject, **settings, level=level, max_seconds=max_seconds)


def robust_safety(task: Task) -> RobustSafety:
    """The task's invariant set.

    Raises:
        TypeError: if it brings none.
    """
    if not isinstance(task.safety, RobustSafety):
        raise TypeError(f"task {task.name!r} is kept by a backup: its safety is a {type(task.safety).__name__}")
    return task.safety


def certify_robust_task(task: Task, *, physics: str, max_seconds: float = 60.0) -> CertifiedInvariantSet:
    """The proof that the task's set is invariant, whatever the disturbance, and holds safe states only."""
    safety = robust_safety(task)
    region = safety.region.polytope() if isinstance(safety.region, Zonotope) else safety.region
    invariant = InvariantSet(task.system, region, safety.controller)
    certified = certify_invariant_set(invariant, task.state_box, physics=physics, max_seconds=max_seconds)
    return with_safety(task, certified)


def with_safety(task: Task, certified: CertifiedInvariantSet) -> CertifiedInvariantSet:
    """With the obligation that its states satisfy the task's constraints; nothing is accepted where that is not shown."""
    certificate = certified.certificate.with_obligation(safe_states(task, certified.invariant.region))
    acceptance = certified.acceptance
    if not certificate.holds:
        never = np.full_like(acceptance.inside, np.inf)
        acceptance = RobustMargins(never, never, np.zeros_like(never), acceptance.dtype)
    return CertifiedInvariantSet(certified.invariant, acceptance, certificate)


def safe_states(task: Task, region: LocallyConvex) -> Obligation:
    """That the region lies in the safe set: by intervals over a box around it, or because the two are the same program."""
    names = task.safe_set.names
    claim = "Every state of the set satisfies the task's constraints: " + ", ".join(names) + "."
    if not isinstance(region, Polytope):
        x = jax.ShapeDtypeStruct((task.system.state_size,), jnp.float64)
        same = _program(task.safe_set.margin, x) == _program(region.margin, x)
        method = "the constraints and the margins of the set are the same program" if same else "they are two programs"
        return Obligation("safe", claim, "proved" if same else "not proved", method, {})
    lower, upper = bounding_box(region.normals, region.offsets)
    lowest = np.asarray(interval_eval(task.safe_set.margin, Interval.box(lower, upper)).lo).reshape(-1)
    numbers = {"least_margins": dict(zip(names, lowest.tolist()))}
    discharge = "proved" if np.all(lowest >= 0) else "not proved"
    return Obligation("safe", claim, discharge, "interval arithmetic over a box around the set", numbers)


def _program(function, x) -> str:
    return physics_hash({"margin": (function, (x,))})
