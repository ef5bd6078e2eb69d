"""What the library takes a task for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from holdfast.sets import Box, Set
from holdfast.systems import System
from holdfast.tasks import RobustSafety, SafetySettings, Task
from holdfast.testing.functions import SAMPLES, ConformanceError, check_function, name_of
from holdfast.testing.systems import check_equilibrium, check_system, check_traceable, check_words


class TaskConformance(NamedTuple):
    """What `check_task` measured on its samples; nothing of it is an error.

    Attributes:
        safe_start_share: share of the sampled starts inside the safe set.
        safe_state_share: share of `sample_state`'s states inside the safe set.
        observation_size: o.
        constraints: p.
    """

    safe_start_share: float
    safe_state_share: float
    observation_size: int
    constraints: int


def check_declaration(task: Task) -> None:
    """The cheap part of `check_task`, for a task whose settings are not derived yet: names, bounds, equilibrium, shapes."""
    with jax.enable_x64(True):
        _, system = _check_kinds(task)
        check_words(system)
        check_equilibrium(system)
        x, u = (np.asarray(v, np.float64)[None] for v in system.equilibrium())
        check_traceable(system, x, u)
        _check_safe_set_at(task, x[0])


def check_task(task: Task, *, seed: int = 0) -> TaskConformance:
    """Check that `task` is what the library takes a task for, and its system with it.

    Safe set (vector of finite margins, names and units as many as rows, equilibrium strictly inside, NaN outside),
    settings, starts, sampled states, reference, observation, reward and metrics.

    Args:
        task: the task.
        seed: of the samples.

    Returns:
        Shares of safe starts and states, and sizes. A low share is a choice of the task, not an error; none is.

    Raises:
        ConformanceError: at the first thing that is wrong.
    """
    with jax.enable_x64(True):
        name, system = _check_kinds(task)
        _check_settings(task)
        start_key, state_key, context_key = jax.random.split(jax.random.key(seed), 3)
        starts = _check_samples(f"{name}.sample_start", task.sample_start, start_key, system.state_size)
        states = _check_samples(f"{name}.sample_state", task.sample_state, state_key, system.state_size)
        check_system(system, states, seed=seed)
        p = _check_safe_set(task, np.concatenate([starts, states]))
        shares = [float(np.mean(jax.vmap(task.safe_set.contains)(jnp.asarray(x)))) for x in (starts, states)]
        for method, share in zip(("sample_start", "sample_state"), shares):
            if share == 0.0:
                raise ConformanceError(f"{name}.{method}", f"0 of {SAMPLES} inside safe_set", "draw states inside it")
        context = task.context_at(jnp.asarray(states[0]), task.sample_context(context_key))
        o = _check_signals(task, states, context, seed)
        _check_metrics(task, states, context)
        _check_viable(task, states)
    return TaskConformance(shares[0], shares[1], o, p)


def _check_kinds(task: Task) -> tuple[str, System]:
    if not isinstance(task, Task):
        raise ConformanceError("task", f"a {type(task).__name__}", "subclass holdfast.tasks.Task")
    name, system = name_of(task), task.system
    if not isinstance(system, System):
        raise ConformanceError(f"{name}.system", f"a {type(system).__name__}", "it must be a System")
    return name, system


def _check_settings(task: Task) -> None:
    name, safety = name_of(task), task.safety
    if not (isinstance(task.name, str) and task.name):
        raise ConformanceError(f"{name}.name", repr(task.name), "give the word that the command line uses")
    _check_count(f"{name}.episode_steps", task.episode_steps)
    box = task.state_box
    if not isinstance(box, Box) or box.dimension != task.system.state_size:
        right = f"give a Box with {task.system.state_size} numbers, or let holdfast.interop.complete_task derive it"
        raise ConformanceError(f"{name}.state_box", box, right)
    if isinstance(safety, SafetySettings):
        _check_safety_settings(name, task.system, safety)
    elif isinstance(safety, RobustSafety):
        _check_robust_safety(name, task, safety)
    else:
        raise ConformanceError(f"{name}.safety", f"a {name_of(safety)}", "give SafetySettings or a RobustSafety")


def _check_count(item: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConformanceError(item, repr(value), "give a positive integer")


def _check_safety_settings(name: str, system: System, safety: SafetySettings) -> None:
    _check_count(f"{name}.safety.horizon", safety.horizon)
    e = jax.eval_shape(system.error, jax.ShapeDtypeStruct((system.state_size,), jnp.float64)).shape[0]
    for item, costs, size in (
        ("safety.state_cost", safety.state_cost, e),
        ("safety.input_cost", safety.input_cost, system.input_size),
    ):
        if len(costs) != size or not all(c >= 0 and np.isfinite(c) for c in costs):
            raise ConformanceError(f"{name}.{item}", costs, f"give {size} finite numbers >= 0")
    if not all(c > 0 for c in safety.input_cost):
        raise ConformanceError(f"{name}.safety.input_cost", safety.input_cost, "input costs must be positive")


def _check_robust_safety(name: str, task: Task, safety: RobustSafety) -> None:
    """Shapes, and starts in the region. That it is invariant is not checked here but proved by `holdfast verify`."""
    n, m = task.system.state_size, task.system.input_size
    starts = _check_samples(f"{name}.sample_start", task.sample_start, jax.random.key(0), n)
    inside = np.asarray(jax.jit(jax.vmap(safety.region.contains))(jnp.asarray(starts)))
    if not inside.all():
        right = "draw starts from safety.region: nothing is promised elsewhere"
        raise ConformanceError(f"{name}.sample_start", f"{starts[np.argmin(inside)]} outside safety.region", right)
    actions = check_function(f"{name}.safety.controller", safety.controller, (starts,), (m,))
    admissible = np.asarray(jax.vmap(task.system.input_box.contains)(jnp.asarray(actions)))
    if not admissible.all():
        right = "it must lie in the system's input_box: clip it"
        raise ConformanceError(f"{name}.safety.controller", actions[np.argmin(admissible)], right)
    x = jax.ShapeDtypeStruct((n,), jnp.float64)
    normals, offsets = (part.shape for part in jax.eval_shape(safety.region.piece, x))
    if normals[1:] != (n,) or offsets != normals[:1]:
        raise ConformanceError(f"{name}.safety.region.piece", f"{normals} and {offsets}", f"give [p, {n}] and [p]")


def _check_samples(item: str, sample: Callable, key: Array, n: int) -> np.ndarray:
    keys = jax.random.split(key, SAMPLES)
    one = np.asarray(sample(keys[0]))
    if one.shape != (n,):
        raise ConformanceError(item, f"shape {one.shape}", f"it must give one state, shape ({n},)")
    drawn = np.asarray(jax.jit(jax.vmap(sample))(keys), np.float64)
    if not np.all(np.isfinite(drawn)):
        raise ConformanceError(item, drawn[~np.isfinite(drawn).all(axis=1)][0], "states must be finite; bound the box")
    if not np.allclose(drawn[0], one, rtol=1e-9, atol=1e-9):
        raise ConformanceError(item, f"{one} alone and {drawn[0]} in a batch", "draw only from the key that is given")
    return drawn


def _check_safe_set_at(task: Task, x: np.ndarray) -> None:
    """Whether the equilibrium x lies inside, with room around it."""
    name, safe_set = f"{name_of(task)}.safe_set", task.safe_set
    if not isinstance(safe_set, Set):
        raise ConformanceError(name, f"a {name_of(safe_set)}", "give a holdfast.sets.Set, as SuperlevelSet(h)")
    try:
        rest = np.asarray(safe_set.margin(jnp.asarray(x, jnp.float64)))
    except Exception as error:
        right = "it must give a vector, one number a constraint, under jax.jit: as jnp.stack([1 - x[0], 1 + x[0]])"
        raise ConformanceError(f"{name}.margin", f"{name_of(error)}: {error}", right) from error
    if not np.all(rest > 0):
        row = int(np.argmin(np.where(np.isfinite(rest), rest, -np.inf)))
        seen = f"{rest[row] + 0.0:.6g} on '{[*getattr(safe_set, 'names', ()), *map(str, range(row + 1))][row]}'"
        right = "all must be > 0: move the equilibrium inside, or give a safe set with an interior there"
        raise ConformanceError(f"{name}.margin at the equilibrium", seen, right)


def _check_safe_set(task: Task, states: np.ndarray) -> int:
    _check_safe_set_at(task, np.asarray(task.system.equilibrium()[0], np.float64))
    name, safe_set = f"{name_of(task)}.safe_set", task.safe_set
    x = jax.ShapeDtypeStruct((task.system.state_size,), jnp.float64)
    shape = jax.eval_shape(safe_set.margin, x).shape
    if len(shape) != 1 or shape[0] < 1:
        raise ConformanceError(f"{name}.margin", f"shape {shape}", "it must give a vector, one number a constraint")
    for item in ("names", "units"):
        words = getattr(safe_set, item, ())
        if words and len(words) != shape[0]:
            raise ConformanceError(f"{name}.{item}", f"{len(words)}: {words}", f"give {shape[0]}, one for each margin")
    check_function(f"{name}.margin", safe_set.margin, (states,), shape)
    if safe_set.contains(jnp.full(x.shape, jnp.nan)):
        raise ConformanceError(f"{name}.contains of a state of NaN", True, "NaN is in no set; do not replace it in h")
    return shape[0]


def _check_signals(task: Task, states: np.ndarray, context: Any, seed: int) -> int:
    name, n = name_of(task), task.system.state_size
    box = task.system.input_box
    inputs = np.random.default_rng(seed).uniform(box.lower, box.upper, (len(states), box.dimension))
    o = task.observation_size
    last = task.episode_steps - 1
    for t in sorted({0, 1, last // 2, last}):
        time = jnp.asarray(t, jnp.int32)
        reference = np.asarray(task.reference(time, context))
        if reference.shape != (n,) or not np.all(np.isfinite(reference)):
            raise ConformanceError(f"{name}.reference at t = {t}", reference, f"it must give {n} finite numbers")
    for t in (0, last):
        time = jnp.asarray(t, jnp.int32)
        check_function(f"{name}.observe at t = {t}", lambda x, t=time: task.observe(x, t, context), (states,), (o,))
    time = jnp.asarray(0, jnp.int32)

    def reward(x, u):
        return task.reward(x, u, task.system.step(x, u), time, context)

    check_function(f"{name}.reward", reward, (states, inputs), ())
    return o


def _check_metrics(task: Task, states: np.ndarray, context: Any) -> None:
    name, metrics = name_of(task), task.metrics(jnp.asarray(states), context)
    if not isinstance(metrics, dict):
        raise ConformanceError(f"{name}.metrics", f"a {name_of(metrics)}", "return a dict, name -> number")
    for word, value in metrics.items():
        if np.shape(value) != () or not np.isfinite(value):
            right = "it must be one finite number an episode"
            raise ConformanceError(f"{name}.metrics, {word}", np.asarray(value), right)
    for word in task.metric_units:
        if word not in metrics:
            right = f"the metrics are: {', '.join(metrics) or 'none'}"
            raise ConformanceError(f"{name}.metric_units", f"a unit of {word!r}", right)


def _check_viable(task: Task, states: np.ndarray) -> None:
    name, right = name_of(task), "it must give one bool a state"
    bound = task.possibly_viable(jnp.asarray(states[0]))
    if bound is not None and (bound.shape, bound.dtype) != ((), bool):
        raise ConformanceError(f"{name}.possibly_viable", f"{bound.dtype}{bound.shape}", right)
    if task.viable(jnp.asarray(states[0])) is None:
        return
    viable = np.asarray(jax.jit(jax.vmap(task.viable))(jnp.asarray(states)))
    inside = np.asarray(jax.vmap(task.safe_set.contains)(jnp.asarray(states)))
    if viable.shape != inside.shape or viable.dtype != bool:
        raise ConformanceError(f"{name}.viable", f"{viable.dtype}{viable.shape}", right)
    if np.any(viable & ~inside):
        seen = f"True at {states[np.argmax(viable & ~inside)]}"
        raise ConformanceError(f"{name}.viable", seen, "only states of safe_set are viable")
