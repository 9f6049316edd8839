"""Kept answers, with all that is needed to make each again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.actions import action_html, action_list, action_of
from app.answers import answer_html
from app.blocks import markup
from app.callbacks import QUIET, Latest, Shown, guarded
from app.components import escape, note_html, page_header, when_text
from jobs.fields import title_of
from jobs.inference.sampling import Sampling
from jobs.service import Service
from jobs.service.chats import Delta
from jobs.service.samples import SampleView

SLUG = "samples"
TITLE = "Samples"
NAV = None
ORDER = 51
ICON = ""


def build(service: Service) -> None:
    page_header("Samples", "Answers that you kept from the playground. Each can be made again with its own settings.")
    notice = markup()
    again = markup(classes="again")
    samples = action_list()
    latest = Latest()

    @guarded(notice)
    def show() -> Shown:
        return {samples: samples_html(service.playground.samples.list())}

    @guarded(notice)
    def press(request: gr.Request, event: gr.EventData) -> Iterator[Shown]:
        """What is pressed next ends an answer that is being made again."""
        pressed, newest = action_of(event), latest.begin(request)
        if pressed.action == "delete":
            service.playground.samples.delete(pressed.id)
            yield {again: "", **show()}
            return
        sample = service.playground.samples.get(pressed.id)
        yield {again: again_html(sample, "", "Starting the model")}
        last: Delta | None = None
        for news in service.playground.make_again(sample.id):
            if not newest():
                return
            if isinstance(news, Delta):
                last = news
                yield {again: again_html(sample, news.text, "Making it again")}
            else:
                yield {again: again_html(sample, "", news.text)}
        yield {again: again_html(sample, last.text if last else "", None)}

    gr.on(None, show, inputs=[], outputs=[samples, notice], **QUIET)
    samples.click(
        press,
        None,
        [again, samples, notice],
        trigger_mode="multiple",
        scroll_to_output=True,
        **QUIET,
    )


def again_html(sample: SampleView, text: str, status: str | None) -> str:
    """The new answer beside the kept one; at the end, whether they are the same."""
    if status is not None:
        verdict = note_html(f"{status} ...")
    elif text == sample.answer.rstrip("\ufffd"):  # half a character at its end, from before those were dropped
        verdict = note_html("Identical: the same answer, character for character.", "good")
    else:
        verdict = note_html("Different. Another machine, package version or device can draw other tokens.", "warn")
    return (
        f'<section class="card stack">{verdict}<div class="panes" style="--panes:2">'
        f'<article class="pane"><h4>Kept</h4><div class="answer">{answer_html(sample.answer)}</div></article>'
        f'<article class="pane"><h4>Made again</h4><div class="answer">{answer_html(text)}</div></article>'
        "</div></section>"
    )


def samples_html(views: list[SampleView]) -> str:
    """One card a sample, newest first."""
    if not views:
        return (
            '<div class="card empty"><h2>No sample kept yet</h2>'
            "<p>Under every answer in the playground is a button Keep.</p>"
            '<div class="buttons"><a class="button primary" href="playground">Open the playground</a></div></div>'
        )
    return f'<div class="stack">{"".join(_sample_html(view) for view in views)}</div>'


def _sample_html(view: SampleView) -> str:
    said = "".join(
        f'<p class="said {escape(message["role"])}"><b>{escape(str(message["role"]).capitalize())}</b> '
        f"{escape(message['content'])}</p>"
        for message in view.messages
    )
    settings = "".join(
        f"<dt>{escape(title_of(name, field))}</dt><dd>{escape(getattr(view.sampling, name)) or '–'}</dd>"
        for name, field in Sampling.model_fields.items()
    )
    engine = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _machine(view.engine))
    who = f"{view.adapter} on {view.base_model}" if view.adapter else f"{view.base_model}, as it is"
    note = f'<p class="sample-note">{escape(view.note)}</p>' if view.note else ""
    return (
        f'<article class="card sample"><p class="hint">{escape(who)} · {escape(when_text(view.created_at))}</p>'
        f"{note}{said}"
        f'<div class="pane"><div class="answer">{answer_html(view.answer)}</div></div>'
        f'<details><summary>Settings and machine</summary><dl class="pairs">{settings}{engine}</dl></details>'
        '<div class="buttons">'
        + action_html("again", view.id, "Make again")
        + action_html("delete", view.id, "Delete", question="Delete this sample? This cannot be undone.")
        + "</div></article>"
    )


def _machine(engine: dict[str, Any]) -> list[tuple[str, Any]]:
    """What computed the answer: device, dtype, package versions; not how the batch was made up."""
    found: list[tuple[str, Any]] = []
    for name, value in engine.items():
        if isinstance(value, dict):
            found += _machine(value)
        elif name not in ("batch", "row", "tokens", "finish"):
            found.append((name, value))
    return found
