"""The report as one self-contained page for people."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from holdfast.certify.certificate import MEANING
from holdfast.evaluate import Report
from holdfast.plots.html import number, paragraph, percent, prose, seconds, section, table, text
from holdfast.plots.page_style import STYLE
from holdfast.plots.theme import LIGHT, Width, to_svg
from holdfast.types import Status

_PHASE_COLOURS = ("backup", "actual", "proposed", "corrected", "analytic", "bad", "muted")
_COUNTED = ("episodes", "steps", "violations")
_COVERAGE = (
    ("certified", "of the safe states drawn are certified with the learned backup"),
    ("analytic", "are certified with the analytic backup"),
    ("base_set", "lie in the base set"),
    ("viable", "can be kept safe by some input sequence at all (viability kernel)"),
    ("kernel_share", "of the viability kernel is certified with the learned backup"),
    ("kernel_share_analytic", "of the viability kernel is certified with the analytic backup"),
    ("possible", "are not ruled out by physics: a bound on what any policy could keep safe"),
    ("possible_share", "of those are certified with the learned backup"),
    ("possible_share_analytic", "of those are certified with the analytic backup"),
    ("starts_certified", "of the start states are certified"),
    ("starts_lower_bound", "of the start states at least, with 95\u202f% confidence"),
)

#: The same where an invariant set needs no backup.
_INVARIANT = {
    "certified": "of the safe states drawn lie in the robust control invariant set",
    "starts_certified": "of the start states lie in it",
}


@dataclass(frozen=True)
class PageFigure:
    """A figure for the page.

    Attributes:
        title, caption: plain text.
        draw: called as draw(theme=..., width=...) -> Figure; any figure function of this room after `partial`.
    """

    title: str
    caption: str
    draw: Callable[..., Figure]


def write_report_page(
    report: Report, figures: Sequence[PageFigure], path: str | Path, *, command: str | None = None
) -> Path:
    """Writes `report.html`, whole or not at all: one file, no outside resources, light and dark, wide and narrow.

    Args:
        report: what is told. Missing parts (None, empty) are left out, or said to be missing where that matters.
        figures: in order. Each is drawn twice, for wide and for narrow pages; colours follow the page by CSS.
        path: of the page.
        command: the command line that makes this report again.

    Returns:
        The path.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(report_page(report, figures, command=command), encoding="utf-8")
    os.replace(partial, path)
    return path


def report_page(report: Report, figures: Sequence[PageFigure] = (), *, command: str | None = None) -> str:
    """The page as a string; see `write_report_page`."""
    body = "".join(
        (
            _verdict(report),
            section("Results", _metrics(report)),
            section("Figures", "".join(_figure(figure, i) for i, figure in enumerate(figures))),
            section("What is promised, and why", _certificate(report.certificate)),
            section("Safety, counted", _safety(report)),
            section("What the safeguard did", _interventions(report)),
            section("How much is certified", _coverage(report.coverage)),
            section("Wall time", _wall_time(report.wall_seconds)),
            section("Notes", _list(prose(note) for note in report.notes or ())),
            section("Environment", _environment(report.environment)),
            section("Make it again", f"<pre>{text(command)}</pre>" if command else ""),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(report.task)} – holdfast report</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _verdict(report: Report) -> str:
    safety = report.safety or {}
    episodes, steps, violations = (safety.get(key) for key in ("episodes", "steps", "violations"))
    certificate, training = report.certificate, report.training_safety or {}
    noise = tuple((safety.get("noise") or {}).values())
    chosen = sum(found.get("violations") or 0 for found in noise)
    lapses = sum(found.get("lapses") or 0 for found in (safety, *noise))
    doubts = safety.get("uncertified_starts") or training.get("violations") or lapses
    if not episodes or violations is None:
        kind, headline = "warn", "Safety was not evaluated."
        words = "The report counts no episodes, so it says nothing about violations."
    elif violations == 0 and chosen:
        kind, headline = "bad", f"Constraints were violated {number(chosen)} times under chosen noise."
        words = f"None were under the task's own noise, in {number(episodes)} episodes."
    elif violations == 0:
        kind = "good" if certificate and certificate.get("holds") and not doubts else "warn"
        headline = f"No constraint was violated in {number(steps)} steps."
        bound = safety.get("violation_bound") or min(1.0, 3 / episodes)
        words = (
            f"None of {number(episodes)} episodes violated a constraint, at any sample and with no tolerance. By these "
            f"episodes alone, the probability that an episode does is at most about 3/{number(episodes)} = "
            f"{percent(bound, 2)}, with 95\u202f% confidence."
        )
    else:
        kind = "bad"
        headline = f"Constraints were violated {number(violations)} times in {number(steps)} steps."
        words = f"{number(safety.get('violating_episodes'))} of {number(episodes)} episodes violated a constraint."
    if safety.get("uncertified_starts"):
        words += f" {number(safety['uncertified_starts'])} starts were not certified: nothing is promised for them."
    if noise and not chosen:
        counted = number(sum(found.get("steps") or 0 for found in noise))
        words += f" None was violated either in {counted} steps under noise that an adversary chose."
    if training.get("steps"):
        words += (
            f" In training, behind the safeguard, there were {number(training.get('violations'))} violations in "
            f"{number(training['steps'])} steps."
        )
    seeds = len(report.seeds or ())
    setting = (
        f"{text(report.task)} · {text(report.algorithm)} · safeguard: {text(report.safeguard)} · "
        f"{seeds} seed{'' if seeds == 1 else 's'}"
    )
    # `words` holds numbers only, made by `number` and `percent`.
    return (
        f'<header><p class="kicker">{setting}</p><div class="verdict {kind}"><h1>{headline}</h1><p>{words}</p>'
        f"{_certificate_line(certificate)}</div></header>"
    )


def _certificate_line(certificate: Mapping[str, Any] | None) -> str:
    if not certificate:
        return "<p>No certificate belongs to this report: nothing is promised beyond these samples.</p>"
    counts = Counter(str(each.get("discharge")) for each in certificate.get("obligations", ()))
    tags = "".join(
        f'<span class="tag {_css(kind)}">{counts[kind]} {text(kind)}</span>'
        for kind in (*MEANING, *_others(counts))
        if counts[kind]
    )
    says = (
        "The certificate holds, beyond these samples:"
        if certificate.get("holds")
        else "The certificate does <strong>not</strong> hold:"
    )
    return f"<p>{says} {tags}</p>"


def _metrics(report: Report) -> str:
    published, optimal = report.published or {}, report.optimal_control or {}
    units = report.metric_units or {}
    cards = []
    for name, metric in (report.metrics or {}).items():
        mean, interval = metric.get("mean"), metric.get("ci95") or (None, None)
        unit = f" <small>{text(units[name])}</small>" if units.get(name) else ""
        lines = f'<div class="name">{text(name)}</div><div class="value">{number(mean)}{unit}</div>'
        lines += f'<div class="quiet">95\u202f% interval {number(interval[0])} to {number(interval[1])}'
        if metric.get("iqm") is not None:
            lines += f" · IQM {number(metric['iqm'])}"
        lines += "</div>" + _strip(metric.get("per_seed") or (), interval, published.get(name), optimal.get(name))
        for words, other in (("published", published.get(name)), ("optimal control", optimal.get(name))):
            if other is not None:
                lines += f'<div class="quiet">{words} {number(other)}{_compared(mean, other)}</div>'
        cards.append(f'<div class="card">{lines}</div>')
    if not cards:
        return ""
    legend = "Dots are seeds, the bar is the 95\u202f% interval of the mean"
    legend += ", the vertical line the published value" if published else ""
    legend += (
        ", the dashed one open-loop optimal control, which knows the start and all of the future" if optimal else ""
    )
    legend += "."
    return f'<div class="cards">{"".join(cards)}</div><p class="quiet">{legend}</p>'


def _compared(mean: Any, published: float) -> str:
    if not _finite(mean, published) or published == 0:
        return ""
    change = (mean - published) / abs(published)
    if change > 1 and published > 0:
        return f" · {number(mean / published, 2)} times as high here"
    return f" · {percent(abs(change), 2)} {'lower' if change < 0 else 'higher'} here" if change else " · the same here"


def _strip(per_seed: Sequence[Any], interval: Sequence[Any], published: Any, optimal: Any) -> str:
    """Seeds, interval, published value and optimal control on one axis, as a drawing 200 units wide."""
    shown = [v for v in (*per_seed, *interval, published, optimal) if _finite(v)]
    if len(shown) < 2 or max(shown) == min(shown):
        return ""
    low, span = min(shown), max(shown) - min(shown)

    def at(value: float) -> str:
        return f"{8 + 184 * (value - low) / span:.1f}"

    drawn = '<line x1="2" x2="198" y1="13" y2="13" stroke="var(--hf-rule)"/>'
    if _finite(*interval):
        drawn += f'<line x1="{at(interval[0])}" x2="{at(interval[1])}" y1="13" y2="13" stroke="var(--hf-actual)" '
        drawn += 'stroke-width="7" stroke-opacity=".35"/>'
    for value in per_seed:
        if _finite(value):
            drawn += f'<circle cx="{at(value)}" cy="13" r="2.6" fill="var(--hf-actual)"/>'
    for value, look in (
        (published, 'stroke="var(--hf-unsafe)"'),
        (optimal, 'stroke="var(--hf-ink)" stroke-dasharray="3 2"'),
    ):
        if _finite(value):
            x = at(value)
            drawn += f'<line x1="{x}" x2="{x}" y1="3" y2="23" {look} stroke-width="2"/>'
    return f'<svg viewBox="0 0 200 26" aria-hidden="true">{drawn}</svg>'


def _figure(figure: PageFigure, index: int) -> str:
    drawings = ""
    widths: tuple[Width, Width] = ("wide", "narrow")
    for width in widths:
        svg = to_svg(figure.draw(theme=LIGHT, width=width), LIGHT, name=f"f{index}{width[0]}", variables=True)
        label = f'<svg role="img" aria-label="{text(figure.title)}" '
        drawings += f'<div class="{width}">{svg.replace("<svg ", label, 1)}</div>'
    caption = f"<strong>{text(figure.title)}.</strong> {text(figure.caption)}"
    return f"<figure>{drawings}<figcaption>{caption}</figcaption></figure>"


def _certificate(certificate: Mapping[str, Any] | None) -> str:
    if not certificate:
        return paragraph(
            "There is no certificate. The numbers on this page are samples, and promise nothing beyond them."
        )
    obligations = list(certificate.get("obligations", ()))
    kinds = Counter(str(each.get("discharge")) for each in obligations)
    page = paragraph(f"{certificate.get('subject', '')}. Physics {certificate.get('physics', 'unknown')}.")
    for kind in (*MEANING, *_others(kinds)):
        rows = [
            (
                text(each.get("name")),
                prose(each.get("claim")),
                prose(each.get("method")) + _numbers(each.get("numbers")),
            )
            for each in obligations
            if str(each.get("discharge")) == kind
        ]
        if rows:
            meaning = MEANING.get(kind, "unknown to this version; read it as not shown")
            page += f'<h3><span class="tag {_css(kind)}">{text(kind)}</span> <small>{text(meaning)}</small></h3>'
            page += table(("obligation", "claim", "how"), rows, stack=True)
    return page


def _numbers(numbers: Any) -> str:
    if not numbers:
        return ""
    words = json.dumps(numbers, ensure_ascii=False, indent=1, default=str)
    return f"<details><summary>numbers</summary><code>{text(words)}</code></details>"


def _safety(report: Report) -> str:
    safety, training = report.safety or {}, report.training_safety
    rows = []
    if safety.get("steps"):
        rows.append(("evaluation", *(number(safety.get(key)) for key in _COUNTED)))
    if training:
        rows.append(("training", *(number(training.get(key)) for key in _COUNTED)))
    for name, found in (safety.get("noise") or {}).items():
        rows.append((f"evaluation, noise: {text(name)}", *(number(found.get(key)) for key in _COUNTED)))
    page = table(("", "episodes", "guarded steps", "violations"), rows, numeric=(1, 2, 3)) if rows else ""
    if not training:
        page += paragraph("Training behind the safeguard: none recorded.")
    worst = safety.get("worst_margin")
    if isinstance(worst, Mapping):
        cells = ((text(name), number(value, 4)) for name, value in worst.items())
        page += "<h3>Smallest margin seen</h3>" + table(("constraint", "margin"), cells, numeric=(1,))
        page += paragraph("A margin is the distance to the constraint in its unit; below zero is a violation.")
    elif worst is not None:
        page += f"<p>Smallest margin seen: {number(worst, 4)}</p>"
    others = (
        ("uncertified_starts", "starts outside the certified set, run and counted like all others"),
        ("lapses", "samples after certified starts at which nothing was promised any more"),
        ("diverged", "episodes whose state stopped being finite"),
    )
    return page + _list(f"{number(safety[key])} {words}" for key, words in others if safety.get(key) is not None)


def _interventions(report: Report) -> str:
    safety, found = report.safety or {}, report.interventions or {}
    page, steps = "", safety.get("steps") or 0
    statuses = {name: count for name, count in (safety.get("statuses") or {}).items() if count}
    if statuses and steps:
        cells = (
            (text(name.replace("_", " ")), number(n), percent(n / steps), _cause(name)) for name, n in statuses.items()
        )
        page += table(("step", "steps", "share", "meaning"), cells, numeric=(1, 2), stack=True)
    by_constraint = found.get("by_constraint") or {}
    if by_constraint:
        times: dict[str, list[float]] = {}
        for example in found.get("examples") or ():
            if example.get("time_to_violation") is not None:
                times.setdefault(example.get("constraint"), []).append(example["time_to_violation"])
        cells = (
            (text(name), number(count), f"{number(median(times[name]))} s" if times.get(name) else text(None))
            for name, count in by_constraint.items()
        )
        page += "<h3>Which constraint asked for it</h3>"
        page += table(("binding constraint", "interventions", "median time to violation"), cells, numeric=(1, 2))
        page += paragraph(
            f"Of {number(found.get('explained'))} interventions in the episodes kept whole. The time to violation is "
            "how long after the proposed action the constraint would break if the backup took over one step later; the "
            "median is over the examples in report.json. A dash means that no constraint would break, but that the "
            "proposal lay outside the input box or could not be certified."
        )
    return page


def _cause(name: str) -> str:
    return text(Status[name].cause) if name in Status.__members__ else ""


def _coverage(coverage: Mapping[str, Any] | None) -> str:
    if not coverage:
        return ""
    rows, robust = [], coverage.get("base_set") is None
    for key, words in _COVERAGE:
        words = _INVARIANT.get(key, words) if robust else words
        if coverage.get(key) is not None:
            shown = percent(coverage[key], 4)
            if key == "certified" and coverage.get("certified_ci95"):
                low, high = coverage["certified_ci95"]
                words = f"{words} (95\u202f% interval {percent(low, 4)} to {percent(high, 4)})"
            rows.append((shown, text(words)))
    page = table(("share", ""), rows)
    if coverage.get("outside_kernel"):
        page += paragraph(
            f"{number(coverage['outside_kernel'])} certified samples lie outside the viability kernel. That cannot be: "
            "an error is somewhere."
        )
    if coverage.get("outside_possible"):
        page += paragraph(
            f"{number(coverage['outside_possible'])} certified samples are states that physics rules out. That cannot be: "
            "an error is somewhere."
        )
    drawn = (
        f"From {number(coverage.get('samples'))} states and {number(coverage.get('starts'))} starts drawn at random."
    )
    return page + paragraph(drawn)


def _wall_time(wall: Mapping[str, Any] | None) -> str:
    spent = {name: value for name, value in (wall or {}).items() if _finite(value) and value >= 0}
    total = sum(spent.values())
    if not total:
        return ""
    bar = items = ""
    for i, (name, value) in enumerate(spent.items()):
        colour = f"var(--hf-{_PHASE_COLOURS[i % len(_PHASE_COLOURS)]})"
        bar += f'<div style="width:{100 * value / total:.2f}%;background:{colour}"></div>'
        items += f'<li><i style="background:{colour}"></i>{text(name)} <strong>{seconds(value)}</strong></li>'
    missing = ", ".join(text(name) for name, value in (wall or {}).items() if value is None)
    note = f'<p class="quiet">Not measured: {missing}.</p>' if missing else ""
    return f'<p>{seconds(total)} in all.</p><div class="bar">{bar}</div><ul class="legend">{items}</ul>{note}'


def _environment(environment: Mapping[str, Any] | None) -> str:
    if not environment:
        return ""
    rows = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {version}" for name, version in value.items() if version is not None)
        rows.append((text(key), text(value)))
    return table(("", ""), rows, stack=True)


def _list(items: Iterable[str]) -> str:
    body = "".join(f"<li>{item}</li>" for item in items)
    return f"<ul>{body}</ul>" if body else ""


def _others(counts: Mapping[str, int]) -> list[str]:
    return [kind for kind in counts if kind not in MEANING]


def _css(kind: str) -> str:
    return kind.replace(" ", "-") if kind in MEANING else "not-proved"


def _finite(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
