"""One row's values as a conversation or a text, by the mapping. What cannot be one raises RowProblem with the reason.

Reasons are short and the same for every row of a kind, with what differs in brackets at the end, so that a report
can count them.
"""

from __future__ import annotations

from typing import Any

from jobs.data.codec import loads
from jobs.data.columns import ABSENT, Mapping, Shape, value_at
from jobs.data.turns import CONTENT_KEYS, ROLE_KEYS, Turn, kind_of, tools_of, turn, whole
from jobs.errors import RowProblem

__all__ = ["CONTENT_KEYS", "ROLE_KEYS", "Turn", "check_order", "conversation", "optional_text", "text_of", "tools"]


def conversation(row: dict[str, Any], mapping: Mapping) -> list[Turn]:
    """The row's turns: an optional system turn, then user and assistant in turn, the last the assistant's.

    Tool turns may stand between assistant turns. Raises RowProblem.
    """
    if mapping.shape in (Shape.MESSAGES, Shape.SHAREGPT):
        role = "messages" if mapping.shape is Shape.MESSAGES else "conversations"
        turns = [turn(item, place) for place, item in enumerate(turn_items(row, mapping.columns[role]), 1)]
    else:
        turns = _pair(row, mapping)
    system = optional_text(row, mapping.columns.get("system"))
    if system and not (turns and turns[0]["role"] == "system"):
        turns.insert(0, {"role": "system", "content": system})
    check_order(turns)
    return turns


def tools(row: dict[str, Any], mapping: Mapping) -> list[dict[str, Any]]:
    """The tools that the row's conversation may call, as JSON schemas; empty where it names none."""
    column = mapping.columns.get("tools")
    if column:
        value = value_at(row, column)
        return tools_of(None if value is ABSENT else value)
    return []


def before_answer(turns: list[Turn]) -> list[Turn]:
    """The turns up to the first answer."""
    return turns[: next(place for place, said in enumerate(turns) if said["role"] == "assistant")]


def text_of(row: dict[str, Any], column: str) -> str:
    """The text in a column that must have one. Numbers count as their digits."""
    value = value_at(row, column)
    if value is ABSENT:
        raise RowProblem(f"it has no {column!r}")
    if value is None:
        raise RowProblem(f"its {column!r} is null")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowProblem(f"its {column!r} is not text ({kind_of(value)})")
    text = whole(str(value))
    if not text.strip():
        raise RowProblem(f"its {column!r} is empty")
    return text


def optional_text(row: dict[str, Any], column: str | None) -> str:
    """As `text_of`, but "" where the row has none."""
    if not column:
        return ""
    value = value_at(row, column)
    if value is ABSENT or value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return text_of(row, column)


def turn_items(row: dict[str, Any], column: str) -> list[Any]:
    """The list of turns in a column; a string that holds JSON is decoded."""
    value = value_at(row, column)
    if value is None or value is ABSENT:
        raise RowProblem(f"its {column!r} is null" if value is None else f"it has no {column!r}")
    if isinstance(value, str):
        if not value.strip():
            raise RowProblem(f"its {column!r} is empty")
        try:
            value = loads(value)
        except (ValueError, RecursionError):
            raise RowProblem(f"its {column!r} is text that does not hold a list of turns") from None
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not isinstance(value, list):
        raise RowProblem(f"its {column!r} is not a list of turns ({kind_of(value)})")
    if not value:
        raise RowProblem(f"its {column!r} has no turns")
    return value


def _pair(row: dict[str, Any], mapping: Mapping) -> list[Turn]:
    columns = mapping.columns
    match mapping.shape:
        case Shape.INSTRUCTION:
            question = text_of(row, columns["instruction"])
            if extra := optional_text(row, columns.get("input")):
                question = f"{question}\n\n{extra}"
            answer = text_of(row, columns["output"])
        case Shape.PROMPT | Shape.FEEDBACK:
            question, answer = text_of(row, columns["prompt"]), text_of(row, columns["completion"])
        case Shape.REWRITE:
            question, answer = text_of(row, columns["source"]), text_of(row, columns["target"])
        case _:
            raise RowProblem(f"it is {mapping.shape.value}, not a conversation")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def check_order(turns: list[Turn]) -> None:
    """Raises RowProblem where the turns are no conversation that ends with an answer."""
    before = "start"
    for place, said in enumerate(turns, 1):
        role = said["role"]
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
    if not any(said["role"] == "assistant" for said in turns):
        raise RowProblem("it has no answer by the assistant")
    if before != "assistant":
        raise RowProblem(f"its last turn is the {before}'s: there is no answer to learn")
