"""JSON lists and JSON lines, streamed: a list is decoded element by element out of a sliding buffer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from jobs.data.formats import container_start
from jobs.data.readers import MAX_ROW_CHARS, Reading, Row, lines, too_large
from jobs.errors import UserError

_CHUNK = 1 << 18
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_MARKS = re.compile(r'["\\\[\]{}]')


def as_row(value: Any) -> dict[str, Any] | None:
    """An object is a row; a bare list is a conversation and a bare string a text."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return {"messages": value}
    return {"text": value} if isinstance(value, str) else None


def line_rows(file: TextIO, reading: Reading) -> Iterator[Row]:
    number = 0
    for line_number, line, long in lines(file):
        text = line.strip().lstrip("\ufeff")
        if not text:
            continue
        number += 1
        if long:
            yield reading.bad(number, f"{too_large(len(line))[:-1]}; line {line_number})", text)
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            yield reading.bad(
                number, f"it is not valid JSON ({error.msg}, line {line_number} column {error.colno})", text
            )
            continue
        except (ValueError, RecursionError):
            yield reading.bad(number, f"it is not JSON that can be read (line {line_number})", text)
            continue
        yield _row(reading, number, value, text)


def _row(reading: Reading, number: int, value: Any, text: str) -> Row:
    values = as_row(value)
    if values is None:
        return reading.bad(number, "it is neither an object nor a list", text)
    return reading.good(number, values, text if values is value else None)


class _Buffer:
    """A window on the file's text that moves forward; `at` is the next character to read."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.text = ""
        self.at = 0
        self.ended = False
        self._lines_gone = 0

    @property
    def left(self) -> int:
        return len(self.text) - self.at

    def more(self, chars: int = _CHUNK) -> None:
        if self.at > _CHUNK:
            self._lines_gone += self.text.count("\n", 0, self.at)
            self.text, self.at = self.text[self.at :], 0
        piece = self._file.read(chars)
        self.ended = not piece
        self.text += piece

    def next_mark(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.left or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def line(self, position: int) -> int:
        return self._lines_gone + self.text.count("\n", 0, position) + 1


def array_rows(file: TextIO, reading: Reading) -> Iterator[Row]:
    """The elements of a list, of the list inside an object ({"data": [...]}), or objects one after another."""
    buffer = _Buffer(file)
    mark = buffer.next_mark()
    in_list = mark == "["
    if mark == "{":
        while buffer.left < 1_000_000 and not buffer.ended:
            buffer.more()
        start = container_start(buffer.text[buffer.at :])
        if start is not None:
            name = buffer.text[: buffer.at + start].rstrip().rstrip(":").rstrip().rsplit('"', 2)[-2]
            reading.notes.append(f'The rows are the list under "{name}".')
            buffer.at += start
            in_list = True
    if in_list:
        buffer.at += 1
    number = 0
    while True:
        mark = buffer.next_mark()
        if in_list and mark == "]":
            buffer.at += 1
            break
        if not mark:
            if in_list:
                raise _broken(reading, buffer, buffer.at, f"the list is not closed after row {number}")
            return
        number += 1
        yield _element(buffer, reading, number)
        mark = buffer.next_mark()
        if mark == ",":
            buffer.at += 1
        elif in_list and mark != "]":
            problem = f"a comma is missing after row {number}" if mark else f"the list is not closed after row {number}"
            raise _broken(reading, buffer, buffer.at, problem)
    if buffer.next_mark() not in ("", "}"):
        reading.notes.append("What follows that list in the file was not read.")


_DECODER = json.JSONDecoder()


def _element(buffer: _Buffer, reading: Reading, number: int) -> Row:
    while True:
        try:
            value, end = _DECODER.raw_decode(buffer.text, buffer.at)
        except (ValueError, RecursionError) as error:
            if buffer.left <= MAX_ROW_CHARS and not buffer.ended:
                buffer.more(max(_CHUNK, buffer.left))  # it may only be incomplete
                continue
            return _skip(buffer, reading, number, error)
        if end == len(buffer.text) and not buffer.ended:
            buffer.more()  # a number may go on
            continue
        text, buffer.at = buffer.text[buffer.at : end], end
        return _row(reading, number, value, text)


def _skip(buffer: _Buffer, reading: Reading, number: int, error: Exception) -> Row:
    """Pass over an element that is broken or too large, by its brackets. Raises UserError where they do not close."""
    position = getattr(error, "pos", buffer.at)
    message = getattr(error, "msg", "nested too deeply")
    line = buffer.line(position)
    column = position - buffer.text.rfind("\n", 0, position)
    raw = buffer.text[buffer.at : buffer.at + MAX_ROW_CHARS // 100]
    broken = _broken(reading, buffer, position, message)
    if buffer.text[buffer.at] not in "[{":
        raise broken
    depth = 0
    length = 0
    quoted = False
    while True:
        found = _MARKS.search(buffer.text, buffer.at)
        if found is None:
            length += buffer.left
            buffer.at = len(buffer.text)
            if buffer.ended:
                raise broken
            buffer.more()
            continue
        length += found.end() - buffer.at
        buffer.at = found.end()
        match found.group():
            case "\\":
                if not buffer.left:
                    buffer.more()
                buffer.at += 1
            case '"':
                quoted = not quoted
            case "[" | "{" if not quoted:
                depth += 1
            case "]" | "}" if not quoted:
                depth -= 1
        if depth == 0:
            break
    if length > MAX_ROW_CHARS:
        return reading.bad(number, too_large(length), raw)
    return reading.bad(number, f"it is not valid JSON ({message}, line {line} column {column})", raw)


def _broken(reading: Reading, buffer: _Buffer, position: int, problem: str) -> UserError:
    column = position - buffer.text.rfind("\n", 0, position)
    return UserError(
        f"{reading.filename} is not valid JSON: {problem} (line {buffer.line(position)}, column {column}). "
        "Mend it there, or write one object a line and name the file .jsonl: then only that row is bad."
    )
