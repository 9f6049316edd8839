"""How long a run's rows are: the longest is found, however many there are."""

from __future__ import annotations

import numpy as np

from jobs.training.lengths import lengths_of
from jobs.training.rows import Row, Rows


def test_the_longest_of_very_many_rows_is_found() -> None:
    rows = Rows()
    for number in range(45_000):
        length = 3_000 if number == 30_001 else 5 + number % 7
        rows.add(Row(number, np.zeros(length, dtype=np.int32), np.ones(length, dtype=bool)))
    found = lengths_of(rows)
    assert (found.longest, found.rows) == (3_000, 45_000)
    assert 7 < found.mean < 9
    assert lengths_of(rows.take(np.arange(100))).longest == 11


def test_the_longest_of_the_rows_kept_aside_is_told_by_itself() -> None:
    short, long = (
        [Row(number, np.zeros(length, dtype=np.int32), np.ones(length, dtype=bool)) for number in range(3)]
        for length in (20, 700)
    )
    found = lengths_of(short, aside=long)
    assert (found.longest, found.longest_aside, found.rows) == (20, 700, 3)
    assert lengths_of(long, aside=short).longest_aside == 20
    assert lengths_of(short).longest_aside == 0
