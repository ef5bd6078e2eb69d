"""The pages do what they say: every block of Python runs, every command is read, every extra and file is there, and the site
builds without a warning."""

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

import holdfast.interop.analytic
from holdfast.cli.main import parse
from holdfast.tasks import task_names
from holdfast.types import Status
from systems_for_tests import safeguard

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
#: What an extra brings; a page stops where the first block needs one that is not installed.
NEEDED = {"stable_baselines3": "sb3", "torch": "torch", "mujoco": "mjx"}
#: Toy sizes: what stands on the page, and what is run.
TOY = {
    "num_envs=64": "num_envs=8",
    "n_steps=64": "n_steps=16",
    "batch_size=256": "batch_size=64",
    "20_000": "256",
    "100_000": "256",
    "states=500": "states=100",
    "same.equal > 490": "same.equal > 98",
}
#: What has to have come of a page, beyond its own assertions.
CAME_OF_IT = {
    "getting_started": lambda names: names["answer"].status == Status.bad_action,
    "gymnasium_and_sb3": lambda names: names["env"].safety.steps == 256 and Path("mine.jsonl").is_file(),
    "pytorch_and_deploying": lambda names: names["status"] <= Status.fell_back and abs(names["state"][0]) <= 1,
    "your_own_system": lambda names: 0.8 < float(names["x"][0]) <= 1.0 and bool(names["plan"].certified),
}
make_safeguard = holdfast.interop.analytic.analytic_safeguard


@functools.cache
def shared_safeguard(name):
    """One proof for all pages; that of the car takes longest, and is tested elsewhere."""
    return safeguard("ray") if name == "lane-keeping" else make_safeguard(name)


def blocks(page, *languages):
    """(language, file that the block is to be put into or None, text) of each fenced block."""
    for language, title, text in re.findall(
        r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', page, flags=re.DOTALL | re.MULTILINE
    ):
        if language in languages:
            yield language, title or None, text


def toy(text):
    for large, small in TOY.items():
        text = text.replace(large, small)
    return text


def missing(text):
    """The first extra that a block needs and that is not installed."""
    return next((e for m, e in NEEDED.items() if m in text and importlib.util.find_spec(m) is None), None)


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if list(blocks(page, "python"))])
def test_every_block_of_a_page_runs(name, tmp_path, monkeypatch):
    """One after the other in one namespace, in a newcomer's precision; blocks with a file's name are put there, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        holdfast.interop.analytic,
        "analytic_safeguard",
        lambda task: shared_safeguard(task) if isinstance(task, str) else make_safeguard(task),
    )
    names: dict = {"__name__": "page"}
    found, settings = list(blocks(PAGES[name], "python")), dict(jax.config.values)
    with jax.enable_x64(False), contextlib.redirect_stdout(io.StringIO()):
        for number, (_, title, text) in enumerate(found):
            if extra := missing(text):
                pytest.skip(f"{number} of {len(found)} blocks ran; the next needs the extra {extra!r}")
            if title:
                (tmp_path / title).write_text(text, encoding="utf-8")
            exec(compile(toy(text), f"{name}.md, block {number + 1}", "exec"), names)
    for key in [key for key, value in settings.items() if key.startswith("jax_") and jax.config.values[key] != value]:
        jax.config.update(key, settings[key])
    for module in {Path(title).stem for _, title, _ in found if title}:
        sys.modules.pop(module, None)
    assert CAME_OF_IT.get(name, lambda _: True)(names)


def commands(page):
    for _, _, text in blocks(page, "bash", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            yield shlex.split(line.removeprefix("$ "), comments=True)


@pytest.mark.parametrize("name", [*PAGES, "README"])
def test_every_command_of_a_page_is_one(name, capsys):
    page = PAGES.get(name) or (ROOT / "README.md").read_text(encoding="utf-8")
    rules = re.findall(r"^([a-z]\w*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for words in filter(None, commands(page)):
        match words:
            case ["holdfast", *arguments]:
                try:
                    assert callable(parse(arguments).run)
                except SystemExit:
                    pytest.fail(f"{shlex.join(words)}: {capsys.readouterr()}")
            case ["make", rule]:
                assert rule in rules
            case ["python", "-m", module, *_]:
                assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
            case ["python", file, *_]:
                assert (ROOT / file).is_file() or f'title="{file}"' in page
            case ["pip", "install", *wanted]:
                for extra in re.findall(r"\[([\w,]+)\]", " ".join(wanted)):
                    assert set(extra.split(",")) <= set(EXTRAS)
            case ["tensorboard", *_]:
                assert "tensorboard" in EXTRAS
            case _:
                pytest.fail(f"{name}: nobody looks at {shlex.join(words)!r}; add a case here")


@pytest.mark.parametrize("name", PAGES)
def test_extras_files_and_tests_that_a_page_names_are_there(name):
    page = PAGES[name]
    for extra in re.findall(r"(?:holdfast|')\[(\w+)\]'?", page):
        assert extra in EXTRAS, extra
    for file in re.findall(r"`((?:examples|tests|benchmarks|docs)/[\w/]+\.\w+)`", page):
        assert (ROOT / file).is_file(), file
    for module in re.findall(r"`python -m (benchmarks\.\w+)", page):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (ROOT / "docs" / picture).is_file(), picture


def test_the_plain_jax_example_trains_without_a_violation(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("plain_jax", ROOT / "examples" / "plain_jax.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    imported = re.findall(r"^(?:from|import) (\S+)", Path(spec.origin).read_text(encoding="utf-8"), flags=re.MULTILINE)
    ours = {module for module in imported if module.startswith("holdfast")}
    assert not ours & {"holdfast.learn", "holdfast.evaluate", "holdfast.runs", "holdfast.interop"}
    monkeypatch.setattr(example, "ROBOTS", 4)
    monkeypatch.setattr(example, "STEPS", 8)
    monkeypatch.setattr(sys, "argv", ["plain_jax.py", "--updates", "3", "--out", str(tmp_path / "found.json")])
    with jax.enable_x64(False), contextlib.redirect_stdout(io.StringIO()):
        example.main()
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["violations"] == 0 and found["steps"] == 3 * 4 * 8 == sum(found["statuses"].values())


def test_every_task_has_its_picture_and_its_words():
    assert sorted(re.findall(r"^### (\S+)$", PAGES["tasks"], flags=re.MULTILINE)) == sorted(task_names())
    for name in task_names():
        assert f"### {name}\n\n![{name}](tasks/{name}.png)" in PAGES["tasks"]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="install the extra 'docs'")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    interop = (tmp_path / "site" / "api" / "interop" / "index.html").read_text(encoding="utf-8")
    assert "analytic_safeguard" in interop and "SafeguardWrapper" in interop
