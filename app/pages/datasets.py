"""All datasets, and the place to drop a new one in. What a single one holds is on its own page."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gradio as gr

from app.blocks import markup
from app.callbacks import QUIET, Latest, Shown, guarded
from app.components import bytes_text, card, count_text, escape, page_header, progress_html, when_text
from jobs.data.formats import supported
from jobs.service import Service
from jobs.service.datasets import DatasetView, Progress
from jobs.service.examples import Example

SLUG = "datasets"
TITLE = "Datasets"
NAV = "Datasets"
ORDER = 10
ICON = (
    "M4 6c0-1.700 3.600-3 8-3s8 1.300 8 3-3.600 3-8 3-8-1.300-8-3Zm0 0v12c0 1.700 3.600 3 8 3s8-1.300 8-3V6"
    "M4 12c0 1.700 3.600 3 8 3s8-1.300 8-3"
)

MOST_PASTED = 20_000_000  # characters; more is better uploaded
OPEN_DATASET = "(id) => { if (id) window.location.assign('dataset?id=' + id); }"

FORMATS = (
    ("Chat", "messages or conversations", '{"messages": [{"role": "user", "content": "Hello"}, ...]}'),
    ("Instruction", "instruction, input, output", '{"instruction": "Translate", "input": "chat", "output": "cat"}'),
    ("Question and answer", "two columns, or Q: and A: in a text", "question,answer"),
    ("Plain text", "one text a row, or a .txt file", "Once upon a time ..."),
)


def build(service: Service) -> None:
    page_header("Datasets", "Drop in a file. Graft reads all of it and says what it is before anything is trained.")
    with card("drop-card"):
        file = gr.File(label="A file", show_label=False, elem_classes="drop", height=150, type="filepath")
        markup(f'<p class="hint">{escape(supported())}, up to 2 GB</p>')
        with gr.Accordion("Paste text", open=False, elem_classes="other-way"):
            pasted = gr.Textbox(
                label="Text",
                info="A table with its column names, JSON, or plain text: what it is shows by itself.",
                lines=6,
                max_lines=14,
                max_length=MOST_PASTED,
                interactive=True,
            )
            paste = gr.Button("Use this text", elem_classes="fit")
        with gr.Accordion("From the Hugging Face Hub", open=False, elem_classes="other-way"):
            with gr.Row(elem_classes="form-grid"):
                hub_id = gr.Textbox(label="Dataset", placeholder="owner/name", max_length=200, interactive=True)
                config = gr.Textbox(label="Configuration (optional)", max_length=200, interactive=True)
                split = gr.Textbox(label="Split (optional)", placeholder="train", max_length=200, interactive=True)
            fetch = gr.Button("Fetch", elem_classes="fit")
        status = markup()
        notice = markup()
    found = markup()
    with card():
        markup("<h2>Examples to start with</h2>")
        with gr.Row(elem_classes="sample-files"):
            examples = [(example, _example(example)) for example in service.examples.list()]
    opened = gr.Number(visible=False)
    latest = Latest()

    def taken(request: gr.Request, doing: str, news_of: Iterator[Progress | DatasetView]) -> Iterator[Shown]:
        """The newest one counts: another one, or taking this one away, ends its reading."""
        newest = latest.begin(request)
        yield {opened: None, status: progress_html(0, doing)}
        try:
            for news in news_of:
                if not newest():
                    return
                if isinstance(news, Progress):
                    yield {status: progress_html(news.done / max(news.total, 1), news.text)}
                else:
                    yield {status: progress_html(1, "Opening it"), opened: news.id}
        except Exception:
            if not newest():
                return
            yield {status: "", file: None}
            raise

    @guarded(notice)
    def add(request: gr.Request, path: str | None) -> Iterator[Shown]:
        if path:
            yield from taken(request, "Reading the file", service.datasets.add(Path(path), Path(path).name))

    @guarded(notice)
    def add_text(request: gr.Request, text: str) -> Iterator[Shown]:
        yield from taken(request, "Reading the text", service.datasets.add_text(text))

    @guarded(notice)
    def add_from_hub(request: gr.Request, name: str, config: str, split: str) -> Iterator[Shown]:
        yield from taken(request, "Asking the Hub", service.datasets.add_from_hub(name, config, split))

    @guarded(notice)
    def take_away(request: gr.Request) -> Shown:
        latest.begin(request)
        return {status: ""}

    @guarded(notice)
    def show() -> Shown:
        return {found: datasets_html(service.datasets.list())}

    gr.on(None, show, inputs=[], outputs=[found, notice], **QUIET)
    shown = [status, notice, opened, file]
    few = QUIET | {"concurrency_limit": 4}  # files are read, one beside another
    ways = (
        file.upload(add, file, shown, trigger_mode="multiple", **few),
        paste.click(add_text, pasted, shown, **few),
        gr.on(
            [fetch.click, hub_id.submit, config.submit, split.submit],
            add_from_hub,
            [hub_id, config, split],
            shown,
            **few,
        ),
    )
    for way in ways:
        way.then(None, opened, None, js=OPEN_DATASET)
    file.clear(take_away, None, [status, notice], **QUIET)

    def take(name: str) -> Shown:
        return {opened: service.examples.add(name).id}

    for example, button in examples:
        button.click(guarded(notice)(partial(take, example.name)), None, [opened, notice], concurrency_limit=4).then(
            None, opened, None, js=OPEN_DATASET
        )


def _example(example: Example) -> gr.Button:
    """A card with the example's name, what it shows, and its button."""
    with gr.Column(elem_classes="sample-file", min_width=220):
        markup(f"<h3>{escape(example.title)}</h3><p>{escape(example.description)}</p>")
        return gr.Button(f"Open {example.title}", size="md")


def datasets_html(views: list[DatasetView]) -> str:
    """The list, newest first; where it is empty, what kinds of file work."""
    if not views:
        return _formats_html()
    rows = "".join(
        f'<a class="list-row" href="dataset?id={view.id}"><span class="list-main"><strong>{escape(view.name)}</strong>'
        f'<span class="hint">{escape(view.brief)}</span></span>'
        f'<span class="list-facts"><span>{count_text(view.rows)} rows</span><span>{bytes_text(view.size_bytes)}</span>'
        f"<span>{_runs(view.runs)}</span><span>{escape(when_text(view.created_at))}</span></span></a>"
        for view in views
    )
    return f'<section class="list"><h2>Your datasets</h2>{rows}</section>'


def _runs(runs: int) -> str:
    return "no run yet" if not runs else f"{runs} run{'s' if runs > 1 else ''}"


def _formats_html() -> str:
    cells = "".join(
        f'<li><strong>{escape(name)}</strong><span class="hint">{escape(columns)}</span>'
        f"<code>{escape(sample)}</code></li>"
        for name, columns, sample in FORMATS
    )
    return (
        '<section class="formats"><h2>What works without any preparation</h2>'
        f'<ul>{cells}</ul><p class="hint">Anything else with columns works too: you say which is which.</p></section>'
    )
