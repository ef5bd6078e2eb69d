"""Files with tasks of one's own, as a person in a terminal gets them wrong and right."""

import pytest

from command_line import command, terminal

OWN_TASKS = """
from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import ContinuousSystem
from holdfast.tasks import SafetySettings, Task


class Slider(ContinuousSystem):
    state_names: ClassVar = ("p", "v")
    input_names: ClassVar = ("a",)
    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0], [1.0]))
    strength: jax.Array = eqx.field(default_factory=lambda: jnp.ones(1))

    def derivative(self, x, u, w):
        return jnp.stack([x[1], self.strength[0] * u[0]])

    def equilibrium(self):
        return jnp.zeros(2), jnp.zeros(1)


def _track(end):
    return SuperlevelSet(lambda x: jnp.stack([end - x[0], 1 + x[0]]), ("right end", "left end"), ("m", "m"))


class Stay(Task):
    name: ClassVar = "stay"
    episode_steps: ClassVar = 50
    system: Slider = eqx.field(default_factory=Slider)
    safe_set: SuperlevelSet = eqx.field(default_factory=lambda: _track(1.0))
    state_box: Box = eqx.field(default_factory=lambda: Box([-1, -2], [1, 2]))
    safety: SafetySettings = eqx.field(default_factory=lambda: SafetySettings((1.0, 1.0), (1.0,), 20))

    def sample_start(self, key):
        return 0.2 * jax.random.uniform(key, (2,))

    def reward(self, x, u, x_next, t, context):
        return -((x_next[0] - 1.2) ** 2)


class NeedsArguments(Stay):
    def __init__(self, length):
        self.length = length


class Raises(Stay):
    def __init__(self):
        raise TypeError("no length given")


class OffTrack(Stay):
    safe_set: SuperlevelSet = eqx.field(default_factory=lambda: _track(-0.5))


class Runaway(Slider):
    def derivative(self, x, u, w):
        return jnp.stack([x[0], u[0]])


class Unsteerable(Stay):
    system: Runaway = eqx.field(default_factory=Runaway)


class Slope(Slider):
    def derivative(self, x, u, w):
        return jnp.stack([x[1], 1e-7 * u[0] + 5 * jnp.sin(x[0])])


class TooSteep(Stay):
    system: Slope = eqx.field(default_factory=Slope)
"""


@pytest.fixture(autouse=True, scope="module")
def settings():
    with terminal():
        yield


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(OWN_TASKS)
    return file


def test_files_that_are_no_tasks(own, tmp_path):
    (tmp_path / "imports.py").write_text("import no_such_module")
    (tmp_path / "syntax.py").write_text("def (")
    for spec, message in [
        (f"{tmp_path}/absent.py:Task", "there is no file"),
        (f"{tmp_path}/imports.py:Task", "does not import: ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{tmp_path}/syntax.py:Task", "does not import: SyntaxError"),
        (f"{own}", "name the class as well"),
        (f"{own}:Sty", "has no task Sty; its tasks are: Stay, NeedsArguments"),
        (f"{own}:NeedsArguments", "NeedsArguments() fails: TypeError"),
        (f"{own}:Raises", "Raises() fails: TypeError: no length given (line 55). Give every field a default"),
    ]:
        answer = command("verify", spec)
        assert answer.code == 2 and message in answer.err, spec


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("OffTrack", 2, "margin at the equilibrium: saw -0.5 on 'right end'"),
        ("Unsteerable", 2, "cannot be stabilised by LQR"),
        ("TooSteep", 1, "not proved"),
    ],
)
def test_tasks_without_a_base_set_leave_no_run_behind(own, tmp_path, name, code, message):
    answer = command("train", f"{own}:{name}", "--out", tmp_path / "run")
    assert answer.code == code and message in answer.err
    assert not (tmp_path / "run").exists()


def test_a_task_of_ones_own_is_verified(own):
    answer = command("verify", f"{own}:Stay", "--json")
    assert answer.code == 0 and answer.json["holds"] and "right end" in answer.json["subject"]
