"""One row's values as two answers to compare, or one answer with a thumb: every form that TRL names, and kin.

A prompt with two texts; lists of turns; whole conversations that share their beginning; transcripts ("Human: ...
Assistant: ..."). Ends where tokens begin. What cannot be read raises RowProblem with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from jobs.data.codec import loads
from jobs.data.columns import ABSENT, Mapping, value_at
from jobs.data.conversation import check_order, optional_text, text_of
from jobs.data.turns import ROLE_KEYS, Turn, turn
from jobs.errors import RowProblem

_SPEAKER = re.compile(r"(?:^|\n\n)\s*(Human|User|Assistant):[ \t]*")
_THUMBS = {
    **dict.fromkeys(("good", "up", "thumbsup", "yes", "y", "true", "1", "+1", "👍"), True),
    **dict.fromkeys(("like", "liked", "positive", "desirable", "chosen", "accept", "accepted"), True),
    **dict.fromkeys(("bad", "down", "thumbsdown", "no", "n", "false", "0", "-1", "👎"), False),
    **dict.fromkeys(("dislike", "disliked", "negative", "undesirable", "rejected", "reject"), False),
}


@dataclass(frozen=True)
class Pair:
    """Two conversations whose first `shared` turns are the same: the prompt. Both go on with an answer."""

    chosen: list[Turn]
    rejected: list[Turn]
    shared: int


@dataclass(frozen=True)
class Feedback:
    """A conversation whose turns from `shared` on were found good, or not."""

    turns: list[Turn]
    shared: int
    good: bool


def pair_of(row: dict[str, Any], mapping: Mapping) -> Pair:
    """The row's better and worse answer, in a dataset of the shape PREFERENCE."""
    columns = mapping.columns
    chosen, rejected = _said(row, columns["chosen"]), _said(row, columns["rejected"])
    asked = _asked(row, columns.get("prompt"))
    if isinstance(chosen, str) and isinstance(rejected, str) and not asked:
        chosen, rejected = _without_prompt(chosen, rejected)
    system = optional_text(row, columns.get("system"))
    better, worse = (_whole(asked, said, system) for said in (chosen, rejected))
    if better == worse:
        raise RowProblem("its better and its worse answer are the same")
    shared = next((place for place, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), None)
    if shared is None:
        raise RowProblem("one of its answers is only the beginning of the other")
    if not better[shared]["role"] == worse[shared]["role"] == "assistant":
        raise RowProblem(f"its two answers do not answer the same question (they part at turn {shared + 1})")
    return Pair(better, worse, shared)


def feedback_of(row: dict[str, Any], mapping: Mapping) -> Feedback:
    """The row's answer and whether it was good, in a dataset of the shape FEEDBACK."""
    columns = mapping.columns
    asked = _asked(row, columns["prompt"])
    said = _said(row, columns["completion"])
    turns = _whole(asked, said, optional_text(row, columns.get("system")))
    if isinstance(said, str) or said[0]["role"] == "assistant":
        shared = len(turns) - (1 if isinstance(said, str) else len(said))
    else:
        shared = len(turns) - 1
    return Feedback(turns, shared, thumb(row, columns["label"]))


def thumb(row: dict[str, Any], column: str) -> bool:
    """Up or down, however it was written. Raises RowProblem."""
    value = value_at(row, column)
    if value is None or value is ABSENT:
        raise RowProblem(f"its {column!r} is null" if value is None else f"it has no {column!r}")
    word = re.sub(r"[\s_-](?!\d)|\.0$", "", str(value)).lower()
    if word in _THUMBS:
        return _THUMBS[word]
    raise RowProblem(f"its {column!r} is neither good nor bad ({str(value)[:40]!r})")


def _said(row: dict[str, Any], column: str) -> str | list[Turn]:
    """An answer: a text, or the turns in the column."""
    value = value_at(row, column)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = _decoded(value)
    if isinstance(value, dict):
        value = value["messages"] if isinstance(value.get("messages"), list) else [value]
    if isinstance(value, list):
        if not value:
            raise RowProblem(f"its {column!r} has no turns")
        return [turn(item, place) for place, item in enumerate(value, 1)]
    return text_of(row, column)


def _decoded(text: str) -> Any:
    """The turns that a text holds as JSON; the text itself where it is none: answers may be JSON, too."""
    try:
        value = loads(text)
    except (ValueError, RecursionError):
        return text
    items = value if isinstance(value, list) else value.get("messages", [value]) if isinstance(value, dict) else []
    turns = isinstance(items, list) and items and all(isinstance(item, dict) for item in items)
    return value if turns and any(key in items[0] for key in ROLE_KEYS) else text


def _asked(row: dict[str, Any], column: str | None) -> list[Turn]:
    """The turns before the answer; none where the prompt stands in the answers themselves."""
    if not column or value_at(row, column) in (ABSENT, None, ""):
        return []
    said = _said(row, column)
    return (_transcript(said) or [{"role": "user", "content": said}]) if isinstance(said, str) else said


def _whole(asked: list[Turn], said: str | list[Turn], system: str) -> list[Turn]:
    if isinstance(said, str):
        turns = [*asked, {"role": "assistant", "content": said}]
    elif said[0]["role"] in ("user", "system"):
        turns = list(said)  # the whole conversation, with the prompt that the row has once more
    else:
        turns = [*asked, *said]
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    check_order(turns)
    return turns


def _without_prompt(chosen: str, rejected: str) -> tuple[str | list[Turn], str | list[Turn]]:
    """Two texts that hold their prompt: transcripts, or texts that begin alike."""
    better, worse = _transcript(chosen), _transcript(rejected)
    if better and worse:
        return better, worse
    length = next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if length is None:
        length = min(len(chosen), len(rejected))
    prompt = chosen[: max(chosen.rfind(space, 0, length) for space in " \n") + 1]  # whole words
    if not prompt.strip():
        raise RowProblem("it has no prompt, and its two answers do not begin alike")
    asked: Turn = {"role": "user", "content": prompt.strip()}
    rest = (text[len(prompt) :].strip() for text in (chosen, rejected))
    first, second = ([asked, {"role": "assistant", "content": text}] for text in rest)
    if not (first[1]["content"] and second[1]["content"]):
        raise RowProblem("one of its answers is only the beginning of the other")
    return first, second


def _transcript(text: str) -> list[Turn]:
    """The turns of "Human: ... Assistant: ..."; empty where the text is none."""
    pieces = _SPEAKER.split(text)
    if len(pieces) < 3 or pieces[0].strip() or pieces[1] == "Assistant":
        return []
    turns: list[Turn] = [
        {"role": "assistant" if speaker == "Assistant" else "user", "content": said.strip()}
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()  # a prompt that ends with "Assistant:"
    if not all(turn["content"] for turn in turns):
        raise RowProblem("a turn is empty")
    return turns
