"""From a dataset and a model to a run: few choices in sight, every setting one click away, Start always in view.

The address holds the choices (/train?dataset=3&base=1&method=lora&preset=quick); /train?run=7 starts from a run's
settings. The data check runs by itself, and the summary moves with every setting. The parts are in app/train/; here
are the events.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.callbacks import guarded
from app.components import page_header
from app.train.choosing import Choosing
from app.train.starting import Starting
from app.train.widgets import Widgets
from jobs.service import Service

SLUG = "train"
TITLE = "Train"
NAV = "Train"
ORDER = 20
ICON = "M5 3.500v17l15-8.500-15-8.500Z"

KEEP_ADDRESS = """(dataset, base, method, preset) => {
  const chosen = new URLSearchParams();
  for (const [name, value] of Object.entries({dataset, base, method, preset})) if (value) chosen.set(name, value);
  history.replaceState(history.state, '', location.pathname + '?' + chosen);
}"""
OPEN_RUN = """(run) => {
  if (run) { window.location.assign('run?id=' + run); return; }
  const problem = document.querySelector('.train-summary .note.bad');
  if (problem) problem.scrollIntoView({block: 'center', behavior: 'smooth'});
}"""


def build(service: Service) -> None:
    page_header("Train", "Choose what to teach and which model learns it. Everything else has a sound default.")
    w = Widgets()
    choosing, starting = Choosing(service, w), Starting(service, w)
    told = guarded(w.words)
    plan, check = told(starting.plan), guarded(w.checked)(starting.check)
    choose_model = told(choosing.model)

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
    # Gradio's usual "once" drops what a person does while the same thing is under way: what reads the page's state
    # runs once more afterwards, a check runs beside the one before it, which then ends.
    again: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
    beside: dict[str, Any] = {**quiet, "trigger_mode": "multiple"}
    planned = [w.summary, w.words, w.start]
    seen = [w.checked, w.training_rows, *w.prompts]
    shown_forms = [*w.training.components, *w.method_groups.values(), *w.method_widgets]
    task_shown = [w.task, *w.task_groups.values()]
    chosen = [w.base, w.method, w.preset]

    def follow(event: Any, *, data_too: bool) -> None:
        """After a choice: the summary at once, and once more when the data has been checked."""
        event.then(plan, w.inputs, planned, **again)
        if data_too:
            event.then(check, w.inputs, seen, **beside).then(plan, w.inputs, planned, **again)

    opened = [*w.inputs, *w.method_groups.values(), *w.task_groups.values(), w.lost]
    follow(gr.on(None, guarded(w.lost)(choosing.open), inputs=[], outputs=opened, **quiet), data_too=True)
    on_dataset = [*task_shown, *w.prompts, w.leave_out, w.words]
    follow(w.dataset.input(told(choosing.dataset), w.dataset, on_dataset, **again), data_too=True)
    follow(w.base.input(choose_model, chosen, [*shown_forms, w.words], **again), data_too=True)
    follow(w.method.input(choose_model, chosen, [*shown_forms, w.words], **again), data_too=False)
    on_preset = w.preset.input(told(choosing.preset), [*chosen, w.leave_out], [*shown_forms, w.words], **again)
    follow(on_preset, data_too=True)
    gr.on([each.input for each in w.choices], None, w.choices, None, js=KEEP_ADDRESS)
    touched = [_touched(widget) for widget in [*w.training.components, *w.method_widgets, *w.task_widgets, w.task]]
    gr.on(touched, plan, w.inputs, planned, **again)
    rechecks = [_touched(widget) for widget in [w.training["max_length"], w.task, *w.task_widgets]]
    gr.on(rechecks, check, w.inputs, seen, **beside).then(plan, w.inputs, planned, **again)
    w.start.click(told(starting.start), w.inputs, [w.words, w.start, w.started], trigger_mode="once", **quiet).then(
        None, w.started, None, js=OPEN_RUN
    )


def _touched(widget: Any) -> Any:
    """The event of a person's change. A textbox's own `input` misses what is pasted."""
    return widget.change if isinstance(widget, gr.Textbox) else widget.input
