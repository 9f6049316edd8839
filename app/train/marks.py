"""Settings that cannot be, marked at their fields too: a person who types sees it where the eyes are.

The server says which (`marks_html`), the browser puts the words under the field. Found by title: a problem names the
setting that it is about before anything else. What says that a run cannot start leads to the first of them in sight, or
to the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import gradio as gr

from app.blocks import markup
from app.components import escape

_ON_LOAD = """
const mark = () => {
  const said = new Map([...element.querySelectorAll('[data-field]')].map(one => [one.dataset.field, one.textContent]));
  for (const field of document.querySelectorAll('.field')) {
    const name = [...field.classList].find(one => said.has(one)), before = field.dataset.problem;
    if (name ? before === said.get(name) : before === undefined) continue;
    if (name) field.dataset.problem = said.get(name); else delete field.dataset.problem;
    for (const input of field.querySelectorAll('input, textarea')) {
      for (const [attribute, value] of [['aria-invalid', 'true'], ['aria-description', said.get(name)]]) {
        if (name) input.setAttribute(attribute, value); else input.removeAttribute(attribute);
      }
    }
  }
};
const seen = (one) => one && one.offsetParent !== null;
document.addEventListener('click', (event) => {
  if (!event.target.closest?.('.to-problem')) return;
  const marked = [...document.querySelectorAll('.field[data-problem]')].find(seen);
  const told = marked || [...document.querySelectorAll('.note.bad')].find(seen);
  told?.scrollIntoView({block: 'center', behavior: 'smooth'});
  marked?.querySelector('input, textarea')?.focus({preventScroll: true});
});
new MutationObserver(mark).observe(element, {childList: true, subtree: true, characterData: true});
"""


def field_marks() -> gr.HTML:
    """Where `marks_html` goes; nothing of it is seen there."""
    return markup(js_on_load=_ON_LOAD)


def marks_html(problems: Iterable[str], fields: Mapping[str, str]) -> str:
    """`fields`: a setting's title to the CSS class of its field (app.forms)."""
    found: dict[str, str] = {}
    for problem in problems:
        for title, field in fields.items():
            if re.match(rf"(You set )?{re.escape(title)} (is empty\.|to )|You set {re.escape(title)},", problem):
                said = re.sub(rf"^You set {re.escape(title)} to [^:]*: ", "", problem)
                found[field] = " ".join(part for part in (found.get(field), said[:1].upper() + said[1:]) if part)
    marks = "".join(f'<li data-field="{escape(field)}">{escape(said)}</li>' for field, said in found.items())
    return f"<ul hidden>{marks}</ul>" if marks else ""
