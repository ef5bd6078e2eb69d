"""`holdfast COMMAND`."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from holdfast.certify import NotProvable, UnsupportedPrimitive
from holdfast.cli.build import certify_task, load_task, make_guard, of_seed, physics_of
from holdfast.cli.config import TrainConfig
from holdfast.cli.console import ProgressBars, errors, output, print_certificate, print_json, print_report
from holdfast.cli.evaluation import EVALUATION_SEED, evaluate_run
from holdfast.cli.timing import CompileClock
from holdfast.cli.training import Interrupt, load_run, train_run
from holdfast.evaluate import Trajectories, attack
from holdfast.learn import TrainingDiverged
from holdfast.plots import render_episode
from holdfast.runs import ConfigError, RunDirectory, RunError
from holdfast.safeguards import BackupSource, Safeguard
from holdfast.tasks import UnknownTask, make_task, task_names

#: Errors that are the user's to mend: shown as one message, without a traceback.
_EXPECTED = (NotProvable, UnsupportedPrimitive, UnknownTask, RunError, ConfigError, TrainingDiverged, ValueError)
_INTERRUPTED = 130

Json = Annotated[bool, tyro.conf.arg(help="print one JSON object on stdout instead of words")]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a run directory")]


class Failed(Exception):
    """The command ran, and its answer is no. Exit status 1."""


@dataclass
class List:
    """The tasks that come with holdfast."""

    json: Json = False

    def run(self) -> dict[str, Any]:
        rows = {}
        for name in task_names():
            task = make_task(name)
            system = task.system
            rows[name] = {
                "states": list(system.state_names),
                "inputs": list(system.input_names),
                "steps": task.episode_steps,
                "constraints": list(task.safe_set.names),
            }
            if not self.json:
                states, inputs = ", ".join(system.state_names), ", ".join(system.input_names)
                constraints = ", ".join(task.safe_set.names)
                output.print(f"[bold]{name}[/]  states {states}; inputs {inputs}; {constraints}", highlight=False)
        return {"tasks": rows}


@dataclass
class Train:
    """Verify a task, train its backup and its policy through the safeguard, evaluate, and write a report."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Annotated[Path | None, tyro.conf.arg(help="run directory; runs/TASK if not given")] = None
    resume: Annotated[bool, tyro.conf.arg(help="go on with the run in --out")] = False
    json: Json = False

    def run(self) -> dict[str, Any]:
        clock = CompileClock()
        load_task(self.config.task)
        name = self.config.task.rpartition(":")[2] or self.config.task
        out = self.out or Path("runs") / name
        if self.resume:
            run = RunDirectory.open(out)
            config = run.read_config(TrainConfig)
            if config != self.config:
                _refuse_other_settings(config, self.config)
        else:
            run, config = RunDirectory.create(out, self.config, suffix=self.out is None), self.config
        with ProgressBars(self.json) as bars, Interrupt() as interrupt:
            bars.say(f"run directory: {run.path}")
            trained = train_run(config, run, resume=self.resume, progress=bars, interrupt=interrupt)
            again = f"holdfast train {shlex.quote(config.task)} --out {shlex.quote(str(run.path))} --resume"
            if trained is None or interrupt.requested:
                raise KeyboardInterrupt(f"stopped; nothing is lost. Go on with `{again}`")
            report = evaluate_run(
                trained,
                run,
                episodes=config.episodes,
                seed=EVALUATION_SEED,
                command=shlex.join(["holdfast", *sys.argv[1:]]),
                clock=clock,
                progress=bars.say,
            )
        if not self.json:
            print_report(report)
            output.print(f"report: {run.path / 'report.html'}", highlight=False)
        return report.to_json() | {"run": str(run.path)}


@dataclass
class Verify:
    """Prove the base set of a task, of a run, or of a task of your own (FILE.py:NAME)."""

    subject: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK|RUN|FILE.py:NAME")]
    level: Annotated[float | None, tyro.conf.arg(help="prove or refute this level instead of the largest one")] = None
    max_seconds: Annotated[float, tyro.conf.arg(help="budget of each search; spent means 'not proved'")] = 60.0
    json: Json = False

    def run(self) -> dict[str, Any]:
        level, horizon, spec = self.level, None, self.subject
        if (Path(spec) / "config.json").is_file():
            run = RunDirectory.open(spec)
            config = run.read_config(TrainConfig)
            spec, horizon = config.task, config.horizon
            certificate = run.read_certificate()
            if certificate["physics"] != physics_of(load_task(spec)):
                raise RunError(
                    f"{run.path}: physics of {spec} is no longer that of the run's certificate; train it again"
                )
            level = certificate["obligations"][0]["numbers"]["level"] if level is None else level
        certified = certify_task(load_task(spec), level=level, horizon=horizon, max_seconds=self.max_seconds)
        certificate = certified.certificate.to_json()
        if not self.json:
            print_certificate(certificate)
            for each in certificate["obligations"]:
                if "counterexample" in each["numbers"]:
                    output.print(f"counterexample: {each['numbers']['counterexample']}", highlight=False)
        if not certificate["holds"]:
            raise Failed("the certificate does not hold", certificate)
        return certificate


@dataclass
class Evaluate:
    """Evaluate a trained run again and rewrite its report."""

    subject: Run
    episodes: Annotated[int, tyro.conf.arg(help="for each seed")] = 1000
    seed: Annotated[int, tyro.conf.arg(help="of the start states")] = EVALUATION_SEED
    json: Json = False

    def run(self) -> dict[str, Any]:
        _positive("episodes", self.episodes)
        clock = CompileClock()
        run = RunDirectory.open(self.subject)
        with ProgressBars(self.json) as bars:
            trained = load_run(run, run.read_config(TrainConfig))
            report = evaluate_run(
                trained,
                run,
                episodes=self.episodes,
                seed=self.seed,
                command=shlex.join(["holdfast", *sys.argv[1:]]),
                clock=clock,
                progress=bars.say,
            )
        if not self.json:
            print_report(report)
        return report.to_json()


@dataclass
class Attack:
    """Attack a trained run in long closed loops, the plant in another program than the safeguard."""

    subject: Run
    steps: Annotated[float, tyro.conf.arg(help="attacked steps in all, as 1e6")] = 1e5
    seed: int = 0
    index: Annotated[int, tyro.conf.arg(help="which of the run's seeds, counted from 0")] = 0
    model_error: Annotated[float, tyro.conf.arg(help="relative error of the plant's inputs (outside the certificate)")] = 0.0
    noise: Annotated[float, tyro.conf.arg(help="sensor noise, share of the state box (outside the certificate)")] = 0.0
    delay: Annotated[int, tyro.conf.arg(help="steps that actions come late (outside the certificate)")] = 0
    json: Json = False

    def run(self) -> dict[str, Any]:
        run = RunDirectory.open(self.subject)
        trained = load_run(run, run.read_config(TrainConfig))
        if not 0 <= self.index < trained.config.seeds:
            raise ValueError(f"index = {self.index}; the run has {trained.config.seeds} seed(s), counted from 0")
        guard = make_guard(trained.task, trained.certified, of_seed(trained.network, self.index), trained.config)
        policy = of_seed(trained.policy.policy, self.index)
        with ProgressBars(self.json) as bars:
            result = attack(
                trained.task,
                guard,
                steps=int(self.steps),
                seed=self.seed,
                policy=policy,
                model_error=self.model_error,
                noise=self.noise,
                delay=self.delay,
                progress=lambda done, total, bad: bars("attack", done, total, {"violating_steps": [bad]}),
            )
        found = result.to_json()
        if not self.json:
            _print_attack(found)
        if found["violations"] and not found["outside_certificate"] and isinstance(guard, Safeguard):
            raise Failed("the safeguard was broken", found)
        return found


@dataclass
class Render:
    """Animate an evaluated episode of a run, with the backup plans that kept it safe."""

    subject: Run
    out: Annotated[Path | None, tyro.conf.arg(help="a .mp4 or .gif; RUN/episode.mp4 if not given")] = None
    episode: Annotated[int, tyro.conf.arg(help="which of the kept episodes")] = 0
    json: Json = False

    def run(self) -> dict[str, Any]:
        run = RunDirectory.open(self.subject)
        trained = load_run(run, run.read_config(TrainConfig))
        file = run.path / "trajectories.npz"
        if not file.is_file():
            raise RunError(f"{file} does not exist; evaluate the run first: `holdfast evaluate {run.path}`")
        with np.load(file) as data:
            kept = {name: data[name] for name in data.files}
        dt = float(kept.pop("dt"))
        trajectories = Trajectories(**kept, dt=dt)
        if not 0 <= self.episode < len(trajectories.states):
            raise ValueError(f"episode = {self.episode}; the run kept {len(trajectories.states)}, counted from 0")
        guard = make_guard(trained.task, trained.certified, of_seed(trained.network, 0), trained.config)
        source = guard.source if isinstance(guard, Safeguard) else None
        implicit = source.implicit_set if isinstance(source, BackupSource) else None
        out = self.out or run.path / "episode.mp4"
        path = render_episode(trained.task, trajectories, out, episode=self.episode, implicit_set=implicit)
        if not self.json:
            output.print(str(path), highlight=False, soft_wrap=True)
        return {"path": str(path)}


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Attack, tyro.conf.subcommand("attack")]
    | Annotated[Render, tyro.conf.subcommand("render")]
)


def main(arguments: list[str] | None = None) -> None:
    """Parses, runs one command, prints, and exits: 0 done, 1 the answer is no, 2 wrong input, 130 interrupted."""
    command = tyro.cli(Command, prog="holdfast", args=arguments, config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff))
    sys.exit(_run(command))


def _run(command: Any) -> int:
    _use_compilation_cache()
    try:
        result = command.run()
    except Failed as failure:
        words, result = failure.args
        if command.json:
            print_json({"ok": False, "error": words} | result)
        else:
            errors.print(f"[bold red]{words}[/]", highlight=False)
        return 1
    except KeyboardInterrupt as stop:
        errors.print(str(stop) or "stopped", highlight=False, soft_wrap=True)
        return _INTERRUPTED
    except _EXPECTED as error:
        if command.json:
            print_json({"ok": False, "error": f"{type(error).__name__}: {error}"})
        else:
            errors.print(f"[bold red]{type(error).__name__}:[/] {error}", highlight=False, soft_wrap=True)
        return 2
    if command.json:
        print_json({"ok": True} | result)
    return 0


def _use_compilation_cache() -> None:
    """Programs compiled once are kept for the next command; HOLDFAST_CACHE moves them, and an empty one turns it off."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "holdfast" / "jax"
    folder = os.environ.get("HOLDFAST_CACHE", str(default))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} = {value}; give a whole number >= 1")


def _refuse_other_settings(kept: TrainConfig, asked: TrainConfig) -> None:
    """Resuming takes the run's own settings; asking for different ones in so many words is refused."""
    defaults = TrainConfig(task=asked.task)
    for name in vars(asked):
        value = getattr(asked, name)
        if value not in (getattr(kept, name), getattr(defaults, name)):
            raise RunError(
                f"{name} = {value!r}, but the run to resume has {name} = {getattr(kept, name)!r}; leave it out, or start a "
                "new run"
            )
    if asked.task != kept.task:
        raise RunError(f"task = {asked.task!r}, but the run to resume is of {kept.task!r}; give another --out")


def _print_attack(found: dict[str, Any]) -> None:
    output.print(
        f"{found['violations']} violations in {found['steps']:,} attacked steps; "
        f"{found['certified_steps']:,} held a committed plan",
        highlight=False,
    )
    for name, value in found.items():
        if name not in ("violations", "steps", "certified_steps"):
            output.print(f"  {name}: {value}", highlight=False, soft_wrap=True)


