"""A run's whole history made small enough for a page: each series reduced to what a chart of that width can show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Series = list[tuple[int, float]]  # (step, value)


def split(names: Sequence[str], rows: Iterable[tuple[int, int, float]]) -> dict[str, tuple[Array, Array]]:
    """Rows of (place of the name, step, value) as (steps, values) a name, order kept."""
    table = np.fromiter(rows, dtype=[("name", np.int32), ("step", np.int64), ("value", np.float64)])
    found = {}
    for number, name in enumerate(names):
        own = table[table["name"] == number]
        found[name] = (own["step"], own["value"])
    return found


def reduce(steps: Array, values: Array, points: int) -> Series:
    """About `points` of a series: the lowest and the highest of each bucket, and always the first and the last.

    Every bucket spans as many points, so spikes of one step stay visible however long the run.
    """
    count = len(steps)
    if count <= max(points, 4):
        return _pairs(steps, values)
    width = -(-2 * count // points)  # of a bucket, rounded up
    buckets = -(-count // width)
    padded = np.append(values, np.full(buckets * width - count, values[-1])).reshape(buckets, width)
    starts = np.arange(buckets) * width
    lowest, highest = starts + padded.argmin(axis=1), starts + padded.argmax(axis=1)
    kept = np.unique(np.concatenate(([0], lowest, highest, [count - 1])))
    return _pairs(steps[kept], values[kept])


def _pairs(steps: Array, values: Array) -> Series:
    return list(zip(steps.tolist(), values.tolist(), strict=True))
