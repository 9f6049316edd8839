"""Mends of a dataset: shown before they are done, applied while rows are read, the same in preview, check and training.

`mended` is the one way to read a dataset as its settings want it. Memory: what its mends must remember, at most some
hundred bytes a row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.data.columns import Mapping, Shape
from jobs.data.mends.base import Change, Mend, MendRef, Rows
from jobs.data.store import Stored, read_raw, read_rows
from jobs.errors import UserError
from jobs.fields import problems_of
from jobs.frozen import Frozen

__all__ = ["Mend", "MendPreview", "MendRef", "Mended", "Sample", "all_mends", "fitting", "mend", "mended", "try_mend"]

SAMPLES = 5
_TOLD_EVERY = 2_000  # rows


class Sample(Frozen):
    """One row that a mend touches."""

    row: int
    before: dict[str, Any] | None  # None: it cannot be read
    after: dict[str, Any] | None  # None: it is left out


class MendPreview(Frozen):
    """What a mend would do to the rows as the mends before it leave them."""

    changed: int
    dropped: int
    samples: tuple[Sample, ...]  # the first of them


@cache
def all_mends() -> dict[str, Mend]:
    """Every mend by name, in the order the page shows them."""
    import jobs.data.mends as package
    from jobs.registry import collect

    return collect(package, Mend)


def fitting(shape: Shape) -> list[Mend]:
    """The mends that mean something for rows of this shape."""
    return [mend for mend in all_mends().values() if shape in mend.shapes]


def mend(ref: MendRef) -> tuple[Mend, Any]:
    """A mend and its checked settings. Raises UserError where there is none of that name, or they do not fit."""
    found = all_mends().get(ref.name)
    if found is None:
        raise UserError(f"There is no mend {ref.name!r}. Choose one of: {', '.join(all_mends())}.")
    try:
        return found, type(found).Params(**ref.params)
    except ValidationError as error:
        raise UserError(*problems_of(type(found).Params, error)) from None


def mended(path: Path, mapping: Mapping, mends: Sequence[MendRef]) -> Iterator[Stored]:
    """The rows of a dataset as its mends leave them, in the file's order, under their own numbers."""
    return _pipeline(path, mapping, mends)()


def _pipeline(path: Path, mapping: Mapping, mends: Sequence[MendRef]) -> Rows:
    rows: Rows = lambda: read_rows(path)  # noqa: E731
    for ref in mends:
        rows = _after(rows, *mend(ref), mapping)
    return rows


def _after(rows: Rows, chosen: Mend, params: Any, mapping: Mapping) -> Rows:
    def read() -> Iterator[Stored]:
        change = chosen.begin(params, mapping, rows)
        for row in rows():
            if (found := change(row)) is not None:
                yield found

    return read


def try_mend(
    path: Path,
    mapping: Mapping,
    mends: Sequence[MendRef],
    ref: MendRef,
    progress: Callable[[int], None] = lambda done: None,
) -> MendPreview:
    """What one mend more would do. `progress` is told the number of the row that is being read; it may raise."""
    before = _pipeline(path, mapping, mends)

    def told() -> Iterator[Stored]:
        for row in before():
            if row[0] % _TOLD_EVERY == 0:
                progress(row[0])
            yield row

    chosen, params = mend(ref)
    change = chosen.begin(params, mapping, told)
    changed = dropped = 0
    samples: list[Sample] = []
    for row in told():
        after = change(row)
        if after is row:
            continue
        dropped += after is None
        changed += after is not None
        if len(samples) < SAMPLES:
            samples.append(Sample(row=row[0], before=row[1], after=after[1] if after else None))
    return MendPreview(changed=changed, dropped=dropped, samples=tuple(samples))


class Mended:
    """Single rows of a mended dataset, by number. Where mends go by what stands before a row, the rows up to the
    furthest that was asked for are read once."""

    def __init__(self, path: Path, mapping: Mapping, mends: Sequence[MendRef]) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._mends = [mend(ref) for ref in mends]
        self._ordered = any(chosen.in_order for chosen, _ in self._mends)
        self._left_out: dict[int, str] = {}
        self._read = 0
        self._changes: list[Change] = []
        rows: Rows = lambda: read_rows(path)  # noqa: E731
        self._begun: Callable[[], list[Change]] = lambda: _begin_all(self._mends, mapping, rows)
        self._rows: Iterator[Stored] | None = None

    def row(self, number: int) -> tuple[Stored, str, str | None]:
        """The mended row, how it stands in the file, and the label of the mend that leaves it out, if one does.

        Raises UserError where the dataset has no row of that number.
        """
        stored, raw = read_raw(self._path, number)
        if not self._mends:
            return stored, raw, None
        with self._lock:
            if not self._changes:
                self._changes = self._begun()
                self._rows = read_rows(self._path)
            if self._ordered:
                self._go_to(number)
                if number in self._left_out:
                    return stored, raw, self._left_out[number]
            found: Stored | None = stored
            for (chosen, _), change in zip(self._mends, self._changes, strict=True):
                if chosen.in_order:
                    continue
                found = change(stored)
                if found is None:
                    return stored, raw, chosen.label
                stored = found
            return stored, raw, None

    def _go_to(self, number: int) -> None:
        assert self._rows is not None
        while self._read < number and (row := next(self._rows, None)) is not None:
            self._read = row[0]
            kept: Stored | None = row
            for (chosen, _), change in zip(self._mends, self._changes, strict=True):
                kept = change(kept) if kept is not None else None
                if kept is None:
                    self._left_out[row[0]] = chosen.label
                    break


def _begin_all(mends: list[tuple[Mend, Any]], mapping: Mapping, rows: Rows) -> list[Change]:
    changes = []
    for chosen, params in mends:
        changes.append(chosen.begin(params, mapping, rows))
        rows = _after(rows, chosen, params, mapping)
    return changes
