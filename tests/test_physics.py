"""The hash of a physics: what counts in it, and what does not."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.runs import physics_hash
from holdfast.sets import Box
from holdfast.systems import Unicycle
from holdfast.tasks import LaneKeeping

X = jax.ShapeDtypeStruct((3,), jnp.float64)
U = jax.ShapeDtypeStruct((2,), jnp.float64)


def _step(dt, drag=0.3, table=(1.0, 2.0, 3.0), steps=4):
    constants = np.array(table)

    def step(x, u):
        def once(carry, _):
            return carry + dt * (constants * jnp.sin(carry) - drag * carry), None

        moved, _ = jax.lax.scan(once, jnp.where(x > 0, x, u.sum()), None, length=steps)
        return jnp.clip(moved, -1.0, 1.0)

    return step


def _hash(step, constants=()):
    return physics_hash({"step": (step, (X, U))}, constants)


def test_the_last_bit_of_every_number_counts():
    hashes = {
        _hash(_step(0.05)),
        _hash(_step(np.nextafter(0.05, 1.0))),
        _hash(_step(0.05, drag=np.nextafter(0.3, 1.0))),
        _hash(_step(0.05, table=(1.0, 2.0, np.nextafter(3.0, 4.0)))),
        _hash(_step(0.05, steps=5)),
        _hash(_step(0.05), {"bound": 1.0}),
        _hash(_step(0.05), {"bound": np.nextafter(1.0, 2.0)}),
        _hash(_step(0.05), {"limit": 1.0}),
        physics_hash({"other": (_step(0.05), (X, U))}),
    }
    assert len(hashes) == 9


def test_a_real_task_hashes_to_its_physics():
    def hashed(task):
        x = jax.ShapeDtypeStruct((task.system.state_size,), jnp.float64)
        u = jax.ShapeDtypeStruct((task.system.input_size,), jnp.float64)
        functions = {"step": (task.system.step, (x, u)), "margin": (task.safe_set.margin, (x,))}
        return physics_hash(functions, {"inputs": task.system.input_box, "safety": dataclasses.asdict(task.safety)})

    first = hashed(LaneKeeping())
    assert first == hashed(LaneKeeping())
    assert first != hashed(LaneKeeping(system=Unicycle(dt=float(np.nextafter(0.05, 1.0)))))
    box = Box([-5.0, -1.0], [5.0, np.nextafter(1.0, 2.0)])
    assert first != hashed(LaneKeeping(system=Unicycle(input_box=box)))
    with jax.enable_x64(False):
        assert first == hashed(LaneKeeping())


def test_the_wiring_counts():
    assert _hash(lambda x, u: x[0] - x[1]) != _hash(lambda x, u: x[1] - x[0])
    assert _hash(lambda x, u: (x, 2 * x)) != _hash(lambda x, u: (2 * x, x))
    assert _hash(lambda x, u: x + 1.0) != _hash(lambda x, u: x + np.float64(1.0) * np.ones(3))


def test_names_jit_and_derivative_rules_do_not_count():
    def renamed(state, action):
        return state * 0.05 + jnp.tanh(action).sum()

    @jax.custom_jvp
    def ruled(x, u):
        return x * 0.05 + jnp.tanh(u).sum()

    ruled.defjvp(lambda primals, tangents: (ruled(*primals), tangents[0]))
    plain = _hash(lambda x, u: x * 0.05 + jnp.tanh(u).sum())
    assert plain == _hash(renamed) == _hash(jax.jit(renamed)) == _hash(ruled)
    assert _hash(_step(0.05)) == _hash(_step(0.05))


def test_one_body_called_twice_is_read_twice():
    """Traces are cached, so two calls share one body and its variables."""
    square = jax.jit(lambda v: v * v)
    assert _hash(lambda x, u: square(square(x))) != _hash(lambda x, u: square(x))
    assert _hash(lambda x, u: square(x) + square(u).sum()) != _hash(lambda x, u: square(x) + square(x).sum())


def test_a_python_callback_is_refused():
    def step(x, u):
        return jax.pure_callback(np.sin, X, x)

    with pytest.raises(TypeError, match="calls Python"):
        _hash(step)


def test_constants_must_be_numbers():
    with pytest.raises(TypeError, match=r"constants\['h'\] is a function"):
        _hash(_step(0.05), {"h": lambda x: x})


def test_the_hash_is_the_same_in_another_process():
    program = """
import jax, jax.numpy as jnp, numpy as np
from holdfast.runs import physics_hash
x = jax.ShapeDtypeStruct((3,), np.float64)
table = np.array([1.0, 2.0, 3.0])
def f(v):
    w, _ = jax.lax.scan(lambda c, _: (c + 0.1 * table, None), jnp.linalg.norm(v) * v[::-1], None, length=2)
    return jnp.concatenate([jax.nn.relu(w), v.at[0].set(2.0)]), jnp.linalg.solve(jnp.outer(v, v) + jnp.eye(3), v)
print(physics_hash({"f": (f, (x,))}, {"a": 0.1, "b": (1, "word")}))
"""
    hashes = set()
    for hash_seed, x64 in (("1", "0"), ("2", "1")):
        variables = os.environ | {"PYTHONHASHSEED": hash_seed, "JAX_ENABLE_X64": x64}
        out = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
        hashes.add(out.stdout.strip())
    assert len(hashes) == 1 and len(hashes.pop()) == 64
