"""What the library takes a system for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from holdfast.sets import Box
from holdfast.systems import ContinuousSystem, System
from holdfast.testing.functions import SAMPLES, ConformanceError, check_function, check_shape, name_of

_SPREAD = 0.3


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
        check_words(system)
        n, m = system.state_size, system.input_size
        check_equilibrium(system)
        generator = np.random.default_rng(seed)
        e_star = np.asarray(system.error(jnp.asarray(system.equilibrium()[0], jnp.float64)))
        errors = e_star + _SPREAD * generator.uniform(-1.0, 1.0, (SAMPLES, e_star.shape[0]))
        _check_error_coordinates(system, errors)
        if states is None:
            states = np.asarray(jax.vmap(system.lift)(jnp.asarray(errors)))
        states = np.asarray(states, np.float64)
        if states.ndim != 2 or states.shape[1] != n:
            raise ConformanceError("states", f"shape {states.shape}", f"give shape (k, {n}), one state a row")
        box = system.input_box
        inputs = generator.uniform(box.lower, box.upper, (states.shape[0], m))
        inputs[: min(2, len(inputs))] = np.stack([box.lower, box.upper])[: len(inputs)]
        check_traceable(system, states, inputs)
        check_function(f"{name_of(system)}.step", system.step, (states, inputs), (n,))
        _check_disturbance(system, states, inputs)
        _check_derivatives(f"{name_of(system)}.step", system.step, states, inputs)
        lost = system.step(jnp.full(n, jnp.nan), jnp.asarray(inputs[0]))
        if np.all(np.isfinite(lost)):
            raise ConformanceError(
                f"{name_of(system)}.step of a state of NaN", np.asarray(lost), "NaN must be passed on, never replaced"
            )


def check_words(system: System) -> None:
    name = name_of(system)
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
        raise ConformanceError(f"{name}.input_box", f"a {name_of(box)}", "give a holdfast.sets.Box")
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


def check_traceable(system: System, states: np.ndarray, inputs: np.ndarray) -> None:
    """Shapes of derivative and step; nothing is compiled."""
    if isinstance(system, ContinuousSystem):
        w = np.zeros((len(states), system.noise_box.dimension))
        # Apart from `step`: a derivative of one number would be broadcast over the state without a word.
        check_shape(f"{name_of(system)}.derivative", system.derivative, (states, inputs, w), (system.state_size,))
    check_shape(f"{name_of(system)}.step", system.step, (states, inputs), (system.state_size,))


def check_equilibrium(system: System) -> None:
    name = name_of(system)
    try:
        x, u = (jnp.asarray(v, jnp.float64) for v in system.equilibrium())
    except Exception as error:
        right = "return two arrays of numbers, the state x* and the input u*"
        raise ConformanceError(f"{name}.equilibrium", f"{name_of(error)}: {error}", right) from error
    for item, value, size in (("x*", x, system.state_size), ("u*", u, system.input_size)):
        if value.shape != (size,) or not np.all(np.isfinite(value)):
            raise ConformanceError(f"{name}.equilibrium, {item}", f"{np.asarray(value)}", f"give {size} finite numbers")
    if not system.input_box.contains(u):
        raise ConformanceError(f"{name}.equilibrium, u*", f"{np.asarray(u)}", "it must lie in input_box")
    check_traceable(system, np.asarray(x)[None], np.asarray(u)[None])
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
    name, (e,) = name_of(system), errors.shape[1:]
    if e > system.state_size:
        raise ConformanceError(f"{name}.error", f"{e} numbers", f"it must give at most {system.state_size}")
    states = check_function(f"{name}.lift", system.lift, (errors,), (system.state_size,))
    back = check_function(f"{name}.error", system.error, (states,), (e,))
    worst = np.unravel_index(np.argmax(np.abs(back - errors)), errors.shape)
    if not np.abs(back - errors)[worst] <= 1e-9:
        raise ConformanceError(
            f"{name}: entry {worst[1]} of error(lift(e))",
            back[worst],
            f"it must equal e, which is {errors[worst]} there",
        )


def _check_disturbance(system: System, states: np.ndarray, inputs: np.ndarray) -> None:
    box, name = system.disturbance_box, name_of(system)
    if box is None:
        return
    if not isinstance(box, Box) or not np.all(box.lower <= 0) or not np.all(box.upper >= 0):
        raise ConformanceError(f"{name}.disturbance_box", box, "give a Box that contains zero, the undisturbed case")
    x, u = jnp.asarray(states[0]), jnp.asarray(inputs[0])
    still = np.asarray(system.step(x, u, jnp.zeros(box.dimension)))
    if not np.allclose(still, system.step(x, u), rtol=1e-12, atol=1e-12):
        raise ConformanceError(f"{name}.step(x, u, w=0)", still, "it must equal step(x, u), the undisturbed step")
    check_function(
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
