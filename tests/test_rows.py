"""A run's rows: every field survives the packing, a large run lies in a file, and the split is the seed's."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from jobs.training import rows as packed
from jobs.training.data import split
from jobs.training.rows import Joined, Row, Rows, take


def a_row(number: int, length: int = 5, **more: object) -> Row:
    ids = np.arange(number, number + length, dtype=np.int32)
    return Row(number, ids, ids % 2 == 0, **more)  # type: ignore[arg-type]


def same(one: object, other: object) -> bool:
    if isinstance(one, Row) and isinstance(other, Row):
        return all(
            same(getattr(one, item.name), getattr(other, item.name)) for item in dataclasses.fields(Row)
        )  # a field that is added and not packed is found here
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other


ROWS = [
    a_row(1),
    a_row(2, 0),
    a_row(3, 7, target="a label"),
    a_row(4, 3, target=[1.5, None, {"é": ["x"]}], types=np.array([0, 1, 1], dtype=np.int8)),
    a_row(5, 4, second=a_row(5, 9, target=0), target=0),
]


@pytest.mark.parametrize("in_memory", [1 << 20, 10])
def test_rows_come_back_as_they_were_added_from_memory_and_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(packed, "_IN_MEMORY", in_memory)
    rows = Rows(tmp_path)
    for place, row in enumerate(ROWS):
        rows.add(row)
        assert same(rows[place], row) and same(rows[0], ROWS[0])  # reading in between moves nothing
    assert all(map(same, rows, ROWS)) and len(rows) == len(ROWS)
    assert same(rows[-1], ROWS[-1])
    assert list(map(len, rows)) == list(map(len, ROWS))
    rows[0].input_ids[0] = 99  # a copy
    assert same(rows[0], ROWS[0])
    with pytest.raises(IndexError):
        rows[len(ROWS)]
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_some_of_the_rows_in_another_order_are_rows_too() -> None:
    rows = Rows()
    for row in ROWS:
        rows.add(row)
    some = take(take(rows, [4, 2, 0]), [2, 0])
    assert [row.number for row in some] == [1, 5]
    assert [row.number for row in rows[1:4]] == [2, 3, 4]
    assert [row.number for row in take(ROWS, [3, 1])] == [4, 2]
    assert len(take(rows, [])) == 0


def plain_split(rows: Sequence[Row], count: int, seed: int) -> list[int]:
    """The rule, written out: whole groups of like rows, in the seed's order, as far as they fit."""
    alike: dict[bytes, list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(row.input_ids.tobytes(), []).append(index)
    groups = list(alike.values())
    random.Random(seed).shuffle(groups)
    aside: list[int] = []
    for group in groups:
        if len(aside) + len(group) <= count:
            aside += group
    if not aside:
        aside = sorted(index for group in groups for index in group[:count])[:count]
    return sorted(aside)


@pytest.mark.parametrize("kinds", [1, 3, 40, 1_000])
def test_the_split_is_drawn_by_the_seed_in_whole_groups(kinds: int) -> None:
    chosen = random.Random(kinds)
    rows = Rows()
    numbers = [chosen.randrange(kinds) for _ in range(200)]
    for number in numbers:
        rows.add(a_row(number))
    for seed in range(5):
        for count in (0, 1, 20, 90):
            train, validation = split(rows, count, seed)
            aside = plain_split(rows, count, seed) if count else []
            assert [row.number for row in validation] == [numbers[index] for index in aside]
            assert [row.number for row in train] == [n for i, n in enumerate(numbers) if i not in set(aside)]


def test_several_sequences_of_rows_are_read_as_one() -> None:
    rows = Rows()
    for row in ROWS:
        rows.add(row)
    joined = Joined(rows[:2], [], rows[3:], ROWS[2:3])
    assert [row.number for row in joined] == [1, 2, 4, 5, 3]
    assert (len(joined), joined[-1].number, [row.number for row in joined[1:4]]) == (5, 3, [2, 4, 5])
    with pytest.raises(IndexError):
        joined[5]
