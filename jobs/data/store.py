"""The canonical store of a dataset: `rows.parquet` beside the original file, in a folder named by its fingerprint.

Every row of the file is there under its number, the unreadable ones with their problem. The server, the token child
and the training child read it with the same two functions. Needs neither torch nor the catalog.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.data.codec import loads
from jobs.errors import UserError

if TYPE_CHECKING:
    from jobs.data.readers.base import Row

ROWS = "rows.parquet"
GROUP_ROWS = 2_000
GROUP_CHARS = 4_000_000  # a group is one unit of reading: any row is found by decoding one of them

Stored = tuple[int, dict[str, Any] | None, str | None]  # number, values, problem


class RowWriter:
    """Writes rows to `path` as they come. The file is complete when the `with` block has ended without an error."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        self._schema = pyarrow.schema(
            [
                pyarrow.field("number", pyarrow.int64(), nullable=False),
                pyarrow.field("json", pyarrow.large_string()),  # null where the row could not be read
                pyarrow.field("problem", pyarrow.string()),  # why not
                pyarrow.field("raw", pyarrow.string()),  # and the beginning of what stands there
            ]
        )
        self._file = parquet.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
        )
        self._group: list[Row] = []
        self._chars = 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            if kind is None and self._group:
                self._flush()
        finally:
            self._file.close()

    def add(self, rows: Sequence[Row]) -> None:
        self._group += rows
        self._chars += sum([len(row.text) for row in rows if row.text])
        if len(self._group) >= GROUP_ROWS or self._chars >= GROUP_CHARS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        group = self._group
        texts = [row.text for row in group]
        bad = None in texts
        columns = [
            [row.number for row in group],
            texts,
            [row.problem for row in group] if bad else pyarrow.nulls(len(group), pyarrow.string()),
            [row.raw for row in group] if bad else pyarrow.nulls(len(group), pyarrow.string()),
        ]
        self._file.write_batch(pyarrow.record_batch(columns, schema=self._schema), row_group_size=len(group))
        group.clear()
        self._chars = 0


def read_rows(path: Path) -> Iterator[Stored]:
    """Every row in the file's order: (number, values or None, problem or None). Memory: one group."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["number", "json", "problem"], use_threads=False)
            for number, text, problem in zip(*(column.to_pylist() for column in table.columns), strict=True):
                yield number, None if text is None else loads(text), problem


def read_raw(path: Path, number: int) -> tuple[Stored, str]:
    """One row and how it stands in the file: its JSON, or the beginning of what could not be read.

    Raises UserError where the dataset has none of that number.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        total = file.metadata.num_rows
        if not 1 <= number <= total:
            raise UserError(f"There is no row {number}: the dataset has rows 1 to {total:,}.")
        sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        ends = list(itertools.accumulate(sizes))
        group = bisect.bisect_left(ends, number)
        place = number - 1 - (ends[group - 1] if group else 0)
        row = file.read_row_group(group, use_threads=False).slice(place, 1).to_pylist()[0]
    text = row["json"]
    return (row["number"], None if text is None else loads(text), row["problem"]), text or row["raw"] or ""


def count_rows(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)
