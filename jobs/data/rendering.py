"""A conversation through a model's own chat template: the text, and which characters of it are the answers.

Only what can be proven is marked. An answer begins where the prompt that the model would be given ends; its end mark
(<|im_end|>) belongs to it. Where a template writes earlier answers otherwise than the model would have (Qwen3 takes
their thinking away), those are left untrained and counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jobs.data.conversation import Turn
from jobs.errors import RowProblem

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "graft-probes-the-template"
_NO_PARAMETERS = {"type": "object", "properties": {}}
_CALL = {"type": "function", "id": "probe0001", "function": {"name": _PROBE, "arguments": {}}}
_TOOL = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": _NO_PARAMETERS}}
Tools = Sequence[dict[str, Any]]  # JSON schemas of what a conversation may call
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
    takes_calls: bool  # it writes an answer's tool calls
    marks_answers: bool  # it has {% generation %} blocks


_TRAITS: WeakKeyDictionary[Any, _Traits] = WeakKeyDictionary()


def prompt_text(tokenizer: PreTrainedTokenizerBase, turns: list[Turn]) -> str:
    """What the model is given to answer `turns`. Tokenise it without adding special tokens. Raises RowProblem."""
    traits = _traits(tokenizer)
    return _render(tokenizer, _fit(turns, traits), prompt=True)


def render_answers(
    tokenizer: PreTrainedTokenizerBase, turns: list[Turn], last_only: bool, tools: Tools = ()
) -> Rendered:
    """The whole conversation, with its answers (or the last alone) to train on, but for those of weight 0.

    Raises RowProblem.
    """
    traits = _traits(tokenizer)
    turns = _fit(turns, traits)
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    wanted = [place for place in (answers[-1:] if last_only else answers) if turns[place].get("weight") != 0]
    if not wanted:
        raise RowProblem(f"its {'last answer has' if last_only else 'answers have'} the weight 0: nothing is trained")
    if any("weight" in turn for turn in turns):
        turns = [{key: value for key, value in turn.items() if key != "weight"} for turn in turns]
    text = _render(tokenizer, turns, tools=tools)
    if traits.marks_answers and not tools and (marked := _marked(tokenizer, turns, text, traits)):
        if wanted == answers:
            return Rendered(text, tuple(marked))
        if len(marked) == len(answers):
            return Rendered(text, tuple(marked[answers.index(place)] for place in wanted))
    last = _last_answer(tokenizer, turns, text, tools)
    earlier = [place for place in wanted if place != answers[-1]]
    found = _earlier_answers(tokenizer, turns, earlier, text, last, tools)
    spans = (*found, last) if wanted[-1] == answers[-1] else tuple(found)
    if not spans:
        raise RowProblem("the model's chat template does not show where the answer begins")
    return Rendered(text, spans, untrained_answers=len(earlier) - len(found))


def render_everything(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], tools: Tools = ()) -> Rendered:
    """The whole conversation, all of it to train on. Raises RowProblem."""
    text = _render(tokenizer, _fit(turns, _traits(tokenizer)), tools=tools)
    return Rendered(text, ((0, len(text.rstrip())),))


def has_place_for_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template shows the model which tools it may call. True without a template: nothing is hidden."""
    if not tokenizer.chat_template:
        return True
    asked: list[Turn] = [{"role": "user", "content": "Hello"}]
    return _PROBE in (_try_render(tokenizer, asked, prompt=True, tools=[_TOOL]) or "")


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
    tokenizer: PreTrainedTokenizerBase,
    turns: list[Turn],
    answers: list[int],
    text: str,
    last: tuple[int, int],
    tools: Tools,
) -> list[tuple[int, int]]:
    said = turns[-1]["content"]
    mark = text[last[0] + len(said) : last[1]] if said and text.startswith(said, last[0]) else None
    found: list[tuple[int, int]] = []
    for place in answers:
        before = _try_render(tokenizer, turns[:place], prompt=True, tools=tools)
        if before is None or not text.startswith(before):
            continue
        start = len(before)
        own = turns[place]["content"] + (mark or "")
        if mark and text.startswith(own, start):
            end = start + len(own)  # word for word, and closed as the last answer is
        else:
            after = (_try_render(tokenizer, turns[: place + 1], tools=tools) or "").rstrip()
            if len(after) <= start or not text.startswith(after):
                continue
            end = len(after)
        if end <= last[0] and (not found or start >= found[-1][1]):
            found.append((start, end))
    return found


def _last_answer(
    tokenizer: PreTrainedTokenizerBase, turns: list[Turn], text: str, tools: Tools = ()
) -> tuple[int, int]:
    """It ends with the text; it begins where the prompt for it ends, or where the two part after the last question."""
    end = len(text.rstrip())
    before = _try_render(tokenizer, turns[:-1], prompt=True, tools=tools)
    if before is not None:
        start = common_length(before, text)
        if start < len(before):
            # A prompt that opens a thought ("<think>") which the finished turn lacks parts from it there, which is
            # fine; parting within the question is not.
            asked = (_try_render(tokenizer, turns[:-1], tools=tools) or before).rstrip()
            proven = start >= len(asked) and text.startswith(asked)
        else:
            proven = True
        if proven and start < end:
            return start, end
    said = turns[-1]["content"].strip()
    if said and text.count(said) == 1:
        start = text.index(said)
        return start - text[:start].endswith(" "), end  # a space before a word is part of its token
    raise RowProblem("the model's chat template does not show where the answer begins")


def common_length(one: str, other: str) -> int:
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


def _fit(turns: list[Turn], traits: _Traits) -> list[Turn]:
    """Where the template knows no system turn (Gemma), its text opens the first user turn, as Gemma's own later
    templates do. Raises RowProblem where the turns call tools and the template would leave that out."""
    if not traits.takes_calls and any("tool_calls" in turn for turn in turns):
        raise RowProblem("an answer calls tools, and the model's chat template has no place for that")
    if traits.takes_system or turns[0]["role"] != "system" or len(turns) < 2:
        return turns
    first = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
    return [first, *turns[2:]]


def _traits(tokenizer: PreTrainedTokenizerBase) -> _Traits:
    template = tokenizer.get_chat_template()
    known = _TRAITS.get(tokenizer)
    if known is None or known.template != template:
        probe: list[Turn] = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "Hello"}]
        calling: list[Turn] = [probe[1], {"role": "assistant", "content": "", "tool_calls": [_CALL]}]
        known = _Traits(
            template=template,
            takes_system=_PROBE in (_try_render(tokenizer, probe, prompt=True) or ""),
            takes_calls=_PROBE in (_try_render(tokenizer, calling) or ""),
            marks_answers=_GENERATION.search(template) is not None,
        )
        _TRAITS[tokenizer] = known
    return known


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], prompt: bool = False, tools: Tools = ()) -> str:
    from jinja2 import TemplateError

    try:
        if turns and not tools and all(turn.keys() == _PLAIN for turn in turns):
            return _render_plain(tokenizer, turns, prompt)
        text = tokenizer.apply_chat_template(
            turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=prompt
        )
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RowProblem(f"the model's chat template refuses it ({reason})") from None
    return str(text)


def _render_plain(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], prompt: bool) -> str:
    """What `apply_chat_template` gives for turns of nothing but role and text, in less than half of its time: the same
    compiled template and the same names, without the copies that it makes of richer messages, and that Jinja makes of
    every name it has."""
    template, names = _compiled(tokenizer.get_chat_template())
    given = {**names, **tokenizer.special_tokens_map, "messages": turns, "add_generation_prompt": prompt}
    return "".join(template.root_render_func(template.new_context(given, shared=True)))


@lru_cache(maxsize=16)
def _compiled(chat_template: str) -> tuple[Any, dict[str, Any]]:
    """The template, and the names that every rendering of it has."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(chat_template)
    return template, {**template.globals, "tools": None, "documents": None}


def _try_render(
    tokenizer: PreTrainedTokenizerBase, turns: list[Turn], prompt: bool = False, tools: Tools = ()
) -> str | None:
    try:
        return _render(tokenizer, turns, prompt, tools)
    except RowProblem:
        return None
