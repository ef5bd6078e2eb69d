"""The conformance checks pass on what ships, and name what is wrong on what is sabotaged."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import Unicycle
from holdfast.tasks import LaneKeeping, SafetySettings, Task, make_task, task_names
from holdfast.testing import ConformanceError, check_system, check_task
from systems_for_tests import Cart


@pytest.mark.parametrize("name", task_names())
def test_every_shipped_task_conforms(name):
    result = check_task(make_task(name))  # its system, too
    assert result.safe_start_share > 0.5
    assert result.observation_size == make_task(name).observation_size


class Slider(Cart):
    """A mass on a rail, the smallest system there is."""

    state_names: ClassVar = ("position", "speed")
    input_names: ClassVar = ("force",)


class SliderTask(Task):
    name: ClassVar = "slider"
    episode_steps: ClassVar = 10
    system: Slider = eqx.field(default_factory=Slider)
    safe_set: SuperlevelSet = eqx.field(default_factory=lambda: SuperlevelSet(lambda x: 1.0 - x**2))
    state_box: Box = eqx.field(default_factory=lambda: Box([-1.0, -1.0], [1.0, 1.0]))
    safety: SafetySettings = eqx.field(default_factory=lambda: SafetySettings((1.0, 1.0), (1.0,), 5))

    def sample_start(self, key):
        return 0.5 * jax.random.uniform(key, (2,), minval=-1.0)

    def reward(self, x, u, x_next, t, context):
        return -jnp.sum(x_next**2)


def test_a_small_system_and_task_conform():
    check_system(Slider())
    result = check_task(SliderTask())
    assert (result.safe_start_share, result.observation_size, result.constraints) == (1.0, 4, 2)


def test_the_checks_work_in_32_bit_sessions():
    with jax.enable_x64(False):
        check_system(Slider())
        check_system(Unicycle())
        check_task(LaneKeeping())
        assert jnp.zeros(()).dtype == jnp.float32


def _with(base, **attributes):
    return type(base)(f"Sabotaged{base.__name__}", (base,), attributes)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"input_names": ("force", "torque")}, "input_box: saw 1 numbers; give 2"),
        ({"state_names": ("x", "x")}, "names must differ"),
        ({"state_units": ("m",)}, "state_units: saw 1 units; give 2"),
        ({"equilibrium": lambda self: (jnp.ones(2), jnp.zeros(1))}, "it must be zero; correct"),
        ({"equilibrium": lambda self: (jnp.zeros(2), 2 * jnp.ones(1))}, "it must lie in input_box"),
        ({"equilibrium": lambda self: (jnp.zeros(3), jnp.zeros(1))}, "give 2 finite numbers"),
        ({"lift": lambda self, e: 2 * e}, r"error\(lift\(e\)\)"),
        ({"error": lambda self, x: x + 1.0}, "zero at the equilibrium"),
        ({"derivative": lambda self, x, u, w: x[1:]}, r"derivative: saw shape \(1,\)"),
        ({"derivative": lambda self, x, u, w: jnp.stack([x[1], u[0]]) * np.ones(2)}, "keep the dtype"),
        ({"derivative": lambda self, x, u, w: jnp.stack([x[1] if x[0] > 0 else -x[1], u[0]])}, "no Python `if`"),
        ({"derivative": lambda self, x, u, w: jnp.stack([jnp.linalg.norm(u * 0) + x[1], u[0]])}, "derivative by the"),
        ({"post_step": lambda self, x: jnp.nan_to_num(x)}, "NaN must be passed on"),
        ({"post_step": lambda self, x: jnp.sqrt(jnp.abs(x)) + jnp.sqrt(x - x.max())}, "must be finite"),
        ({"disturbance_box": Box([0.1], [0.2])}, "contains zero"),
        (
            {"disturbance_box": Box([-0.1], [0.2]), "step": lambda self, x, u, w=None: x if w is None else x + w + 0.1},
            "the undisturbed step",
        ),
    ],
)
def test_a_sabotaged_system_is_named(attributes, message):
    attributes = {k: property(lambda self, v=v: v) if k == "disturbance_box" else v for k, v in attributes.items()}
    with pytest.raises((ConformanceError, TypeError), match=message):
        check_system(_with(Slider, **attributes)())


def test_anything_else_is_refused():
    with pytest.raises(ConformanceError, match="subclass"):
        check_system(object())
    with pytest.raises(ConformanceError, match="subclass"):
        check_task(Slider())


def _safe_set(function, **words):
    return {"safe_set": SuperlevelSet(function, **words)}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"episode_steps": 0}, "episode_steps: saw 0; give a positive integer"),
        ({"name": ""}, "command line"),
        ({"sample_start": lambda self, key: jnp.zeros(3)}, "sample_start: saw shape"),
        ({"sample_start": lambda self, key: 5.0 + jnp.zeros(2)}, "0 of 32 inside safe_set"),
        ({"reward": lambda self, x, u, y, t, c: -(x**2)}, r"reward: saw shape \(2,\)"),
        ({"reward": lambda self, x, u, y, t, c: jnp.log(-(x[0] ** 2))}, "reward: saw .* it must be finite"),
        ({"reference": lambda self, t, c: jnp.zeros(1)}, "reference at t = 0"),
        ({"observe": lambda self, x, t, c: x / t}, "observe at t = 0"),
        ({"metrics": lambda self, states, c: {"error": states[:, 0]}}, "metrics, error"),
        ({"metric_units": {"error": "m"}}, "a unit of 'error'; the metrics are: none"),
        ({"viable": lambda self, x: jnp.asarray(True)}, None),
        ({"viable": lambda self, x: jnp.asarray(1.0)}, "one bool a state"),
        ({"possibly_viable": lambda self, x: jnp.asarray(1.0)}, "one bool a state"),
    ],
)
def test_a_sabotaged_task_is_named(attributes, message):
    task = _with(SliderTask, **attributes)()
    if message is None:
        check_task(task)
        return
    with pytest.raises(ConformanceError, match=message):
        check_task(task)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"safety": SafetySettings((1.0,), (1.0,), 5)}, "state_cost: saw .* give 2"),
        ({"safety": SafetySettings((1.0, 1.0), (0.0,), 5)}, "must be positive"),
        ({"safety": SafetySettings((1.0, 1.0), (1.0,), 0)}, "safety.horizon: saw 0"),
        ({"state_box": Box([-1.0], [1.0])}, "give a Box with 2 numbers"),
        (_safe_set(lambda x: jnp.stack([1 - x, 1 + x])), "must give a vector"),
        (_safe_set(lambda x: 1.0 - x**2, names=("left",)), "names: saw 1"),
        (_safe_set(lambda x: -(x**2)), "at the equilibrium"),
        (_safe_set(lambda x: 1.0 - jnp.nan_to_num(x) ** 2), "NaN is in no set"),
        (_safe_set(lambda x: jnp.log(2 * x + 1.5)), "margin: saw .* it must be finite"),
    ],
)
def test_a_sabotaged_field_is_named(fields, message):
    with pytest.raises(ConformanceError, match=message):
        check_task(SliderTask(**fields))
