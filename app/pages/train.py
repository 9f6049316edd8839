"""From a dataset and a model to a run: few choices in sight, every setting one click away, Start always in view.

The address holds the choices (/train?dataset=3&base=1&method=lora&preset=quick&task=chat); /train?run=7 starts from a
run's settings; what was typed survives a reload. The data check runs by itself, and the summary moves with every
setting. The parts are in app/train/; here are the events.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.callbacks import QUIET, guarded
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

# What the page holds stays with its entry in the browser's history: a reload and the way back find it, a new visit
# begins afresh. `address`: whether the choices go into the address too, where they can be shared.
KEEP = """(...values) => {
  const chosen = new URLSearchParams(), names = ['dataset', 'base', 'method', 'preset', 'task'];
  names.forEach((name, i) => { if (values[i]) chosen.set(name, values[i]); });
  const address = @address ? location.pathname + '?' + chosen : location.href;
  history.replaceState({...history.state, train: {version: '@version', values}}, '', address);
}"""
KEPT = "() => [history.state?.train ? JSON.stringify(history.state.train) : '']"
SHOW_FITTED = """() => requestAnimationFrame(() => {
  const said = document.querySelector('.undo-fit') || document.querySelector('.train-summary .note');
  said?.scrollIntoView({block: 'nearest', behavior: 'smooth'});
})"""
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

    # To tell every output that it is waited for, Gradio (6.31) searches its page for each at each stage of each event:
    # with a hundred settings a quarter of what a page computes after a change. One is told; it shows where one fails.
    quiet: dict[str, Any] = {**QUIET, "show_progress_on": [w.summary]}
    # Gradio's usual "once" drops what a person does while the same thing is under way: what reads the page's state
    # runs once more afterwards, a check runs beside the one before it, which then ends.
    again: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
    beside: dict[str, Any] = {**quiet, "trigger_mode": "multiple"}
    planned = [w.summary, w.state, w.fit, w.fitted, w.undo, w.words, w.start, w.marks, w.cards]
    sees = [w.fitting, *w.inputs]
    seen = [w.checked, w.training_rows, w.suggested]
    keep, keep_address = (KEEP.replace("@version", w.version).replace("@address", said) for said in ("false", "true"))

    def follow(event: Any, *, data_too: bool) -> Any:
        """After a choice: the summary at once, and once more when the data has been checked. The first's event."""
        seen_first = event.then(plan, sees, planned, **again)
        if data_too:
            checked = event.then(check, w.inputs, seen, **beside)
            checked.then(**w.fill)
            checked.then(plan, sees, planned, **again)
        return seen_first

    def choice(event: Any, callback: Any, outputs: list[Any], *, data_too: bool, more: tuple[Any, ...] = ()) -> None:
        made = event(told(callback), [*w.choices, *more], [*outputs, w.words], **again)
        if w.suggested in outputs:
            made.then(**w.fill)
        made.then(None, w.inputs, None, js=keep_address)
        follow(made, data_too=data_too)

    opened = [*w.inputs, w.base_chosen, w.suggested, w.cards, *w.on_task, *w.on_method, w.lost]
    loaded = gr.on(
        None, guarded(w.lost)(choosing.open), inputs=w.kept, outputs=list(dict.fromkeys(opened)), js=KEPT, **quiet
    )
    loaded.then(**w.fill)
    follow(loaded, data_too=True)
    rate = w.training["learning_rate"]
    on_model = [rate, w.training["max_length"], *w.on_method]
    on_dataset = [w.base, *w.on_task, *on_model, w.suggested, w.leave_out]
    choice(w.dataset.input, choosing.dataset, on_dataset, data_too=True, more=(w.base_chosen,))
    choice(w.base.input, choosing.model, [w.base_chosen, *w.on_task, *on_model], data_too=True)
    choice(w.offered.input, choosing.task, [*w.on_task, rate], data_too=True, more=(w.offered,))
    choice(w.cards.click, choosing.method, on_model, data_too=False)
    on_preset = [*w.training.components, *w.on_method]
    choice(w.preset.input, choosing.preset, on_preset, data_too=True, more=(w.leave_out,))

    method_widgets, task_widgets = w.method_forms.components, w.task_forms.components
    settings = [*w.training.components, *method_widgets, *task_widgets]
    gr.on([_touched(widget) for widget in settings], plan, sees, planned, **again)
    # With a notice of its own: ending after the plan it would take the plan's words away.
    layers, on_layers = guarded(w.layers_words)(choosing.layers), [w.layers, *w.method_forms.following, w.layers_words]
    gr.on([_touched(widget) for widget in method_widgets], layers, w.inputs, on_layers, **again)
    gr.on([_touched(widget) for widget in [*settings, w.name, *w.prompts]], None, w.inputs, None, js=keep)
    rechecks = [_touched(widget) for widget in [w.training["max_length"], *task_widgets]]
    rechecked = gr.on(rechecks, check, w.inputs, seen, **beside)
    rechecked.then(**w.fill)
    rechecked.then(plan, sees, planned, **again)
    on_fit = [*w.training.components, *w.method_forms.outputs, w.fitting, w.words]
    for button, change in ((w.fit, starting.fit), (w.undo, starting.undo)):
        follow(button.click(told(change), sees, on_fit, **again), data_too=True).then(None, js=SHOW_FITTED)
    w.start.click(told(starting.start), w.inputs, [w.words, w.start, w.started], trigger_mode="once", **quiet).then(
        None, w.started, None, js=OPEN_RUN
    )


def _touched(widget: Any) -> Any:
    """The event of a person's change. A textbox's own `input` misses what is pasted."""
    return widget.change if isinstance(widget, gr.Textbox) else widget.input
