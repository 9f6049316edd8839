"""The Train page's widgets, drawn once: what they hold as settings, and settings as what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.blocks import markup
from app.callbacks import Shown
from app.components import card
from app.drafts import Settings
from app.forms import Form
from jobs.methods import all_methods
from jobs.presets import PRESETS
from jobs.service.datasets import DatasetView
from jobs.spec import TrainingParams
from jobs.tasks import all_tasks

PROMPTS = 3


class Widgets:
    """Drawn into the layout that is open when it is made."""

    def __init__(self) -> None:
        self.methods, self.tasks = all_methods(), all_tasks()
        self.lost = markup()
        with gr.Row(elem_classes="train"):
            with gr.Column(elem_classes="train-form", min_width=0):
                self._draw_choices()
                self._draw_settings()
                self._draw_prompts()
            with gr.Column(elem_classes="train-summary", min_width=0), card():
                markup("<h2>What will happen</h2>")
                self.summary = markup()
                self.start = gr.Button("Start training", variant="primary", size="lg", elem_classes="start")
                self.words = markup()
        self.started = gr.Number(visible=False)

    def _draw_choices(self) -> None:
        with card():
            _heading(1, "Data and model")
            with gr.Row(elem_classes="form-grid two"):
                self.dataset = gr.Dropdown(label="Dataset", interactive=True)
                self.base = gr.Dropdown(label="Base model", interactive=True)
            self.checked = markup()
            self.training_rows = gr.Column(visible=False, elem_classes="plain")
        with card():
            _heading(2, "Method")
            self.method = gr.Radio(
                [(f"{each.label}\n{each.help}", name) for name, each in self.methods.items()],
                value=next(iter(self.methods)),
                show_label=False,
                label="Method",
                interactive=True,
                elem_classes="choices",
            )
            self.task = gr.Radio(
                [(f"{each.label}\n{each.help}", name) for name, each in self.tasks.items()],
                label="Task",
                visible=False,
                interactive=True,
                elem_classes="choices",
            )
        with card():
            _heading(3, "How thoroughly")
            self.preset = gr.Radio(
                [(f"{each.label}\n{each.help}", name) for name, each in PRESETS.items()],
                value="balanced",
                show_label=False,
                label="Preset",
                interactive=True,
                elem_classes="choices",
            )

    def _draw_settings(self) -> None:
        with card(), gr.Accordion("All settings", open=False, elem_classes="settings"):
            self.training = Form(TrainingParams, without=("leave_out_bad_rows",))
            self.method_groups, self.method_forms = _forms(self.methods, "settings")
            self.task_groups, self.task_forms = _forms(self.tasks, "task")
        with self.training_rows:
            self.leave_out = self.training.add("leave_out_bad_rows")

    def _draw_prompts(self) -> None:
        with card():
            markup(
                '<h2>Name and test prompts</h2><p class="hint">At every checkpoint base and tuned model answer '
                "these prompts, so that you see what it learns. Best are ones that are not in the data.</p>"
            )
            self.name = gr.Textbox(
                label="Name of the run", placeholder="Left empty, it is named after dataset and method"
            )
            self.prompts = [gr.Textbox(label=f"Prompt {n}", max_lines=3) for n in range(1, PROMPTS + 1)]

    @property
    def choices(self) -> list[Any]:
        return [self.dataset, self.base, self.method, self.preset]

    @property
    def method_widgets(self) -> list[Any]:
        return [widget for form in self.method_forms.values() for widget in form.components]

    @property
    def task_widgets(self) -> list[Any]:
        return [widget for form in self.task_forms.values() for widget in form.components]

    @property
    def inputs(self) -> list[Any]:
        """Everything that decides the run, in the order that `settings` reads."""
        forms = [*self.training.components, *self.method_widgets, *self.task_widgets]
        return [*self.choices, self.task, self.name, *self.prompts, *forms]

    def settings(self, values: Sequence[Any]) -> Settings:
        """What `inputs` hold."""
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
            training=form_values(self.training),
            methods={key: form_values(form) for key, form in self.method_forms.items()},
            tasks={key: form_values(form) for key, form in self.task_forms.items()},
        )

    def show_task(self, view: DatasetView | None, chosen: str | None = None) -> Shown:
        """The tasks this dataset can be used for; nothing to choose where there is one."""
        shape = view.mapping.shape if view and view.mapping else None
        fitting = [key for key, each in self.tasks.items() if shape in each.shapes]
        value = chosen if chosen in fitting else (fitting[0] if fitting else None)
        return {
            self.task: gr.Radio(
                choices=[(f"{self.tasks[key].label}\n{self.tasks[key].help}", key) for key in fitting],
                value=value,
                visible=len(fitting) > 1,
            ),
            **{
                group: gr.Column(visible=key == value and bool(self.task_forms[key].names))
                for key, group in self.task_groups.items()
            },
        }

    def show_training(self, values: dict[str, Any]) -> Shown:
        return _show(self.training, values)

    def show_task_params(self, task: str, values: dict[str, Any]) -> Shown:
        return _show(self.task_forms[task], values) if task in self.task_forms else {}

    def show_method(self, chosen: str, params: dict[str, Any]) -> Shown:
        return {
            **{group: gr.Column(visible=key == chosen) for key, group in self.method_groups.items()},
            **_show(self.method_forms[chosen], params),
        }

    def show_prompts(self, texts: Sequence[str]) -> Shown:
        return dict(zip(self.prompts, (*texts[:PROMPTS], *[""] * PROMPTS), strict=False))


def _show(form: Form[Any], values: dict[str, Any]) -> Shown:
    return dict(zip(form.components, form.show(values), strict=True))


def _heading(number: int, text: str) -> None:
    markup(f'<h2 class="step"><b>{number}</b>{text}</h2>')


def _forms(registry: dict[str, Any], what: str) -> tuple[dict[str, gr.Column], dict[str, Form[Any]]]:
    """A form for every method or task, each in a group that is shown when it is chosen."""
    groups, forms = {}, {}
    for index, (key, each) in enumerate(registry.items()):
        with gr.Column(visible=index == 0 and what == "settings", elem_classes="plain") as groups[key]:
            markup(f"<h3>{each.label} {what}</h3>")
            forms[key] = Form(type(each).Params)
    return groups, forms
