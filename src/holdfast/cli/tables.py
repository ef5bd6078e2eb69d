"""`holdfast reproduce`, `synthesise` and `export`: what is computed once and kept in files."""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from holdfast.certify import certify_invariant_set
from holdfast.cli.build import load_task, physics_of
from holdfast.cli.cells import fill
from holdfast.cli.console import Failed, ProgressBars, output, print_certificate
from holdfast.cli.deployment import load_trained
from holdfast.cli.reproducible import TABLES, kept_cells
from holdfast.cli.synthesis import synthesise_for, write_invariant_set
from holdfast.cli.trials import QUICK
from holdfast.interop import agreement, export_controller, load_controller
from holdfast.runs import RunDirectory, RunError
from holdfast.safeguards import Safeguard
from holdfast.sets import Polytope
from holdfast.tasks import RobustSafety

Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a run directory")]
Json = Annotated[bool, tyro.conf.arg(help="print one JSON object on stdout instead of words")]


@dataclass
class Reproduce:
    """Compute a published table anew, cell by cell, beside the published numbers; goes on where it was stopped."""

    table: Annotated[
        Literal["safeguards", "lane-keeping", "power-loop", "ablation", "invariant-set"], tyro.conf.Positional
    ]
    quick: Annotated[bool, tyro.conf.arg(help="tiny sizes: shows that it runs, not what it is worth")] = False
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(help="some of its tasks; the usual ones if not given")] = ()
    algorithms: Annotated[tuple[str, ...], tyro.conf.arg(help="some of shac, ppo, sac (safeguards); all if none")] = ()
    methods: Annotated[tuple[str, ...], tyro.conf.arg(help="some of its methods (other tables); all if none")] = ()
    cells_only: Annotated[bool, tyro.conf.arg(help="compute cells, and leave the table for another process")] = False
    kept: Annotated[bool, tyro.conf.arg(help="compute nothing: write the table of the cells that are there")] = False
    out: Annotated[Path | None, tyro.conf.arg(help="directory of cells; below runs/reproduced if not given")] = None
    results: Annotated[Path | None, tyro.conf.arg(help="where the table is written; beside the cells if not given")] = (
        None
    )
    json: Json = False

    def run(self) -> dict[str, Any]:
        table = TABLES[self.table]
        asked = {"tasks": self.tasks, "algorithms": self.algorithms, "methods": self.methods}
        parts = table.chosen(asked)
        out = self.out or Path("runs") / "reproduced" / (table.kept_in + ("-quick" if self.quick else ""))
        cells = table.cells(parts, QUICK if self.quick else table.size)
        if self.kept:
            cells = kept_cells(cells, out)
            if not cells:
                raise RunError(f"{out} holds no cell of the table; leave --kept out to compute some")
        # What would compute the table, which it says of itself; cells that are kept are not computed again.
        again = shlex.join(["holdfast", *(each for each in sys.argv[1:] if each != "--kept")])
        with ProgressBars(self.json) as bars:
            try:
                found = fill(cells, out, bars.say)
            except KeyboardInterrupt:
                kept = len(kept_cells(cells, out))
                raise KeyboardInterrupt(
                    f"stopped; {kept} of {len(cells)} cells are kept. Go on with `{again}`"
                ) from None
        if self.cells_only:
            return {"cells": len(found), "out": str(out)}
        rows = table.rows(found, parts)
        files = table.write(rows, found, parts, self.results or out, command=again)
        if not self.json:
            for task, words in table.words(rows).items():
                output.print(f"{task}\n{words}", highlight=False, markup=False, soft_wrap=True)
            for file in files:
                output.print(str(file), highlight=False, markup=False, soft_wrap=True)
        return {"table": rows, "files": [str(file) for file in files]}


@dataclass
class Synthesise:
    """Compute the robust control invariant set of a task that is kept by one, prove it, and write it as a file."""

    subject: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    out: Annotated[Path | None, tyro.conf.arg(help="a .json; TASK.json if not given")] = None
    json: Json = False

    def run(self) -> dict[str, Any]:
        task = load_task(self.subject)
        if not isinstance(task.safety, RobustSafety) or not isinstance(task.safety.region, Polytope):
            raise ValueError(
                f"task = {self.subject!r} is not kept by a polytope: only those have something to synthesise"
            )
        made_by = shlex.join(["holdfast", "synthesise", self.subject])
        invariant = synthesise_for(task.name, task.system, task.state_box)
        certified = certify_invariant_set(invariant, task.state_box, physics="")
        certificate = certified.certificate.to_json()
        out = self.out or Path(f"{task.name}.json")
        write_invariant_set(out, invariant, made_by)
        if not self.json:
            print_certificate(certificate)
            output.print(str(out), highlight=False, markup=False, soft_wrap=True)
        return {"path": str(out), "facets": len(invariant.polytope.offsets), "certificate": certificate}


@dataclass
class Export:
    """Write the safe controller of a run (policy and safeguard) as a program that runs without holdfast's training code."""

    subject: Run
    out: Annotated[Path | None, tyro.conf.arg(help="a directory; RUN/controller if not given")] = None
    index: Annotated[int, tyro.conf.arg(help="which of the run's seeds, counted from 0")] = 0
    states: Annotated[int, tyro.conf.arg(help="on how many the program is compared with the original")] = 10_000
    json: Json = False

    def run(self) -> dict[str, Any]:
        if self.states < 1:
            raise ValueError(f"states = {self.states}; give a whole number >= 1")
        run = RunDirectory.open(self.subject)
        deployed = load_trained(run, self.index)
        task, guard, policy = deployed.task, deployed.guard, deployed.policy
        if not isinstance(guard, Safeguard):
            raise ValueError(
                f"{run.path} was trained with --safeguard {deployed.config.safeguard}: there is nothing safe to export"
            )
        out, physics = self.out or run.path / "controller", physics_of(task)
        export_controller(out, task=task, guard=guard, policy=policy, certificate=deployed.certificate, physics=physics)
        seen = agreement(load_controller(out), task=task, guard=guard, policy=policy, states=self.states)
        found = {"path": str(out), "agreement": asdict(seen)}
        words = (
            f"{seen.equal:,} of {seen.states:,} states: equal to the original, bit for bit; {seen.both_pass:,} decided "
            f"otherwise by rounding, safe both ways; {seen.differ:,} differ"
        )
        if seen.differ:
            raise Failed(
                f"{words}. The program in {out} is not the run's controller: do not use it, and report this", found
            )
        if not self.json:
            output.print(words, highlight=False, markup=False, soft_wrap=True)
            output.print(str(out), highlight=False, markup=False, soft_wrap=True)
        return found
