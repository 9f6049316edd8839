"""Markdown: every section, a heading with what stands below it, is a row. Without headings paragraphs are rows.

A code block is never cut, unless it alone is longer than a row should be. The text stays as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from jobs.data.readers.base import Reader, Reading, Row
from jobs.data.readers.lines import Lines, line_blocks, opening
from jobs.data.readers.plain import LONG_PARAGRAPH, Texts

_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_LONG_SECTION = LONG_PARAGRAPH * 3 // 4
_LOOKED_AT = 1_000_000  # characters in which a heading shows that there are sections


class Markdown(Reader):
    name = "markdown"
    label = "Markdown"
    order = 65
    extensions = (".md", ".markdown", ".mdx")

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        assert encoding
        parts = line_blocks(path, encoding, reading)
        begin = opening(parts, _LOOKED_AT)
        by_heading = _has_headings(begin)
        sections = _Sections(Texts(reading), by_heading)
        for part in begin:
            yield sections.read(part)
        begin.clear()
        for part in parts:
            yield sections.read(part)
        yield sections.end()
        reading.notes.append(
            "Each heading with the text below it is one row." if by_heading else "Blank lines separate the rows."
        )


class _Fences:
    """Which lines are code, by the fences around it."""

    def __init__(self) -> None:
        self._closing = ""  # what closes the block that is open

    def is_code(self, line: str) -> bool:
        """To be asked of every line in its order. The fences belong to the code."""
        found = _FENCE.match(line)
        if self._closing:
            if found and found[1].startswith(self._closing) and not line.strip(" `~\r\n"):
                self._closing = ""
            return True
        if found:
            self._closing = found[1]
        return found is not None


def _has_headings(parts: list[Lines]) -> bool:
    fences = _Fences()
    return any(not fences.is_code(line) and _HEADING.match(line) for part in parts for line in part.lines)


class _Sections:
    """Lines to rows."""

    def __init__(self, texts: Texts, by_heading: bool) -> None:
        self._texts = texts
        self._by_heading = by_heading
        self._fences = _Fences()
        self._in_code = False
        self._blank = ""  # blank lines, which belong to the row where it goes on
        self._body = False  # the row has more than its headings

    def read(self, part: Lines) -> list[Row]:
        if part.long:
            self._texts.too_long(part)
            self._blank, self._body = "", False
            return self._texts.take()
        for line in part.lines:
            self._line(line)
        return self._texts.take()

    def end(self) -> list[Row]:
        self._texts.end()
        self._texts.say()
        return self._texts.take()

    def _line(self, line: str) -> None:
        goes_on = self._in_code
        self._in_code = self._fences.is_code(line)
        goes_on = goes_on and self._in_code
        if line.isspace() and not goes_on:
            self._blank += line
            return
        heading = not self._in_code and _HEADING.match(line) is not None
        if not goes_on and self._ends_before(heading):
            self._texts.end()
            self._blank, self._body = "", False
        if self._blank:
            self._texts.add(self._blank)
            self._blank = ""
        self._texts.add(line)
        self._body = self._body or not heading

    def _ends_before(self, heading: bool) -> bool:
        """A heading right below another stays with it. A long section ends at a blank line."""
        if heading and self._by_heading:
            return self._body
        return bool(self._blank) and (not self._by_heading or self._texts.chars > _LONG_SECTION)
