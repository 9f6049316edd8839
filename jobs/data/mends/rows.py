"""Mends that leave rows out: those that stand twice, those that cannot be used, those that contradict each other."""

from __future__ import annotations

from typing import Any

from jobs.data.columns import Mapping, Shape
from jobs.data.mends.base import Change, Mend, Rows, key_of
from jobs.data.store import Stored
from jobs.data.values import check_row, labels_of
from jobs.errors import RowProblem


class DropDuplicates(Mend):
    name = "drop_duplicates"
    label = "Drop duplicates"
    help = "Keeps the first of rows that say the same in the columns that are used, and leaves the others out."
    order = 50
    drops = True
    in_order = True

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        columns = tuple(mapping.columns.values())
        seen: set[int] = set()

        def change(row: Stored) -> Stored | None:
            if row[1] is None:
                return row
            key = key_of(row[1], columns)
            if key in seen:
                return None
            seen.add(key)
            return row

        return change


class DropBad(Mend):
    name = "drop_bad"
    label = "Drop rows that cannot be used"
    help = "Leaves out rows that could not be read, lack an answer, a label or a text, or have their turns in disorder."
    order = 60
    drops = True

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        def change(row: Stored) -> Stored | None:
            if row[1] is None:
                return None
            try:
                check_row(row[1], mapping)
            except RowProblem:
                return None
            return row

        return change


class DropConflicting(Mend):
    name = "drop_conflicting"
    label = "Drop contradicting rows"
    help = "Leaves out every row whose text stands elsewhere with another label: no model can learn both."
    order = 55
    shapes = (Shape.LABELLED,)
    drops = True

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        texts = tuple(mapping.columns[role] for role in ("text", "text_pair") if mapping.columns.get(role))
        labels: dict[int, int] = {}
        torn: set[int] = set()
        for _, values, _ in rows():
            if values is not None and (label := _label_key(values, mapping)) is not None:
                key = key_of(values, texts)
                if labels.setdefault(key, label) != label:
                    torn.add(key)

        def change(row: Stored) -> Stored | None:
            return None if row[1] is not None and key_of(row[1], texts) in torn else row

        return change


def _label_key(values: dict[str, Any], mapping: Mapping) -> int | None:
    try:
        return hash(frozenset(labels_of(values, mapping)))
    except RowProblem:
        return None
