"""JSON lists and JSON lines, streamed: a list is decoded element by element out of a sliding buffer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from jobs.data.codec import loads
from jobs.data.readers import base
from jobs.data.readers.base import Reader, Reading, Row, too_large
from jobs.data.readers.lines import line_blocks, text_file
from jobs.errors import UserError

_CHUNK = 1 << 18
_BLOCK_ROWS = 500
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_MARKS = re.compile(r'["\\\[\]{}]')
# An object that wraps the rows: {"version": 1, "data": [...]}.
_CONTAINER = re.compile(r'"(data|rows|train|examples|items|records|samples|dataset)"\s*:\s*\[', re.IGNORECASE)


def as_row(value: Any) -> dict[str, Any] | None:
    """An object is a row; a bare list is a conversation and a bare string a text."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return {"messages": value}
    return {"text": value} if isinstance(value, str) else None


def container_start(text: str) -> int | None:
    """Where the list of rows begins in an object that wraps it, if `text` begins with such an object."""
    for match in _CONTAINER.finditer(text):
        try:
            json.loads(text[: match.end() - 1] + "[]}")  # proves that the key stands at the top level
        except (ValueError, RecursionError):
            continue
        return match.end() - 1
    return None


def json_kind(start: str, hint: str | None) -> str | None:
    """By a file's beginning "json", "jsonl", or None where the text only happens to begin with a bracket.

    `hint` is the format that the file's name promises.
    """
    first, _, rest = start.partition("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        if hint == "jsonl" and not re.match(r"\[\s*\{|\{\s*\n", start):
            return "jsonl"  # its first line is broken: a bad row, not another format
        looks_json = re.match(r"\[\s*[\[{\"]|\{\s*\"", start) is not None
        return "json" if hint == "json" or (looks_json and hint not in ("text", "markdown")) else None
    if isinstance(value, dict):
        return "jsonl" if (rest.strip() and not container_start(start)) or hint == "jsonl" else "json"
    if isinstance(value, list):
        if hint in ("text", "markdown", "csv", "tsv") and not any(isinstance(item, dict) for item in value):
            return None  # "[1]" opens a text, too
        return "jsonl" if rest.strip() else "json"
    return None


class JsonLines(Reader):
    name = "jsonl"
    label = "JSONL"
    order = 40
    extensions = (".jsonl", ".ndjson")

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        assert encoding
        number = 0
        for part in line_blocks(path, encoding, reading):
            rows: list[Row] = []
            if part.long:
                number += 1
                problem = f"{too_large(len(part.lines[0]))[:-1]}; line {part.first})"
                yield [reading.bad(number, problem, part.lines[0])]
                continue
            for place, line in enumerate(part.lines):
                text = line.strip()
                try:
                    value = loads(text)
                except (ValueError, RecursionError):
                    if text := text.lstrip("\ufeff").strip():
                        number += 1
                        rows.append(_line_again(reading, number, text, part.first + place))
                    continue
                number += 1
                if type(value) is dict:
                    rows.append(reading.good(number, value, text))
                else:
                    rows.append(_row(reading, number, value, text))
            yield rows


def _line_again(reading: Reading, number: int, text: str, line: int) -> Row:
    """A line that is no JSON as it stands; its byte-order mark has been taken off."""
    try:
        return _row(reading, number, loads(text), text)
    except json.JSONDecodeError as error:
        return reading.bad(number, f"it is not valid JSON ({error.msg}, line {line} column {error.colno})", text)
    except (ValueError, RecursionError):
        return reading.bad(number, f"it is not JSON that can be read (line {line})", text)


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


class JsonList(Reader):
    name = "json"
    label = "JSON"
    order = 30
    extensions = (".json",)

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        assert encoding
        with text_file(path, encoding, reading) as file:
            rows: list[Row] = []
            chars = 0
            for row in _elements(file, reading):
                rows.append(row)
                chars += len(row.text or "")
                if len(rows) == _BLOCK_ROWS or chars > base.MAX_ROW_CHARS:
                    yield rows
                    rows, chars = [], 0
            yield rows


def _elements(file: TextIO, reading: Reading) -> Iterator[Row]:
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
        element = _element(buffer, reading, number + 1)
        if questions := _squad_questions(element.values):
            for name in element.values or ():  # the article's own fields are no columns of its questions
                reading.columns.pop(name, None)
            for values in questions:
                number += 1
                yield reading.good(number, values)
            if _SQUAD_NOTE not in reading.notes:
                reading.notes.append(_SQUAD_NOTE)
        else:
            number += 1
            yield element
        mark = buffer.next_mark()
        if mark == ",":
            buffer.at += 1
        elif in_list and mark != "]":
            problem = f"a comma is missing after row {number}" if mark else f"the list is not closed after row {number}"
            raise _broken(reading, buffer, buffer.at, problem)
    if buffer.next_mark() not in ("", "}"):
        reading.notes.append("What follows that list in the file was not read.")


_SQUAD_NOTE = "Articles with paragraphs and questions, as SQuAD's files have them: each question is one row."


def _squad_questions(article: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The questions of one article in SQuAD's nested form, each with its passage; empty for every other element."""
    paragraphs = article.get("paragraphs") if article else None
    if not isinstance(paragraphs, list):
        return []
    rows = []
    for paragraph in paragraphs:
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            return []
        for asked in paragraph["qas"]:
            if not isinstance(asked, dict):
                return []
            answers = [each for each in asked.get("answers") or [] if isinstance(each, dict)]
            rows.append(
                {
                    "question": asked.get("question"),
                    "context": paragraph.get("context"),
                    "answers": {
                        "text": [each.get("text") for each in answers],
                        "answer_start": [each.get("answer_start") for each in answers],
                    },
                }
            )
    return rows


_DECODER = json.JSONDecoder()


def _element(buffer: _Buffer, reading: Reading, number: int) -> Row:
    while True:
        try:
            value, end = _DECODER.raw_decode(buffer.text, buffer.at)
        except (ValueError, RecursionError) as error:
            if buffer.left <= base.MAX_ROW_CHARS and not buffer.ended:
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
    raw = buffer.text[buffer.at : buffer.at + base.MAX_ROW_CHARS // 100]
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
    if length > base.MAX_ROW_CHARS:
        return reading.bad(number, too_large(length), raw)
    return reading.bad(number, f"it is not valid JSON ({message}, line {line} column {column})", raw)


def _broken(reading: Reading, buffer: _Buffer, position: int, problem: str) -> UserError:
    column = position - buffer.text.rfind("\n", 0, position)
    return UserError(
        f"{reading.filename} is not valid JSON: {problem} (line {buffer.line(position)}, column {column}). "
        "Mend it there, or write one object a line and name the file .jsonl: then only that row is bad."
    )
