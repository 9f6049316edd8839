"""CSV and TSV: delimiter and header found by looking, ragged and badly quoted rows yielded as bad rows by number."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator
from json.encoder import encode_basestring
from typing import Any, TextIO

from jobs.data.columns import KNOWN_NAMES, plain_name
from jobs.data.readers import MAX_COLUMNS, MAX_ROW_CHARS, Reading, Row, lines, too_large
from jobs.errors import UserError

_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_NONE = "\x1f"  # for a file of one column, whose texts may hold any of them unquoted
_SAMPLE_CHARS = 200_000


class _TooLong(Exception):
    """One line, or one quoted field over many lines, is larger than a row may be."""


class _Lines:
    """Physical lines for csv.reader, remembering those of the record in work so that they can be read again."""

    def __init__(self, file: TextIO) -> None:
        self._lines = lines(file)
        self._again: deque[tuple[int, str, bool]] = deque()
        self.record: list[tuple[int, str, bool]] = []  # (line number, line, whether it is too long)
        self._chars = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        item = self._again.popleft() if self._again else next(self._lines)
        self.record.append(item)
        self._chars += len(item[1])
        if item[2] or self._chars > MAX_ROW_CHARS:
            raise _TooLong
        return item[1]

    def begin_record(self) -> None:
        self.record.clear()
        self._chars = 0

    def read_again(self) -> None:
        """All lines of this record but its first are records of their own again."""
        self._again.extendleft(reversed(self.record[1:]))

    def peek(self, chars: int) -> list[str]:
        """The first lines, which will come again."""
        found = []
        total = 0
        for item in self._lines:
            self._again.append(item)
            if not item[2]:
                found.append(item[1])
            total += len(item[1])
            if total > chars:
                break
        return found


def rows(file: TextIO, reading: Reading) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW_CHARS)
    source = _Lines(file)
    dialect = _dialect(source.peek(_SAMPLE_CHARS))
    if dialect["delimiter"] in ";|":
        reading.notes.append(f"Columns are separated by {_DELIMITERS[dialect['delimiter']]}.")
    names: list[str] = []
    keys: list[str] = []  # the names as JSON writes them before a value
    number = 0
    for line, fields, problem in _records(source, dialect):
        if not names:
            if problem:
                raise UserError(f"The first line of {reading.filename} cannot be read: {problem}. Mend it there.")
            first_is_data = not _is_header(fields)
            names = _names(fields, first_is_data, reading)
            keys = [f"{encode_basestring(name)}: " for name in names]
            reading.columns.update(dict.fromkeys(names[:MAX_COLUMNS]))
            if not first_is_data:
                continue
        number += 1
        raw = "".join(line for _, line, _ in source.record)
        if problem:
            yield reading.bad(number, f"{problem} (line {line})", raw)
        elif len(fields) != len(names):
            many = "too many" if len(fields) > len(names) else "too few"
            yield reading.bad(
                number, f"it has {many} fields ({len(fields)} where the header has {len(names)}; line {line})", raw
            )
        else:
            # All values are strings: writing the JSON by hand takes a third of json.dumps' time.
            text = "{" + ", ".join([key + encode_basestring(value) for key, value in zip(keys, fields, strict=True)])
            yield reading.good(number, dict(zip(names, fields, strict=True)), text + "}")


def _records(source: _Lines, dialect: dict[str, Any]) -> Iterator[tuple[int, list[str], str | None]]:
    """(first line's number, fields, problem). A record that cannot be read costs one line: the next begins after it."""
    reader = csv.reader(source, strict=True, **dialect)
    while True:
        source.begin_record()
        problem = None
        fields: list[str] = []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except _TooLong:
            several = len(source.record) > 1
            problem = "a quote is opened and not closed" if several else too_large(MAX_ROW_CHARS)
        except csv.Error as error:
            unclosed = "unexpected end" in str(error) or "field limit" in str(error)
            problem = "a quote is opened and not closed" if unclosed else "text follows a closing quote"
        if problem:
            source.read_again()
            reader = csv.reader(source, strict=True, **dialect)
        elif not any(field.strip() for field in fields) and len(fields) <= 1:
            continue  # a blank line
        yield source.record[0][0], fields, problem


def _dialect(sample: list[str]) -> dict[str, Any]:
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


def _is_header(fields: list[str]) -> bool:
    cells = [cell.strip() for cell in fields]
    if any(plain_name(cell) in KNOWN_NAMES for cell in cells):
        return True
    return not any(
        len(cell) > 60 or "\n" in cell or cell.endswith((".", "?", "!")) or _is_number(cell) for cell in cells
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _names(fields: list[str], first_is_data: bool, reading: Reading) -> list[str]:
    if first_is_data:
        reading.notes.append(
            "The first row looks like data, not like column names, so the columns are called column 1, column 2, ..."
        )
        return [f"column {position}" for position in range(1, len(fields) + 1)]
    names: list[str] = []
    for position, cell in enumerate(fields, 1):
        name = cell.strip() or f"column {position}"
        if not cell.strip():
            reading.notes.append(f"Column {position} has no name; it is called {name}.")
        twin = name
        count = 1
        while name in names:
            count += 1
            name = f"{twin} ({count})"
        if count > 1:
            reading.notes.append(f"Two columns are named {twin}; the later one is called {name}.")
        names.append(name)
    return names
