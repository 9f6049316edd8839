"""How long a run's rows are, for the memory they will need."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from jobs.memory.kept import Lengths
from jobs.training.rows import Row, Rows

_MOST = 20_000  # rows that stand for all: one takes some microseconds to unpack


def lengths_of(rows: Sequence[Row], aside: Sequence[Row] = ()) -> Lengths:
    """In tokens, after truncation, of the rows that are trained on and of those kept aside."""
    seen = _some(rows)
    counts = [len(row) for row in seen]
    return Lengths(
        longest=_longest(rows, seen),
        mean=statistics.fmean(counts),
        spread=statistics.pstdev(counts),
        rows=len(rows),
        longest_aside=_longest(aside, _some(aside)) if aside else 0,
    )


def _some(rows: Sequence[Row]) -> Sequence[Row]:
    return rows[:: max(1, -(-len(rows) // _MOST))]


def _longest(rows: Sequence[Row], seen: Sequence[Row]) -> int:
    longest = max(map(_longest_text, seen))
    if len(seen) < len(rows):
        among = rows.largest(_MOST) if isinstance(rows, Rows) else rows
        longest = max(longest, *map(_longest_text, among))
    return longest


def _longest_text(row: Row) -> int:
    return max(len(row.input_ids), len(row.second.input_ids) if row.second else 0)
