"""How long a run's rows are, for the memory they will need."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from jobs.memory.kept import Lengths
from jobs.training.rows import Row, Rows

_MOST = 20_000  # rows that stand for all: one takes some microseconds to unpack


def lengths_of(rows: Sequence[Row]) -> Lengths:
    """In tokens, after truncation."""
    seen = rows[:: max(1, -(-len(rows) // _MOST))]
    counts = [len(row) for row in seen]
    longest = max(map(_longest_text, seen))
    if len(seen) < len(rows):
        among = rows.largest(_MOST) if isinstance(rows, Rows) else rows
        longest = max(longest, *map(_longest_text, among))
    return Lengths(longest=longest, mean=statistics.fmean(counts), spread=statistics.pstdev(counts), rows=len(rows))


def _longest_text(row: Row) -> int:
    return max(len(row.input_ids), len(row.second.input_ids) if row.second else 0)
