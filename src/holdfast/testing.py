"""Conformance checks for systems and tasks of one's own: run them before anything else.

    from holdfast.testing import check_system, check_task
    check_system(MySystem())
    check_task(MyTask())

Each raises one `ConformanceError` at the first thing that is wrong, and says what it saw and what is right.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box, Set
from holdfast.systems import ContinuousSystem, System
from holdfast.tasks import Task

_SAMPLES = 32
_LOOPED = 2
_SPREAD = 0.3


class ConformanceError(ValueError):
    """A system or task breaks a rule of the library.

    Attributes:
        item: what was checked.
        seen: what came out.
        right: what is right, and how to get there.
    """

    def __init__(self, item: str, seen: Any, right: str):
        super().__init__(f"{item}: saw {seen}; {right}")
        self.item, self.seen, self.right = item, seen, right


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


def check_system(system: System, states: Float[np.ndarray, "k n"] | None = None, *, seed: int = 0) -> None:
    """Check that `system` is what the library takes a system for.

    Names against the boxes, shapes, finiteness, dtypes in float32 and float64, vmap = loop, jit = eager, the
    equilibrium, error(lift(e)) = e, finite derivatives, and that NaN is passed on.

    Args:
        system: the system.
        states: where to try it; by default lift(e) for e drawn within 0.3 of the equilibrium's error.
        seed: of the samples.

    Raises:
        ConformanceError: at the first thing that is wrong.
    """
    if not isinstance(system, System):
        raise ConformanceError(
            "system", f"a {type(system).__name__}", "subclass holdfast.systems.System or ContinuousSystem"
        )
    with jax.enable_x64(True):
        _check_words(system)
        n, m = system.state_size, system.input_size
        _check_equilibrium(system)
        generator = np.random.default_rng(seed)
        e_star = np.asarray(system.error(jnp.asarray(system.equilibrium()[0], jnp.float64)))
        errors = e_star + _SPREAD * generator.uniform(-1.0, 1.0, (_SAMPLES, e_star.shape[0]))
        _check_error_coordinates(system, errors)
        if states is None:
            states = np.asarray(jax.vmap(system.lift)(jnp.asarray(errors)))
        states = np.asarray(states, np.float64)
        if states.ndim != 2 or states.shape[1] != n:
            raise ConformanceError("states", f"shape {states.shape}", f"give shape (k, {n}), one state a row")
        box = system.input_box
        inputs = generator.uniform(box.lower, box.upper, (states.shape[0], m))
        inputs[: min(2, len(inputs))] = np.stack([box.lower, box.upper])[: len(inputs)]
        _check_traceable(system, states, inputs)
        _check_function(f"{_name(system)}.step", system.step, (states, inputs), (n,))
        _check_disturbance(system, states, inputs)
        _check_derivatives(f"{_name(system)}.step", system.step, states, inputs)
        lost = system.step(jnp.full(n, jnp.nan), jnp.asarray(inputs[0]))
        if np.all(np.isfinite(lost)):
            raise ConformanceError(
                f"{_name(system)}.step of a state of NaN", np.asarray(lost), "NaN must be passed on, never replaced"
            )


def check_declaration(task: Task) -> None:
    """The cheap part of `check_task`, for a task whose settings are not derived yet: names, bounds, equilibrium, shapes."""
    with jax.enable_x64(True):
        _, system = _check_kinds(task)
        _check_words(system)
        _check_equilibrium(system)
        x, u = (np.asarray(v, np.float64)[None] for v in system.equilibrium())
        _check_traceable(system, x, u)
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
                raise ConformanceError(f"{name}.{method}", f"0 of {_SAMPLES} inside safe_set", "draw states inside it")
        context = task.sample_context(context_key)
        o = _check_signals(task, states, context, seed)
        _check_metrics(task, states, context)
        _check_viable(task, states)
    return TaskConformance(shares[0], shares[1], o, p)


# Systems -------------------------------------------------------------------------------------------------------------


def _name(thing: Any) -> str:
    return type(thing).__name__


def _check_words(system: System) -> None:
    name = _name(system)
    for item, words in (("state_names", system.state_names), ("input_names", system.input_names)):
        if not isinstance(words, tuple) or not words or not all(isinstance(w, str) for w in words):
            raise ConformanceError(f"{name}.{item}", repr(words), 'give a tuple of words, as ("y", "v")')
        if len(set(words)) != len(words):
            raise ConformanceError(f"{name}.{item}", repr(words), "names must differ")
    for item, units, names in (
        ("state_units", system.state_units, system.state_names),
        ("input_units", system.input_units, system.input_names),
    ):
        if units and len(units) != len(names):
            right = f"give {len(names)}, one for each of {names}"
            raise ConformanceError(f"{name}.{item}", f"{len(units)} units", right)
    box = system.input_box
    if not isinstance(box, Box):
        raise ConformanceError(f"{name}.input_box", f"a {_name(box)}", "give a holdfast.sets.Box")
    if box.dimension != system.input_size:
        raise ConformanceError(
            f"{name}.input_box",
            f"{box.dimension} numbers",
            f"give {system.input_size}, one for each of {system.input_names}",
        )
    if not (np.all(np.isfinite(box.lower)) and np.all(np.isfinite(box.upper)) and np.all(box.lower < box.upper)):
        seen = f"{box.lower} to {box.upper}"
        raise ConformanceError(f"{name}.input_box", seen, "give finite bounds with lower < upper")
    if not (np.ndim(system.dt) == 0 and np.isfinite(system.dt) and system.dt > 0):
        raise ConformanceError(f"{name}.dt", system.dt, "give a positive sampling period in seconds")


def _check_traceable(system: System, states: np.ndarray, inputs: np.ndarray) -> None:
    """Shapes of derivative and step; nothing is compiled."""
    if isinstance(system, ContinuousSystem):
        w = np.zeros((len(states), 0 if system.disturbance_box is None else system.disturbance_box.dimension))
        # Apart from `step`: a derivative of one number would be broadcast over the state without a word.
        _check_shape(f"{_name(system)}.derivative", system.derivative, (states, inputs, w), (system.state_size,))
    _check_shape(f"{_name(system)}.step", system.step, (states, inputs), (system.state_size,))


def _check_equilibrium(system: System) -> None:
    name = _name(system)
    try:
        x, u = (jnp.asarray(v, jnp.float64) for v in system.equilibrium())
    except Exception as error:
        right = "return two arrays of numbers, the state x* and the input u*"
        raise ConformanceError(f"{name}.equilibrium", f"{_name(error)}: {error}", right) from error
    for item, value, size in (("x*", x, system.state_size), ("u*", u, system.input_size)):
        if value.shape != (size,) or not np.all(np.isfinite(value)):
            raise ConformanceError(f"{name}.equilibrium, {item}", f"{np.asarray(value)}", f"give {size} finite numbers")
    if not system.input_box.contains(u):
        raise ConformanceError(f"{name}.equilibrium, u*", f"{np.asarray(u)}", "it must lie in input_box")
    _check_traceable(system, np.asarray(x)[None], np.asarray(u)[None])
    e, ahead = (np.asarray(v) for v in jax.jit(lambda x, u: (system.error(x), system.step(x, u)))(x, u))
    for word, value in zip(system.state_names, ahead):
        if not np.isfinite(value):
            right = "it must be finite; look for a division or root at zero in the dynamics"
            raise ConformanceError(f"{name}: {word} one step after the equilibrium", value, right)
    moved = np.asarray(jax.jit(lambda x: system.error(x))(ahead))
    if np.any(np.abs(e) > 1e-9):
        raise ConformanceError(f"{name}.error(x*)", e, "it must be zero at the equilibrium")
    if not np.all(np.abs(moved) <= 1e-6):
        right = "it must be zero; correct x*, u*, or what `error` drops"
        raise ConformanceError(f"{name}.equilibrium: error(step(x*, u*))", moved, right)


def _check_error_coordinates(system: System, errors: np.ndarray) -> None:
    name, (e,) = _name(system), errors.shape[1:]
    if e > system.state_size:
        raise ConformanceError(f"{name}.error", f"{e} numbers", f"it must give at most {system.state_size}")
    states = _check_function(f"{name}.lift", system.lift, (errors,), (system.state_size,))
    back = _check_function(f"{name}.error", system.error, (states,), (e,))
    worst = np.unravel_index(np.argmax(np.abs(back - errors)), errors.shape)
    if not np.abs(back - errors)[worst] <= 1e-9:
        raise ConformanceError(
            f"{name}: entry {worst[1]} of error(lift(e))",
            back[worst],
            f"it must equal e, which is {errors[worst]} there",
        )


def _check_disturbance(system: System, states: np.ndarray, inputs: np.ndarray) -> None:
    box, name = system.disturbance_box, _name(system)
    if box is None:
        return
    if not isinstance(box, Box) or not np.all(box.lower <= 0) or not np.all(box.upper >= 0):
        raise ConformanceError(f"{name}.disturbance_box", box, "give a Box that contains zero, the undisturbed case")
    x, u = jnp.asarray(states[0]), jnp.asarray(inputs[0])
    still = np.asarray(system.step(x, u, jnp.zeros(box.dimension)))
    if not np.allclose(still, system.step(x, u), rtol=1e-12, atol=1e-12):
        raise ConformanceError(f"{name}.step(x, u, w=0)", still, "it must equal step(x, u), the undisturbed step")
    _check_function(
        f"{name}.step with w",
        lambda x, u: system.step(x, u, jnp.asarray(box.upper, x.dtype)),
        (states, inputs),
        still.shape,
    )


def _check_derivatives(item: str, function: Callable, states: np.ndarray, inputs: np.ndarray) -> None:
    for mode, jacobian in (("forward", jax.jacfwd), ("reverse", jax.jacrev)):
        try:
            both = jax.jit(jax.vmap(jacobian(function, argnums=(0, 1))))(jnp.asarray(states), jnp.asarray(inputs))
        except Exception as error:
            raise ConformanceError(
                item, f"no {mode}-mode derivative ({error})", "write it in jax.numpy; `while_loop` has no reverse mode"
            ) from error
        for word, derivative in zip(("state", "input"), both):
            bad = ~np.isfinite(np.asarray(derivative)).all(axis=(1, 2))
            if bad.any():
                raise ConformanceError(
                    f"{item}, {mode}-mode derivative by the {word}",
                    f"a number that is not finite at x = {states[np.argmax(bad)]}, u = {inputs[np.argmax(bad)]}",
                    "look for a square root, norm or arctan2 at zero; guard its argument (double where)",
                )


# Tasks ---------------------------------------------------------------------------------------------------------------


def _check_kinds(task: Task) -> tuple[str, System]:
    if not isinstance(task, Task):
        raise ConformanceError("task", f"a {type(task).__name__}", "subclass holdfast.tasks.Task")
    name, system = _name(task), task.system
    if not isinstance(system, System):
        raise ConformanceError(f"{name}.system", f"a {type(system).__name__}", "it must be a System")
    return name, system


def _check_settings(task: Task) -> None:
    name, system, safety = _name(task), task.system, task.safety
    if not (isinstance(task.name, str) and task.name):
        raise ConformanceError(f"{name}.name", repr(task.name), "give the word that the command line uses")
    for item, value in (("episode_steps", task.episode_steps), ("safety.horizon", safety.horizon)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConformanceError(f"{name}.{item}", repr(value), "give a positive integer")
    e = jax.eval_shape(system.error, jax.ShapeDtypeStruct((system.state_size,), jnp.float64)).shape[0]
    for item, costs, size in (
        ("safety.state_cost", safety.state_cost, e),
        ("safety.input_cost", safety.input_cost, system.input_size),
    ):
        if len(costs) != size or not all(c >= 0 and np.isfinite(c) for c in costs):
            raise ConformanceError(f"{name}.{item}", costs, f"give {size} finite numbers >= 0")
    if not all(c > 0 for c in safety.input_cost):
        raise ConformanceError(f"{name}.safety.input_cost", safety.input_cost, "input costs must be positive")
    box = task.state_box
    if not isinstance(box, Box) or box.dimension != system.state_size:
        right = f"give a Box with {system.state_size} numbers, or let holdfast.cli.own.complete_task derive it"
        raise ConformanceError(f"{name}.state_box", box, right)


def _check_samples(item: str, sample: Callable, key: Array, n: int) -> np.ndarray:
    keys = jax.random.split(key, _SAMPLES)
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
    name, safe_set = f"{_name(task)}.safe_set", task.safe_set
    if not isinstance(safe_set, Set):
        raise ConformanceError(name, f"a {_name(safe_set)}", "give a holdfast.sets.Set, as SuperlevelSet(h)")
    try:
        rest = np.asarray(safe_set.margin(jnp.asarray(x, jnp.float64)))
    except Exception as error:
        right = "it must give a vector, one number a constraint, under jax.jit: as jnp.stack([1 - x[0], 1 + x[0]])"
        raise ConformanceError(f"{name}.margin", f"{_name(error)}: {error}", right) from error
    if not np.all(rest > 0):
        row = int(np.argmin(np.where(np.isfinite(rest), rest, -np.inf)))
        seen = f"{rest[row] + 0.0:.6g} on '{[*getattr(safe_set, 'names', ()), *map(str, range(row + 1))][row]}'"
        right = "all must be > 0: move the equilibrium inside, or give a safe set with an interior there"
        raise ConformanceError(f"{name}.margin at the equilibrium", seen, right)


def _check_safe_set(task: Task, states: np.ndarray) -> int:
    _check_safe_set_at(task, np.asarray(task.system.equilibrium()[0], np.float64))
    name, safe_set = f"{_name(task)}.safe_set", task.safe_set
    x = jax.ShapeDtypeStruct((task.system.state_size,), jnp.float64)
    shape = jax.eval_shape(safe_set.margin, x).shape
    if len(shape) != 1 or shape[0] < 1:
        raise ConformanceError(f"{name}.margin", f"shape {shape}", "it must give a vector, one number a constraint")
    for item in ("names", "units"):
        words = getattr(safe_set, item, ())
        if words and len(words) != shape[0]:
            raise ConformanceError(f"{name}.{item}", f"{len(words)}: {words}", f"give {shape[0]}, one for each margin")
    _check_function(f"{name}.margin", safe_set.margin, (states,), shape)
    if safe_set.contains(jnp.full(x.shape, jnp.nan)):
        raise ConformanceError(f"{name}.contains of a state of NaN", True, "NaN is in no set; do not replace it in h")
    return shape[0]


def _check_signals(task: Task, states: np.ndarray, context: Any, seed: int) -> int:
    name, n = _name(task), task.system.state_size
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
        _check_function(f"{name}.observe at t = {t}", lambda x, t=time: task.observe(x, t, context), (states,), (o,))
    time = jnp.asarray(0, jnp.int32)

    def reward(x, u):
        return task.reward(x, u, task.system.step(x, u), time, context)

    _check_function(f"{name}.reward", reward, (states, inputs), ())
    return o


def _check_metrics(task: Task, states: np.ndarray, context: Any) -> None:
    name, metrics = _name(task), task.metrics(jnp.asarray(states), context)
    if not isinstance(metrics, dict):
        raise ConformanceError(f"{name}.metrics", f"a {_name(metrics)}", "return a dict, name -> number")
    for word, value in metrics.items():
        if np.shape(value) != () or not np.isfinite(value):
            right = "it must be one finite number an episode"
            raise ConformanceError(f"{name}.metrics, {word}", np.asarray(value), right)
    for word in task.metric_units:
        if word not in metrics:
            right = f"the metrics are: {', '.join(metrics) or 'none'}"
            raise ConformanceError(f"{name}.metric_units", f"a unit of {word!r}", right)


def _check_viable(task: Task, states: np.ndarray) -> None:
    name, right = _name(task), "it must give one bool a state"
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


# One function, in every way it will be called ------------------------------------------------------------------------


def _check_shape(item: str, function: Callable, batches: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> None:
    """Traceability, shape and dtypes of a function of float arrays; nothing is compiled."""
    for dtype in (jnp.float64, jnp.float32):
        try:
            out = jax.eval_shape(lambda *a: function(*a), *(jax.ShapeDtypeStruct(b.shape[1:], dtype) for b in batches))
        except Exception as error:
            raise ConformanceError(
                item,
                f"{_name(error)}: {error}",
                "it must run under jax.jit for one state: no Python `if` on its numbers",
            ) from error
        if not hasattr(out, "shape") or out.shape != shape:
            raise ConformanceError(item, f"shape {getattr(out, 'shape', out)}", f"it must give shape {shape}")
        if out.dtype != dtype:
            raise ConformanceError(
                item,
                f"{out.dtype} for inputs of {np.dtype(dtype)}",
                "keep the dtype of the inputs: cast constant arrays with `.astype(x.dtype)`",
            )


def _check_function(
    item: str, function: Callable, batches: tuple[np.ndarray, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """Shape, dtypes, finiteness, vmap = loop and jit = eager of a function of float arrays; returns its outputs."""
    _check_shape(item, function, batches, shape)
    arguments = [jnp.asarray(b) for b in batches]
    # Bound methods of modules that hold arrays cannot be hashed, which jax.jit asks for; a lambda can.
    compiled = np.asarray(jax.jit(jax.vmap(lambda *a: function(*a)))(*arguments))
    finite = np.isfinite(compiled).reshape(len(compiled), -1).all(axis=1)
    if not finite.all():
        i = int(np.argmin(finite))
        at = ", ".join(str(b[i]) for b in batches)
        raise ConformanceError(item, f"{compiled[i]} at {at}", "it must be finite; look for a division or root at zero")
    for i in range(min(_LOOPED, len(compiled))):
        value = np.asarray(function(*(a[i] for a in arguments)))
        if not np.allclose(value, compiled[i], rtol=1e-9, atol=1e-9):
            raise ConformanceError(
                item,
                f"{value} for one state without jit, {compiled[i]} under jit and vmap",
                "both must agree: no hidden state, no randomness, no Python branch on what is traced",
            )
    return compiled
