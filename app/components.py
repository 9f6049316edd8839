"""What every page is built of: header, cards, number cards, notices, badges, and how values read.

Functions ending in `_html` give finished HTML: everything that a person typed is escaped here, on the server.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

import gradio as gr

from jobs.errors import UserError

NoteKind = Literal["info", "warn", "good"]

_ALIKE = 1.1  # times the least: runs that took as long as one another
# state -> (what the badge says, its colour)
STATES: dict[str, tuple[str, str]] = {
    "queued": ("Waiting", "info"),
    "starting": ("Starting", "live"),
    "running": ("Training", "live"),
    "stopping": ("Stopping", "warn"),
    "completed": ("Completed", "good"),
    "stopped": ("Stopped", "plain"),
    "failed": ("Failed", "bad"),
    "interrupted": ("Interrupted", "warn"),
}


def escape(text: object) -> str:
    """Text for HTML, quotes included. Braces too: Gradio's templates would evaluate ${...} and {{...}}."""
    return html.escape(str(text)).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def page_header(title: str, subtitle: str) -> None:
    """The page's name and one line under it."""
    gr.HTML(
        f'<header class="page-header"><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>',
        js_on_load=None,
        apply_default_css=False,
        elem_classes="plain",
    )


def live_html(fragment: str) -> None:
    """A part of the page that the server sends anew when it changes; a page declares it in FRAGMENTS."""
    gr.HTML(
        '<div class="live" aria-busy="true"></div>',
        js_on_load=f"Graft.fragment(element, {json.dumps(fragment)})",
        apply_default_css=False,
        elem_classes="plain",
    )


@contextmanager
def card(classes: str = "") -> Iterator[gr.Column]:
    """A surface that groups what belongs together. `classes`: further CSS classes, separated by spaces."""
    with gr.Column(elem_classes=["card", *classes.split()]) as column:
        yield column


def figures_html(items: list[tuple[str, str, str]]) -> str:
    """Number cards: (label, value, hint)."""
    cells = "".join(
        f'<div class="figure"><dt>{escape(label)}</dt><dd>{escape(value)}</dd>'
        + (f'<p class="hint">{escape(hint)}</p>' if hint else "")
        + "</div>"
        for label, value, hint in items
    )
    return f'<dl class="figures">{cells}</dl>'


def problems_html(problems: UserError | Iterable[str] | str) -> str:
    """An inline notice with every problem; empty where there is none."""
    if isinstance(problems, UserError):
        problems = problems.problems
    found = [problems] if isinstance(problems, str) else list(problems)
    found = [problem for problem in found if problem]
    if not found:
        return ""
    if len(found) == 1:
        body = f"<p>{escape(found[0])}</p>"
    else:
        body = "<ul>" + "".join(f"<li>{escape(problem)}</li>" for problem in found) + "</ul>"
    return f'<div class="note bad" role="alert">{body}</div>'


def note_html(text: str, kind: NoteKind = "info") -> str:
    """One quiet notice."""
    return f'<div class="note {kind}"><p>{escape(text)}</p></div>' if text else ""


def badge_html(state: str) -> str:
    """A run's state as a coloured word."""
    word, colour = STATES.get(str(state), (str(state).capitalize(), "plain"))
    return f'<span class="badge {colour}">{escape(word)}</span>'


def progress_html(fraction: float, text: str) -> str:
    """A bar with its words. `fraction`: 0 to 1."""
    percent = round(max(0.0, min(1.0, fraction)) * 100)
    return (
        f'<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" '
        f'aria-label="{escape(text)}"><div class="progress-words"><span>{escape(text)}</span>'
        f"<span>{percent} %</span></div>"
        f'<div class="progress-track"><div class="progress-bar" style="width:{percent}%"></div></div></div>'
    )


def bytes_text(n: float | None) -> str:
    """1536 -> '1.5 kB'; decimal units, as disks and file managers count."""
    if n is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 999.5:
            return f"{n:.0f} {unit}" if unit == "B" or abs(n) >= 99.95 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def count_text(n: float | None) -> str:
    """4884480 -> '4.9 M'; below ten thousand the number itself."""
    if n is None:
        return "–"
    if abs(n) < 10_000:
        return f"{n:,.0f}"
    for unit in ("k", "M", "G"):
        n /= 1000
        if abs(n) < 999.5:
            return f"{n:.0f} {unit}" if abs(n) >= 99.95 else f"{n:.1f} {unit}"
    return f"{n / 1000:.1f} T"


def duration_text(s: float | None) -> str:
    """75 -> '1 min 15 s'."""
    if s is None:
        return "–"
    seconds = max(0, round(s))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days {hours % 24} h"


def range_text(least: float, most: float) -> str:
    """'2 min', or '2 min to 3 min' where runs like it took so differently."""
    if most <= _ALIKE * least:
        return duration_text(most)
    return f"{duration_text(least)} to {duration_text(most)}"


def when_text(dt: datetime | None) -> str:
    """How long ago, in words; a date where it is more than a week."""
    if dt is None:
        return "–"
    ago = (datetime.now(UTC) - dt).total_seconds()
    if ago < 45:
        return "just now"
    if ago < 3600:
        return f"{max(1, round(ago / 60))} min ago"
    if ago < 86_400:
        return f"{round(ago / 3600)} h ago"
    if ago < 7 * 86_400:
        days = round(ago / 86_400)
        return "yesterday" if days == 1 else f"{days} days ago"
    return f"{dt.day} {dt:%b %Y}"
