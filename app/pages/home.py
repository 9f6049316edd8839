"""The first page: what Graft is, an example that trains with one click, and what there is already."""

from __future__ import annotations

import time

from app.components import (
    badge_html,
    bytes_text,
    escape,
    figures_html,
    live_html,
    page_header,
    problems_html,
    progress_html,
    when_text,
)
from app.run_words import label, steps_text
from jobs.data.columns import Shape
from jobs.hardware import Hardware, this_machine
from jobs.methods import method
from jobs.service import Service
from jobs.service.examples import Example
from jobs.tasks import task
from jobs.tasks.base import READERS

SLUG = ""
TITLE = "Home"
NAV = "Home"
ORDER = 0
ICON = "M3 11.5 12 4l9 7.5M5.5 9.5V20h13V9.5M10 20v-6h4v6"

_HARDWARE_KEPT = 300.0  # seconds; asking a GPU takes a while


def build(service: Service) -> None:
    page_header(
        "Teach a language model your way of answering",
        "Drop in examples, press Start, watch it learn, and chat with the result. On your own machine, without code.",
    )
    live_html("home")


def home_html(service: Service) -> str:
    """Everything below the header; sent anew when the catalog or the starter model's preparation changes."""
    examples = service.examples.list()
    ready = {example.name for example in examples if service.examples.ready(example.name)}
    return (
        f'<div class="home"><div id="problems"></div>{_preparation_html(service, len(ready) == len(examples))}'
        f"{_examples_html(service, ready)}{_own_html()}{_figures_html(service)}{_recent_html(service)}</div>"
    )


def _preparation_html(service: Service, ready: bool) -> str:
    state = service.preparation
    if ready:
        return '<div data-key="preparation"></div>'
    if state.problems:
        body = problems_html(state.problems) + (
            '<div class="buttons"><button type="button" class="button" data-post="/live/starter/prepare">Try again'
            "</button></div>"
        )
    else:
        progress = state.progress
        body = "<h2>Preparing the starter models</h2>" + progress_html(
            progress.fraction if progress else 0, progress.text if progress else "Beginning"
        )
        body += '<p class="hint">Once, for about a minute. You can already upload data.</p>'
    return f'<div class="card" data-key="preparation">{body}</div>'


def _examples_html(service: Service, ready: set[str]) -> str:
    """Cards by what they teach; the first of all is the one to begin with."""
    examples = service.examples.list()
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(_teaches(example.task), []).append(example)
    return "".join(
        f'<section data-key="teaches-{number}" class="examples"><h2 class="section-title">{heading}</h2>'
        f'<div class="cards">{"".join(_example_html(each, ready, each is examples[0]) for each in members)}</div>'
        "</section>"
        for number, (heading, members) in enumerate(groups.items())
    )


def _example_html(example: Example, ready: set[str], first: bool) -> str:
    can = example.name in ready
    made = f"{label(method, example.method)} on {example.base_model}"
    return (
        f'<article class="card example"><p class="eyebrow">{escape(label(task, example.task))}</p>'
        f"<h3>{escape(example.title)}</h3><p>{escape(example.description)}</p>"
        f'<p class="hint">{escape(made)}</p>'
        f'<div class="buttons"><button type="button" class="button{" primary" if first else ""}" '
        f'data-post="/live/examples/{escape(example.name)}/start"{"" if can else " disabled"}>Train this example'
        f'</button><span class="hint">{"about two minutes" if can else "when its model is ready"}</span>'
        "</div></article>"
    )


def _teaches(name: str) -> str:
    """What examples of this task have in common, as their heading."""
    taught = task(name)
    if taught.head in READERS:
        return "Teach it to sort, mark and find"
    if not taught.talks:
        return "Teach it to turn one text into another"
    if {Shape.PREFERENCE, Shape.FEEDBACK} & (set(taught.shapes) - set(taught.borrowed)):
        return "Teach it which answers are better"
    return "Teach it to answer"


def _own_html() -> str:
    return (
        '<div class="card own" data-key="own"><div><h2>Use your own data</h2><p class="muted">A CSV, JSON or text file '
        "with questions and answers is enough. You see what will be trained before it starts.</p></div>"
        '<div class="buttons"><a class="button" href="/datasets">Add a dataset</a>'
        '<a class="button" href="/train">Set up a run</a></div></div>'
    )


def _figures_html(service: Service) -> str:
    hardware = _hardware()
    runs = service.runs.list()
    busy = sum(run.state.active for run in runs)
    waiting = sum(run.state.value == "queued" for run in runs)
    what = ", ".join(
        part for part in (f"{busy} training" if busy else "", f"{waiting} waiting" if waiting else "") if part
    )
    processor = "GPU" if hardware.device == "cuda" else f"{hardware.cores} cores"
    items = [
        ("Datasets", str(len(service.datasets.list())), ""),
        ("Runs", str(len(runs)), what),
        ("Adapters", str(len(service.models.adapters())), ""),
        ("This machine", processor, f"{hardware.name}, {bytes_text(hardware.memory_total)}"),
    ]
    return f'<div data-key="figures">{figures_html(items)}</div>'


def _recent_html(service: Service) -> str:
    runs = service.runs.list(limit=5)
    if not runs:
        return '<div data-key="recent"></div>'
    rows = "".join(
        f'<li><a class="link" href="/run?id={run.id}">{escape(run.name)}</a>{badge_html(run.state)}'
        f'<span class="hint number">{escape(steps_text(run)) + " steps" if run.step else ""}</span>'
        f'<span class="hint">{escape(when_text(run.started_at or run.created_at))}</span></li>'
        for run in runs
    )
    return (
        f'<section class="card" data-key="recent"><h2>Recent runs</h2><ul class="recent">{rows}</ul>'
        '<p><a href="/runs">All runs</a></p></section>'
    )


_asked: tuple[float, Hardware] | None = None


def _hardware() -> Hardware:
    global _asked
    if _asked is None or time.monotonic() - _asked[0] > _HARDWARE_KEPT:
        _asked = (time.monotonic(), this_machine())
    return _asked[1]


FRAGMENTS = {"home": home_html}
