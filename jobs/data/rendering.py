"""A conversation through a model's own chat template: the text, and which characters of it are the answers.

Only what can be proven is marked. An answer begins where the prompt that the model would be given ends; its end mark
(<|im_end|>) belongs to it. Where a template writes earlier answers otherwise than the model would have (Qwen3 takes
their thinking away), those are left untrained and counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jobs.data.conversation import Turn
from jobs.errors import RowProblem

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "graft-probes-the-template"
_PLAIN = {"role", "content"}


@dataclass(frozen=True)
class Rendered:
    """A row as text. `spans` are the character ranges to train on, in order, not overlapping."""

    text: str
    spans: tuple[tuple[int, int], ...]
    untrained_answers: int = 0  # answers that had to be left out of the loss


@dataclass(frozen=True)
class _Traits:
    template: str
    takes_system: bool
    marks_answers: bool  # it has {% generation %} blocks


_TRAITS: WeakKeyDictionary[Any, _Traits] = WeakKeyDictionary()


def prompt_text(tokenizer: PreTrainedTokenizerBase, turns: list[Turn]) -> str:
    """What the model is given to answer `turns`. Tokenise it without adding special tokens. Raises RowProblem."""
    traits = _traits(tokenizer)
    return _render(tokenizer, _fit_system(turns, traits), prompt=True)


def render_answers(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], last_only: bool) -> Rendered:
    """The whole conversation, with its answers (or the last alone) to train on. Raises RowProblem."""
    traits = _traits(tokenizer)
    turns = _fit_system(turns, traits)
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    text = _render(tokenizer, turns)
    if traits.marks_answers and (marked := _marked(tokenizer, turns, text, traits)):
        if last_only:
            begin = _last_answer(tokenizer, turns, text)[0]
            marked = [(max(start, begin), end) for start, end in marked if end > begin]
        return Rendered(text, tuple(marked))
    last = _last_answer(tokenizer, turns, text)
    if last_only:
        return Rendered(text, (last,))
    found = _earlier_answers(tokenizer, turns, answers[:-1], text, last)
    return Rendered(text, (*found, last), untrained_answers=len(answers) - 1 - len(found))


def render_everything(tokenizer: PreTrainedTokenizerBase, turns: list[Turn]) -> Rendered:
    """The whole conversation, all of it to train on. Raises RowProblem."""
    text = _render(tokenizer, _fit_system(turns, _traits(tokenizer)))
    return Rendered(text, ((0, len(text.rstrip())),))


def end_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> frozenset[int]:
    """Every token after which an answer is over: the model's, the tokenizer's, and the template's end of turn."""
    ends: set[int] = set()
    for named in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        ends.update(named if isinstance(named, list) else [named] if named is not None else [])
    turn = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}]
    rendered = _try_render(tokenizer, turn) if tokenizer.chat_template else None
    if rendered and _PROBE in rendered:
        after = tokenizer(rendered.rsplit(_PROBE, 1)[1].lstrip(), add_special_tokens=False)["input_ids"]
        if after and after[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder):  # type: ignore[operator]
            ends.add(after[0])  # type: ignore[arg-type]
    return frozenset(ends)


def _earlier_answers(
    tokenizer: PreTrainedTokenizerBase, turns: list[Turn], answers: list[int], text: str, last: tuple[int, int]
) -> list[tuple[int, int]]:
    said = turns[-1]["content"]
    mark = text[last[0] + len(said) : last[1]] if text.startswith(said, last[0]) else None
    found: list[tuple[int, int]] = []
    for place in answers:
        before = _try_render(tokenizer, turns[:place], prompt=True)
        if before is None or not text.startswith(before):
            continue
        start = len(before)
        own = turns[place]["content"] + (mark or "")
        if mark and text.startswith(own, start):
            end = start + len(own)  # word for word, and closed as the last answer is
        else:
            after = (_try_render(tokenizer, turns[: place + 1]) or "").rstrip()
            if len(after) <= start or not text.startswith(after):
                continue
            end = len(after)
        if end <= last[0] and (not found or start >= found[-1][1]):
            found.append((start, end))
    return found


def _last_answer(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], text: str) -> tuple[int, int]:
    """It ends with the text; it begins where the prompt for it ends, or where the two part after the last question."""
    end = len(text.rstrip())
    before = _try_render(tokenizer, turns[:-1], prompt=True)
    if before is not None:
        start = _common(before, text)
        if start < len(before):
            # A prompt that opens a thought ("<think>") which the finished turn lacks parts from it there, which is
            # fine; parting within the question is not.
            asked = (_try_render(tokenizer, turns[:-1]) or before).rstrip()
            proven = start >= len(asked) and text.startswith(asked)
        else:
            proven = True
        if proven and start < end:
            return start, end
    said = turns[-1]["content"].strip()
    if text.count(said) == 1:
        start = text.index(said)
        return start - text[:start].endswith(" "), end  # a space before a word is part of its token
    raise RowProblem("the model's chat template does not show where the answer begins")


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(place for place in range(length) if one[place] != other[place])


def _marked(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], text: str, traits: _Traits) -> list[tuple[int, int]]:
    """The template's own {% generation %} blocks. An end mark that they leave out is taken in: without it in the
    loss a model forgets to stop."""
    from transformers.utils.chat_template_utils import render_jinja_template

    special: dict[str, Any] = tokenizer.special_tokens_map
    rendered: list[str]
    indices: list[list[tuple[int, int]]]
    rendered, indices = render_jinja_template(  # type: ignore[assignment,str-unpack]  # it is declared to return a str
        conversations=[turns], chat_template=traits.template, return_assistant_tokens_mask=True, **special
    )
    blocks = [(start, end) for start, end in indices[0] if text[start:end].strip()]
    if rendered[0] != text or not blocks:
        return []
    mark = text[blocks[-1][1] :].rstrip()
    spans: list[tuple[int, int]] = []
    for start, end in blocks:
        end = end + len(mark) if mark and text.startswith(mark, end) else start + len(text[start:end].rstrip())
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _fit_system(turns: list[Turn], traits: _Traits) -> list[Turn]:
    """Where the template knows no system turn (Gemma), its text opens the first user turn, as Gemma's own later
    templates do."""
    if traits.takes_system or turns[0]["role"] != "system" or len(turns) < 2:
        return turns
    first = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
    return [first, *turns[2:]]


def _traits(tokenizer: PreTrainedTokenizerBase) -> _Traits:
    template = tokenizer.get_chat_template()
    known = _TRAITS.get(tokenizer)
    if known is None or known.template != template:
        probe = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "Hello"}]
        known = _Traits(
            template=template,
            takes_system=_PROBE in (_try_render(tokenizer, probe, prompt=True) or ""),
            marks_answers=_GENERATION.search(template) is not None,
        )
        _TRAITS[tokenizer] = known
    return known


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        if turns and all(turn.keys() == _PLAIN for turn in turns):
            return _render_plain(tokenizer, turns, prompt)
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RowProblem(f"the model's chat template refuses it ({reason})") from None
    return str(text)


def _render_plain(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], prompt: bool) -> str:
    """What `apply_chat_template` gives for turns of nothing but role and text, in two thirds of its time: the same
    compiled template and the same names, without the copies that it makes of richer messages."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(tokenizer.get_chat_template())
    names = {"tools": None, "documents": None, "add_generation_prompt": prompt, **tokenizer.special_tokens_map}
    return str(template.render(messages=turns, **names))


def _try_render(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], prompt: bool = False) -> str | None:
    try:
        return _render(tokenizer, turns, prompt)
    except RowProblem:
        return None
