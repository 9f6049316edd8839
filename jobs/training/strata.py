"""Which groups of rows are kept aside to validate with, where rows have labels: each label in its share, and at least
one row of each left to learn it from. jobs.training.data says which rows are one group.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jobs.training.rows import Row


class Strata:
    """The labels of all rows. A row without any counts as one with a label of its own."""

    def __init__(self, rows: Iterable[Row], labels: Callable[[Row], Sequence[str]]) -> None:
        names: dict[str | None, int] = {}
        ends, found = array("q", [0]), array("q")
        for row in rows:
            found.extend(names.setdefault(name, len(names)) for name in dict.fromkeys(labels(row) or (None,)))
            ends.append(len(found))
        self._labels = np.array(found, dtype=np.int64)
        self._row = np.repeat(np.arange(len(ends) - 1), np.diff(np.array(ends)))  # of each of those labels
        self._rows_with = np.bincount(self._labels, minlength=len(names))
        self._rows = len(ends) - 1

    def whole_groups(self, group_of: np.ndarray, sizes: Sequence[int], count: int, seed: int) -> tuple[np.ndarray, int]:
        """(which groups are kept aside, how many rows those have: at most `count`), drawn by the seed.

        First those that stay within the labels' shares, then others while there is room. Never a label's last rows.
        """
        chosen = random.Random(seed)
        groups = list(range(len(sizes)))
        chosen.shuffle(groups)
        keys, rows_with = np.unique(
            group_of[self._row] * len(self._rows_with) + self._labels, return_counts=True
        )  # sorted by group
        owner, label = np.divmod(keys, len(self._rows_with))
        bounds = np.searchsorted(owner, np.arange(len(sizes) + 1)).tolist()
        labels, counts = label.tolist(), rows_with.tolist()
        aside = np.zeros(len(sizes), dtype=np.bool_)
        held = [0] * len(self._rows_with)
        kept = 0
        for most in (self._shares(count, chosen), (self._rows_with - 1).tolist()):
            for group in groups:
                if kept == count:
                    break
                if aside[group] or kept + sizes[group] > count:
                    continue
                own = range(bounds[group], bounds[group + 1])
                if all(held[labels[place]] + counts[place] <= most[labels[place]] for place in own):
                    aside[group] = True
                    kept += sizes[group]
                    for place in own:
                        held[labels[place]] += counts[place]
        return aside, kept

    def _shares(self, count: int, chosen: random.Random) -> list[int]:
        """How many rows of each label are kept aside, by largest remainder, equal ones in a drawn order."""
        exact = self._rows_with * (count / self._rows)
        shares = np.minimum(np.floor(exact), self._rows_with - 1).astype(np.int64)
        order = list(range(len(shares)))
        chosen.shuffle(order)
        order.sort(key=lambda label: shares[label] - exact[label])
        left = round(float(exact.sum())) - int(shares.sum())
        while left > 0:
            room = [label for label in order if shares[label] < self._rows_with[label] - 1][:left]
            if not room:
                break
            shares[room] += 1
            left -= len(room)
        found: list[int] = shares.tolist()
        return found
