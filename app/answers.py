"""How a conversation looks: each prompt once, the panes' answers side by side below it, Markdown made safe.

Answers come from a model and are nobody's HTML: Markdown is rendered with raw HTML off, links are checked by
markdown-it, images are left as text so that an answer never makes the browser fetch anything.
"""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt

from app.actions import action_html
from app.components import duration_text, escape
from jobs.frozen import Frozen
from jobs.service.chats import AnswerView, Delta

FINISHES = {
    "end": "",
    "length": "reached the maximum tokens",
    "stopped": "stopped",
}


class Who(Frozen):
    """Who answers in a pane."""

    name: str
    gone: bool = False  # deleted: what it said stays, and it says no more


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table").disable("image")


def answer_html(text: str) -> str:
    """A model's answer as safe HTML."""
    # Braces and dollars last: they are text to Markdown, but Gradio's templates would evaluate them.
    rendered = str(_markdown().render(text)).replace("<a href=", '<a target="_blank" rel="noopener noreferrer" href=')
    return rendered.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def panes_html(panes: list[Who]) -> str:
    """The panes' heads, above the conversation."""
    return _side_by_side([f"<h3{' class=gone' if who.gone else ''}>{escape(who.name)}</h3>" for who in panes], "heads")


def history_html(answers: tuple[AnswerView, ...], panes: list[Who]) -> str:
    """The finished turns of a chat; each answer can be kept once."""
    turns: dict[int, dict[int, AnswerView]] = {}
    for answer in answers:
        turns.setdefault(answer.turn, {})[answer.pane] = answer
    return "".join(
        _turn(
            next(iter(turn.values())).prompt,
            [_answered(who, turn[pane]) if pane in turn else _gone(who) for pane, who in enumerate(panes)],
        )
        for _, turn in sorted(turns.items())
    )


def _answered(who: Who, answer: AnswerView) -> str:
    if not answer.answer.strip():
        return _pane(who, _wordless(answer.finish), "", "")
    facts = _facts(answer.tokens, answer.seconds, answer.finish)
    return _pane(who, answer_html(answer.answer), facts, _keep_html(answer))


def _gone(who: Who) -> str:
    """In place of an answer, in a turn from after the adapter was deleted."""
    return _pane(who, '<p class="hint">It was deleted, so it no longer answers.</p>', "", "")


def _keep_html(answer: AnswerView) -> str:
    """The button that keeps an answer; it says so where that is done, so that nobody does it twice unawares."""
    if answer.kept:
        return '<button type="button" class="button quiet" disabled>Kept</button>'
    return action_html(
        "keep", answer.id, "Keep", question="Keep this answer as a sample. A note, if you like:", value=""
    )


def _wordless(finish: str) -> str:
    """In place of an answer that holds nothing, and that nobody would want to keep."""
    said = "Stopped before the first word." if finish == "stopped" else "The answer is empty."
    return f'<p class="hint">{said}</p>'


def live_html(prompt: str, latest: dict[int, Delta], panes: list[Who], status: str) -> str:
    """The turn that is being answered now."""
    shown = []
    for pane, who in enumerate(panes):
        delta = latest.get(pane)
        if delta is None and who.gone:
            shown.append(_gone(who))
            continue
        if delta is None:
            shown.append(_pane(who, f'<p class="waiting">{escape(status)}</p>', "", ""))
            continue
        cursor = "" if delta.finish else " writing"
        facts = _facts(delta.tokens, delta.seconds, delta.finish or "")
        shown.append(_pane(who, answer_html(delta.text), facts, "", cursor))
    return _turn(prompt, shown)


def _turn(prompt: str, panes: list[str]) -> str:
    return f'<section class="turn"><div class="prompt"><p>{escape(prompt)}</p></div>{_side_by_side(panes)}</section>'


def _side_by_side(panes: list[str], classes: str = "") -> str:
    """Columns; more than three would be too narrow, so that they wrap, and each says whose it is."""
    many = " many" if len(panes) > 3 else ""
    return f'<div class="panes {classes}{many}" style="--panes:{len(panes)}">{"".join(panes)}</div>'


def _pane(who: Who, body: str, facts: str, buttons: str, state: str = "") -> str:
    gone = " gone" if who.gone else ""
    return (
        f'<article class="pane{state}{gone}"><h4>{escape(who.name)}</h4><div class="answer">{body}</div>'
        f"<footer><span>{facts}</span>{buttons}</footer></article>"
    )


def _facts(tokens: int, seconds: float, finish: str) -> str:
    if not tokens:
        return escape(FINISHES.get(finish, finish))
    speed = f" · {tokens / seconds:.1f} tokens/s" if seconds > 0 else ""
    said = FINISHES.get(finish, finish)
    return escape(f"{tokens} tokens in {duration_text(seconds)}{speed}{f' · {said}' if said else ''}")
