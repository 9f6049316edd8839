"""Mends of what stands in the cells: white space, the text of special tokens, labels spelled in several ways, tags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from pydantic import Field

from jobs.data.columns import ABSENT, Mapping, Shape, value_at, with_value
from jobs.data.conversation import turn_items
from jobs.data.mends.base import Change, Mend, Rows
from jobs.data.store import Stored
from jobs.data.turns import CONTENT_KEYS
from jobs.data.values import labels_of, tagged
from jobs.errors import RowProblem
from jobs.frozen import Frozen

_NOT_TEXT = frozenset(("label", "score", "tokens", "tags", "tools", "answers"))  # roles whose cells are left alone
_PASSAGE = frozenset(("context",))  # answers are counted from its beginning


class Trim(Mend):
    name = "trim"
    label = "Trim white space"
    help = "Takes away spaces and line breaks before and after each text."
    order = 10
    shapes = tuple(shape for shape in Shape if shape is not Shape.TAGGED)

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        return _each_text(mapping, str.strip)


class CutSpecial(Mend):
    name = "cut_special"
    label = "Cut special tokens"
    help = "Takes texts such as <|im_end|> out of the cells: the model would take them for its own special tokens."
    order = 12
    shapes = tuple(shape for shape in Shape if shape not in (Shape.TAGGED, Shape.EXTRACTIVE))

    class Params(Frozen):
        tokens: tuple[str, ...] = Field((), title="Tokens", description="What is cut out.", max_length=1_000)

    def begin(self, params: Params, mapping: Mapping, rows: Rows) -> Change:
        longest_first = sorted(params.tokens, key=len, reverse=True)
        if not longest_first:
            return lambda row: row
        pattern = re.compile("|".join(map(re.escape, longest_first)))
        return _each_text(mapping, lambda text: pattern.sub("", text))


class UnifyLabels(Mend):
    name = "unify_labels"
    label = "Unify label spellings"
    help = (
        'Labels that differ only in case, spaces or punctuation ("Spam", "spam ") become their most frequent spelling.'
    )
    order = 30
    shapes = (Shape.LABELLED,)

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        column = mapping.columns["label"]
        counts: Counter[str] = Counter()
        for _, values, _ in rows():
            if values is not None:
                counts.update(_labels(values, mapping))
        usual = spellings(counts)

        def change(row: Stored) -> Stored:
            number, values, problem = row
            if values is None or not any(usual.get(label, label) != label for label in _labels(values, mapping)):
                return row
            found = list(dict.fromkeys(usual.get(label, label) for label in _labels(values, mapping)))
            cell = value_at(values, column)
            several = isinstance(cell, list) or len(found) > 1
            return number, with_value(values, column, found if several else found[0]), problem

        return change


def plain_label(label: str) -> str:
    """What remains of a label's spelling when case, spaces and punctuation do not count."""
    return " ".join(re.sub(r"[\W_]+", " ", label).split()).casefold() or label


def spellings(counts: Counter[str]) -> dict[str, str]:
    """The usual spelling of each label that has another, more frequent one."""
    usual: dict[str, str] = {}
    for label, _ in counts.most_common():
        usual.setdefault(plain_label(label), label)
    return {label: best for label in counts if (best := usual[plain_label(label)]) != label}


class RepairTags(Mend):
    name = "repair_tags"
    label = "Repair BIO tags"
    help = "A tag that continues an entity which nothing began (I-PER after O) begins it (B-PER)."
    order = 31
    shapes = (Shape.TAGGED,)

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        column = mapping.columns["tags"]

        def change(row: Stored) -> Stored:
            number, values, problem = row
            if values is None:
                return row
            try:
                tags = tagged(values, mapping)[1]
            except RowProblem:
                return row
            found = repaired(tags)
            return row if found == tags else (number, with_value(values, column, found), problem)

        return change


def repaired(tags: list[str]) -> list[str]:
    """The tags, with B- for each I- that continues nothing of its kind."""
    found: list[str] = []
    for tag in tags:
        begun = found and found[-1][:2] in ("B-", "I-") and found[-1][2:] == tag[2:]
        found.append(f"B-{tag[2:]}" if tag.startswith("I-") and not begun else tag)
    return found


def _labels(values: dict[str, Any], mapping: Mapping) -> tuple[str, ...]:
    try:
        return labels_of(values, mapping)
    except RowProblem:
        return ()


def _each_text(mapping: Mapping, change: Callable[[str], str]) -> Change:
    """Every text of the mapped columns, within turns too."""
    columns = [
        column
        for role, column in mapping.columns.items()
        if role not in _NOT_TEXT and not (mapping.shape is Shape.EXTRACTIVE and role in _PASSAGE)
    ]

    def changed(row: Stored) -> Stored:
        number, values, problem = row
        if values is None:
            return row
        found = values
        for column in columns:
            value = value_at(values, column)
            if value is ABSENT:
                continue
            other = _changed_cell(values, column, value, change)
            if other is not value:
                found = with_value(found, column, other)
        return row if found is values else (number, found, problem)

    return changed


def _changed_cell(values: dict[str, Any], column: str, value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] not in ("[", "{"):
        other = change(value)
        return value if other == value else other
    if isinstance(value, str | list | dict):
        try:
            items = turn_items(values, column)
        except RowProblem:
            items = []
        if items and all(isinstance(item, dict) for item in items):
            found = [_changed_turn(item, change) for item in items]
            return value if all(a is b for a, b in zip(found, items, strict=True)) else found
    if isinstance(value, str):
        other = change(value)
        return value if other == value else other
    return value


def _changed_turn(item: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    key = next((key for key in CONTENT_KEYS if isinstance(item.get(key), str)), None)
    if key is None or (other := change(item[key])) == item[key]:
        return item
    return {**item, key: other}
