"""Reduced curves keep what the eye would miss: spikes, first and last points, order."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.curves import reduce, split


def test_rows_are_split_by_name_in_their_order() -> None:
    rows = [(0, 1, 3.0), (1, 1, 7.0), (0, 2, 2.0)]
    found = {n: (steps.tolist(), values.tolist()) for n, (steps, values) in split(["loss", "memory"], rows).items()}
    assert found == {"loss": ([1, 2], [3.0, 2.0]), "memory": ([1], [7.0])}
    assert split([], []) == {}


def test_a_short_series_stays_whole() -> None:
    assert reduce(np.array([1, 2, 3]), np.array([0.3, 0.2, 0.1]), 10) == [(1, 0.3), (2, 0.2), (3, 0.1)]


@pytest.mark.parametrize("count", [11, 4_001, 4_002, 50_000, 99_991])
def test_a_long_series_keeps_every_spike_and_both_ends(count: int) -> None:
    points = 10 if count == 11 else 4_000
    values = np.sin(np.arange(count) / 50)
    spikes = np.random.default_rng(0).choice(np.arange(count), 5, replace=False)
    values[spikes] = 100.0 + np.arange(5)
    reduced = reduce(np.arange(count), values, points)
    steps = [step for step, _ in reduced]
    assert len(reduced) <= points + 2
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == count - 1
    assert all(value == values[step] for step, value in reduced)
    assert max(value for _, value in reduced) == 104.0
    assert min(value for _, value in reduced) == values.min()
