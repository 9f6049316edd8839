"""Parquet, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.data.readers.base import Reader, Reading, Row
from jobs.errors import UserError

_BATCH_ROWS = 256  # a row may be large


class Parquet(Reader):
    name = "parquet"
    label = "Parquet"
    order = 50
    extensions = (".parquet",)
    is_text = False

    def claims(self, path: Path, head: bytes) -> bool:
        return head.startswith(b"PAR1")

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        import pyarrow
        from pyarrow import parquet

        try:
            # Without pre-buffering and with a read buffer, pages are read as they are needed, not a row group at once.
            with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
                total = max(1, file.metadata.num_rows)
                reading.add_columns(file.schema_arrow.names)
                number = 0

                def share() -> float:
                    return number / total

                reading.progress = share
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                    rows = [reading.good(place, values) for place, values in enumerate(batch.to_pylist(), number + 1)]
                    number += len(rows)
                    yield rows
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{reading.filename} is a Parquet file that cannot be read: {str(error).splitlines()[0]} "
                "Write it again and upload that."
            ) from None
