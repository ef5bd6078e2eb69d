"""What the terminal sees: progress on stderr, results on stdout."""

import json
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from holdfast.tasks import SafetySettings

errors = Console(stderr=True)
output = Console()

_WORDS = {"verify": "proving", "backup": "phase 1: backup", "policy": "phase 2: policy", "attack": "attacking"}


class Failed(Exception):
    """The command ran, and its answer is no. Exit status 1."""


class ProgressBars:
    """One bar a phase with return, violations and time left; lines instead of bars where nobody watches."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self.progress = Progress(*columns, console=errors, disable=quiet or not errors.is_terminal)
        self.bars: dict[str, Any] = {}

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def __call__(self, phase: str, done: int, total: int, row: dict[str, Any]) -> None:
        words, text = _WORDS.get(phase, phase), _text(row)
        if phase not in self.bars:
            self.bars[phase] = self.progress.add_task(words, total=total, text=text)
        self.progress.update(self.bars[phase], completed=done, total=total, text=text)
        if not self.quiet and not errors.is_terminal and (done == total or done % 100 == 0) and done:
            errors.print(f"{words}: {done}/{total} {text}", highlight=False, soft_wrap=True)

    def say(self, words: str) -> None:
        if not self.quiet:
            self.progress.console.print(words, highlight=False, markup=False, soft_wrap=True)


def _text(row: dict[str, Any]) -> str:
    parts = []
    for key, words, form in (
        ("level", "c", "{:.4g}"),
        ("loss", "loss", "{:.3g}"),
        ("certified", "certified", "{:.1%}"),
        ("return_mean", "return", "{:.4g}"),
        ("interventions", "interventions", "{:.1%}"),
    ):
        if key in row:
            values = row[key] if isinstance(row[key], list) else [row[key]]
            numbers = [v for v in values if isinstance(v, int | float) and v == v]
            if numbers:
                parts.append(f"{words} {form.format(sum(numbers) / len(numbers))}")
    if "violating_steps" in row:
        parts.append(f"violations {sum(row['violating_steps'])}")
    return ", ".join(parts)


def print_json(result: dict[str, Any]) -> None:
    """The one object that `--json` puts on stdout."""
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")


def print_failure(words: str) -> None:
    """Why a command did not do what was asked, on stderr."""
    errors.print(words, style="bold red", highlight=False, markup=False, soft_wrap=True)


def print_certificate(certificate: dict[str, Any]) -> None:
    """The obligations as a table, in plain words."""
    table = Table(title=certificate["subject"], title_justify="left", show_lines=True)
    for heading in ("obligation", "how", "claim", "by"):
        table.add_column(heading, overflow="fold")
    colours = {"proved": "green", "checked": "green", "sampled": "yellow", "assumed": "yellow"}
    for each in certificate["obligations"]:
        colour = colours.get(each["discharge"], "bold red")
        words = f"[{colour}]{each['discharge']}[/]"
        table.add_row(escape(each["name"]), words, escape(each["claim"]), escape(each["method"]))
    output.print(table)


def print_counterexamples(certificate: dict[str, Any], names: tuple[str, ...]) -> None:
    """What refutes an obligation: the state by its names, and whatever else belongs to it."""
    for each in certificate["obligations"]:
        found = each["numbers"].get("counterexample")
        if found is None:
            continue
        state = ", ".join(f"{name} {value:.5g}" for name, value in zip(names, found["state"]))
        rest = ((word, np.round(value, 5).tolist()) for word, value in found.items() if word != "state")
        words = "; ".join([f"state {state}", *(f"{word} {value}" for word, value in rest)])
        output.print(f"counterexample to '{each['name']}': {words}", highlight=False, markup=False, soft_wrap=True)


def print_margins(certificate: dict[str, Any]) -> None:
    """How far from each constraint a plan has to stay, which may be more than the safe set has room for."""
    for each in certificate["obligations"]:
        for name, (first, middle, last) in each["numbers"].get("path_margins", {}).items():
            words = f"a plan stays {first:.2g} from '{name}' at its start, {middle:.2g} in its middle, {last:.2g} at its end"
            output.print(words, highlight=False, markup=False, soft_wrap=True)


def print_derived(task: Any) -> None:
    """What was left out of a task of one's own, and what was derived for it."""
    system, box, safety = task.system, task.state_box, task.safety
    ranges = (f"{name} {low:.4g}..{high:.4g}" for name, low, high in zip(system.state_names, box.lower, box.upper))
    rows = {"region (state_box)": ", ".join(ranges)}
    if isinstance(safety, SafetySettings):
        rows["LQR weights"] = f"state_cost {tuple(safety.state_cost)}, input_cost {tuple(safety.input_cost)}"
        rows["horizon"] = f"{safety.horizon} steps"
    rows["episode"] = f"{task.episode_steps} steps"
    output.print(f"[bold]{escape(task.name)}[/], given or derived:", highlight=False)
    for name, words in rows.items():
        output.print(f"  {name}: {words}", highlight=False, markup=False, soft_wrap=True)


def print_attack(found: dict[str, Any]) -> None:
    """An attack's counts, adversary by adversary, and whatever else it says."""
    alone = found["conditions"].startswith("The published layer")
    held = "ended in the implicit set" if alone else "held a committed plan"
    output.print(
        f"{found['violations']} violations in {found['steps']:,} attacked steps ({found['plants']:,} plants); "
        f"{found['certified_steps']:,} {held}",
        highlight=False,
    )
    table = Table(title_justify="left")
    for heading in ("adversary", "steps", "violations", held.replace("a committed", "a"), "worst margin"):
        table.add_column(heading)
    noise = {f"noise: {name}": each for name, each in found["disturbances"].items()}
    for name, each in (found["adversaries"] | noise).items():
        worst = min(each["worst_margin"].values())
        row = (f"{each['steps']:,}", f"{each['violations']:,}", f"{each['certified_steps']:,}", f"{worst:.3g}")
        table.add_row(name, *row)
    output.print(table)
    for name, value in found.items():
        if name not in (
            "violations",
            "steps",
            "certified_steps",
            "plants",
            "adversaries",
            "disturbances",
        ) and value not in (
            [],
            {},
            None,
        ):
            output.print(f"  {name}: {value}", highlight=False, markup=False, soft_wrap=True)


def print_report(report: Any) -> None:
    """Headline numbers of a report."""
    table = Table(title=f"{report.task}: {len(report.seeds)} seed{'s' * (len(report.seeds) > 1)}", title_justify="left")
    compared = {"published": report.published or {}, "optimal control": report.optimal_control or {}}
    compared = {word: known for word, known in compared.items() if known}
    for heading in ("metric", "mean", "95 % interval", *compared):
        table.add_column(heading)
    for name, metric in report.metrics.items():
        low, high = metric["ci95"]
        table.add_row(
            f"{name} {report.metric_units.get(name, '')}".strip(),
            f"{metric['mean']:.4g}",
            f"{low:.4g} to {high:.4g}",
            *(f"{known[name]:.4g}" if name in known else "" for known in compared.values()),
        )
    output.print(table)
    safety = report.safety
    output.print(
        f"{safety['violations']} violations in {safety['steps']:,} steps of {safety['episodes']} episodes "
        f"(at most about {safety['violation_bound']:.2g} of episodes violate, 95 %); "
        f"{safety['interventions']:,} interventions, {safety['uncertified_starts']} uncertified starts",
        highlight=False,
    )
    for name, seen in safety.get("noise", {}).items():
        words = f"noise {name}: {seen['violations']} violations and {seen['lapses']} lapsed promises in {seen['steps']:,} steps"
        output.print(words, highlight=False)
    if report.training_safety:
        seen = report.training_safety
        output.print(f"{seen['violations']} violations in {seen['steps']:,} guarded training steps", highlight=False)
        if seen.get("unpromised_violations"):
            words = f"and {seen['unpromised_violations']:,} after starts that could not be certified; nothing was promised there"
            output.print(words, highlight=False)
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in report.wall_seconds.items() if value is not None)
    output.print(f"wall time: {spent}", highlight=False)
