"""Plain text: paragraphs are rows, or lines where there are no paragraphs. Nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.data.readers import base
from jobs.data.readers.base import Reader, Reading, Row
from jobs.data.readers.lines import Lines, line_blocks

LONG_PARAGRAPH = 8_000  # characters; about 2,000 tokens
_LOOKED_AT = 1_000_000  # characters in which a blank line shows that there are paragraphs


class PlainText(Reader):
    name = "text"
    label = "plain text"
    order = 70
    extensions = (".txt", ".text")

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        assert encoding
        parts = line_blocks(path, encoding, reading)
        opening: list[Lines] = []
        chars = 0
        by_line = True
        for part in parts:
            opening.append(part)
            chars += sum(map(len, part.lines))
            by_line = not _has_paragraphs(opening)
            if not by_line or chars > _LOOKED_AT:
                break
        texts = Texts(reading)
        for part in opening:
            yield self._rows(part, by_line, texts)
        opening.clear()
        for part in parts:
            yield self._rows(part, by_line, texts)
        texts.end()
        yield texts.take()
        reading.notes.append("Each line is one row." if by_line else "Blank lines separate the rows.")
        texts.say()

    def _rows(self, part: Lines, by_line: bool, texts: Texts) -> list[Row]:
        if part.long:
            texts.too_long(part)
            return texts.take()
        for line in part.lines:
            if by_line or line.isspace():
                texts.end()
            if not line.isspace():
                texts.add(line)
        return texts.take()


def _has_paragraphs(opening: list[Lines]) -> bool:
    """Whether a blank line stands between (not before) lines."""
    text_seen = False
    for part in opening:
        for line in part.lines:
            if not line.isspace():
                text_seen = True
            elif text_seen:
                return True
    return False


class Texts:
    """Gathers lines to texts, splits the long ones, and numbers the rows."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._number = 0
        self._split = 0
        self._lines: list[str] = []
        self.chars = 0  # of the text that is being gathered
        self._rows: list[Row] = []

    def add(self, line: str) -> None:
        if self.chars > base.MAX_ROW_CHARS // 2:
            self.end()
        self._lines.append(line)
        self.chars += len(line)

    def end(self) -> None:
        """The lines since the last end are one text."""
        if not self._lines:
            return
        text = "".join(self._lines).strip("\r\n")
        self._lines.clear()
        self.chars = 0
        if not text.strip():
            return
        pieces = _split_long(text) if len(text) > LONG_PARAGRAPH else [text]
        self._split += len(pieces) > 1
        for piece in pieces:
            self._number += 1
            self._rows.append(self._reading.good(self._number, {"text": piece}))

    def too_long(self, part: Lines) -> None:
        """A line that is larger than a row may be."""
        self.end()
        self._number += 1
        problem = f"its line is longer than {base.MAX_ROW_CHARS:,} characters (line {part.first})"
        self._rows.append(self._reading.bad(self._number, problem, part.lines[0]))

    def take(self) -> list[Row]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def say(self) -> None:
        if self._split:
            self._reading.notes.append(
                f"{self._split} {'piece was' if self._split == 1 else 'pieces were'} longer than "
                f"{LONG_PARAGRAPH:,} characters and split at a line or sentence end."
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
