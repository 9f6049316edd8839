"""From a checked file to rows, one at a time in bounded memory, whatever the file's size.

A row that cannot be read is yielded with its problem; only what makes the whole file unreadable raises. Row numbers
are counted as a person counts them: data rows from 1, without header and blank lines.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from jobs.data.formats import Format, Sniffed
from jobs.errors import UserError

MAX_ROW_CHARS = 2_000_000  # about 500,000 tokens: more than any maximum length
RAW_CHARS = 2_000  # kept of a row that cannot be read
MAX_COLUMNS = 500


@dataclass(slots=True)
class Row:
    """One row: its values and their JSON text, or the problem and the beginning of what stands there."""

    number: int
    values: dict[str, Any] | None
    text: str | None
    problem: str | None = None
    raw: str | None = None


@dataclass
class Reading:
    """One pass over a file. `columns` and `notes` are complete when `rows` is at its end."""

    filename: str
    columns: dict[str, None] = field(default_factory=dict)  # an ordered set
    notes: list[str] = field(default_factory=list)  # what the person should know about how it was read
    progress: Callable[[], float] = lambda: 0.0  # share of the file read so far

    def good(self, number: int, values: dict[str, Any], text: str | None = None) -> Row:
        """A readable row; `text` is its JSON where the file already holds it."""
        if len(self.columns) < MAX_COLUMNS:
            self.columns.update(dict.fromkeys(values))
        text = text if text is not None else _ENCODER.encode(values)
        if len(text) > MAX_ROW_CHARS:
            return self.bad(number, too_large(len(text)), text)
        return Row(number, values, text)

    def bad(self, number: int, problem: str, raw: str) -> Row:
        return Row(number, None, None, problem, raw[:RAW_CHARS])


def too_large(chars: int) -> str:
    return f"it is larger than a row may be (more than {MAX_ROW_CHARS:,} characters)"


def _plain(value: Any) -> str:
    """What JSON has no form for, as Parquet may hold it."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_plain)


def read(path: Path, filename: str, sniffed: Sniffed) -> tuple[Reading, Iterator[Row]]:
    """The rows of a file whose encoding has been checked. Raises UserError, also while iterating."""
    from jobs.data import readers_csv, readers_json

    reading = Reading(filename)
    if sniffed.format is Format.PARQUET:
        return reading, _parquet(path, reading)
    assert sniffed.encoding
    by_format: dict[Format, Callable[[TextIO, Reading], Iterator[Row]]] = {
        Format.CSV: readers_csv.rows,
        Format.TSV: readers_csv.rows,
        Format.JSON: readers_json.array_rows,
        Format.JSONL: readers_json.line_rows,
        Format.TEXT: _paragraphs,
    }
    return reading, _opened(path, sniffed.encoding, reading, by_format[sniffed.format])


def _opened(
    path: Path, encoding: str, reading: Reading, rows: Callable[[TextIO, Reading], Iterator[Row]]
) -> Iterator[Row]:
    size = path.stat().st_size
    with path.open("rb") as binary:
        reading.progress = lambda: os.lseek(binary.fileno(), 0, os.SEEK_CUR) / size
        yield from rows(io.TextIOWrapper(binary, encoding, newline=""), reading)
        reading.progress = lambda: 1.0


def lines(file: TextIO) -> Iterator[tuple[int, str, bool]]:
    """(line number, line, whether it was too long and only its beginning is here)."""
    number = 0
    while line := file.readline(MAX_ROW_CHARS + 1):
        number += 1
        long = len(line) > MAX_ROW_CHARS
        if long:
            rest = line
            while rest and not rest.endswith(("\n", "\r")):
                rest = file.readline(1 << 16)
        yield number, line, long


def _parquet(path: Path, reading: Reading) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Without pre-buffering and with a read buffer, pages are read as they are needed, not a row group at once.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            total = max(1, file.metadata.num_rows)
            reading.columns.update(dict.fromkeys(file.schema_arrow.names[:MAX_COLUMNS]))
            number = 0

            def share() -> float:
                return number / total

            reading.progress = share
            for batch in file.iter_batches(batch_size=256, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield reading.good(number, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{reading.filename} is a Parquet file that cannot be read: {str(error).splitlines()[0]} "
            "Write it again and upload that."
        ) from None


LONG_PARAGRAPH = 8_000  # characters; about 2,000 tokens


def _paragraphs(file: TextIO, reading: Reading) -> Iterator[Row]:
    """Blank lines separate rows; without any blank line each line is a row. Long ones are split, so nothing is lost."""
    numbered = lines(file)
    opening: list[tuple[int, str, bool]] = []
    by_line = True
    chars = 0
    for item in numbered:  # decide by the first million characters
        opening.append(item)
        chars += len(item[1])
        if not item[1].strip() and any(line.strip() for _, line, _ in opening[:-1]):
            by_line = False
            break
        if chars > 1_000_000:
            break
    split = 0
    number = 0

    def emit(text: str) -> Iterator[Row]:
        nonlocal number, split
        pieces = _split_long(text)
        split += len(pieces) > 1
        for piece in pieces:
            number += 1
            yield reading.good(number, {"text": piece})

    gathered: list[str] = []
    size = 0

    def everything() -> Iterator[tuple[int, str, bool]]:
        yield from opening
        opening.clear()
        yield from numbered

    for line_number, line, long in everything():
        if long:
            number += 1
            yield reading.bad(
                number, f"its line is longer than {MAX_ROW_CHARS:,} characters (line {line_number})", line
            )
            continue
        blank = not line.strip()
        if gathered and (blank or by_line or size > MAX_ROW_CHARS // 2):
            yield from emit("".join(gathered).strip("\r\n"))
            gathered, size = [], 0
        if not blank:
            gathered.append(line)
            size += len(line)
    if gathered:
        yield from emit("".join(gathered).strip("\r\n"))
    reading.notes.append("Each line is one row." if by_line else "Blank lines separate the rows.")
    if split:
        reading.notes.append(
            f"{split} {'piece was' if split == 1 else 'pieces were'} longer than {LONG_PARAGRAPH:,} characters "
            "and split at a line or sentence end."
        )


def _split_long(text: str) -> list[str]:
    pieces = []
    while len(text) > LONG_PARAGRAPH:
        cut = -1
        for end in ("\n", ". ", "! ", "? ", " "):
            cut = text.rfind(end, LONG_PARAGRAPH // 2, LONG_PARAGRAPH)
            if cut > 0:
                cut += len(end)
                break
        if cut <= 0:
            cut = LONG_PARAGRAPH
        pieces.append(text[:cut].rstrip())
        text = text[cut:]
    return [*pieces, text] if text.strip() else pieces
