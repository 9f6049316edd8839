"""One dataset: what it is, what its columns mean, every row as the trainer will see it, and what a full check found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from app.actions import action_list, action_of
from app.blocks import markup
from app.callbacks import QUIET, Latest, Shown, guarded, query_number
from app.components import bytes_text, count_text, note_html, problems_html, progress_html
from app.dataset.mends import APPLY, DISMISS, UNDO, mends_html, ref_of, trial_html
from app.dataset.top import head_html, top_html
from app.drafts import usable_length
from app.forms import widget
from app.preflight import preview_html, report_html
from jobs.data.columns import ROLES, SHAPE_LABELS, Mapping, Shape
from jobs.data.detect import columns_for
from jobs.data.mends import all_mends
from jobs.data.numbers import Decimal
from jobs.data.templates import Templated
from jobs.errors import UserError
from jobs.fields import number_text
from jobs.service import Service
from jobs.service.datasets import DatasetView, Preflight
from jobs.service.mending import MendPreview
from jobs.spec import TrainingParams
from jobs.tasks import all_tasks

SLUG = "dataset"
TITLE = "Dataset"
NAV = None
ORDER = 11
ICON = ""

CHECK_AT_ONCE = 20_000_000  # bytes; a larger file is checked when asked
ALL_ROLES = tuple(dict.fromkeys(role for roles in ROLES.values() for role in roles))
HEAD_ROWS = 8
NUMBERS = [("as they look", ""), ("1234.5 or 1,234.5", "."), ("1234,5 or 1.234,5", ",")]
MISSING = '<header class="page-header"><h1>Dataset</h1><p><a href="datasets">All datasets</a></p></header>'


def build(service: Service) -> None:
    top = action_list()
    notice = markup()
    with gr.Column(visible=False, elem_classes="card mapping") as mapping_card:
        markup("<h2>What the columns mean</h2>")
        shape = gr.Dropdown(
            [(label, value.value) for value, label in SHAPE_LABELS.items()], label="Each row is", interactive=True
        )
        with gr.Row(elem_classes="form-grid"):
            roles = {role: gr.Dropdown(label=_role_label(role), interactive=True) for role in ALL_ROLES}
            decimal = gr.Dropdown(NUMBERS, label="Numbers are written", interactive=True)
        save = gr.Button("Use these columns", variant="primary", elem_classes="fit")
    with gr.Column(visible=False, elem_classes="card check") as check_card:
        markup("<h2>As the model will see it</h2>")
        with gr.Row(elem_classes="form-grid two"):
            base = gr.Dropdown(label="Base model", info="Its tokenizer and chat template are used.", interactive=True)
            max_length = widget("max_length", TrainingParams.model_fields["max_length"])
            task = gr.Dropdown(label="Task", info="What rows become depends on it.", interactive=True)
            template = widget("template", Templated.model_fields["template"])
        with gr.Row(elem_classes="stepper"):
            before = gr.Button("Previous", size="sm")
            row = gr.Number(1, label="Row", step=1, minimum=None, interactive=True, elem_classes="row-number")
            after = gr.Button("Next", size="sm")
        preview = markup()
        mends = action_list()
        markup("<h3>Every row checked</h3>")
        check_all = gr.Button("Check every row", elem_classes="fit", visible=False)
        trial = action_list()
        report = action_list()
    head = markup()
    applied = gr.Number(visible=False)  # when mends were applied or undone last: the rows are read anew
    left = gr.Textbox(visible=False)  # set when the browser is to leave: the page to go to
    latest = Latest()
    role_boxes = list(roles.values())

    def columns_form(view: DatasetView, shape_value: str, chosen: dict[str, str], written: str = "") -> Shown:
        wanted = ROLES[Shape(shape_value)]
        names = service.datasets.columns(view.id)
        return {
            shape: gr.Dropdown(value=shape_value),
            **{
                box: gr.Dropdown(
                    choices=[("(none)", ""), *((name, name) for name in names)],
                    value=chosen.get(role) or "",
                    label=_role_label(role) + ("" if wanted.get(role) else " (optional)"),
                    visible=role in wanted,
                )
                for role, box in roles.items()
            },
            decimal: gr.Dropdown(value=written, visible="score" in wanted),
        }

    def everything(view: DatasetView, *, form_open: bool) -> Shown:
        guess = view.mapping or Mapping(shape=Shape.PROMPT, columns={})
        return {
            top: top_html(view),
            mapping_card: gr.Column(visible=form_open),
            **columns_form(view, guess.shape.value, guess.columns, guess.decimal),
            check_card: gr.Column(visible=view.mapping is not None),
            check_all: gr.Button(visible=view.size_bytes > CHECK_AT_ONCE),
            **mended(view),
            head: head_html(view, service.datasets.head(view.id, HEAD_ROWS)),
        }

    def mended(view: DatasetView) -> Shown:
        applied = [(ref, service.mending.label(ref)) for ref in view.mends]
        offered = service.mending.offered(view.id)
        return {mends: mends_html(applied, offered) if view.mapping else "", trial: ""}

    def tasks_of(view: DatasetView, base_id: int | None) -> Shown:
        """The tasks for this dataset and model; the first that fits, with its template where the model lacks one."""
        fitting = service.planning.tasks(view.id, base_id)
        first = next((each for each in fitting if not each.problems), next(iter(fitting), None))
        choices = [(each.label, each.name) for each in fitting]
        shown = first.params.get("template") if first else None
        return {
            task: gr.Dropdown(choices=choices, value=first.name if first else None, visible=len(choices) > 1),
            template: gr.Dropdown(value=shown, visible=shown is not None),
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
            **tasks_of(view, chosen),
        }

    @guarded(notice)
    def choose_base(request: gr.Request, base_id: int | None) -> Shown:
        return tasks_of(service.datasets.get(_id(request)), base_id)

    @guarded(notice)
    def choose_task(name: str) -> Shown:
        return {template: gr.Dropdown(visible="template" in type(all_tasks()[name]).Params.model_fields)}

    @guarded(notice)
    def press(request: gr.Request, event: gr.EventData) -> Iterator[Shown]:
        pressed, dataset_id = action_of(event), _id(request)
        if pressed.action == "rename":
            yield {top: top_html(service.datasets.rename(dataset_id, pressed.value))}
        elif pressed.action == "used":
            service.datasets.check_unused(dataset_id)
            yield {top: top_html(service.datasets.get(dataset_id))}  # its runs are gone by now: the next press asks
        elif pressed.action == "delete":
            service.datasets.delete(dataset_id)
            yield {left: "datasets"}
        elif pressed.action in ("header", "data"):
            for news in service.datasets.read_again(dataset_id, "data" if pressed.action == "data" else "header"):
                if isinstance(news, DatasetView):
                    yield {left: f"dataset?id={news.id}"}
                else:
                    yield {notice: progress_html(news.done / max(news.total, 1), news.text)}
        else:
            yield {mapping_card: gr.Column(visible=True)}

    @guarded(notice)
    def reshape(shape_value: str, request: gr.Request) -> Shown:
        view = service.datasets.get(_id(request))
        if view.mapping and view.mapping.shape.value == shape_value:
            return columns_form(view, shape_value, view.mapping.columns, view.mapping.decimal)
        guess = columns_for(Shape(shape_value), list(view.columns), service.datasets.sample(view.id))
        return columns_form(view, shape_value, guess)

    @guarded(notice)
    def save_columns(
        request: gr.Request, base_id: int | None, shape_value: str, written: Decimal, *chosen: str
    ) -> Shown:
        wanted = ROLES[Shape(shape_value)]
        columns = {role: name for role, name in zip(roles, chosen, strict=True) if role in wanted and name}
        mapping = Mapping(shape=Shape(shape_value), columns=columns, decimal=written)
        view = service.datasets.set_mapping(_id(request), mapping)
        return {
            **everything(view, form_open=False),
            **tasks_of(view, base_id),
            notice: note_html("These columns are used from now on.", "good"),
        }

    def preview_of(
        request: gr.Request, number: int, base_id: int | None, length: float | None, name: str | None, dressed: str
    ) -> str:
        view = service.datasets.get(_id(request))
        if view.mapping is None or base_id is None or name is None:
            return ""
        params = params_of(view, base_id, name, dressed)
        return preview_html(service.datasets.preview(view.id, number, base_id, name, params, usable_length(length)))

    def params_of(view: DatasetView, base_id: int, name: str, dressed: str) -> dict[str, Any]:
        """The task's settings as this dataset suggests them, with the template that is chosen here."""
        suggested = next((each.params for each in service.planning.tasks(view.id, base_id) if each.name == name), {})
        return suggested | ({"template": dressed} if "template" in suggested and dressed else {})

    @guarded(preview)
    def look(request: gr.Request, number: float | None, *settings: Any) -> Shown:
        return {preview: preview_of(request, _row(number, service.datasets.get(_id(request)).rows), *settings)}

    def step(by: int) -> Any:
        @guarded(preview)
        def go(request: gr.Request, number: float | None, *settings: Any) -> Shown:
            rows = service.datasets.get(_id(request)).rows
            wanted = max(1, min(int(number or 0) + by, rows))  # from a row that is not there to the nearest
            return {row: wanted, preview: preview_of(request, wanted, *settings)}

        return go

    @guarded(trial)
    def press_finding(request: gr.Request, event: gr.EventData, *settings: Any) -> Iterator[Shown]:
        """A row's number shows the row above; a mend is tried, and shown before it is done."""
        pressed = action_of(event)
        if pressed.action == "look":
            yield {row: pressed.id, preview: preview_of(request, pressed.id, *settings), trial: gr.skip()}
            return
        if pressed.action == DISMISS:
            yield {trial: ""}
            return
        verb, ref = ref_of(pressed.action)
        view = service.datasets.get(_id(request))
        if verb in (APPLY, UNDO):
            changed = service.mending.apply(view.id, ref) if verb == APPLY else service.mending.undo(view.id, ref.name)
            yield {**mended(changed), applied: time.time()}
            return
        yield {trial: progress_html(0, "Looking at every row")}
        for news in service.mending.preview(view.id, ref):
            if isinstance(news, MendPreview):
                label = service.mending.label(ref)
                yield {trial: trial_html(all_mends()[ref.name], label, ref, news)}
            else:
                yield {trial: progress_html(news.done / max(news.total, 1), news.text)}

    def check(request: gr.Request, asked: bool, settings: Sequence[Any]) -> Iterator[Shown]:
        base_id, length, name, dressed = settings
        newest = latest.begin(request)
        view = service.datasets.get(_id(request))
        if view.mapping is None or base_id is None or name is None:
            yield {
                report: note_html("Add a base model first: its tokenizer does the counting.") if view.mapping else ""
            }
            return
        if view.size_bytes > CHECK_AT_ONCE and not asked:
            text = f"{count_text(view.rows)} rows, {bytes_text(view.size_bytes)}: a full check takes a while."
            yield {report: note_html(text)}
            return
        try:
            checked_length = usable_length(length)
        except UserError:
            yield {report: ""}  # the preview says what is wrong
            return
        yield {report: progress_html(0, "Starting the check")}
        params = params_of(view, base_id, name, dressed)
        names = {each.name: each.label for each in all_mends().values()}
        for news in service.datasets.preflight(view.id, base_id, name, params, checked_length):
            if not newest():
                return
            if isinstance(news, Preflight):
                yield {report: report_html(news, checked_length, names)}
            else:
                yield {report: progress_html(news.done / max(news.total, 1), news.text)}

    @guarded(report)
    def check_soon(request: gr.Request, *settings: Any) -> Iterator[Shown]:
        yield from check(request, False, settings)

    @guarded(report)
    def check_now(request: gr.Request, *settings: Any) -> Iterator[Shown]:
        yield from check(request, True, settings)

    settings = [base, max_length, task, template]
    page = [
        top,
        mapping_card,
        shape,
        *role_boxes,
        decimal,
        check_card,
        check_all,
        mends,
        trial,
        head,
        notice,
        task,
        template,
    ]
    loaded = gr.on(None, show, inputs=[], outputs=[*page, base], **QUIET)
    saved = save.click(save_columns, [base, shape, decimal, *role_boxes], page, **QUIET)
    rebased = base.input(choose_base, base, [task, template, notice], **QUIET)
    retasked = task.input(choose_task, task, [template, notice], **QUIET)
    for seen in (loaded, saved, rebased, retasked):
        seen.then(look, [row, *settings], [preview], **QUIET)
        seen.then(check_soon, settings, [report], **QUIET)
    changed: list[Any] = [max_length.change, template.input, applied.change]  # type: ignore[attr-defined]
    gr.on(changed, look, [row, *settings], [preview], trigger_mode="always_last", **QUIET)
    gr.on(changed, check_soon, settings, [report], trigger_mode="multiple", **QUIET)
    top.click(press, None, [top, mapping_card, left, notice], **QUIET).then(
        None, left, None, js="(page) => { if (page) window.location.assign(page); }"
    )
    shape.input(reshape, shape, [shape, *role_boxes, decimal, notice], **QUIET)
    before.click(step(-1), [row, *settings], [row, preview], **QUIET)
    after.click(step(+1), [row, *settings], [row, preview], **QUIET)
    gr.on([row.submit, row.blur], look, [row, *settings], [preview], **QUIET)
    for block in (report, mends, trial):
        block.click(press_finding, settings, [row, preview, mends, trial, applied], **QUIET).then(
            None, None, None, js="() => document.querySelector('.trial')?.scrollIntoView({block: 'nearest'})"
        )
    check_all.click(check_now, settings, [report], trigger_mode="once", **QUIET)


def _id(request: gr.Request) -> int:
    if (number := query_number(request, "id")) is None:
        raise UserError("This address names no dataset. Choose one on the page Datasets.")
    return number


def _role_label(role: str) -> str:
    return role.replace("_", " ").capitalize()


def _row(typed: float | None, rows: int) -> int:
    """The row to show. Raises UserError where there is none of this number."""
    wanted = f"The rows go from 1 to {rows:,}."
    if typed is None:
        raise UserError(f"Row is empty. {wanted}")
    if typed != int(typed) or not 1 <= typed <= rows:
        raise UserError(f"You set Row to {number_text(typed)}: there is no such row. {wanted}")
    return int(typed)
