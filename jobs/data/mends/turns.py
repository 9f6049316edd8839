"""Mends of conversations whose turns are out of order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.data.columns import Mapping, Shape, with_value
from jobs.data.conversation import turn_items
from jobs.data.mends.base import Change, Mend, Rows
from jobs.data.store import Stored
from jobs.data.turns import CONTENT_KEYS, ROLE_KEYS, ROLES
from jobs.errors import RowProblem

_CHATS = (Shape.MESSAGES, Shape.SHAREGPT)
Items = list[Any]


class DropEmptyTurns(Mend):
    name = "drop_empty_turns"
    label = "Drop empty turns"
    help = "Takes turns without a word out of their conversation."
    order = 20
    shapes = _CHATS

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        return _each(mapping, lambda items: [item for item in items if not _is_empty(item)])


class MergeTurns(Mend):
    name = "merge_turns"
    label = "Merge turns of one speaker"
    help = "Two turns of the same speaker that follow each other become one, with an empty line between them."
    order = 21
    shapes = _CHATS

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        return _each(mapping, _merged)


class DropLeadingAnswer(Mend):
    name = "drop_leading_answer"
    label = "Drop a leading answer"
    help = "Takes out what the assistant says before the first question: there is nothing that it answers."
    order = 22
    shapes = _CHATS

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        return _each(mapping, _without_leading)


class DropTrailingQuestion(Mend):
    name = "drop_trailing_question"
    label = "Drop a trailing question"
    help = "Takes out the user's last turn where no answer follows it."
    order = 23
    shapes = _CHATS

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        return _each(mapping, _without_trailing)


def _each(mapping: Mapping, change: Callable[[Items], Items]) -> Change:
    column = mapping.columns["messages" if mapping.shape is Shape.MESSAGES else "conversations"]

    def changed(row: Stored) -> Stored:
        number, values, problem = row
        if values is None:
            return row
        try:
            items = turn_items(values, column)
        except RowProblem:
            return row
        found = change(items)
        if len(found) == len(items) or not found:
            return row
        return number, with_value(values, column, found), problem

    return changed


def _role(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    said_by = next((item[key] for key in ROLE_KEYS if item.get(key) is not None), None)
    role = ROLES.get(str(said_by).strip().lower())
    return "call" if role == "assistant" and (item.get("tool_calls") or item.get("function_call")) else role


def _content_key(item: dict[str, Any]) -> str | None:
    return next((key for key in CONTENT_KEYS if item.get(key) is not None), None)


def _is_empty(item: Any) -> bool:
    if _role(item) not in ("user", "assistant", "system"):
        return False
    key = _content_key(item)
    return key is None or (isinstance(item[key], str) and not item[key].strip())


def _merged(items: Items) -> Items:
    found: Items = []
    for item in items:
        role = _role(item)
        if found and role in ("user", "assistant") and role == _role(found[-1]):
            before = found[-1]
            key, own = _content_key(before), _content_key(item)
            if key and own and isinstance(before[key], str) and isinstance(item[own], str):
                found[-1] = {**before, key: f"{before[key]}\n\n{item[own]}"}
                continue
        found.append(item)
    return found


def _without_leading(items: Items) -> Items:
    start = 0
    while start < len(items) and _role(items[start]) == "system":
        start += 1
    first = start
    while first < len(items) and _role(items[first]) in ("assistant", "call", "tool"):
        first += 1
    return [*items[:start], *items[first:]]


def _without_trailing(items: Items) -> Items:
    end = len(items)
    while end and _role(items[end - 1]) in ("user", "system"):
        end -= 1
    return items[:end]
