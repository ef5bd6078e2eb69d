"""Robots of one's own: the examples, the tutorial, and every error that a file of one's own can meet.

What is loaded is kept by the library itself, so each example is derived and checked once for all tests here.
"""

import contextlib
import importlib
import io
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import holdfast.cli.training as training
from holdfast.certify import safe_bounds
from holdfast.cli import main
from holdfast.cli.build import NotUseful, certify_task, load_task, make_guard, physics_of, require_useful_backup
from holdfast.cli.config import TrainConfig
from holdfast.cli.own import complete_task
from holdfast.evaluate import attack
from holdfast.evaluate.adversaries import HeldCorners
from holdfast.sets import Box, SuperlevelSet
from holdfast.tasks import SafetySettings, Task

commands = importlib.import_module("holdfast.cli.main")  # the package's `main` is the function
ROOT = Path(__file__).parents[1]
EXAMPLES = {"pillars": "Pillars", "cart_pole": "ShortTrack", "annulus": "Annulus"}
LONGEST = 30
TUTORIAL = (ROOT / "docs" / "your_own_system.md").read_text(encoding="utf-8")


def spec(name):
    return f"{ROOT / 'examples' / name}.py:{EXAMPLES[name]}"


def holdfast(*arguments):
    """(exit code, standard output, standard error in one line) of one command, in the command line's own precision."""
    out, err = io.StringIO(), io.StringIO()
    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with redirected[0], redirected[1], jax.enable_x64(False), pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    return stop.value.code or 0, out.getvalue(), " ".join(err.getvalue().split())


@pytest.fixture(autouse=True, scope="module")
def settings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_CACHE", "")
        patch.setenv("COLUMNS", "200")
        yield


# ------------------------------------------------------------------------------------------------------------ examples


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_at_most_thirty_lines_long(name):
    """Every line counts: imports, comments and empty lines too."""
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert max(map(len, text.splitlines())) <= 120 and ";" not in text


@pytest.fixture(scope="module")
def certified():
    """name -> (task, certified base set) of each example."""
    found = {}

    def get(name):
        if name not in found:
            task = load_task(spec(name))
            found[name] = task, certify_task(task, level=None, horizon=None)
        return found[name]

    return get


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_verified(name, certified):
    task, proof = certified(name)
    assert proof.certificate.holds
    discharges = {o.name: o.discharge for o in proof.certificate.obligations}
    assert discharges["base set invariant"] == discharges["base set safe"] == "proved"
    # The annulus drops a coordinate and has an angle: claims that are sampled, and said to be.
    expected = "sampled" if name == "annulus" else "proved"
    assert discharges["reduced coordinates"] == expected and discharges.get("angles", expected) == expected
    assert task.name == EXAMPLES[name] and task.episode_steps >= 100


def test_an_example_withstands_an_attack(certified):
    """One of them here, with the base controller for its backup; benchmarks/examples.py attacks the trained ones."""
    name = "cart_pole"
    task, proof = certified(name)
    guard = make_guard(task, proof, None, TrainConfig(name).for_task(task))
    found = attack(task, guard, steps=6400, batch=64, adversaries=(HeldCorners(task.system.input_box),))
    assert found.violations == 0 and found.certified_steps == found.steps >= 6400


def test_what_is_derived_for_the_pillars(certified):
    task, proof = certified("pillars")
    np.testing.assert_allclose(task.state_box.lower[:2], [-1, -2], atol=0.02)
    np.testing.assert_allclose(task.state_box.upper[:2], [4, 2], atol=0.02)
    # From wall to wall at full acceleration: sqrt(2 a L) is 4.5 along x and 4 along y.
    assert np.all((task.state_box.upper[2:] > 2) & (task.state_box.upper[2:] < 4.5))
    assert task.safety.input_cost == (0.25, 0.25)  # Bryson: 1 / 2^2
    assert 20 <= task.safety.horizon <= 60
    starts = jax.vmap(task.sample_start)(jax.random.split(jax.random.key(0), 64))
    assert np.all(np.abs(starts) <= task.start_box.upper[None]) and jnp.all(jax.vmap(task.safe_set.contains)(starts))
    assert np.all(proof.base_set.ellipsoid.bounding_radii()[:2] < 1.2)


def test_derived_settings_are_short_numbers_that_every_machine_derives_alike(certified):
    for name in EXAMPLES:
        task, _ = certified(name)
        for box in (task.state_box, task.start_box):
            for number in (*box.lower, *box.upper):
                assert len(f"{abs(number):.10g}".replace(".", "").strip("0")) <= 3, number


def test_the_annulus_forgets_where_on_the_circle_it_is_and_wraps_its_heading(certified):
    system = certified("annulus")[0].system
    x, u = (jnp.asarray(v) for v in system.equilibrium())

    def advance(x, _):
        x = system.step(x, u)
        return x, (system.error(x), x)

    _, (errors, states) = jax.lax.scan(advance, x, None, length=500)
    assert jnp.max(jnp.abs(errors)) < 1e-5
    assert jnp.max(states[:, 0]) > 2.9 and jnp.min(states[:, 0]) < -2.9
    assert jnp.max(jnp.abs(states[:, 2])) <= jnp.pi + 1e-6


def test_the_command_line_verifies_and_attacks_a_file(certified, monkeypatch):
    certified("annulus")
    monkeypatch.chdir(ROOT / "examples")
    code, out, _ = holdfast("verify", "annulus.py:Annulus", "--json")
    assert code == 0 and json.loads(out)["holds"]


def test_a_file_is_trained_resumed_elsewhere_and_attacked(certified, tmp_path, monkeypatch):
    """At toy size, from a relative path; the run then finds its task from another directory."""
    certified("annulus")
    monkeypatch.chdir(ROOT / "examples")
    toy = ("--backup-updates", 2, "--updates", 2, "--environments", 2, "--window", 2, "--episodes", 2)
    toy += ("--gradient", "stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_CHUNK", 1)

        def stopped(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(training, "policy_trainer", stopped)  # Ctrl-C between the phases
        code, _, err = holdfast("train", "annulus.py:Annulus", "--out", tmp_path / "run", *toy)
    assert code == 130 and "--resume" in err and str(ROOT / "examples" / "annulus.py:Annulus") in err
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        seen = {}
        patch.setattr(commands, "evaluate_run", lambda trained, *_, **__: seen.update(trained=trained) or _Report())
        code, _, err = holdfast("train", spec("annulus"), "--out", "run", *toy, "--resume", "--json")
    assert code == 0, err
    assert seen["trained"].finished and seen["trained"].task.name == "Annulus"
    assert int(seen["trained"].policy.safety.steps.sum()) == 8
    assert int(seen["trained"].policy.safety.violations.sum()) == 0


class _Report:
    def to_json(self):
        return {}


# ----------------------------------------------------------------------------------------------------------- bad input

GOOD, _ = re.findall(r"```python.*?\n(.*?)```", TUTORIAL, flags=re.DOTALL)
REWARD = GOOD[GOOD.index("\n    def reward") :]

# What is wrong: (replaced, by what, exit code, words of the message).
BAD = {
    "does not import": ("import jax.numpy as jnp", "import no_such_module", 2, ["no_such_module", "(line 1)"]),
    "syntax": ("class Cart(", "class Cart((", 2, ["does not import: SyntaxError", "line"]),
    "fails while importing": (
        "dt, input_box = 0.1,",
        "dt, input_box = DT,",
        2,
        ["name 'DT' is not defined", "(line 8)"],
    ),
    "no bounds": (
        "dt, input_box = 0.1, Box([-1.0], [1.0])",
        "dt = 0.1",
        2,
        ["class Cart lacks input_box", "Box([-1.0]"],
    ),
    "no dynamics": ("def derivative", "def dynamics", 2, ["class Cart lacks derivative", "jnp.stack"]),
    "no equilibrium": ("def equilibrium", "def rest", 2, ["class Cart lacks equilibrium", "(x*, u*)"]),
    "no constraint": ("safe_set =", "safe =", 2, ["class Stay lacks safe_set", "SuperlevelSet"]),
    "no reward": (REWARD, "", 2, ["class Stay lacks reward", "x_next"]),
    "infinite bound": ("[1.0])", "[jnp.inf])", 2, ["input_box: saw [-1.] to [inf]", "give finite bounds"]),
    "bounds of another size": ('("a",)', '("a", "b")', 2, ["input_box: saw 1 numbers; give 2"]),
    "bounds upside down": ("Box([-1.0], [1.0])", "Box([1.0], [-1.0])", 2, ["lower[0] = 1.0 is not <=", "(line 8)"]),
    "no period": ("0.1, Box", "0.0, Box", 2, ["Cart.dt: saw 0.0; give a positive"]),
    "derivative of the wrong shape": (
        "[x[1], u[0]]",
        "[x[1]]",
        2,
        ["derivative: saw shape (1,); it must give shape (2,)"],
    ),
    "derivative that raises": ("u[0]])", "u @ x])", 2, ["Cart.derivative: saw", "dot_general"]),
    "not finite at the equilibrium": (
        "u[0]])",
        "u[0] / x[1]])",
        2,
        ["v one step after the equilibrium: saw nan", "it must be finite"],
    ),
    "not finite elsewhere": ("u[0]])", "u[0] + 0 * jnp.log(0.9 - x[0])])", 2, ["step: saw", "must be finite"]),
    "equilibrium that is none": (
        "jnp.zeros(2), jnp.zeros(1)",
        "jnp.array([0, 1.0]), jnp.zeros(1)",
        2,
        ["saw [0.1 0. ]", "x*"],
    ),
    "equilibrium of another size": (
        "jnp.zeros(2), ",
        "jnp.zeros(3), ",
        2,
        ["equilibrium, x*: saw", "give 2 finite numbers"],
    ),
    "equilibrium beyond the inputs": (
        "jnp.zeros(1)\n",
        "2 + jnp.zeros(1)\n",
        2,
        ["u*: saw [2.]; it must lie in input_box"],
    ),
    "equilibrium without room": (
        "Box([-1.0], [1.0])",
        "Box([0.0], [1.0])",
        2,
        ["strictly inside", "room on both sides"],
    ),
    "not stabilisable": ("[x[1], u[0]]", "[0.1 * x[0], u[0]]", 2, ["cannot be stabilised", "eigenvalues"]),
    "unsafe equilibrium": (
        "1 + x[0]]",
        "x[0] - 0.5]",
        2,
        ["margin at the equilibrium: saw -0.5 on 'left wall'", "> 0"],
    ),
    "no interior": ("[1 - x[0], 1 + x[0]]", "[-x[0], x[0]]", 2, ["saw 0 on 'right wall'", "with an interior"]),
    "margins of the wrong shape": ("1 - x[0]", "1 - x", 2, ["safe_set.margin", "vector"]),
    "names of another number": ('("right wall", "left wall")', '("wall",)', 2, ["safe_set.names: saw 1", "give 2"]),
    "horizon too short": (
        *("    system = Cart()\n", "    system = Cart()\n    safety = SafetySettings(horizon=1)\n", 2),
        ["safety.horizon = 1 is too short to arrive", "Give horizon = "],
    ),
    "reward of the wrong shape": ("x_next[0] - 1.2", "x_next - 1.2", 2, ["Stay.reward: saw shape (2,)"]),
    "no base set": (
        *("u[0]])", "u[0] + 2 * jnp.sign(x[0])])", 1),
        ["base set: none could be proved", "input_cost = (1)", "input_cost = (100)", "SafetySettings(state_cost="],
    ),
}
BAD["moves on for ever"] = (
    GOOD[GOOD.index("        return jnp.zeros(2)") :],
    """        return jnp.array([0, 1.0]), jnp.zeros(1)

    def error(self, x):
        return x[1:] - 1

    def lift(self, e):
        return jnp.stack([0 * e[0], 1 + e[0]])


class Stay(Task):
    system = Cart()
    safe_set = SuperlevelSet(lambda x: jnp.stack([2 - x[1], x[1]]))
"""
    + REWARD,
    2,
    ["'p' moves on at the equilibrium", "Name an angle in `angles`"],
)


@pytest.mark.parametrize("wrong", BAD)
def test_bad_input_is_one_message_that_names_the_item_and_says_what_to_give(wrong, tmp_path, monkeypatch):
    replaced, by, code, words = BAD[wrong]
    assert GOOD.count(replaced) >= 1
    (tmp_path / "mine.py").write_text(GOOD.replace(replaced, by, 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "train_run", lambda *_, **__: pytest.fail("it was trained"))
    found, out, err = holdfast("train", "mine.py:Stay")
    assert found == code and out == ""
    for word in words:
        assert word in err, err
    assert "Traceback" not in err and len(err) < 1500
    assert {each.name for each in tmp_path.iterdir()} <= {"mine.py", "__pycache__", "runs"}
    assert not list(tmp_path.glob("runs/*"))


def test_the_tutorial_does_what_it_says(tmp_path, monkeypatch):
    """Its blocks are run by test_docs; here what stands between them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cart.py").write_text(GOOD)
    task = load_task("cart.py:Stay")
    assert task.name == "Stay" and load_task("cart.py:Stay") is task
    assert physics_of(complete_task(names_of(GOOD)["Stay"]())) == physics_of(task)
    # A comment is no physics, and it does not matter where the file lies.
    moved = tmp_path / "elsewhere.py"
    moved.write_text("# mine\n" + GOOD)
    assert physics_of(load_task(f"{moved}:Stay")) == physics_of(task)
    # With a small base set and a horizon of one step the backup is of no use, and the error says what happens instead.
    with pytest.raises(NotUseful, match=r"certifies 0.00% .* do not arrive .* horizon = 1 steps.*longer horizon"):
        require_useful_backup(task, certify_task(task, level=1e-3, horizon=1), None, 1)


def names_of(source):
    names: dict = {}
    exec(compile(source, "tutorial", "exec"), names)
    return names


def test_the_tutorial_names_commands_settings_and_a_picture_that_there_are():
    for command in re.findall(r"^\$ holdfast (\w+)", TUTORIAL, flags=re.MULTILINE):
        assert command in {"verify", "train", "attack"}
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TUTORIAL):
        assert (ROOT / "docs" / picture).is_file()
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| `(\w+ = [^`]+)`", TUTORIAL, flags=re.MULTILINE)
    assert len(rows) == 7
    for row in rows:
        name = row.split(" = ")[0]
        given = names_of(f"{GOOD}\n\nclass Other(Stay):\n    {row}\n")["Other"]()
        assert getattr(given, name) is not getattr(Task, name)


def test_what_is_given_is_not_derived():
    class Given(names_of(GOOD)["Stay"]):  # with an annotation or without: both count
        state_box = Box([-1.0, -2.0], [1.0, 2.0])
        start_box: Box = Box([-0.1, -0.1], [0.1, 0.1])
        safety: SafetySettings = SafetySettings((1.0, 1.0), (1.0,), 30)
        episode_steps = 17

    found = complete_task(Given())
    assert (found.name, found.episode_steps, found.safety.horizon) == ("Given", 17, 30)
    assert found.state_box is Given.state_box and isinstance(found, Given)
    assert len(jax.tree.leaves(found)) == 2  # the annotated box is a field; the rest is constant


def test_bounds_of_the_safe_set_are_found_by_intervals():
    system = names_of(GOOD)["Cart"]()
    both = SuperlevelSet(lambda x: jnp.stack([4 - x[0] ** 2 - 2 * x[1] ** 2, 1.5 - x[1]]))
    lower, upper = safe_bounds(system, both)
    np.testing.assert_allclose(lower, [-2.0, -1.42], atol=0.011)
    np.testing.assert_allclose(upper, [2.0, 1.42], atol=0.011)
    lower, upper = safe_bounds(system, SuperlevelSet(lambda x: (1 - x[0])[None]))
    assert upper[0] == 1.0 and np.isinf(lower[0]) and np.isinf(lower[1]) and np.isinf(upper[1])
