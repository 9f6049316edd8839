"""How long a run's rows are, for the memory they will need."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from jobs.memory.kept import Lengths
from jobs.training.rows import Row

_MOST = 20_000  # rows that stand for all: one takes some microseconds to unpack


def lengths_of(rows: Sequence[Row]) -> Lengths:
    """In tokens, after truncation."""
    seen = rows[:: max(1, -(-len(rows) // _MOST))]
    counts = [len(row) for row in seen]
    texts = [max(len(row.input_ids), len(row.second.input_ids) if row.second else 0) for row in seen]
    return Lengths(longest=max(texts), mean=statistics.fmean(counts), spread=statistics.pstdev(counts), rows=len(rows))
