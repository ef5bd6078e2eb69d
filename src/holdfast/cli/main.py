"""`holdfast COMMAND`."""

import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import BadZipFile

import jax
import numpy as np
import tyro

from holdfast.certify import CertifiedBaseSet, NotProvable, UnsupportedPrimitive
from holdfast.cli.build import (
    NotUseful,
    certify_task,
    load_task,
    make_guard,
    require_useful_backup,
)
from holdfast.cli.config import TrainConfig
from holdfast.cli.console import (
    Failed,
    ProgressBars,
    output,
    print_attack,
    print_certificate,
    print_counterexamples,
    print_derived,
    print_failure,
    print_json,
    print_margins,
    print_report,
)
from holdfast.cli.deployment import load_trained
from holdfast.cli.evaluation import EVALUATION_SEED, evaluate_run
from holdfast.cli.own import absolute
from holdfast.cli.robust import certify_own_set
from holdfast.cli.tables import Export, Json, Reproduce, Run, Synthesise
from holdfast.cli.timing import CompileClock
from holdfast.cli.training import (
    Interrupt,
    certified_level,
    kept_certificate,
    load_run,
    require_proof,
    train_run,
)
from holdfast.evaluate import Trajectories, attack
from holdfast.learn import TrainingDiverged
from holdfast.plots import render_episode
from holdfast.runs import ConfigError, RunDirectory, RunError, Sinks, open_trackers, require_trackers
from holdfast.safeguards import BackupSource, Safeguard
from holdfast.tasks import UnknownTask, make_task, task_names

#: Errors that are the user's to mend: shown as one message, without a traceback.
_WRONG_INPUT = (UnsupportedPrimitive, UnknownTask, RunError, ConfigError, ValueError, OSError)
#: The command was understood and ran; what it was asked for cannot be had.
_NO = (NotProvable, NotUseful, TrainingDiverged)
_INTERRUPTED = 130


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
    tracker: Annotated[
        tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "wandb"], ...]],
        tyro.conf.arg(help="where metrics go beside metrics.jsonl and metrics.csv (an extra each); may be given twice"),
    ] = ()
    json: Json = False

    def run(self) -> dict[str, Any]:
        clock = CompileClock()
        require_trackers(self.tracker)
        self.config = replace(self.config, task=absolute(self.config.task))
        task = load_task(self.config.task)
        name = self.config.task.rpartition(":")[2] or self.config.task
        out = self.out or Path("runs") / name
        if self.resume:
            run = RunDirectory.open(out)
            config = run.read_config(TrainConfig)
            if config != self.config:
                _refuse_other_settings(config, self.config)
        else:
            config = self.config.for_task(task)
            run = RunDirectory.create(out, config, suffix=self.out is None)
        run = replace(run, trackers=open_trackers(self.tracker, run.path, run.config))
        again = f"holdfast train {shlex.quote(config.task)} --out {shlex.quote(str(run.path))} --resume"
        with ProgressBars(self.json) as bars:
            bars.say(f"run directory: {run.path}")
            try:
                with Interrupt(bars.say) as interrupt:
                    trained = train_run(config, run, resume=self.resume, progress=bars, interrupt=interrupt)
                if trained is None or interrupt.requested:
                    raise KeyboardInterrupt
                report = evaluate_run(
                    trained,
                    run,
                    episodes=config.episodes,
                    seed=EVALUATION_SEED,
                    command=shlex.join(["holdfast", *sys.argv[1:]]),
                    clock=clock,
                    progress=bars.say,
                )
            except KeyboardInterrupt:
                kept = "nothing is lost" if run.has_checkpoint else "nothing was trained yet"
                raise KeyboardInterrupt(f"stopped; {kept}. Go on with `{again}`") from None
            except Exception:
                if not self.resume:
                    _abandon(run)
                raise
            finally:
                Sinks(*run.trackers).close()
        if not self.json:
            print_report(report)
            output.print(f"report: {run.path / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
        return report.to_json() | {"run": str(run.path)}


@dataclass
class Verify:
    """Prove the base set, or the robust control invariant set, of a task, of a run, or of a task of your own (FILE.py:NAME)."""

    subject: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK|RUN|FILE.py:NAME")]
    level: Annotated[float | None, tyro.conf.arg(help="prove or refute this level instead of the largest one")] = None
    set: Annotated[
        Path | None,
        tyro.conf.arg(
            help="a .json with a set of your own (centre and generators, or normals and offsets) to prove or refute"
        ),
    ] = None
    max_seconds: Annotated[float, tyro.conf.arg(help="budget of each search; spent means 'not proved'")] = 60.0
    json: Json = False

    def run(self) -> dict[str, Any]:
        _positive("max_seconds", self.max_seconds)
        if self.level is not None:
            _positive("level", self.level)
        level, horizon, spec = self.level, None, self.subject
        if spec not in task_names() and Path(spec).is_dir():
            run = RunDirectory.open(spec)
            config = run.read_config(TrainConfig)
            task, horizon = load_task(config.task), config.horizon
            kept = kept_certificate(run, task)
            if level is None:
                level = config.level if kept is None else certified_level(kept)
        else:
            task = load_task(spec)
        if self.set is not None:
            certified = certify_own_set(task, self.set, max_seconds=self.max_seconds)
        else:
            certified = certify_task(task, level=level, horizon=horizon, max_seconds=self.max_seconds)
        certificate = certified.certificate.to_json()
        if not self.json:
            if ".py" in spec:
                print_derived(task)
            print_certificate(certificate)
            print_margins(certificate)
            print_counterexamples(certificate, task.system.state_names)
        if not certificate["holds"]:
            words = ", ".join(f"'{each.name}' is {each.discharge}" for each in certified.certificate.open)
            raise Failed(f"the certificate does not hold: {words}", certificate)
        return certificate


@dataclass
class Evaluate:
    """Evaluate a trained run again and rewrite its report."""

    subject: Run
    episodes: Annotated[int, tyro.conf.arg(help="for each seed")] = 1000
    seed: Annotated[int, tyro.conf.arg(help="of the start states")] = EVALUATION_SEED
    json: Json = False

    def run(self) -> dict[str, Any]:
        _whole("episodes", self.episodes, least=1)
        _whole("seed", self.seed, least=0)
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
    """Attack a safeguard in long closed loops, the plant in another program: that of a trained run, or that of a task with
    the base controller for its backup."""

    subject: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|TASK|FILE.py:NAME")]
    steps: Annotated[float, tyro.conf.arg(help="attacked steps in all, as 1e6")] = 1e5
    seed: int = 0
    index: Annotated[int, tyro.conf.arg(help="which of the run's seeds, counted from 0")] = 0
    model_error: Annotated[
        float, tyro.conf.arg(help="relative error of the plant's inputs (outside the certificate)")
    ] = 0.0
    noise: Annotated[float, tyro.conf.arg(help="sensor noise, share of the state box (outside the certificate)")] = 0.0
    delay: Annotated[int, tyro.conf.arg(help="steps that actions come late (outside the certificate)")] = 0
    json: Json = False

    def run(self) -> dict[str, Any]:
        _positive("steps", self.steps)
        _whole("seed", self.seed, least=0)
        _whole("delay", self.delay, least=0)
        for name in ("model_error", "noise"):
            if getattr(self, name) != 0:
                _positive(name, getattr(self, name))
        is_task = self.subject in task_names() or ".py:" in self.subject
        task, guard, policy = self._untrained() if is_task else self._trained()
        with ProgressBars(self.json) as bars:
            result = attack(
                task,
                guard,
                steps=max(1, int(self.steps)),
                seed=self.seed,
                policy=policy,
                model_error=self.model_error,
                noise=self.noise,
                delay=self.delay,
                progress=lambda done, total, bad: bars("attack", done, total, {"violating_steps": [bad]}),
            )
        found = result.to_json()
        if not self.json:
            print_attack(found)
        if found["violations"] and not found["outside_certificate"] and isinstance(guard, Safeguard):
            raise Failed("the safeguard was broken", found)
        return found

    def _trained(self):
        """(task, guard, policy) of a run."""
        found = load_trained(self.subject, self.index)
        return found.task, found.guard, found.policy

    def _untrained(self):
        """(task, guard, None): the task is verified, and its base controller is the backup, unless it needs none."""
        task = load_task(self.subject)
        certified = certify_task(task, level=None, horizon=None)
        require_proof(certified.certificate)
        if isinstance(certified, CertifiedBaseSet):
            require_useful_backup(task, certified, None, task.safety.horizon)
        return task, make_guard(task, certified, None, TrainConfig(self.subject).for_task(task)), None


@dataclass
class Render:
    """Animate an evaluated episode of a run, with the backup plans that kept it safe."""

    subject: Run
    out: Annotated[Path | None, tyro.conf.arg(help="a .mp4 or .gif; RUN/episode.mp4 if not given")] = None
    episode: Annotated[int, tyro.conf.arg(help="which of the kept episodes")] = 0
    json: Json = False

    def run(self) -> dict[str, Any]:
        run = RunDirectory.open(self.subject)
        file = run.path / "trajectories.npz"
        if not file.is_file():
            raise RunError(f"{file} does not exist; evaluate the run first: `holdfast evaluate {run.path}`")
        try:
            with np.load(file) as data:
                kept = {name: data[name] for name in data.files}
            dt, seed = float(kept.pop("dt")), int(kept.pop("seed"))
            trajectories = Trajectories(**kept, dt=dt, seed=seed)
        except (BadZipFile, KeyError, TypeError, EOFError, ValueError) as error:
            raise RunError(
                f"{file} is damaged ({error}); evaluate the run again: `holdfast evaluate {run.path}`"
            ) from None
        if not 0 <= self.episode < len(trajectories.states):
            raise ValueError(f"episode = {self.episode}; the run kept {len(trajectories.states)}, counted from 0")
        if self.out is not None and not self.out.parent.is_dir():
            raise ValueError(f"out = {str(self.out)!r}: there is no directory {str(self.out.parent)!r}; make it first")
        found = load_trained(run)
        guard = found.guard
        source = guard.source if isinstance(guard, Safeguard) else None
        implicit = source.implicit_set if isinstance(source, BackupSource) else getattr(guard, "implicit_set", None)
        out = self.out or run.path / "episode.mp4"
        path = render_episode(found.task, trajectories, out, episode=self.episode, implicit_set=implicit)
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
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Synthesise, tyro.conf.subcommand("synthesise")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def parse(arguments: list[str]) -> Any:
    """The command that these words ask for; its `run()` runs it.

    Raises:
        SystemExit: after printing what is wrong with them, or the help that they ask for.
        ValueError: for a setting that no run can have.
    """
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(Command, prog="holdfast", args=arguments, config=options)


def main(arguments: list[str] | None = None) -> None:
    """Parses, runs one command, prints, and exits: 0 done, 1 the answer is no, 2 wrong input, 130 interrupted."""
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments

    def fail(code: int, words: str, result: dict[str, Any] | None = None) -> int:
        if as_json:
            print_json({"ok": False, "error": words} | (result or {}))
        else:
            print_failure(words)
        return code

    try:
        command = parse(arguments)
        _use_compilation_cache()
        result = command.run()
    except Failed as failure:
        return fail(1, *failure.args)
    except KeyboardInterrupt as stop:
        return fail(_INTERRUPTED, str(stop) or "stopped")
    except _NO as error:
        return fail(1, f"{type(error).__name__}: {error}")
    except _WRONG_INPUT as error:
        return fail(2, f"{type(error).__name__}: {error}")
    if as_json:
        print_json({"ok": True} | result)
    return 0


def _use_compilation_cache() -> None:
    """Programs compiled once are kept for the next command; HOLDFAST_CACHE moves them, and an empty one turns it off."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "holdfast" / "jax"
    folder = os.environ.get("HOLDFAST_CACHE", str(default))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ValueError(f"{name} = {value}; give a finite number > 0")


def _whole(name: str, value: int, *, least: int) -> None:
    if not least <= value < 2**32:
        raise ValueError(f"{name} = {value}; give a whole number >= {least}")


def _abandon(run: RunDirectory) -> None:
    """Takes a run back that failed before it had anything, so that its name is free for the next try."""
    if {each.name for each in run.path.iterdir()} == {"config.json"}:
        (run.path / "config.json").unlink()
        run.path.rmdir()


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
