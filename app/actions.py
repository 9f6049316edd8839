"""Buttons inside lists: HTML that the server writes, with a question before what cannot be undone.

A list is one gr.HTML made by `action_list`; its buttons are written by `action_html` and arrive as one click event
that `action_of` reads. The browser asks through a <dialog> filled with textContent: what people typed stays text.
"""

from __future__ import annotations

import gradio as gr
from pydantic import ValidationError

from app.components import escape
from jobs.errors import UserError
from jobs.frozen import Frozen

_ON_LOAD = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-action]');
  if (!button) return;
  event.preventDefault();
  const told = {action: button.dataset.action, id: Number(button.dataset.id), value: ''};
  if (!button.dataset.question) { trigger('click', told); return; }
  const make = (name, text) => { const made = document.createElement(name); made.textContent = text; return made; };
  const dialog = make('dialog', '');
  dialog.className = 'ask';
  const form = make('form', '');
  form.method = 'dialog';
  form.append(make('p', button.dataset.question));
  let field = null;
  if ('value' in button.dataset) {
    field = make('input', '');
    field.value = button.dataset.value;
    field.maxLength = 200;
    field.setAttribute('aria-label', button.dataset.question);
    form.append(field);
  }
  const row = make('div', '');
  const no = make('button', 'Cancel'), yes = make('button', button.dataset.yes);
  no.type = 'button';
  no.className = 'button';
  yes.className = field ? 'button primary' : 'button danger';
  no.onclick = () => dialog.close();
  row.append(no, yes);
  form.append(row);
  form.onsubmit = () => { told.value = field ? field.value : ''; trigger('click', told); };
  dialog.append(form);
  dialog.onclose = () => dialog.remove();
  // The second half of a double click answers nothing, wherever it falls.
  const opened = performance.now();
  dialog.addEventListener('click', event => {
    const hasty = performance.now() - opened < 600 && (event.detail > 1 || event.target === dialog);
    if (hasty) { event.preventDefault(); event.stopImmediatePropagation(); }
    else if (event.target === dialog) dialog.close();
  }, true);
  element.closest('.page').append(dialog);
  dialog.showModal();
  if (field) field.select(); else no.focus();
});
"""


class Action(Frozen):
    """A button that was pressed: what to do, with which row, and the text that was typed."""

    action: str
    id: int
    value: str = ""


def action_list() -> gr.HTML:
    """An HTML block whose action buttons arrive through its `click` event."""
    return gr.HTML(js_on_load=_ON_LOAD, apply_default_css=False, elem_classes="plain")


def action_html(
    action: str, item_id: int, label: str, *, question: str = "", yes: str = "", value: str | None = None
) -> str:
    """A button. With `question` the browser asks first; with `value` it asks for a text, this one filled in."""
    asks = f' data-question="{escape(question)}" data-yes="{escape(yes or label)}"' if question else ""
    typed = f' data-value="{escape(value)}"' if value is not None else ""
    return (
        f'<button type="button" class="button quiet" data-action="{escape(action)}" data-id="{item_id}"{asks}{typed}>'
        f"{escape(label)}</button>"
    )


def action_of(event: gr.EventData) -> Action:
    """What was pressed. Raises UserError for what no button of ours sends."""
    try:
        return Action.model_validate(event._data)
    except ValidationError as error:
        raise UserError("That button is unknown. Reload the page.") from error
