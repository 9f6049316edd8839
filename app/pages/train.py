"""From a dataset and a model to a run: few choices in sight, every setting one click away, Start always in view.

The address holds the choices (/train?dataset=3&base=1&method=lora&preset=quick); /train?run=7 starts from a run's
settings. The data check runs by itself, and the summary moves with every setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from app.blocks import markup
from app.callbacks import Latest, Shown, guarded, query_number
from app.components import card, note_html, page_header, progress_html
from app.drafts import Checks, Settings, Starts, usable_length
from app.forms import Form
from app.summary import check_line_html, summary_html, words_html
from jobs.errors import UserError
from jobs.methods import all_methods
from jobs.presets import PRESETS
from jobs.service import Service
from jobs.service.datasets import DatasetView, Preflight, Progress
from jobs.spec import TrainingParams
from jobs.tasks import all_tasks

SLUG = "train"
TITLE = "Train"
NAV = "Train"
ORDER = 20
ICON = "M5 3.500v17l15-8.500-15-8.500Z"

PROMPTS = 3
USUAL_PROMPTS = ("What can you help me with?", "How do I bake bread?", "Tell me something surprising.")
KEEP_ADDRESS = """(dataset, base, method, preset) => {
  const chosen = new URLSearchParams();
  for (const [name, value] of Object.entries({dataset, base, method, preset})) if (value) chosen.set(name, value);
  history.replaceState(history.state, '', location.pathname + '?' + chosen);
}"""
NO_DATASET = '<p class="check-line warn">Choose a dataset, or <a href="datasets">add one</a>.</p>'
OPEN_RUN = """(run) => {
  if (run) { window.location.assign('run?id=' + run); return; }
  const problem = document.querySelector('.train-summary .note.bad');
  if (problem) problem.scrollIntoView({block: 'center', behavior: 'smooth'});
}"""


def build(service: Service) -> None:
    methods, tasks = all_methods(), all_tasks()
    page_header("Train", "Choose what to teach and which model learns it. Everything else has a sound default.")
    lost = markup()
    with gr.Row(elem_classes="train"):
        with gr.Column(elem_classes="train-form", min_width=0):
            with card():
                _heading(1, "Data and model")
                with gr.Row(elem_classes="form-grid two"):
                    dataset = gr.Dropdown(label="Dataset", interactive=True)
                    base = gr.Dropdown(label="Base model", interactive=True)
                checked = markup()
                training_rows = gr.Column(visible=False, elem_classes="plain")
            with card():
                _heading(2, "Method")
                method = gr.Radio(
                    [(f"{each.label}\n{each.help}", name) for name, each in methods.items()],
                    value=next(iter(methods)),
                    show_label=False,
                    label="Method",
                    interactive=True,
                    elem_classes="choices",
                )
                task = gr.Radio(
                    [(f"{each.label}\n{each.help}", name) for name, each in tasks.items()],
                    label="Task",
                    visible=False,
                    interactive=True,
                    elem_classes="choices",
                )
            with card():
                _heading(3, "How thoroughly")
                preset = gr.Radio(
                    [(f"{each.label}\n{each.help}", name) for name, each in PRESETS.items()],
                    value="balanced",
                    show_label=False,
                    label="Preset",
                    interactive=True,
                    elem_classes="choices",
                )
            with card(), gr.Accordion("All settings", open=False, elem_classes="settings"):
                training = Form(TrainingParams, without=("leave_out_bad_rows",))
                method_groups, method_forms = _forms(methods, "settings", lambda each: each.label)
                task_groups, task_forms = _forms(tasks, "task", lambda each: each.label)
            with training_rows:
                leave_out = training.add("leave_out_bad_rows")
            with card():
                markup(
                    '<h2>Name and test prompts</h2><p class="hint">At every checkpoint base and tuned model answer '
                    "these prompts, so that you see what it learns. Best are ones that are not in the data.</p>"
                )
                name = gr.Textbox(
                    label="Name of the run", placeholder="Left empty, it is named after dataset and method"
                )
                prompts = [gr.Textbox(label=f"Prompt {n}", max_lines=3) for n in range(1, PROMPTS + 1)]
        with gr.Column(elem_classes="train-summary", min_width=0), card():
            markup("<h2>What will happen</h2>")
            summary = markup()
            start = gr.Button("Start training", variant="primary", size="lg", elem_classes="start")
            words = markup()
    started = gr.Number(visible=False)

    choices = [dataset, base, method, preset]
    forms = [training, *method_forms.values(), *task_forms.values()]
    inputs = [*choices, task, name, *prompts, *(widget for form in forms for widget in form.components)]
    checks, starts, latest = Checks(service), Starts(), Latest()

    def settings(values: Sequence[Any]) -> Settings:
        rest = list(values)

        def take(count: int) -> list[Any]:
            taken, rest[:count] = rest[:count], []
            return taken

        def form_values(form: Form[Any]) -> dict[str, Any]:
            return form.values(take(len(form.components)))

        chosen = dict(zip(("dataset", "base", "method", "preset", "task", "name"), take(6), strict=True))
        return Settings(
            **chosen,
            prompts=tuple(text for text in take(PROMPTS) if text and text.strip()),
            training=form_values(training),
            methods={key: form_values(form) for key, form in method_forms.items()},
            tasks={key: form_values(form) for key, form in task_forms.items()},
        )

    def show_task(view: DatasetView | None, chosen: str | None = None) -> Shown:
        """The tasks this dataset can be used for; nothing to choose where there is one."""
        fitting = [key for key, each in tasks.items() if view and view.mapping and view.mapping.shape in each.shapes]
        value = chosen if chosen in fitting else (fitting[0] if fitting else None)
        return {
            task: gr.Radio(
                choices=[(f"{tasks[key].label}\n{tasks[key].help}", key) for key in fitting],
                value=value,
                visible=len(fitting) > 1,
            ),
            **{
                group: gr.Column(visible=key == value and bool(task_forms[key].names))
                for key, group in task_groups.items()
            },
        }

    def show_form(form: Form[Any], values: dict[str, Any]) -> Shown:
        return dict(zip(form.components, form.show(values), strict=True))

    def show_method(chosen: str, params: dict[str, Any]) -> Shown:
        return {
            **{group: gr.Column(visible=key == chosen) for key, group in method_groups.items()},
            **show_form(method_forms[chosen], params),
        }

    def prompts_for(view: DatasetView | None) -> Shown:
        """An example's own prompts; otherwise empty, and the data check fills them in."""
        known = next((each.prompts for each in service.examples.list() if view and each.file == view.filename), ())
        return dict(zip(prompts, (*known[:PROMPTS], *[""] * PROMPTS), strict=False))

    @guarded(lost)
    def show(request: gr.Request) -> Shown:
        datasets, bases = service.datasets.list(), service.models.bases()
        chosen = {
            "method": str(request.query_params.get("method", "")),
            "preset": str(request.query_params.get("preset", "")),
        }
        if chosen["method"] not in methods:
            chosen["method"] = next(iter(methods))
        if chosen["preset"] not in PRESETS:
            chosen["preset"] = "balanced"
        dataset_id = query_number(request, "dataset") or (datasets[0].id if datasets else None)
        base_id = query_number(request, "base") or next((each.id for each in bases if each.available), None)
        copied = None
        if (run_id := query_number(request, "run")) is not None:
            copied = service.runs.get(run_id)
            dataset_id, base_id, chosen["method"] = copied.dataset_id, copied.base_model_id, copied.spec.method
        view = next((each for each in datasets if each.id == dataset_id), None)
        if base_id not in [each.id for each in bases]:
            base_id = None
        shown: Shown = {
            dataset: gr.Dropdown(choices=[(each.name, each.id) for each in datasets], value=view.id if view else None),
            base: gr.Dropdown(choices=[(each.name, each.id) for each in bases], value=base_id),
            method: chosen["method"],
            preset: chosen["preset"],
            **show_task(view, copied.spec.task if copied else None),
        }
        if copied:
            spec = copied.spec
            return {
                **shown,
                name: spec.name,
                **dict(zip(prompts, (*spec.prompts[:PROMPTS], *[""] * PROMPTS), strict=False)),
                **show_form(training, spec.training.model_dump()),
                **show_method(spec.method, spec.method_params),
                **(show_form(task_forms[spec.task], spec.task_params) if spec.task in task_forms else {}),
            }
        if base_id is not None:
            draft = service.planning.defaults(
                base_id, view.id if view and view.mapping else None, chosen["method"], chosen["preset"]
            )
            shown |= show_form(training, draft.training) | show_method(draft.method, draft.method_params)
        return {**shown, **prompts_for(view)}

    @guarded(words)
    def choose_dataset(dataset_id: int | None) -> Shown:
        view = service.datasets.get(dataset_id) if dataset_id else None
        return {**show_task(view), **prompts_for(view), leave_out: False}

    @guarded(words)
    def choose_model(base_id: int | None, chosen: str, preset_name: str) -> Shown:
        """Another model or method: what depends on it follows, the rest stays as it was set."""
        if base_id is None:
            return {}
        draft = service.planning.defaults(base_id, None, chosen, preset_name)
        suits = training.show(draft.training)
        follows = {name: suits[training.names.index(name)] for name in ("learning_rate", "max_length")}
        return {
            **{training[name]: value for name, value in follows.items()},
            **show_method(chosen, draft.method_params),
        }

    @guarded(words)
    def choose_preset(base_id: int | None, chosen: str, preset_name: str, leaves_out: bool) -> Shown:
        if base_id is None:
            return {}
        draft = service.planning.defaults(base_id, None, chosen, preset_name)
        kept = {"leave_out_bad_rows": leaves_out}
        return {**show_form(training, draft.training | kept), **show_method(chosen, draft.method_params)}

    @guarded(words)
    def plan(*values: Any) -> Shown:
        now = settings(values)
        try:
            draft = now.draft
            done = service.planning.plan(draft, checks.get(draft))
            model = service.models.base(draft.base_model_id)
            data = service.datasets.get(draft.dataset_id)
        except UserError as error:
            return {summary: "", words: note_html(" ".join(error.problems)), start: gr.Button("Start training")}
        label = "Start anyway" if done.fits is False and not done.problems else "Start training"
        learns = summary_html(done, model, data.name, methods[draft.method].label)
        return {summary: learns, words: words_html(done), start: gr.Button(label)}

    @guarded(checked)
    def check(request: gr.Request, *values: Any) -> Iterator[Shown]:
        newest = latest.begin(request)
        now = settings(values)
        if not (now.dataset and now.base and now.task):
            yield {training_rows: gr.Column(visible=False), checked: "" if now.dataset else NO_DATASET}
            return
        draft = now.draft
        try:
            usable_length(draft.training["max_length"])
        except UserError:
            yield {training_rows: gr.Column(visible=False), checked: ""}  # the summary says what is wrong
            return
        yield {checked: progress_html(0, "Checking every row")}
        for news in checks.run(draft):
            if not newest():
                return
            if isinstance(news, Progress):
                yield {checked: progress_html(news.done / max(news.total, 1), news.text)}
                continue
            # Prompts of the data itself would show what was learned by heart; a plain text has no usual ones.
            suggested = USUAL_PROMPTS if draft.task == "chat" else (*news.example_prompts, *USUAL_PROMPTS)
            yield {
                checked: check_line_html(news, draft.dataset_id, draft.training["max_length"]),
                training_rows: gr.Column(visible=news.bad_rows > 0),
                **(dict(zip(prompts, suggested, strict=False)) if not now.prompts else {}),
            }

    @guarded(words)
    def press_start(request: gr.Request, *values: Any) -> Iterator[Shown]:
        yield {start: gr.Button("Starting ...", interactive=False), started: None}
        try:
            draft = settings(values).draft
            report = None
            for news in checks.run(draft):
                if isinstance(news, Preflight):
                    report = news
                else:
                    done = progress_html(news.done / max(news.total, 1), f"First the data: {news.text}")
                    yield {words: done}
            found = service.planning.plan(draft, report)
            if found.spec is None:
                raise UserError(*found.problems)
            run_id = starts.once(str(request.session_hash), service, found.spec, draft.base_model_id, draft.dataset_id)
        except Exception:
            yield {start: gr.Button("Start training", interactive=True)}
            raise
        yield {started: run_id, start: gr.Button("Start training", interactive=True)}

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
    planned = [summary, words, start]
    seen = [checked, training_rows, *prompts]
    method_widgets = [widget for form in method_forms.values() for widget in form.components]
    shown_forms = [*training.components, *method_groups.values(), *method_widgets]
    task_widgets = [widget for form in task_forms.values() for widget in form.components]
    task_shown = [task, *task_groups.values()]

    def follow(event: Any, *, data_too: bool) -> None:
        """After a choice: the summary at once, and once more when the data has been checked."""
        event.then(plan, inputs, planned, **quiet)
        if data_too:
            event.then(check, inputs, seen, **quiet).then(plan, inputs, planned, **quiet)

    loaded = gr.on(
        None, show, inputs=[], outputs=[*inputs, *method_groups.values(), *task_groups.values(), lost], **quiet
    )
    follow(loaded, data_too=True)
    follow(dataset.input(choose_dataset, dataset, [*task_shown, *prompts, leave_out, words], **quiet), data_too=True)
    follow(base.input(choose_model, [base, method, preset], [*shown_forms, words], **quiet), data_too=True)
    follow(method.input(choose_model, [base, method, preset], [*shown_forms, words], **quiet), data_too=False)
    follow(
        preset.input(choose_preset, [base, method, preset, leave_out], [*shown_forms, words], **quiet), data_too=True
    )
    gr.on([each.input for each in choices], None, choices, None, js=KEEP_ADDRESS)  # type: ignore[attr-defined]
    touched = [_touched(widget) for widget in [*training.components, *method_widgets, *task_widgets, task]]
    gr.on(touched, plan, inputs, planned, trigger_mode="always_last", **quiet)
    rechecks = [_touched(widget) for widget in [training["max_length"], task, *task_widgets]]
    gr.on(rechecks, check, inputs, seen, trigger_mode="multiple", **quiet).then(plan, inputs, planned, **quiet)
    start.click(press_start, inputs, [words, start, started], trigger_mode="once", **quiet).then(
        None, started, None, js=OPEN_RUN
    )


def _touched(widget: Any) -> Any:
    """The event of a person's change. A textbox's own `input` misses what is pasted."""
    return widget.change if isinstance(widget, gr.Textbox) else widget.input


def _heading(number: int, text: str) -> None:
    markup(f'<h2 class="step"><b>{number}</b>{text}</h2>')


def _forms(registry: dict[str, Any], what: str, label: Any) -> tuple[dict[str, gr.Column], dict[str, Form[Any]]]:
    """A form for every method or task, each in a group that is shown when it is chosen."""
    groups, forms = {}, {}
    for index, (key, each) in enumerate(registry.items()):
        with gr.Column(visible=index == 0 and what == "settings", elem_classes="plain") as groups[key]:
            markup(f"<h3>{label(each)} {what}</h3>")
            forms[key] = Form(type(each).Params)
    return groups, forms
