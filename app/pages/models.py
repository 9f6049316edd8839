"""Base models and adapters: what can be trained, what was trained, and what can be done with each."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from app.actions import action_html, action_list, action_of
from app.blocks import markup
from app.callbacks import QUIET, Shown, guarded
from app.components import bytes_text, card, count_text, escape, note_html, page_header, when_text
from app.run_words import full, label, talks, try_it
from jobs.errors import UserError
from jobs.methods import method as find_method
from jobs.service import Service
from jobs.service.models import AdapterView, BaseModelView
from jobs.tasks import task as find_task

SLUG = "models"
TITLE = "Models"
NAV = "Models"
ORDER = 40
ICON = "M12 3 3.500 7.500 12 12l8.500-4.500L12 3ZM3.500 12 12 16.500 20.500 12M3.500 16.500 12 21l8.500-4.500"

SOURCES = {"starter": "Comes with Graft", "folder": "Local folder", "hub": "Hugging Face Hub"}


def build(service: Service) -> None:
    page_header("Models", "Base models to start from, and the adapters that your runs have made.")
    notice = markup()
    adapters = action_list()
    bases = action_list()
    with card():
        markup(
            '<h2>Add a base model</h2><p class="hint">A folder on this machine in Hugging Face layout (config.json, '
            "safetensors, tokenizer), or the name of a model on the Hugging Face Hub.</p>"
        )
        with gr.Row(elem_classes="form-grid two"):
            with gr.Column(elem_classes="plain", min_width=0):
                folder = gr.Textbox(label="Folder", placeholder="/home/me/models/my-model", max_lines=1)
                add_folder = gr.Button("Add the folder", elem_classes="fit")
            with gr.Column(elem_classes="plain", min_width=0):
                hub = gr.Textbox(label="Hub name", placeholder="HuggingFaceTB/SmolLM2-360M-Instruct", max_lines=1)
                add_hub = gr.Button("Add from the Hub", elem_classes="fit")
        added = markup()

    def lists() -> Shown:
        return {
            adapters: adapters_html(service.models.adapters()),
            bases: bases_html(service.models.bases()),
        }

    @guarded(notice)
    def show(request: gr.Request) -> Shown:
        """The address may name what to add: /models?hub=owner/name."""
        named = str(request.query_params.get("hub", ""))[:200]
        return {**lists(), **({hub: named} if named else {})}

    @guarded(notice)
    def press(event: gr.EventData) -> Shown:
        pressed = action_of(event)
        if pressed.action == "rename":
            service.models.rename_adapter(pressed.id, pressed.value)
        elif pressed.action == "delete":
            service.models.delete_adapter(pressed.id)
        elif pressed.action == "remove":
            service.models.remove_base(pressed.id)
        return lists()

    @guarded(added)
    def take_folder(typed: str) -> Shown:
        if not typed.strip():
            raise UserError("Type the folder's path first.")
        model = service.models.add_folder(Path(typed.strip()).expanduser())
        return {**lists(), folder: "", added: note_html(f"{model.name} is ready to train on.", "good")}

    @guarded(added)
    def take_hub(typed: str) -> Shown:
        if not typed.strip():
            raise UserError("Type the model's name on the Hub first, as owner/name.")
        model = service.models.add_hub(typed.strip())
        text = f"{model.name} is in the list. Its weights are fetched at its first run."
        return {**lists(), hub: "", added: note_html(text, "good")}

    gr.on(None, show, inputs=[], outputs=[adapters, bases, hub, notice], **QUIET)
    for pressed_list in (adapters, bases):  # one press after another, and none dropped: the newest list comes last
        pressed_list.click(
            press,
            None,
            [adapters, bases, notice],
            trigger_mode="multiple",
            **(QUIET | {"concurrency_limit": 1}),
        )
    gr.on([add_folder.click, folder.submit], take_folder, folder, [adapters, bases, folder, added], concurrency_limit=4)
    gr.on([add_hub.click, hub.submit], take_hub, hub, [adapters, bases, hub, added], concurrency_limit=4)


def bases_html(views: list[BaseModelView]) -> str:
    """One card a base model: what it is made of, and what can be done with it."""
    if not views:
        return (
            '<section class="stack"><h2 class="section-title">Base models</h2><div class="card empty"><p>No base model '
            "yet. The starter model is prepared when Graft starts; its progress is on the first page.</p></div>"
            "</section>"
        )
    return (
        '<section class="stack"><h2 class="section-title">Base models</h2><div class="cards">'
        + "".join(_base_html(view) for view in views)
        + "</div></section>"
    )


def _base_html(view: BaseModelView) -> str:
    shape = view.shape
    template = "yes" if shape.has_chat_template else "none: for plain text"
    gone = "" if view.available else note_html(f"Its files are no longer at {view.location}.", "warn")
    where = "" if view.source == "starter" else f" · {escape(view.location)}"
    buttons = ""
    if view.available:
        buttons += f'<a class="button" href="train?base={view.id}">Train</a>'
        if shape.family == "decoder":
            buttons += f'<a class="button" href="playground?base={view.id}">Chat</a>'
    if view.source != "starter":
        buttons += action_html(
            "remove", view.id, "Remove", question=f"Remove {view.name} from the list? Its files on disk stay."
        )
    return (
        f'<article class="card"><h3>{escape(view.name)}</h3><p class="hint">{SOURCES.get(view.source, "")}{where}</p>'
        f'<dl class="pairs"><dt>Parameters</dt><dd>{count_text(shape.parameters)}</dd><dt>Layers</dt>'
        f"<dd>{shape.layers} of width {shape.hidden_size:,}</dd>"
        f"<dt>Maximum length</dt><dd>{shape.max_length:,} tokens</dd>"
        f"<dt>Chat template</dt><dd>{template}</dd><dt>Architecture</dt><dd>{escape(shape.architecture)}</dd></dl>"
        f'{gone}<div class="buttons">{buttons}</div></article>'
    )


def adapters_html(views: list[AdapterView]) -> str:
    """One card an adapter, newest first."""
    if not views:
        return (
            '<section class="stack"><h2 class="section-title">Adapters</h2>'
            '<div class="card empty"><h2>No adapter yet</h2>'
            "<p>Every finished run leaves one here: a small file that changes how a base model answers.</p>"
            '<div class="buttons"><a class="button primary" href="train">Train one</a></div></div></section>'
        )
    return (
        '<section class="stack"><h2 class="section-title">Adapters</h2><div class="cards">'
        + "".join(_adapter_html(view) for view in views)
        + "</div></section>"
    )


def _adapter_html(view: AdapterView) -> str:
    taught = f"{label(find_method, view.method)}, {label(find_task, view.task)}"
    kind = "model" if full(view.method) else "adapter"
    return (
        f'<article class="card"><h3>{escape(view.name)}</h3><p class="hint">{escape(taught)}'
        f" on {escape(view.base_model)} · {escape(when_text(view.created_at))}</p>"
        f'<dl class="pairs"><dt>Trained parameters</dt><dd>{count_text(view.trainable_parameters)}</dd><dt>Size</dt>'
        f"<dd>{bytes_text(view.size_bytes)}</dd><dt>From</dt>"
        f'<dd><a href="run?id={view.run_id}">run {view.run_id}</a>, step {view.step:,}</dd></dl>'
        f'<div class="buttons"><a class="button primary" href="{try_it(view.task, view.id)[1]}">'
        f"{'Chat' if talks(view.task) else 'Try'}</a>"
        f'<a class="button" href="download/adapters/{view.id}" download>Download</a>'
        + action_html("rename", view.id, "Rename", question=f"A new name for this {kind}", value=view.name)
        + action_html(
            "delete",
            view.id,
            "Delete",
            question=f"Delete the {kind} {view.title}? Samples made with it stay. This cannot be undone.",
        )
        + "</div></article>"
    )
