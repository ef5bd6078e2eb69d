"""The report as it is seen: in a browser nothing overflows, at any width and in either light; every figure explains itself."""

import html
import json
import re
import shutil
import subprocess
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from holdfast.plots import (
    PageFigure,
    learning_figure,
    margin_figure,
    report_page,
    slice_figure,
    trajectory_figure,
)
from test_plots import TASK, sample_rows, sample_slice, sample_trajectories
from test_report_page import sample_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DESKTOP, PHONE = 1280, 390
#: What is counted, or has the unit of a reward.
WITHOUT_UNIT = {"episode return", "environment steps"}
MEASURE = """<script>addEventListener("load", () => {
 const root = document.documentElement, wide = root.clientWidth, found = [];
 for (const each of document.querySelectorAll("body *")) {
  const scrolls = each.closest(".scroll, pre, svg");
  if (each.getBoundingClientRect().right > wide + 1 && !(scrolls && scrolls !== each)) found.push(each.outerHTML.slice(0, 80));
 }
 const cards = [...document.querySelectorAll(".card")].map(card => card.getBoundingClientRect().width);
 const shown = [...document.querySelectorAll("figure > div")].filter(each => each.offsetHeight).map(each => each.className);
 parent.postMessage(JSON.stringify({width: wide, scroll: root.scrollWidth, found, cards, shown}), "*");
})</script></body>"""
#: A browser's window has a least width, a frame in it has none.
FRAME = """<!doctype html><body style="margin:0"><script>
addEventListener("message", message => document.documentElement.dataset.seen = message.data)
</script><iframe src="report.html" style="border:0;width:WIDTHpx;height:1500px"></iframe></body>"""


@pytest.fixture(scope="module")
def page():
    kept = sample_trajectories()
    figures = [
        PageFigure("One episode", "States and inputs.", partial(trajectory_figure, TASK, kept)),
        PageFigure("Distance to the constraints", "Margins.", partial(margin_figure, TASK, kept)),
        PageFigure("What is certified", "A slice.", partial(slice_figure, TASK, [sample_slice()])),
        PageFigure("Learning", "Over training.", partial(learning_figure, sample_rows())),
    ]
    return report_page(sample_report(), figures, command="holdfast train lane-keeping --out " + "a/long/path" * 30)


def browse(page, tmp_path, width, dark=False):
    """What the browser measures, and its picture; JavaScript measures, the page itself has none."""
    frame, picture = tmp_path / "frame.html", tmp_path / "report.png"
    (tmp_path / "report.html").write_text(page.replace("</body>", MEASURE), encoding="utf-8")
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += [f"--window-size={DESKTOP},1500", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [BROWSER, *options, "--dump-dom", f"--screenshot={picture}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    (found,) = re.findall(r'data-seen="(.*?)"', done.stdout)
    return json.loads(html.unescape(found)), np.asarray(Image.open(picture).convert("RGB"))[:, :width]


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
@pytest.mark.parametrize("width, dark", [(DESKTOP, False), (PHONE, True)])
def test_nothing_overflows_at_any_width(page, tmp_path, width, dark):
    seen, picture = browse(page, tmp_path, width, dark)
    assert seen["width"] <= width and seen["scroll"] <= seen["width"] and not seen["found"], seen
    assert set(seen["shown"]) == {"wide" if width == DESKTOP else "narrow"}
    # A report of one metric: its card is as wide as it would be among others.
    assert max(seen["cards"]) < (350 if width == DESKTOP else PHONE)
    assert picture.shape[1] == width and picture.std() > 5
    assert (np.median(picture) < 60) == dark


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
def test_the_measurement_sees_what_overflows(page, tmp_path):
    broken = page.replace("</main>", '<p style="width:2000px">wide</p></main>')
    seen, _ = browse(broken, tmp_path, PHONE)
    assert seen["scroll"] > seen["width"] and len(seen["found"]) == 1


def drawings(page):
    """Each figure's caption and its drawings, as trees."""
    for figure in re.findall(r"<figure>(.*?)</figure>", page, flags=re.DOTALL):
        (caption,) = re.findall(r"<figcaption>(.*?)</figcaption>", figure, flags=re.DOTALL)
        yield caption, [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", figure, flags=re.DOTALL)]


def groups(tree, name):
    return [each for each in tree.iter("g") if re.search(rf"-{name}_?\d*$", each.get("id", ""))]


def words(tree):
    return [" ".join("".join(each.itertext()).split()) for each in tree.iter("text")]


def explained(page):
    """What is missing from the figures of a page, in words."""
    for caption, trees in drawings(page):
        title = re.sub("<.*?>", "", caption)
        if len(title.split()) < 3:
            yield f"{title}: no caption"
        for tree in trees:
            lines = sum(len(groups(axes, "line2d")) for axes in groups(tree, "axes"))
            if lines > 1 and not groups(tree, "legend"):
                yield f"{title}: {lines} lines and no legend"
            for axis in groups(tree, r"matplotlib\.axis"):
                label = " ".join(each for each in words(axis) if not re.fullmatch(r"[−\-\d.,e]+", each))
                if words(axis) and not label:
                    yield f"{title}: an axis without a label"
                if label and label not in WITHOUT_UNIT and not re.search(r"\(.+\)$", label):
                    yield f"{title}: {label!r} has no unit"


def test_every_figure_has_a_caption_units_and_a_legend(page):
    assert len(list(drawings(page))) == 4 and all(len(trees) == 2 for _, trees in drawings(page))
    assert list(explained(page)) == []


def test_what_is_missing_from_a_figure_is_found(page):
    for broken in (
        page.replace("psi (rad)", "psi"),
        re.sub(r'id="(f0w-legend_1)"', 'id="gone"', page),
        page.replace("episode return", ""),
        re.sub(r"<figcaption>.*?</figcaption>", "<figcaption>A figure.</figcaption>", page, count=1),
    ):
        assert list(explained(broken))
