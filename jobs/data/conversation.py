"""One row's values as a conversation or a text, by the mapping. What cannot be one raises RowProblem with the reason.

Reasons are short and the same for every row of a kind, with what differs in brackets at the end, so that a report
can count them.
"""

from __future__ import annotations

import json
from typing import Any

from jobs.data.columns import Mapping, Shape
from jobs.errors import RowProblem

Turn = dict[str, str]  # "role" and "content", and "reasoning_content" where the data has it

_ROLES = {
    **dict.fromkeys(("user", "human", "customer", "prompter", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "ai", "chatbot", "answer", "agent"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython", "tool_response"), "tool"),
}
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")


def conversation(row: dict[str, Any], mapping: Mapping) -> list[Turn]:
    """The row's turns: an optional system turn, then user and assistant in turn, the last the assistant's.

    Tool turns may stand between assistant turns. Raises RowProblem.
    """
    if mapping.shape in (Shape.MESSAGES, Shape.SHAREGPT):
        role = "messages" if mapping.shape is Shape.MESSAGES else "conversations"
        turns = [_turn(item, place) for place, item in enumerate(turn_items(row, mapping.columns[role]), 1)]
    elif mapping.shape is Shape.TEXT:
        raise RowProblem("it is plain text, not a conversation")
    else:
        turns = _pair(row, mapping)
    system = optional_text(row, mapping.columns.get("system"))
    if system and not (turns and turns[0]["role"] == "system"):
        turns.insert(0, {"role": "system", "content": system})
    _check_order(turns)
    return turns


def before_answer(turns: list[Turn]) -> list[Turn]:
    """The turns up to the first answer."""
    return turns[: next(place for place, turn in enumerate(turns) if turn["role"] == "assistant")]


def text_of(row: dict[str, Any], column: str) -> str:
    """The text in a column that must have one. Numbers count as their digits."""
    if column not in row:
        raise RowProblem(f"it has no {column!r}")
    value = row[column]
    if value is None:
        raise RowProblem(f"its {column!r} is null")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowProblem(f"its {column!r} is not text ({_kind(value)})")
    text = _whole(str(value))
    if not text.strip():
        raise RowProblem(f"its {column!r} is empty")
    return text


def optional_text(row: dict[str, Any], column: str | None) -> str:
    """As `text_of`, but "" where the row has none."""
    if not column or row.get(column) is None or (isinstance(row[column], str) and not row[column].strip()):
        return ""
    return text_of(row, column)


def turn_items(row: dict[str, Any], column: str) -> list[Any]:
    """The list of turns in a column; a string that holds JSON is decoded."""
    value = row.get(column)
    if value is None:
        raise RowProblem(f"its {column!r} is null" if column in row else f"it has no {column!r}")
    if isinstance(value, str):
        if not value.strip():
            raise RowProblem(f"its {column!r} is empty")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowProblem(f"its {column!r} is text that does not hold a list of turns") from None
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not isinstance(value, list):
        raise RowProblem(f"its {column!r} is not a list of turns ({_kind(value)})")
    if not value:
        raise RowProblem(f"its {column!r} has no turns")
    return value


def _pair(row: dict[str, Any], mapping: Mapping) -> list[Turn]:
    columns = mapping.columns
    if mapping.shape is Shape.INSTRUCTION:
        question = text_of(row, columns["instruction"])
        if extra := optional_text(row, columns.get("input")):
            question = f"{question}\n\n{extra}"
        answer = text_of(row, columns["output"])
    else:
        question, answer = text_of(row, columns["prompt"]), text_of(row, columns["completion"])
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _turn(item: Any, place: int) -> Turn:
    if not isinstance(item, dict):
        raise RowProblem(f"a turn is not an object with a role and a content (turn {place}: {_kind(item)})")
    said_by = next((item[key] for key in ROLE_KEYS if item.get(key) is not None), None)
    if said_by is None:
        raise RowProblem(f"a turn does not say whose it is (turn {place})")
    role = _ROLES.get(str(said_by).strip().lower())
    if role is None:
        raise RowProblem(f"a turn has an unknown role (turn {place}: {str(said_by)[:40]!r})")
    if item.get("tool_calls") or item.get("function_call"):
        raise RowProblem(f"an answer calls tools, which cannot be trained yet (turn {place})")
    content = next((item[key] for key in CONTENT_KEYS if item.get(key) is not None), None)
    if content is None:
        raise RowProblem(f"a turn is null (turn {place})")
    turn = {"role": role, "content": _content(content, place)}
    reasoning = item.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning.strip():
        turn["reasoning_content"] = _whole(reasoning)
    return turn


def _content(content: Any, place: int) -> str:
    if isinstance(content, list):  # OpenAI's parts: [{"type": "text", "text": ...}]
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise RowProblem(f"a turn holds something other than text, such as an image (turn {place})")
        content = "".join(part["text"] for part in content)
    if isinstance(content, bool) or not isinstance(content, str | int | float):
        raise RowProblem(f"a turn is not text (turn {place}: {_kind(content)})")
    text = _whole(str(content))
    if not text.strip():
        raise RowProblem(f"a turn is empty (turn {place})")
    return text


def _check_order(turns: list[Turn]) -> None:
    before = "start"
    for place, turn in enumerate(turns, 1):
        role = turn["role"]
        match before, role:
            case ("start", "system" | "user") | ("system", "user") | ("user", "assistant") | ("tool", "assistant"):
                pass
            case ("assistant", "user" | "tool") | ("tool", "tool"):
                pass
            case _, "system":
                raise RowProblem(f"a system turn stands in mid-conversation (turn {place})")
            case ("start" | "system", "assistant"):
                raise RowProblem("it begins with the assistant, so there is nothing to answer")
            case "user", "user":
                raise RowProblem(f"two user turns follow each other (turn {place})")
            case "assistant", "assistant":
                raise RowProblem(f"two assistant turns follow each other (turn {place})")
            case _:
                raise RowProblem(f"a {role} turn cannot follow a {before} turn (turn {place})")
        before = role
    if not any(turn["role"] == "assistant" for turn in turns):
        raise RowProblem("it has no answer by the assistant")
    if before != "assistant":
        raise RowProblem(f"its last turn is the {before}'s: there is no answer to learn")


def _whole(text: str) -> str:
    """Text that can be tokenised: JSON's escapes can smuggle in half a character."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RowProblem("it holds half a character (a lone surrogate)") from None
    return text


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "true or false" if isinstance(value, bool) else "null" if value is None else "a number or text"
