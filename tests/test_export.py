"""An exported controller is the original one, runs without holdfast, and is refused when anything about it is not as it was."""

import importlib.util
import json
import shutil
import subprocess
import sys
import types
from functools import cache
from pathlib import Path
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import AcceptanceMargins
from holdfast.certify import Certificate, Obligation
from holdfast.interop import NotExportable, Refused, agreement, export_controller, load_controller
from holdfast.sets import Box, SuperlevelSet
from holdfast.tasks import Task, reset, step
from holdfast.types import Status, Unguarded
from systems_for_tests import Cart, cart_guard

pytest.importorskip("flatbuffers", reason="install the extra 'export'")

PHYSICS = "5f" * 32
CERTIFICATE = Certificate("cart", PHYSICS, (Obligation("base set", "is kept", "assumed", "a test", {"level": 0.5}),))


class Walls(Task):
    """Go as far to the right as the wall allows."""

    name: ClassVar = "walls"
    episode_steps: ClassVar = 50
    state_box: ClassVar = Box([-1.0, -1.0], [1.0, 1.0])
    system: Cart = eqx.field(default_factory=Cart)
    safe_set: SuperlevelSet = eqx.field(default_factory=lambda: cart_guard().source.implicit_set.safe_set)

    def sample_start(self, key):
        return 0.1 * jax.random.uniform(key, (2,))

    def reference(self, t, context):
        return jnp.stack([1.1 + 0 * t, 0.0 * t])

    def reward(self, x, u, x_next, t, context):
        return -((x_next[0] - 1.2) ** 2)


class Regulator(eqx.Module):
    """A policy with learned numbers in it, in double precision here."""

    gain: jax.Array

    def __call__(self, observation):
        return jnp.tanh(observation @ self.gain)


TASK = Walls()
POLICY = Regulator(jnp.array([[-2.0], [-1.0], [2.0], [1.0]]))


def exported(directory, **changes):
    given = dict(task=TASK, guard=cart_guard(), policy=POLICY, certificate=CERTIFICATE) | changes
    return export_controller(directory, **given)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("exported") / "controller")


@pytest.fixture(scope="module")
def controller(directory):
    return load_controller(directory, PHYSICS)


def compared(controller, states, **changes):
    return agreement(controller, **(dict(task=TASK, guard=cart_guard(), policy=POLICY, states=states) | changes))


@cache
def original_loop(steps=60):
    """States and statuses of one episode in float32, by the library itself; every seventh proposal is NaN."""

    def run(key):
        episode = reset(TASK, cart_guard(), key, jnp.float32)
        policy = Regulator(POLICY.gain.astype(jnp.float32))

        def advance(episode, _):
            u = policy(TASK.observe(episode.x, episode.t, ()))
            episode, seen = step(TASK, cart_guard(), episode, jnp.where(episode.t % 7 == 6, jnp.nan, u))
            return episode, (seen.x, seen.guard.status)

        return jax.lax.scan(advance, episode, None, length=steps)[1]

    return tuple(np.asarray(each) for each in jax.jit(run)(jax.random.key(0)))


# ----------------------------------------------------------------------------------------------------- what it is like


def test_it_agrees_with_the_original_on_ten_thousand_states(controller):
    found = compared(controller, 10_000)
    assert found.states == 10_000 and found.differ == 0
    assert found.equal >= 0.999 * found.states
    assert min(found.statuses[name] for name in ("accepted", "corrected")) > 500, found.statuses


def test_the_comparison_tells_rounding_from_safe_from_unsafe(controller, tmp_path):
    nearby = compared(controller, 400, policy=Regulator(POLICY.gain * (1 + 1e-6)))
    assert nearby.equal < 400 and nearby.differ == 0 and nearby.largest < 1e-2
    # A sabotaged export: whatever is proposed passes its check, but not that of the original.
    source = cart_guard().source
    deaf = eqx.tree_at(lambda guard: guard.source.acceptance, cart_guard(), AcceptanceMargins(np.full(2, -1e6), -1e6))
    unsafe = compared(load_controller(exported(tmp_path / "deaf", guard=deaf)), 400)
    assert unsafe.differ > 20 and source.acceptance.base > 0


PLAIN = """
import sys
import numpy as np
from holdfast.interop.controller import load_controller
controller = load_controller(sys.argv[1], sys.argv[2])
x = np.array(list(map(float, sys.argv[3:])), np.float32)
commitment, statuses, states = controller.init(x), [], []
assert controller.certified(commitment)
for t in range(60):
    observation = controller.observe(x, t) * np.float32(np.nan if t % 7 == 6 else 1)
    action, status, margin, commitment = controller.step(commitment, x, observation)
    states.append(x.tolist()), statuses.append(status)
    v = x[1] + np.float32(0.1) * action[0]
    x = np.array([x[0] + np.float32(0.1) * x[1], v], np.float32)
import json
modules = sorted(m for m in sys.modules if m.startswith("holdfast"))
print(json.dumps([states, statuses, modules, [m for m in ("equinox", "optax", "gymnasium", "torch") if m in sys.modules]]))
"""


def test_it_runs_in_a_process_that_imports_nothing_of_ours_but_the_loader(directory):
    states, statuses = original_loop()
    start = [repr(float(number)) for number in states[0]]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(directory), PHYSICS, *start], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, found_statuses, ours, others = json.loads(done.stdout)
    assert ours == ["holdfast", "holdfast.interop", "holdfast.interop.controller"]
    assert not others
    assert found_statuses == statuses.tolist()
    assert {Status.accepted, Status.corrected, Status.bad_action} <= set(found_statuses)
    np.testing.assert_allclose(found, states, atol=1e-4)
    assert np.all(np.abs(np.array(found)[:, 0]) <= 1)


def test_the_loader_is_a_file_that_works_alone(directory):
    """Copied to a robot it is not part of a package."""
    text = (Path(__file__).parents[1] / "src" / "holdfast" / "interop" / "controller.py").read_text(encoding="utf-8")
    alone = types.ModuleType("alone")
    exec(compile(text, "controller.py", "exec"), alone.__dict__)
    assert "holdfast" not in "".join(line for line in text.splitlines() if line.startswith(("import", "from")))
    assert alone.load_controller(directory).header["task"] == "walls"


def test_the_header_says_what_a_stranger_needs(controller):
    header = controller.header
    assert header["task"] == "walls" and header["dt"] == 0.1
    assert header["state"]["names"] == ["x", "v"] and header["state"]["shape"] == [2]
    assert header["action"]["lower"] == [-1.0] and header["input"] == {
        "kind": "observation",
        "shape": [4],
        "dtype": "float32",
    }
    assert Certificate.from_json({k: v for k, v in header["certificate"].items()}) == CERTIFICATE
    assert controller.statuses[int(Status.corrected)]["name"] == "corrected"
    assert {leaf["name"] for leaf in header["commitment"]} >= {".certified", ".margin", ".actions"}
    assert set(header["versions"]) == {"holdfast", "jax", "jaxlib"}


def test_the_safeguard_alone_is_exported_in_float64(tmp_path):
    controller = load_controller(exported(tmp_path / "guard", policy=None, dtype=np.float64))
    assert controller.header["input"]["kind"] == "action"
    found = compared(controller, 300, policy=None)
    assert found.equal == 300 and found.statuses["corrected"] > 20
    with pytest.raises(Refused, match="observations of walls need more than state and time"):
        controller.observe(np.zeros(2), 0)
    with jax.enable_x64(False), pytest.raises(Refused, match=r"computes in float64; .*jax_enable_x64"):
        load_controller(tmp_path / "guard")


def test_the_loop_logs_what_it_misses(controller):
    """At a period that no machine misses, and at one that every machine does."""
    file = Path(__file__).parents[1] / "examples" / "loop_1khz.py"
    spec = importlib.util.spec_from_file_location("loop_1khz", file)
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    loop.read_state.x = np.zeros(2)
    start = loop.read_state(controller, None)
    latencies, misses = loop.run(controller, start, 1.5, period=0.5)
    assert latencies.shape == (3,) and not misses
    latencies, misses = loop.run(controller, start, 50e-9, period=1e-9)
    assert len(misses) == 50 and all(late > 0 and status == "accepted" for _, _, late, status in misses)


# ----------------------------------------------------------------------------------------------------------- refusals


def edit(path, change):
    header = json.loads((path / "controller.json").read_text())
    change(header)
    (path / "controller.json").write_text(json.dumps(header))


def flip_a_bit(path):
    data = bytearray((path / "step.stablehlo").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "step.stablehlo").write_bytes(data)


DAMAGED = {
    "a flipped bit": (flip_a_bit, r"step.stablehlo: sha256 is .* but the header says .*restore it, or export again"),
    "other physics": (lambda path: edit(path, lambda h: h["certificate"].update(physics="00")), "sha256 differs"),
    "no program": (lambda path: (path / "init.stablehlo").unlink(), "init.stablehlo does not exist"),
    "no header": (lambda path: (path / "controller.json").unlink(), "controller.json does not exist; give a directory"),
    "half a header": (lambda path: (path / "controller.json").write_text("{"), "is not JSON"),
    "another version": (
        lambda path: edit(path, lambda h: h.update(version=9)),
        "not a holdfast-controller of version 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_was_changed_is_refused(directory, damage, tmp_path):
    harm, words = DAMAGED[damage]
    shutil.copytree(directory, tmp_path / "copy")
    harm(tmp_path / "copy")
    with pytest.raises(Refused, match=words):
        load_controller(tmp_path / "copy", PHYSICS)


def test_what_is_no_directory_is_refused(directory):
    for place in (directory / "nowhere", directory / "controller.json"):
        with pytest.raises(Refused, match=r"does not exist; give a directory that `holdfast export` wrote"):
            load_controller(place)


def test_other_physics_and_platforms_are_refused(directory, monkeypatch):
    with pytest.raises(Refused, match=r"certified for the physics 5f5f5f5f5f5f, but 000000000000 were asked for"):
        load_controller(directory, "0" * 64)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(Refused, match=r"exported for \['cpu'\], but JAX runs on gpu here"):
        load_controller(directory)


def test_other_shapes_and_dtypes_are_refused(controller):
    x, seen = np.zeros(2, np.float32), np.zeros(4, np.float32)
    commitment = controller.init(x)
    for wrong, words in {
        (lambda: controller.init(np.zeros(3, np.float32)), r"init: x is float32\[3\]; give .* float32\[2\]"),
        (lambda: controller.init([0.0, 0.0]), "init: x is list; give a NumPy array"),
        (lambda: controller.step(commitment, x.astype(float), seen), r"step: x is float64\[2\]; give .* np.float32\)"),
        (lambda: controller.step(commitment, x, seen[:2]), r"step: observation is float32\[2\]; give .*\[4\]"),
        (lambda: controller.step(commitment[:-1], x, seen), "none of this controller"),
        (
            lambda: controller.step(commitment[::-1], x, seen),
            r"the commitment holds float32\[2\] where .*float32\[12, 1\]",
        ),
    }:
        with pytest.raises(Refused, match=words):
            wrong()


REFUTED = Certificate("cart", PHYSICS, (Obligation("base set", "is kept", "refuted", "a test"),))
UNSAFE = {
    "no safeguard": (dict(guard=Unguarded(np.array([-1.0]), np.array([1.0]))), "guard is a Unguarded"),
    "refuted": (dict(certificate=REFUTED), r"the certificate does not hold \(base set\)"),
    "nameless physics": (dict(certificate=Certificate("cart", "", ())), "names no physics"),
    "other physics": (
        dict(physics="00" * 32),
        r"about the physics 5f5f5f5f5f5f, but the task's are 000000000000 today",
    ),
}


@pytest.mark.parametrize("why", UNSAFE)
def test_what_promises_nothing_is_not_exported(why, tmp_path):
    changes, words = UNSAFE[why]
    with pytest.raises(NotExportable, match=words):
        exported(tmp_path / "never", **changes)
    assert not (tmp_path / "never").exists()


def test_a_missing_extra_names_its_remedy(directory, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax._src.export.serialization", None)
    with pytest.raises(ImportError, match=r"pip install holdfast\[export\]"):
        exported(tmp_path / "never", policy=None)
    with pytest.raises(ImportError, match="pip install flatbuffers"):
        load_controller(directory)
