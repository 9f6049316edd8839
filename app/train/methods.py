"""The choice of a method: cards with what each costs on the chosen model, a few in sight, the rest one click away.

The cards are radio buttons in HTML that the server writes: the browser moves the mark, filters as one types, and tells
which was chosen (`chosen_method`). Another model, task or preset, or a data check, draws them anew.
"""

from __future__ import annotations

from collections.abc import Iterable

import gradio as gr

from app.actions import action_of
from app.components import bytes_text, count_text, escape
from jobs.errors import UserError
from jobs.methods import all_methods
from jobs.service.planning import MethodChoice

_ON_LOAD = """
// What the person did stays when the server draws the cards anew: also which card, or the search, has the focus.
let open = null, chosen = null, sought = '', at = null;
const restore = () => {
  const more = element.querySelector('.more-methods');
  if (chosen && element.querySelector(`input[value="${chosen}"]`)) {
    element.querySelector(`input[value="${chosen}"]`).checked = true;
  }
  if (!more) return;
  if (open !== null && more.open !== open) more.open = open;
  const search = more.querySelector('[data-filter]');
  if (search.value !== sought) search.value = sought;
  const words = sought.toLowerCase().split(/\\s+/).filter(Boolean);
  const hide = (one, hidden) => { if (one.hidden !== hidden) one.hidden = hidden; };
  let none = true;
  for (const group of more.querySelectorAll('.method-group')) {
    let any = false;
    for (const one of group.querySelectorAll('.method')) {
      const text = (group.dataset.group + " " + one.textContent).toLowerCase();
      const fits = words.every(word => text.includes(word));
      hide(one, !fits);
      any ||= fits;
    }
    hide(group, !any);
    none &&= !any;
  }
  hide(more.querySelector('.no-method'), !none);
  if (at && !element.contains(document.activeElement)) element.querySelector(at)?.focus({preventScroll: true});
};
element.addEventListener('focusin', event => {
  const card = event.target.name === 'method' && `input[value="${event.target.value}"]`;
  at = card || (event.target.matches('[data-filter]') ? '[data-filter]' : null);
});
element.addEventListener('focusout', () => setTimeout(() => { // a drawing in between has given it back by then
  if (!element.contains(document.activeElement)) at = null;
}));
element.addEventListener('change', event => {
  if (event.target.name !== 'method') return;
  chosen = event.target.value;
  trigger('click', {action: 'choose', id: 0, value: chosen});
});
element.addEventListener('input', event => {
  if (event.target.matches('[data-filter]')) { sought = event.target.value; restore(); }
});
element.addEventListener('click', event => { // a toggle event would come too late for a drawing in between
  const more = event.target.closest('.more-methods > summary')?.parentElement;
  if (more) open = !more.open;
});
new MutationObserver(restore).observe(element, {
  childList: true, subtree: true, attributes: true, attributeFilter: ['open', 'hidden', 'checked'],
});
"""


def method_cards() -> gr.HTML:
    """Where `methods_html` is shown; a choice arrives through its `click` event."""
    return gr.HTML(js_on_load=_ON_LOAD, apply_default_css=False, elem_classes="plain")


def chosen_method(event: gr.EventData) -> str:
    """Raises UserError for what is no method."""
    name = action_of(event).value
    if name not in all_methods():
        raise UserError("That method is unknown. Reload the page.")
    return name


def methods_html(choices: Iterable[MethodChoice], chosen: str) -> str:
    """Recommended methods and the chosen one as cards; the others by group behind "More methods". The chosen one stays
    where it is also as long as its settings cannot be: its card says why."""
    choices = list(choices)
    offered = [each for each in choices if not each.problems]
    refused = [each for each in choices if each.problems and each.name != chosen]
    near = [each for each in choices if each.name == chosen or (each.recommended and not each.problems)]
    if not near:
        near, offered = offered[:3], offered[3:]
    rest = [each for each in offered if each not in near]
    cards = "".join(_card(each, chosen) for each in near)
    return (
        f'<div class="methods" role="radiogroup" aria-label="Method"><div class="method-grid">{cards}</div>'
        f"{_more(rest, refused, chosen)}</div>"
    )


def _more(rest: list[MethodChoice], refused: list[MethodChoice], chosen: str) -> str:
    if not rest and not refused:
        return ""
    groups = {group: [each for each in rest if each.group == group] for group in dict.fromkeys(e.group for e in rest)}
    if refused:
        groups["Not as they are set, with this model and task"] = refused  # to be chosen all the same: and set
    body = "".join(
        f'<section class="method-group" data-group="{escape(group)}"><h3>{escape(group)}</h3><div class="method-grid">'
        f"{''.join(_card(each, chosen) for each in members)}</div></section>"
        for group, members in groups.items()
    )
    return (
        f'<details class="more-methods"><summary>More methods <span class="hint">{len(rest)} more</span>'
        '</summary><input type="search" data-filter class="search" placeholder="Search methods" '
        f'aria-label="Search methods">{body}<p class="hint no-method" hidden>No method has these words.</p></details>'
    )


def _card(choice: MethodChoice, chosen: str) -> str:
    checked = " checked" if choice.name == chosen else ""
    costs = f'<span class="why">{escape(" ".join(choice.problems))}</span>' if choice.problems else _costs(choice)
    return (
        f'<label class="method{" refused" if choice.problems else ""}"><input type="radio" name="method" '
        f'value="{escape(choice.name)}"{checked}><span class="method-words"><b>{escape(choice.label)}</b>'
        f'<span class="method-help">{escape(choice.help)}</span>{costs}</span></label>'
    )


def _costs(choice: MethodChoice) -> str:
    share = f" ({percent_text(choice.percent)})" if choice.percent is not None else ""
    there_is = "allowed" if choice.limited else "there is"
    memory = f"{bytes_text(choice.memory)} of memory" + (f" – more than {there_is}" if choice.fits is False else "")
    after = "merges into the base" if choice.merges else "stays beside the base"
    if not choice.slows_answers:
        after += ", answers as fast"
    elif choice.merges:
        after += "; slower until then"
    else:
        after += ", answers slower"
    return (
        f'<span class="costs"><span><b class="number">{count_text(choice.trainable)}</b> parameters{share}</span>'
        f'<span class="{"bad" if choice.fits is False else ""}">{memory}</span><span>{after}</span></span>'
    )


def percent_text(value: float) -> str:
    """3.6 %, 0.034 %."""
    return f"{value:.0f} %" if value >= 99.5 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"
