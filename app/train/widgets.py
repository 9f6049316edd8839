"""The Train page's widgets, drawn once: what they hold as settings, and settings as what they show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import gradio as gr
from pydantic import BaseModel

from app.blocks import markup
from app.callbacks import Shown
from app.components import card, escape, note_html
from app.drafts import Settings
from app.forms import Form, Forms, field_class
from app.train.layers import FIELDS, layers_html
from app.train.marks import field_marks
from app.train.methods import method_cards, methods_html
from jobs.fields import title_of
from jobs.methods import all_methods
from jobs.presets import PRESETS
from jobs.service.planning import MethodChoice, TaskChoice
from jobs.shape import ModelShape
from jobs.spec import TrainingParams
from jobs.tasks import all_tasks

PROMPTS = 3
_FILL = """(suggested, filled, ...typed) => {
  const own = typed.some(text => (text || '').trim()) && JSON.stringify(typed.map(text => text || '')) !== filled;
  return own || !suggested ? [filled, ...typed] : [JSON.stringify(JSON.parse(suggested)), ...JSON.parse(suggested)];
}"""


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
                self.fitted = markup()
                self.undo = gr.Button("Undo", visible=False, size="sm", elem_classes="undo-fit")
                self.words = markup()
                self.marks = field_marks()
                with gr.Column(elem_classes="decide", min_width=0):  # always in sight
                    self.state = markup()
                    self.fit = gr.Button("Fit it for me", visible=False, variant="primary", elem_classes="fit")
                    self.start = gr.Button("Start training", variant="primary", elem_classes="start")
        self.started = gr.Number(visible=False)
        self.fitting = gr.Textbox(visible=False)  # what was fitted last, see app.train.fitting
        self.method = gr.Textbox(next(iter(self.methods)), visible=False)
        self.task = gr.Textbox(visible=False)
        self.kept = gr.Textbox(visible=False)  # what the browser remembers of this page
        self.base_chosen = gr.Checkbox(visible=False)  # by the person; else the base model follows the dataset
        self.suggested = gr.Textbox(visible=False)  # prompts as JSON, for boxes in which nobody has typed
        self.filled = gr.Textbox(visible=False)  # those that the boxes were filled with last

    def _draw_choices(self) -> None:
        with card():
            _heading(1, "Data, model and task")
            with gr.Row(elem_classes="form-grid two"):
                self.dataset = gr.Dropdown(label="Dataset", interactive=True)
                self.base = gr.Dropdown(label="Base model", interactive=True)
            # Beside `task`, which every event brings: Gradio refuses a choice that is no longer offered, as that of an
            # event that was under way when the dataset changed.
            self.offered = gr.Radio(
                [(f"{each.label}\n{each.help}", name) for name, each in self.tasks.items()],
                label="Task",
                visible=False,
                interactive=True,
                elem_classes="choices",
            )
            self.task_words = markup()
            self.checked = markup()
            self.training_rows = gr.Column(visible=False, elem_classes="plain")
        with card():
            _heading(2, "Method")
            self.cards = method_cards()
            with gr.Accordion(
                "Layers", open=False, elem_classes="settings layers-box", visible=False
            ) as self.layers_box:
                self.layer_fields = gr.Column(elem_classes="plain")
                self.layers = markup()
                self.layers_words = markup()
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
            self.method_title = markup()
            self.method_forms = Forms(_params(self.methods), apart=FIELDS)
            self.task_title = markup()
            self.task_forms = Forms(_params(self.tasks))
        with self.training_rows:
            self.leave_out = self.training.add("leave_out_bad_rows")
        with self.layer_fields:
            self.method_forms.draw_apart()

    def _draw_prompts(self) -> None:
        with card():
            markup("<h2>Name</h2>")
            self.name = gr.Textbox(
                label="Name of the run", placeholder="Left empty, it is named after dataset and method"
            )
            with gr.Column(elem_classes="plain") as self.prompts_box:
                markup(
                    '<h2>Test prompts</h2><p class="hint">At every checkpoint base and tuned model answer these '
                    "prompts, so that you see what it learns. Best are ones that are not in the data.</p>"
                )
                self.prompts = [gr.Textbox(label=f"Prompt {n}", max_lines=3) for n in range(1, PROMPTS + 1)]

    @property
    def choices(self) -> list[Any]:
        return [self.dataset, self.base, self.method, self.preset, self.task]

    @property
    def inputs(self) -> list[Any]:
        """Everything that decides the run, in the order that `settings` reads."""
        forms = [*self.training.components, *self.method_forms.components, *self.task_forms.components]
        return [*self.choices, self.name, *self.prompts, *forms]

    @cached_property
    def version(self) -> str:
        """Another one where `inputs` mean something else: what a browser remembers of an earlier Graft is void."""
        kinds: list[type[BaseModel]] = [TrainingParams, *_params(self.methods).values(), *_params(self.tasks).values()]
        said = json.dumps([kind.model_json_schema() for kind in kinds])  # the order of the settings counts, too
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    def settings(self, values: Sequence[Any]) -> Settings:
        """What `inputs` hold. Raises ValueError for another number of them."""
        rest = list(values)

        def take(count: int) -> list[Any]:
            if len(rest) < count:
                raise ValueError(f"{len(values)} values")
            taken, rest[:count] = rest[:count], []
            return taken

        chosen = dict(zip(("dataset", "base", "method", "preset", "task", "name"), take(6), strict=True))
        prompts = take(PROMPTS)
        training = self.training.values(take(len(self.training.components)))
        method_values, task_values = (
            forms.values(chosen[which] or "", take(len(forms.components)))
            for which, forms in (("method", self.method_forms), ("task", self.task_forms))
        )
        talks = chosen["task"] in self.tasks and self.tasks[chosen["task"]].talks
        return Settings(
            **chosen,
            prompts=tuple(text for text in prompts if text and text.strip()) if talks else (),
            training=training,
            method_params=method_values,
            task_params=task_values,
        )

    def show_task(
        self,
        fitting: Sequence[TaskChoice],
        chosen: str | None,
        params: dict[str, Any],
        *,
        instead: str = "",
        fresh: bool = False,
    ) -> Shown:
        """The tasks to choose from, in words where there is one or none; the chosen one's settings, or those that
        the dataset suggests. `instead`: HTML with a model that fits, where this one does not."""
        can = [each for each in fitting if not each.problems]
        return {
            self.task: chosen,
            self.offered: gr.Radio(
                choices=[(f"{each.label}\n{each.help}", each.name) for each in can],
                value=chosen,
                visible=len(can) > 1,
            ),
            self.task_words: _task_words(fitting) + instead,
            self.task_title: self._title(self.tasks.get(chosen or ""), "task"),
            self.prompts_box: gr.Column(visible=chosen in self.tasks and self.tasks[str(chosen)].talks),
            **self.task_forms.show(
                chosen, params or next((each.params for each in can if each.name == chosen), {}), fresh=fresh
            ),
        }

    def show_training(self, values: dict[str, Any]) -> Shown:
        return dict(zip(self.training.components, self.training.show(values), strict=True))

    def show_methods(self, choices: Sequence[MethodChoice], chosen: str) -> Shown:
        return {self.cards: methods_html(choices, chosen)}

    def show_method(self, chosen: str, params: dict[str, Any], shape: ModelShape, *, fresh: bool = False) -> Shown:
        """The method's settings, and the layers it trains on this model."""
        layers = layers_html(chosen, params, shape)
        return {
            self.method: chosen,
            self.method_title: self._title(self.methods[chosen], "settings"),
            self.layers_box: gr.Accordion(visible=bool(layers)),
            self.layers: layers,
            **self.method_forms.show(chosen, params, fresh=fresh),
        }

    def titles(self, method: str, task: str) -> dict[str, str]:
        """The titles of the settings in sight, and the CSS class of each one's field."""
        chosen = [registry[name] for registry, name in ((self.methods, method), (self.tasks, task)) if name in registry]
        kinds: list[type[BaseModel]] = [TrainingParams, *(type(each).Params for each in chosen)]
        return {title_of(name, field): field_class(name) for kind in kinds for name, field in kind.model_fields.items()}

    def show_layers(self, method: str, params: dict[str, Any], shape: ModelShape) -> Shown:
        return {self.layers: layers_html(method, params, shape)}

    def show_prompts(self, texts: Sequence[str]) -> Shown:
        return dict(zip(self.prompts, (*texts[:PROMPTS], *[""] * PROMPTS), strict=False))

    def suggest_prompts(self, texts: Sequence[str]) -> Shown:
        """For `fill`, which knows what stands in the boxes by then."""
        return {self.suggested: json.dumps([*texts[:PROMPTS], *[""] * PROMPTS][:PROMPTS])}

    @property
    def fill(self) -> dict[str, Any]:
        """An event's step in the browser: suggested prompts into boxes that are empty or hold an earlier suggestion."""
        boxes = [self.filled, *self.prompts]
        return {"fn": None, "inputs": [self.suggested, *boxes], "outputs": boxes, "js": _FILL}

    @property
    def on_task(self) -> list[Any]:
        """What `show_task` changes."""
        return [self.task, self.offered, self.task_words, self.task_title, self.prompts_box, *self.task_forms.outputs]

    @property
    def on_method(self) -> list[Any]:
        """What `show_method` changes."""
        return [self.method, self.method_title, self.layers_box, self.layers, *self.method_forms.outputs]

    @staticmethod
    def _title(each: Any, what: str) -> str:
        has_any = each is not None and bool(type(each).Params.model_fields)
        return f"<h3>{escape(each.label)} {what}</h3>" if has_any else ""


def _task_words(fitting: Sequence[TaskChoice]) -> str:
    can = [each for each in fitting if not each.problems]
    cannot = "".join(note_html(" ".join(each.problems), "info" if can else "warn") for each in fitting if each.problems)
    if len(can) == 1:
        return (
            f'<p class="task-line"><b>{escape(can[0].label)}</b> <span class="hint">{escape(can[0].help)}</span></p>'
            f"{cannot}"
        )
    return cannot


def _params(registry: dict[str, Any]) -> dict[str, type[BaseModel]]:
    return {name: type(each).Params for name, each in registry.items()}


def _heading(number: int, text: str) -> None:
    markup(f'<h2 class="step"><b>{number}</b>{text}</h2>')
