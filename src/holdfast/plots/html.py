"""Small pieces of HTML. Everything that comes from outside is escaped here."""

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

NOTHING = "–"


def text(value: Any) -> str:
    """The value as escaped text; a dash for None."""
    return NOTHING if value is None else html.escape(str(value))


def prose(value: Any) -> str:
    """Words of ours as escaped text, with `code` between backticks set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(value))


def number(value: Any, digits: int = 3) -> str:
    """A number for people: thousands separated, `digits` significant digits below 1000, words for NaN and infinity.

    A dash for None; other values as escaped text.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def percent(value: Any, digits: int = 3) -> str:
    """A share as a percentage. Never rounded to 0 or 100 unless it is."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return number(value)
    shown = f"{100 * value:,.0f}" if abs(value) >= 0.9995 else f"{100 * value:.{digits}g}"
    if float(shown.replace(",", "")) >= 100 and value < 1:
        shown = f"{math.floor(1e6 * value) / 1e4:.4f}"
    return f"{shown}\u202f%".replace("-", "−")


def seconds(value: Any) -> str:
    """A duration for people: "0.4 s", "42 s", "3 min 05 s", "2 h 10 min"."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return number(value)
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[int] = (), stack: bool = False
) -> str:
    """A table that scrolls by itself where it is too wide. Cells are HTML: escape them with `text` or `number`.

    Args:
        numeric: columns aligned to the right.
        stack: on a narrow page, cells stand below each other.
    """

    def cells(row: Sequence[str], tag: str) -> str:
        classes = ["number" if i in numeric else ("key" if i == 0 and tag == "td" else "") for i in range(len(row))]
        # Numbers that stand below each other have lost their heading: they carry it themselves.
        labels = [f' data-label="{head[i]}"' if stack and tag == "td" and i in numeric else "" for i in range(len(row))]
        return "".join(f'<{tag} class="{c}"{label}>{cell}</{tag}>' for c, label, cell in zip(classes, labels, row))

    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    kind = ' class="stack"' if stack else ""
    return f'<div class="scroll"><table{kind}>{top}<tbody>{body}</tbody></table></div>'


def section(title: str, body: str) -> str:
    """A titled section, or nothing for an empty body."""
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def paragraph(words: str) -> str:
    """A paragraph of plain text, escaped."""
    return f"<p>{text(words)}</p>"
