"""Parquet and Arrow files, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jobs.data.readers.base import Reader, Reading, Row
from jobs.data.readers.classes import Name, class_names
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
                reading.add_columns(file.schema_arrow.names)
                names = class_names(file.schema_arrow.metadata, reading.notes)
                batches = file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
                yield from _rows(batches, file.metadata.num_rows, reading, names)
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(reading, "a Parquet", error) from None


class Arrow(Reader):
    """Arrow's own files, and its streams, which `datasets` keeps on disk."""

    name = "arrow"
    label = "Arrow"
    order = 55
    extensions = (".arrow", ".feather", ".ipc")
    is_text = False

    def claims(self, path: Path, head: bytes) -> bool:
        return head.startswith((b"ARROW1", b"\xff\xff\xff\xff"))

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        import pyarrow
        from pyarrow import ipc

        try:
            with pyarrow.memory_map(str(path)) as mapped:
                size = max(1, mapped.size())
                if mapped.read(6) == b"ARROW1":
                    file = ipc.open_file(mapped)
                    reading.add_columns(file.schema.names)
                    batches = (file.get_batch(place) for place in range(file.num_record_batches))
                    total = sum(file.get_batch(place).num_rows for place in range(file.num_record_batches))
                    names = class_names(file.schema.metadata, reading.notes)
                    yield from _rows(batches, total, reading, names)
                else:
                    mapped.seek(0)
                    stream = ipc.open_stream(mapped)
                    reading.add_columns(stream.schema.names)
                    names = class_names(stream.schema.metadata, reading.notes)
                    yield from _rows(stream, None, reading, names, lambda: mapped.tell() / size)
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(reading, "an Arrow", error) from None


def _rows(
    batches: Iterable[Any], total: int | None, reading: Reading, names: dict[str, Name], progress: Any = None
) -> Iterator[list[Row]]:
    number = 0

    def share() -> float:
        return number / max(1, total or 0)

    reading.progress = progress or share
    for whole in batches:
        for start in range(0, whole.num_rows, _BATCH_ROWS):
            batch = whole.slice(start, _BATCH_ROWS).to_pylist()
            for column, named in names.items():
                for values in batch:
                    if column in values:
                        values[column] = named(values[column])
            rows = [reading.good(place, values) for place, values in enumerate(batch, number + 1)]
            number += len(rows)
            yield rows


def _broken(reading: Reading, kind: str, error: Exception) -> UserError:
    return UserError(
        f"{reading.filename} is {kind} file that cannot be read: {str(error).splitlines()[0]} "
        "Write it again and upload that."
    )
