"""A text file in any encoding as lines, a block of them at a time.

UTF-8, which nearly every file is, is cut into lines as bytes: several times quicker than a line at a time.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from jobs.data.readers import base
from jobs.data.readers.base import Reading

BLOCK = 1 << 18  # bytes; larger blocks would be given back to the system each time, and be slower


@dataclass(slots=True)
class Lines:
    """Consecutive lines, each with its line end, of which `first` is the first one's number.

    `long`: a single line, larger than a row may be, of which only the beginning is here.
    """

    first: int
    lines: list[str]
    long: bool = False


def line_blocks(path: Path, encoding: str, reading: Reading) -> Iterator[Lines]:
    """The lines of a file whose encoding has been checked. They end with \\n, \\r\\n or \\r."""
    with _opened(path, reading) as file:
        number = 1
        rest = b""
        skipping = False  # within a long line whose beginning has been yielded
        for data in _utf8(file, encoding):
            data = rest + data
            # A \r at the very end may be half of \r\n.
            cut = data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, -1) + 1
            lines, rest = data[:cut].splitlines(keepends=True), data[cut:]
            if skipping and lines:
                lines, skipping = lines[1:], False
                number += 1
            yield from _blocks(number, lines)
            number += len(lines)
            if not skipping and len(rest) > 4 * base.MAX_ROW_CHARS:  # bytes: in UTF-8 up to four a character
                yield from _blocks(number, [rest])
                skipping = True
            if skipping:
                rest = rest[-1:] if rest.endswith(b"\r") else b""
        if not skipping:
            yield from _blocks(number, rest.splitlines(keepends=True))


def opening(parts: Iterator[Lines], chars: int) -> list[Lines]:
    """The first of `parts`, taken from them, until they hold more than `chars` characters: what to judge a file by."""
    taken: list[Lines] = []
    held = 0
    for part in parts:
        taken.append(part)
        held += sum(map(len, part.lines))
        if held > chars:
            break
    return taken


@contextmanager
def text_file(path: Path, encoding: str, reading: Reading) -> Iterator[TextIO]:
    """The whole file as one stream of characters, for formats that lines mean nothing to."""
    with _opened(path, reading) as file:
        yield io.TextIOWrapper(file, encoding, newline="")


@contextmanager
def _opened(path: Path, reading: Reading) -> Iterator[BinaryIO]:
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        reading.progress = lambda: file.tell() / size
        try:
            yield file
        finally:
            reading.progress = lambda: 1.0


def _utf8(file: BinaryIO, encoding: str) -> Iterator[bytes]:
    if encoding == "utf-8-sig":
        file.seek(len(codecs.BOM_UTF8))
    elif encoding != "utf-8":
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        while data := file.read(BLOCK):
            yield decoder.decode(data).encode()
        return
    while data := file.read(BLOCK):
        yield data


def _blocks(number: int, lines: list[bytes]) -> Iterator[Lines]:
    decoded = [line.decode("utf-8", "ignore") for line in lines]  # a long line may be cut within a character
    if not decoded:
        return
    if max(map(len, decoded)) <= base.MAX_ROW_CHARS:
        yield Lines(number, decoded)
        return
    begin = 0
    for place, line in enumerate(decoded):
        if len(line) > base.MAX_ROW_CHARS:
            if place > begin:
                yield Lines(number + begin, decoded[begin:place])
            yield Lines(number + place, [line[: base.MAX_ROW_CHARS + 1]], long=True)
            begin = place + 1
    if begin < len(decoded):
        yield Lines(number + begin, decoded[begin:])
