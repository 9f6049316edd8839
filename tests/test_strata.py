"""Rows kept aside by their labels: each in its share, none of a label's last rows, whole texts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jobs.spec import RunSpec
from jobs.training.data import split
from jobs.training.rows import Row
from tests.rundirs import make_run


def rows_of(*labels: list[str], texts: list[int] | None = None) -> list[Row]:
    """A row for each list of labels, of a text of its own unless said."""
    return [
        Row(
            number,
            np.array([1, 10 + (texts[number] if texts else number)], dtype=np.int32),
            np.zeros(2, dtype=bool),
            target=target,
        )
        for number, target in enumerate(labels)
    ]


def given(row: Row) -> list[str]:
    return list(row.target)


def counted(rows: object) -> Counter[str]:
    return Counter(label for row in rows for label in row.target)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(10))
def test_each_label_is_kept_aside_in_its_share_and_no_labels_only_row(seed: int) -> None:
    labels = {"common": 44, "b": 30, "c": 30, "d": 20, "e": 13, "x": 1, "y": 1, "z": 1}
    rows = rows_of(*([name] for name, rows in labels.items() for _ in range(rows)))
    train, validation = split(rows, 14, seed, given)
    assert len(validation) == 14 and len(train) == 126
    assert set(counted(train)) == set(labels)
    held = counted(validation)
    assert set(held) <= set("bcde") | {"common"}
    for name, many in labels.items():
        if many > 1:
            assert abs(held[name] - 14 * many / 140) < 1, name


def test_another_seed_keeps_other_rows_and_the_same_seed_the_same_ones() -> None:
    rows = rows_of(*([name] for name in "ab" * 50))
    aside = [tuple(row.number for row in split(rows, 10, seed, given)[1]) for seed in (0, 0, 1)]
    assert aside[0] == aside[1] != aside[2]


@pytest.mark.parametrize("seed", range(10))
def test_rows_of_one_text_stay_on_one_side(seed: int) -> None:
    rows = rows_of(*([name] for name in "aabbcccccc" * 6), texts=[number // 2 for number in range(60)])
    train, validation = split(rows, 12, seed, given)
    assert len(validation) == 12
    assert not {row.input_ids[1] for row in train} & {row.input_ids[1] for row in validation}
    assert set(counted(train)) == set(counted(validation)) == set("abc")


@pytest.mark.parametrize("seed", range(10))
def test_of_several_labels_a_text_none_loses_its_only_row(seed: int) -> None:
    rows = rows_of(*[["a", "b"], ["a"], ["b"], []] * 10, ["a", "rare"], ["b", "once"])
    train, validation = split(rows, 8, seed, given)
    assert len(validation) == 8
    assert {"rare", "once"} <= set(counted(train))
    assert set(counted(validation)) == {"a", "b"} and any(not row.target for row in train)


def test_where_every_label_has_a_single_row_all_are_trained_on() -> None:
    train, validation = split(rows_of(["a"], ["b"], ["c"]), 1, 0, given)
    assert (len(train), len(validation)) == (3, 0)


def test_one_text_with_all_rows_is_parted_and_leaves_a_row_of_each_label() -> None:
    rows = rows_of(*([name] for name in "aaaabbbbc"), texts=[0] * 9)
    train, validation = split(rows, 4, 0, given)
    assert len(validation) == 4 and set(counted(train)) == set("abc")


def test_a_run_from_before_goes_on_with_the_split_it_had(tmp_path: Path, tiny_llama: Path) -> None:
    old = json.loads(make_run(tmp_path / "run", tiny_llama).spec.read_text()) | {"version": 2}
    del old["training"]["stratified"]
    before = RunSpec.model_validate(old)
    assert not before.training.stratified and before.training.max_validation_rows == 2_000
    assert RunSpec.model_validate_json(before.model_dump_json()) == before
    assert not RunSpec.model_validate(old | {"version": 1}).training.stratified
    assert RunSpec.model_validate(old | {"version": 3}).training.stratified
