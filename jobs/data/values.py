"""What a row says by its mapping, where that is no conversation: labels, a score, tags, an answer in a passage.

Cells are taken as people write them: a list, the text of a list, a number for a name. What is none of it raises
RowProblem. Reasons are worded as in jobs.data.conversation.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from jobs.data.codec import loads
from jobs.data.columns import ABSENT, Mapping, Shape, value_at
from jobs.data.conversation import conversation, text_of, tools
from jobs.data.numbers import number
from jobs.data.preferences import feedback_of, pair_of
from jobs.data.turns import kind_of, whole
from jobs.errors import RowProblem

# A list as numpy prints it, and pandas writes it into a CSV: without commas, so that Python reads its texts as one.
_PRINTED_ITEM = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d*)?"""
_PRINTED = re.compile(rf"\[\s*(?:{_PRINTED_ITEM})(?:\s+(?:{_PRINTED_ITEM}))+\s*\]")
# And a long one, whose middle it leaves out: [0 1 2 ... 7 8 9].
_SHORTENED_ITEM = rf"{_PRINTED_ITEM}|\.\.\."
_SHORTENED = re.compile(rf"\[\s*(?:{_SHORTENED_ITEM})(?:[\s,]+(?:{_SHORTENED_ITEM}))+[\s,]*\]")

_ARRAY = re.compile(r"\barray\((\[.*?\])(?:, dtype=\w+)?\)", re.DOTALL)  # as pandas writes the lists of an object


@dataclass(frozen=True)
class Extract:
    """A question, the passage that answers it, and where: each answer's text and the character it starts at.

    No answer at all: the passage does not tell.
    """

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    moved: bool = False  # whether an answer was said to start where it does not stand


def texts_of(row: dict[str, Any], mapping: Mapping) -> tuple[str, str]:
    """The text that is judged, and the one it is judged with ("" where the mapping names none)."""
    second = mapping.columns.get("text_pair")
    return text_of(row, mapping.columns["text"]), text_of(row, second) if second else ""


def labels_of(row: dict[str, Any], mapping: Mapping) -> tuple[str, ...]:
    """The row's labels in its order, without white space around them; () where a list of labels is empty."""
    column = mapping.columns["label"]
    value = _present(row, column)
    if isinstance(value, str):
        value = _listed(value, column) if value.lstrip()[:1] == "[" else value
        if isinstance(value, str) and mapping.separator:
            value = [piece for piece in value.split(mapping.separator) if piece.strip()]
    elif isinstance(value, dict):
        raise RowProblem(f"its {column!r} is not a label (an object)")
    if isinstance(value, list):
        return tuple(dict.fromkeys(_label(item, column) for item in value))
    return (_label(value, column),)


def score_of(row: dict[str, Any], mapping: Mapping) -> float:
    column = mapping.columns["score"]
    value = _present(row, column)
    score = float(value) if isinstance(value, bool) else number(value, mapping.decimal, mapping.unit)
    if score is None:
        how = " with a decimal comma" if mapping.decimal == "," else ""
        raise RowProblem(f"its {column!r} is not a number{how} ({str(value)[:40]!r})")
    return score


def tagged(row: dict[str, Any], mapping: Mapping) -> tuple[list[str], list[str]]:
    """The row's words and a tag for each. Numbers as tags are their digits."""
    tokens = _words(row, mapping.columns["tokens"])
    tags = _words(row, mapping.columns["tags"])
    if len(tokens) != len(tags):
        raise RowProblem(f"it has not one tag for each word ({len(tokens):,} words, {len(tags):,} tags)")
    return tokens, tags


def extract_of(row: dict[str, Any], mapping: Mapping) -> Extract:
    """SQuAD's form ({"text": [...], "answer_start": [...]}), or the answer's text alone, found in its passage.

    An answer that does not stand where it is said to start is looked for closest to there. Raises RowProblem where it
    stands nowhere.
    """
    columns = mapping.columns
    question, context = text_of(row, columns["question"]), text_of(row, columns["context"])
    found = tuple(_answers(_present(row, columns["answers"]), columns["answers"]))
    answers, moved = [], False
    for text, start in found:
        if start is None or context[start : start + len(text)] != text:
            moved = moved or start is not None
            start = context.find(text) if start is None else _nearest(context, text, start)
        if start < 0:
            raise RowProblem(f"its answer does not stand in its passage ({text[:60]!r})")
        answers.append((text, start))
    return Extract(question, context, tuple(answers), moved)


def check_row(row: dict[str, Any], mapping: Mapping) -> None:
    """Raises RowProblem where the row is not what the mapping says, whatever the task and the model."""
    match mapping.shape:
        case Shape.TEXT:
            text_of(row, mapping.columns["text"])
        case Shape.LABELLED:
            texts_of(row, mapping)
            labels_of(row, mapping)
        case Shape.SCORED:
            texts_of(row, mapping)
            score_of(row, mapping)
        case Shape.TAGGED:
            tagged(row, mapping)
        case Shape.EXTRACTIVE:
            extract_of(row, mapping)
        case Shape.PREFERENCE:
            pair_of(row, mapping)
        case Shape.FEEDBACK:
            feedback_of(row, mapping)
        case _:
            conversation(row, mapping)
            tools(row, mapping)


def _present(row: dict[str, Any], column: str) -> Any:
    value = value_at(row, column)
    if value is ABSENT or value is None:
        raise RowProblem(f"its {column!r} is null" if value is None else f"it has no {column!r}")
    return value


def _label(value: Any, column: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # what pandas makes of whole numbers beside empty cells
        return str(int(value))
    if not isinstance(value, str | int | float) or value != value:
        raise RowProblem(f"its {column!r} is not a label ({kind_of(value)})")
    text = whole(str(value)).strip()
    if not text:
        raise RowProblem(f"its {column!r} is empty")
    return text


def _words(row: dict[str, Any], column: str) -> list[str]:
    value = _present(row, column)
    if isinstance(value, str):
        value = _listed(value, column) if value.lstrip()[:1] == "[" else value
        value = value.split() if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise RowProblem(f"its {column!r} is not a list of words ({kind_of(value)})")
    if not value:
        raise RowProblem(f"its {column!r} is empty")
    return [whole(str(item)) for item in value]


def _listed(text: str, column: str) -> Any:
    """The list that a text writes, as JSON or as Python or numpy prints it; the text itself where it writes none.

    Raises RowProblem for a list that was shortened when it was printed: what stood in its middle is lost.
    """
    try:
        return loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        if _PRINTED.fullmatch(text.strip()):
            return [ast.literal_eval(item) for item in re.findall(_PRINTED_ITEM, text)]
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        shortened = _SHORTENED.fullmatch(text.strip()) and "..." in re.findall(_SHORTENED_ITEM, text)
        found = ["", ...] if shortened else None
    if found == [...]:
        return text
    if isinstance(found, list) and ... in found:
        raise RowProblem(
            f'its {column!r} is a list that was shortened to "..." when the file was written: write it again whole, '
            "such as with json.dumps"
        )
    return found if isinstance(found, list) else text


def _answers(value: Any, column: str) -> list[tuple[str, int | None]]:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        value = _object(value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        text = whole(str(value))
        return [(text, None)] if text.strip() else []
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        texts = texts if isinstance(texts, list) else [] if texts is None else [texts]
        starts = starts if isinstance(starts, list) else [starts] * len(texts)
        pairs = list(zip(texts, starts, strict=False))
    elif isinstance(value, list):
        pairs = [
            (item.get("text"), item.get("answer_start")) if isinstance(item, dict) else (item, None) for item in value
        ]
    else:
        raise RowProblem(f"its {column!r} is no answer ({kind_of(value)})")
    if not all(isinstance(text, str) for text, _ in pairs):
        raise RowProblem(f"its {column!r} is no answer (without a text)")
    return [(text, start if isinstance(start, int) and start >= 0 else None) for text, start in pairs if text.strip()]


def _object(text: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_ARRAY.sub(r"\1", text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _nearest(context: str, text: str, start: int) -> int:
    """Where `text` stands closest to `start`, for files whose counting was a little off; -1 where it does not."""
    before = context.rfind(text, 0, start + len(text))
    after = context.find(text, start)
    found = [place for place in (before, after) if place >= 0]
    return min(found, key=lambda place: abs(place - start)) if found else -1
