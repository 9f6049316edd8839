"""One dataset: what it is, what its columns mean, every row as the trainer will see it, and what a full check found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.actions import action_html, action_list, action_of
from app.blocks import markup
from app.callbacks import Latest, Shown, guarded, query_number
from app.components import (
    bytes_text,
    count_text,
    escape,
    figures_html,
    note_html,
    problems_html,
    progress_html,
    when_text,
)
from app.drafts import usable_length
from app.forms import widget
from app.preflight import preview_html, report_html
from jobs.data.columns import ROLES, Mapping, Shape
from jobs.data.detect import columns_for
from jobs.errors import UserError
from jobs.fields import number_text
from jobs.service import Service
from jobs.service.datasets import DatasetView, Preflight
from jobs.spec import TrainingParams
from jobs.tasks import task_for

SLUG = "dataset"
TITLE = "Dataset"
NAV = None
ORDER = 11
ICON = ""

CHECK_AT_ONCE = 20_000_000  # bytes; a larger file is checked when asked
SHAPES = {
    Shape.MESSAGES: "Chat: a column of messages",
    Shape.SHAREGPT: "Chat in ShareGPT form",
    Shape.INSTRUCTION: "Instruction and answer",
    Shape.PROMPT: "Prompt and completion",
    Shape.TEXT: "Plain text",
}
ALL_ROLES = tuple(dict.fromkeys(role for roles in ROLES.values() for role in roles))
HEAD_ROWS = 8
GUESS_ROWS = 50  # looked at for columns that hold text
MISSING = '<header class="page-header"><h1>Dataset</h1><p><a href="datasets">All datasets</a></p></header>'


def build(service: Service) -> None:
    top = action_list()
    notice = markup()
    with gr.Column(visible=False, elem_classes="card mapping") as mapping_card:
        markup("<h2>What the columns mean</h2>")
        shape = gr.Radio(
            [(label, value.value) for value, label in SHAPES.items()], label="Each row is", interactive=True
        )
        with gr.Row(elem_classes="form-grid"):
            roles = {role: gr.Dropdown(label=role.capitalize(), interactive=True) for role in ALL_ROLES}
        save = gr.Button("Use these columns", variant="primary", elem_classes="fit")
    with gr.Column(visible=False, elem_classes="card check") as check_card:
        markup("<h2>As the model will see it</h2>")
        with gr.Row(elem_classes="form-grid two"):
            base = gr.Dropdown(label="Base model", info="Its tokenizer and chat template are used.", interactive=True)
            max_length = widget("max_length", TrainingParams.model_fields["max_length"])
        with gr.Row(elem_classes="stepper"):
            before = gr.Button("Previous", size="sm")
            row = gr.Number(1, label="Row", step=1, minimum=None, interactive=True, elem_classes="row-number")
            after = gr.Button("Next", size="sm")
        preview = markup()
        markup("<h3>Every row checked</h3>")
        check_all = gr.Button("Check every row", elem_classes="fit", visible=False)
        report = action_list()
    head = markup()
    left = gr.Checkbox(visible=False)  # set when the dataset is gone: the browser leaves
    latest = Latest()
    role_boxes = list(roles.values())

    def columns_form(view: DatasetView, shape_value: str, chosen: dict[str, str]) -> Shown:
        wanted = ROLES[Shape(shape_value)]
        return {
            shape: gr.Radio(value=shape_value),
            **{
                box: gr.Dropdown(
                    choices=[("(none)", ""), *((name, name) for name in view.columns)],
                    value=chosen.get(role) or "",
                    label=role.capitalize() + ("" if wanted.get(role) else " (optional)"),
                    visible=role in wanted,
                )
                for role, box in roles.items()
            },
        }

    def everything(view: DatasetView, *, form_open: bool) -> Shown:
        guess = view.mapping or Mapping(shape=Shape.PROMPT, columns={})
        return {
            top: top_html(view),
            mapping_card: gr.Column(visible=form_open),
            **columns_form(view, guess.shape.value, guess.columns),
            check_card: gr.Column(visible=view.mapping is not None),
            check_all: gr.Button(visible=view.size_bytes > CHECK_AT_ONCE),
            head: head_html(view, service.datasets.head(view.id, HEAD_ROWS)),
        }

    @guarded(notice)
    def show(request: gr.Request) -> Shown:
        try:
            view = service.datasets.get(_id(request))
        except UserError as error:
            return {top: MISSING, notice: problems_html(error)}
        bases = service.models.bases()
        chosen = query_number(request, "base") or next((b.id for b in bases if b.available), None)
        return {
            **everything(view, form_open=not view.sure or view.mapping is None),
            base: gr.Dropdown(choices=[(b.name, b.id) for b in bases], value=chosen),
        }

    @guarded(notice)
    def press(request: gr.Request, event: gr.EventData) -> Shown:
        pressed, dataset_id = action_of(event), _id(request)
        if pressed.action == "rename":
            return {top: top_html(service.datasets.rename(dataset_id, pressed.value))}
        if pressed.action == "delete":
            service.datasets.delete(dataset_id)
            return {left: True}
        return {mapping_card: gr.Column(visible=True)}

    @guarded(notice)
    def reshape(shape_value: str, request: gr.Request) -> Shown:
        view = service.datasets.get(_id(request))
        if view.mapping and view.mapping.shape.value == shape_value:
            return columns_form(view, shape_value, view.mapping.columns)
        guess = columns_for(Shape(shape_value), list(view.columns), service.datasets.head(view.id, GUESS_ROWS))
        return columns_form(view, shape_value, guess)

    @guarded(notice)
    def save_columns(request: gr.Request, shape_value: str, *chosen: str) -> Shown:
        wanted = ROLES[Shape(shape_value)]
        columns = {role: name for role, name in zip(roles, chosen, strict=True) if role in wanted and name}
        view = service.datasets.set_mapping(_id(request), Mapping(shape=Shape(shape_value), columns=columns))
        return {**everything(view, form_open=False), notice: note_html("These columns are used from now on.", "good")}

    @guarded(preview)
    def look(request: gr.Request, number: float | None, base_id: int | None, length: float | None) -> Shown:
        return {preview: preview_of(request, _row(number, service.datasets.get(_id(request)).rows), base_id, length)}

    def preview_of(request: gr.Request, number: int, base_id: int | None, length: float | None) -> str:
        view = service.datasets.get(_id(request))
        if view.mapping is None or base_id is None:
            return ""
        name, params = _task(view.mapping)
        return preview_html(service.datasets.preview(view.id, number, base_id, name, params, usable_length(length)))

    def step(by: int) -> Any:
        @guarded(preview)
        def go(request: gr.Request, number: float | None, base_id: int | None, length: float | None) -> Shown:
            rows = service.datasets.get(_id(request)).rows
            wanted = max(1, min(int(number or 0) + by, rows))  # from a row that is not there to the nearest
            return {row: wanted, preview: preview_of(request, wanted, base_id, length)}

        return go

    @guarded(preview)
    def look_at(request: gr.Request, event: gr.EventData, base_id: int | None, length: float | None) -> Shown:
        number = action_of(event).id
        return {row: number, preview: preview_of(request, number, base_id, length)}

    def check(request: gr.Request, base_id: int | None, length: float | None, asked: bool) -> Iterator[Shown]:
        newest = latest.begin(request)
        view = service.datasets.get(_id(request))
        if view.mapping is None or base_id is None:
            yield {
                report: note_html("Add a base model first: its tokenizer does the counting.") if view.mapping else ""
            }
            return
        if view.size_bytes > CHECK_AT_ONCE and not asked:
            text = f"{count_text(view.rows)} rows, {bytes_text(view.size_bytes)}: a full check takes a while."
            yield {report: note_html(text)}
            return
        name, params = _task(view.mapping)
        try:
            checked_length = usable_length(length)
        except UserError:
            yield {report: ""}  # the preview says what is wrong
            return
        yield {report: progress_html(0, "Starting the check")}
        for news in service.datasets.preflight(view.id, base_id, name, params, checked_length):
            if not newest():
                return
            if isinstance(news, Preflight):
                yield {report: report_html(news, checked_length)}
            else:
                yield {report: progress_html(news.done / max(news.total, 1), news.text)}

    @guarded(report)
    def check_soon(request: gr.Request, base_id: int | None, length: float | None) -> Iterator[Shown]:
        yield from check(request, base_id, length, asked=False)

    @guarded(report)
    def check_now(request: gr.Request, base_id: int | None, length: float | None) -> Iterator[Shown]:
        yield from check(request, base_id, length, asked=True)

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
    # Gradio's usual "once" drops what a person does while the same thing is under way: what reads the page's state
    # runs once more afterwards, the rest runs beside it.
    again: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
    beside: dict[str, Any] = {**quiet, "trigger_mode": "multiple"}
    settings = [base, max_length]
    page = [top, mapping_card, shape, *role_boxes, check_card, check_all, head, notice]
    loaded = gr.on(None, show, inputs=[], outputs=[*page, base], **quiet)
    saved = save.click(save_columns, [shape, *role_boxes], page, **again)
    for seen in (loaded, saved):
        seen.then(look, [row, *settings], [preview], **again)
        seen.then(check_soon, settings, [report], **beside)
    changed: list[Any] = [base.input, max_length.change]  # type: ignore[attr-defined]
    gr.on(changed, look, [row, *settings], [preview], **again)
    gr.on(changed, check_soon, settings, [report], **beside)
    top.click(press, None, [top, mapping_card, left, notice], **beside).then(
        None, left, None, js="(gone) => { if (gone) window.location.assign('datasets'); }"
    )
    shape.input(reshape, shape, [shape, *role_boxes, notice], **again)
    before.click(step(-1), [row, *settings], [row, preview], **again)
    after.click(step(+1), [row, *settings], [row, preview], **again)
    gr.on([row.submit, row.blur], look, [row, *settings], [preview], **again)
    report.click(look_at, settings, [row, preview], **beside)
    check_all.click(check_now, settings, [report], trigger_mode="once", **quiet)


def _id(request: gr.Request) -> int:
    if (number := query_number(request, "id")) is None:
        raise UserError("This address names no dataset. Choose one on the page Datasets.")
    return number


def _task(mapping: Mapping) -> tuple[str, dict[str, Any]]:
    """The task this dataset is trained with by default, and its settings."""
    task = task_for(mapping.shape)
    return task.name, type(task).Params().model_dump()


def _row(typed: float | None, rows: int) -> int:
    """The row to show. Raises UserError where there is none of this number."""
    wanted = f"The rows go from 1 to {rows:,}."
    if typed is None:
        raise UserError(f"Row is empty. {wanted}")
    if typed != int(typed) or not 1 <= typed <= rows:
        raise UserError(f"You set Row to {number_text(typed)}: there is no such row. {wanted}")
    return int(typed)


def top_html(view: DatasetView) -> str:
    """Name, figures, what was detected, and what can be done."""
    figures = figures_html(
        [
            ("Rows", count_text(view.rows), ""),
            ("Size", bytes_text(view.size_bytes), view.format.upper()),
            (
                "Columns",
                str(len(view.columns)),
                ", ".join(view.columns[:4]) + (" ..." if len(view.columns) > 4 else ""),
            ),
            ("Runs", str(view.runs), "trained on it"),
        ]
    )
    train = (
        f'<a class="button primary" href="train?dataset={view.id}">Train on this</a>'
        if view.mapping
        else '<span class="hint">Choose the columns first; then you can train on it.</span>'
    )
    buttons = (
        train
        + action_html("columns", view.id, "Change columns")
        + action_html("rename", view.id, "Rename", question="A new name for this dataset", value=view.name)
        + action_html(
            "delete", view.id, "Delete", question=f"Delete the dataset {view.name} and its file? This cannot be undone."
        )
    )
    return (
        f'<div class="stack top"><header class="page-header"><h1>{escape(view.name)}</h1>'
        f"<p>{escape(view.filename)} · added {escape(when_text(view.created_at))}</p></header>"
        f"{figures}{note_html(view.detected, 'good' if view.sure else 'warn')}"
        f'<div class="buttons">{buttons}</div></div>'
    )


def head_html(view: DatasetView, rows: list[dict[str, Any]]) -> str:
    """The file's first rows, as they were read."""
    titles = "".join(f"<th>{escape(name)}</th>" for name in view.columns)
    body = "".join(
        "<tr>"
        + f'<td class="number muted">{number}</td>'
        + "".join(f"<td>{escape(_cell(values.get(name)))}</td>" for name in view.columns)
        + "</tr>"
        for number, values in enumerate(rows, 1)
    )
    return (
        f'<section class="card"><h2>The first rows, as they were read</h2><div class="table-wrap">'
        f'<table class="table raw"><thead><tr><th class="number">Row</th>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
        "</div></section>"
    )


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
