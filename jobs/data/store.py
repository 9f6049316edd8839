"""The canonical store of a dataset: `rows.parquet` beside the original file, in a folder named by its fingerprint.

Every row of the file is there under its number, the unreadable ones with their problem. The server, the token child
and the training child read it with the same two functions. Needs neither torch nor the catalog.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import UserError

if TYPE_CHECKING:
    from jobs.data.readers import Row

ROWS = "rows.parquet"
GROUP_ROWS = 2_000
GROUP_CHARS = 4_000_000  # a group is one unit of reading: any row is found by decoding one of them

Stored = tuple[int, dict[str, Any] | None, str | None]  # number, values, problem


def write_rows(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Write rows to `path` as they come, handing each on. The file is complete when this is at its end."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        [
            pyarrow.field("number", pyarrow.int64(), nullable=False),
            pyarrow.field("json", pyarrow.large_string()),  # null where the row could not be read
            pyarrow.field("problem", pyarrow.string()),  # why not
            pyarrow.field("raw", pyarrow.string()),  # and the beginning of what stands there
        ]
    )
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_statistics=False) as file:
        group: list[Row] = []
        chars = 0

        def flush() -> None:
            columns = [
                [row.number for row in group],
                [row.text for row in group],
                [row.problem for row in group],
                [row.raw for row in group],
            ]
            file.write_batch(pyarrow.record_batch(columns, schema=schema), row_group_size=max(1, len(group)))
            group.clear()

        for row in rows:
            group.append(row)
            chars += len(row.text or "")
            if len(group) >= GROUP_ROWS or chars >= GROUP_CHARS:
                flush()
                chars = 0
            yield row
        if group:
            flush()


def read_rows(path: Path) -> Iterator[Stored]:
    """Every row in the file's order: (number, values or None, problem or None). Memory: one group."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["number", "json", "problem"], use_threads=False)
            for number, text, problem in zip(*(column.to_pylist() for column in table.columns), strict=True):
                yield number, None if text is None else json.loads(text), problem


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
    return (row["number"], None if text is None else json.loads(text), row["problem"]), text or row["raw"] or ""


def count_rows(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)
