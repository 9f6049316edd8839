"""CSV and TSV: delimiter and header found by looking, ragged and badly quoted rows yielded as bad rows by number.

A block of lines is parsed in one go; where that fails, the record at fault is looked at alone.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.data.columns import KNOWN_NAMES, plain_name
from jobs.data.readers import base
from jobs.data.readers.base import Reader, Reading, Row, too_large
from jobs.data.readers.lines import Lines, line_blocks
from jobs.data.readers.tables import column_names, looks_like_header
from jobs.errors import UserError

_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_NONE = "\x1f"  # for a file of one column, whose texts may hold any of them unquoted
_SAMPLE_CHARS = 200_000

Dialect = dict[str, Any]  # what csv.reader takes


class _TooLong(Exception):
    """One line, or one quoted field over many lines, is larger than a row may be."""


@dataclass(slots=True)
class _Record:
    start: int  # the first of its lines, among those of its block
    end: int  # after the last
    fields: list[str]
    problem: str | None


@dataclass(slots=True)
class _Block:
    first: int  # the number of the first line
    lines: list[str]
    records: list[_Record]


class Delimited(Reader):
    """What CSV and TSV share."""

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        assert encoding
        csv.field_size_limit(base.MAX_ROW_CHARS)
        window = _Window(line_blocks(path, encoding, reading))
        dialect = _dialect(window.sample())
        if dialect["delimiter"] in ";|":
            reading.notes.append(f"Columns are separated by {_DELIMITERS[dialect['delimiter']]}.")
        names: list[str] = []
        number = 0
        for block in _records(window, dialect):
            rows: list[Row] = []
            for record in block.records:
                fields, problem = record.fields, record.problem
                if not names:
                    if problem:
                        raise UserError(
                            f"The first line of {reading.filename} cannot be read: {problem}. Mend it there."
                        )
                    names, first_is_data = column_names(fields, reading)
                    if not first_is_data:
                        continue
                number += 1
                if problem is None and len(fields) == len(names):
                    rows.append(reading.good(number, dict(zip(names, fields, strict=True))))
                    continue
                line = block.first + record.start
                if problem is None:
                    many = "too many" if len(fields) > len(names) else "too few"
                    why = f"it has {many} fields ({len(fields)} where the header has {len(names)}; line {line})"
                else:
                    why = f"{problem} (line {line})"
                rows.append(reading.bad(number, why, "".join(block.lines[record.start : record.end])))
            yield rows


class Csv(Delimited):
    name = "csv"
    label = "CSV"
    order = 10
    extensions = (".csv",)


class Tsv(Delimited):
    name = "tsv"
    label = "TSV"
    order = 20
    extensions = (".tsv", ".tab")


class _Window:
    """The lines that have been read and not yet used."""

    def __init__(self, parts: Iterator[Lines]) -> None:
        self._parts = parts
        self._long: set[int] = set()  # numbers of lines of which only the beginning is here
        self.first = 1  # the number of the first line
        self.lines: list[str] = []
        self.ended = False

    def more(self) -> bool:
        """Read on; False at the file's end."""
        part = next(self._parts, None)
        if part is None:
            self.ended = True
            return False
        if part.long:
            self._long.add(part.first)
        self.lines += part.lines
        return True

    def sample(self) -> list[str]:
        """The first lines, which stay."""
        while sum(map(len, self.lines)) < _SAMPLE_CHARS and self.more():
            pass
        return [line for place, line in enumerate(self.lines) if not self.is_long(place)]

    def is_long(self, place: int) -> bool:
        return self.first + place in self._long

    def whole(self) -> list[str]:
        """The lines before the first long one."""
        here = [number - self.first for number in self._long if number >= self.first]
        return self.lines[: min(here)] if here else self.lines

    def use(self, records: list[_Record]) -> _Block:
        """The records' lines, which are then gone."""
        count = records[-1].end if records else 0
        block = _Block(self.first, self.lines[:count], [record for record in records if not _is_blank(record)])
        del self.lines[:count]
        self.first += count
        return block


def _records(window: _Window, dialect: Dialect) -> Iterator[_Block]:
    """Every record, the unreadable ones with their problem. One of those costs one line: the next begins after it."""
    while window.lines or window.more():
        lines = window.whole()
        records: list[_Record] = []
        end = 0
        reader = csv.reader(lines, strict=True, **dialect)
        try:
            for fields in reader:
                records.append(_Record(end, end := reader.line_num, fields, None))
        except csv.Error as error:
            if "unexpected end" in str(error) and lines is window.lines and not window.ended:
                open_chars = sum(map(len, lines[end:]))
                if open_chars <= base.MAX_ROW_CHARS:  # a record goes on in the next block
                    yield window.use(records)
                    window.more()
                    continue
        at_fault = end < len(lines)
        yield window.use(records)
        if at_fault or (window.lines and window.is_long(0)):
            yield window.use([_one(window, dialect)])


def _one(window: _Window, dialect: Dialect) -> _Record:
    """The first record of the window, alone."""
    used = 0

    def lines() -> Iterator[str]:
        nonlocal used
        chars = 0
        while used < len(window.lines) or window.more():
            chars += len(window.lines[used])
            used += 1
            if chars > base.MAX_ROW_CHARS or window.is_long(used - 1):
                raise _TooLong
            yield window.lines[used - 1]

    reader = csv.reader(lines(), strict=True, **dialect)
    try:
        fields = next(reader)
    except _TooLong:
        return _Record(0, 1, [], "a quote is opened and not closed" if used > 1 else too_large(base.MAX_ROW_CHARS))
    except csv.Error as error:
        unclosed = "unexpected end" in str(error) or "field limit" in str(error)
        return _Record(0, 1, [], "a quote is opened and not closed" if unclosed else "text follows a closing quote")
    return _Record(0, reader.line_num, fields, None)


def _is_blank(record: _Record) -> bool:
    fields = record.fields
    return record.problem is None and (not fields or (len(fields) == 1 and not fields[0].strip()))


def table_kind(text: str) -> str | None:
    """ "csv" or "tsv" where a file's beginning, whose name says nothing, is a table; None where it is prose."""
    lines = text.splitlines(keepends=True)
    if len(text) > 10_000:
        lines = lines[:-1]  # the last is not whole
    delimiter = _dialect(lines)["delimiter"]
    if delimiter == _NONE:
        return None
    records = [fields for fields in csv.reader(lines, delimiter=delimiter) if fields]
    usual = len(records[0])
    if len(records) < 2 or sum(len(fields) == usual for fields in records) < 0.9 * len(records):
        return None
    if delimiter == "\t":
        return "tsv"
    named = any(plain_name(cell) in KNOWN_NAMES for cell in records[0])
    return "csv" if named or (len(records) > 2 and looks_like_header(records[0])) else None


def _dialect(sample: list[str]) -> Dialect:
    """Delimiter and quoting under which most records have the same number of fields."""
    best: tuple[float, dict[str, Any]] = (0.0, {"delimiter": _NONE})
    for delimiter in _DELIMITERS:
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if delimiter == "\t" else (csv.QUOTE_MINIMAL,):
            dialect: dict[str, Any] = {"delimiter": delimiter, "quoting": quoting}
            counts: Counter[int] = Counter()
            header = 0  # a delimiter that the first record lacks is part of the texts
            reader = csv.reader(iter(sample), strict=True, **dialect)
            while sum(counts.values()) < 500:
                try:
                    fields = next(reader)
                except StopIteration:
                    break
                except csv.Error:
                    counts[0] += 1
                    continue
                counts[len(fields)] += bool(fields)
                header = header or len(fields)
            usual, times = max(((n, c) for n, c in counts.items() if n > 1), key=lambda x: x[1], default=(0, 0))
            score = times / max(1, sum(counts.values())) * (1 + min(usual, 10) / 100)
            if header > 1 and score > best[0]:
                best = (score, dialect)
    return best[1]
