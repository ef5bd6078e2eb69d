"""The report page: self-contained, escaped, honest about what is missing."""

import dataclasses
import re
from functools import partial
from html.parser import HTMLParser

import pytest

from holdfast.certify.certificate import MEANING, Certificate, Obligation
from holdfast.evaluate import Report
from holdfast.plots import PageFigure, learning_figure, report_page, write_report_page
from holdfast.plots.html import number, percent, seconds

HOSTILE = '<script>alert("x")</script>&\'"><img src=x onerror=1>'
VOID = {"meta", "img", "br", "hr", "link", "input"}


def obligations(kinds):
    return tuple(
        Obligation(f"name-{i}", f"claim {i} in words", kind, f"method {i}", {"level": 0.25 + i})
        for i, kind in enumerate(kinds)
    )


def sample_report(**changes):
    report = Report(
        task="lane-keeping",
        algorithm="shac",
        safeguard="ray",
        seeds=[0, 1],
        wall_seconds={"compile": 4.0, "backup": 20.0, "policy": 40.0, "verify": None, "evaluate": 3.0},
        metrics={"y_rmse": {"mean": 0.37, "iqm": 0.369, "ci95": [0.36, 0.38], "per_seed": [0.36, 0.38]}},
        metric_units={"y_rmse": "m"},
        safety={
            "episodes": 2000,
            "steps": 800_000,
            "violations": 0,
            "violating_episodes": 0,
            "worst_margin": {"left lane edge": 1.2e-5},
            "violation_bound": 0.0015,
            "interventions": 1234,
            "uncertified_starts": 0,
            "diverged": 0,
            "statuses": {"accepted": 798_766, "corrected": 1234, "fell_back": 0},
        },
        training_safety={"steps": 640_000, "violations": 0, "interventions": 9},
        coverage={"samples": 1000, "starts": 100, "certified": 0.73, "certified_ci95": [0.7, 0.76], "viable": None},
        interventions={
            "explained": 3,
            "by_constraint": {"left lane edge": 2, "arrival": 1},
            "examples": [
                {"constraint": "left lane edge", "time_to_violation": 0.25},
                {"constraint": "left lane edge", "time_to_violation": 0.35},
                {"constraint": "arrival", "time_to_violation": None},
            ],
        },
        certificate=Certificate("Lane keeping", "abc123", obligations(["proved", "checked", "assumed"])).to_json(),
        environment={"versions": {"jax": "0.10.2"}, "device": "cpu", "precision": "float32"},
        published={"y_rmse": 0.52},
        notes=["A note."],
    )
    return dataclasses.replace(report, **changes)


class Tags(HTMLParser):
    """Checks that tags nest, and collects them with the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_page_is_self_contained(tmp_path):
    rows = [{"step": i, "return_mean": float(i), "interventions": 0.1} for i in range(4)]
    figure = PageFigure("Learning", "Over training.", partial(learning_figure, rows))
    path = write_report_page(sample_report(), [figure, figure], tmp_path / "report.html", command="holdfast evaluate X")
    page = path.read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert not {"http:", "https:", "@import"} & set(re.findall(r"https?:|@import", page))
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page))
    tags = Tags(page)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.tags}
    assert not any(name in attrs for _, attrs in tags.tags for name in ("src", "srcset", "onerror", "onload"))
    assert all(attrs["href"].startswith("#") for _, attrs in tags.tags if attrs.get("href"))
    ids = [attrs["id"] for _, attrs in tags.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 0
    assert "prefers-color-scheme:dark" in page and "width=device-width" in page
    assert "holdfast evaluate X" in tags.text and "Over training." in tags.text


def test_headline_says_zero_violations_and_what_that_means():
    words = Tags(report_page(sample_report())).text
    assert "No constraint was violated in 800,000 steps." in words
    assert "3/2,000 = 0.15" in words
    assert "published 0.52" in words and "29 % lower here" in words and "0.36 to 0.38" in words
    assert "0.3 s" in words, "median time to violation"
    assert "Not measured: verify" in words and "1 min 07 s in all" in words


def test_optimal_control_and_the_physical_bound_are_shown_beside():
    shares = {"possible": 0.98, "possible_share": 0.96, "possible_share_analytic": 0.4, "outside_possible": 0}
    report = sample_report(optimal_control={"y_rmse": 0.355}, coverage=sample_report().coverage | shares)
    words = Tags(report_page(report)).text
    assert "optimal control 0.355" in words and "the dashed one open-loop optimal control" in words
    assert "98 %" in words and "not ruled out by physics" in words and "physics rules out" not in words
    wrong = sample_report(coverage=report.coverage | {"outside_possible": 3})
    assert "3 certified samples are states that physics rules out" in Tags(report_page(wrong)).text
    rows = [{"step": i, "return_mean": float(i)} for i in range(3)]
    figure = learning_figure(rows, optimal_return=5.0)
    assert any(line.get_label() == "optimal control" and line.get_ydata()[0] == 5.0 for line in figure.axes[0].lines)


def test_headline_says_violations():
    safety = sample_report().safety | {"violations": 7, "violating_episodes": 2, "violation_bound": 0.003}
    page = report_page(sample_report(safety=safety))
    assert "Constraints were violated 7 times in 800,000 steps." in page and 'class="verdict bad"' in page


@pytest.mark.parametrize("kinds", [list(MEANING), ["proved", "a word of the future"]])
def test_every_obligation_is_shown_under_its_kind(kinds):
    certificate = Certificate("s", "p", obligations(kinds)).to_json()
    page = report_page(sample_report(certificate=certificate))
    words = Tags(page).text
    for i, kind in enumerate(kinds):
        assert f"name-{i}" in words and f"claim {i} in words" in words and f"method {i}" in words
        assert f"1 {kind}" in words
        assert MEANING.get(kind, "read it as not shown") in words


def test_a_certificate_that_does_not_hold_is_never_green():
    for certificate in (None, Certificate("s", "p", obligations(["proved", "refuted"])).to_json()):
        page = report_page(sample_report(certificate=certificate))
        assert 'class="verdict warn"' in page
    assert "does <strong>not</strong> hold" in page


def test_uncertified_starts_and_violations_in_training_are_told_in_the_headline():
    safety = sample_report().safety | {"uncertified_starts": 4}
    page = report_page(sample_report(safety=safety))
    assert 'class="verdict good"' in report_page(sample_report())
    assert 'class="verdict warn"' in page and "4 starts were not certified" in page
    page = report_page(sample_report(training_safety={"steps": 100, "violations": 3}))
    assert 'class="verdict warn"' in page and "there were 3 violations in 100 steps" in page


def test_everything_is_escaped():
    obligation = Obligation(HOSTILE, HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    metric = {"mean": 1.0, "iqm": HOSTILE, "ci95": [HOSTILE, None], "per_seed": [HOSTILE]}
    report = sample_report(
        task=HOSTILE,
        algorithm=HOSTILE,
        safeguard=HOSTILE,
        wall_seconds={HOSTILE: 1.0, HOSTILE + "2": None},
        metrics={HOSTILE: metric},
        metric_units={HOSTILE: HOSTILE},
        published={HOSTILE: HOSTILE},
        safety={"episodes": 1, "steps": 1, "violations": 0, "worst_margin": {HOSTILE: 1}, "statuses": {HOSTILE: 1}},
        training_safety={"steps": HOSTILE, "violations": HOSTILE, "episodes": HOSTILE},
        coverage={"samples": HOSTILE, "certified": HOSTILE, "certified_ci95": [HOSTILE, HOSTILE]},
        interventions={"explained": HOSTILE, "by_constraint": {HOSTILE: HOSTILE}, "examples": []},
        certificate={"subject": HOSTILE, "physics": HOSTILE, "holds": True, "obligations": [vars(obligation)]},
        environment={HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}},
        notes=[HOSTILE],
    )
    figure = PageFigure(HOSTILE, HOSTILE, partial(learning_figure, [{"return_mean": 1.0}]))
    page = report_page(report, [figure], command=HOSTILE)
    tags = Tags(page)
    assert not {"script", "img"} & {tag for tag, _ in tags.tags}
    assert not any("onerror" in attrs for _, attrs in tags.tags)
    assert "<script" not in page


def test_missing_parts_are_left_out_or_said():
    empty = Report("t", "a", "none", [], {}, {}, {}, {}, None, None, {}, None, {})
    words = Tags(report_page(empty)).text
    assert "Safety was not evaluated." in words and "There is no certificate." in words
    assert "Training behind the safeguard: none recorded." in words
    assert "Wall time" not in words and "How much is certified" not in words and "None" not in words
    nan = float("nan")
    broken = sample_report(metrics={"return": {"mean": nan, "iqm": nan, "ci95": [nan, nan], "per_seed": [nan]}})
    assert "not a number" in Tags(report_page(broken)).text


def test_numbers_for_people():
    assert [number(v) for v in (None, 1234567, 0.37251, -1234.5, 1.25e-7, True)] == [
        "–", "1,234,567", "0.373", "−1,234", "1.25e−07", "True",
    ]  # fmt: skip
    assert (percent(0.5), percent(0.9999999), percent(1.0)) == ("50\u202f%", "99.9999\u202f%", "100\u202f%")
    assert (percent(1.0, 2), percent(-11.5784)) == ("100\u202f%", "−1,158\u202f%")
    assert [seconds(v) for v in (0.42, 42.4, 185, 7800, None)] == ["0.4 s", "42 s", "3 min 05 s", "2 h 10 min", "–"]
