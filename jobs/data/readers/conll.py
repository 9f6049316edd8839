"""CoNLL files: a word a line with its tag in the last column, a blank line between sentences. A sentence is a row.

Columns between word and tag (part of speech, chunk) are left out; of the ten of CoNLL-U it is the word and its part of
speech that are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from jobs.data.readers import base
from jobs.data.readers.base import Reader, Reading, Row
from jobs.data.readers.lines import line_blocks

_TAG = re.compile(r"O|[BIESLUM]-\S+")
_NOT_A_WORD = ("-DOCSTART-", "#", "__")
_MOST_WORDS = 20_000  # in a sentence; more means that the blank lines are missing
_UNIVERSAL = 10  # columns of CoNLL-U: number, word, lemma, part of speech, ...


def is_conll(text: str) -> bool:
    """Whether a file's beginning is words with entity tags, in sentences."""
    lines = text.splitlines()[:-1][:400]  # the last may be cut off
    words = [_columns(line) for line in lines if line.strip() and not line.startswith(_NOT_A_WORD)]
    tagged = sum(len(columns) > 1 and _TAG.fullmatch(columns[-1]) is not None for columns in words)
    parted = any(not line.strip() for line in lines) or len(words) < 50
    return len(words) >= 3 and tagged >= 0.95 * len(words) and parted and any(c[-1] != "O" for c in words)


class Conll(Reader):
    name = "conll"
    label = "CoNLL"
    order = 65
    extensions = (".conll", ".conllu", ".iob", ".iob2", ".bio")

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        assert encoding
        reading.add_columns(("tokens", "tags"))
        sentences = _Sentences(reading)
        for part in line_blocks(path, encoding, reading):
            for number, line in enumerate(part.lines, part.first):
                sentences.add(line, number)
            yield sentences.take()
        sentences.end()
        yield sentences.take()
        reading.notes.append("Blank lines separate the rows; each line is a word and its tag.")


class _Sentences:
    """Gathers lines to sentences, and numbers the rows."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._number = 0
        self._tokens: list[str] = []
        self._tags: list[str] = []
        self._problem: str | None = None
        self._rows: list[Row] = []

    def add(self, line: str, number: int) -> None:
        if not line.strip():
            self.end()
            return
        columns = _columns(line)
        if line.startswith(_NOT_A_WORD) and not self._tokens and not _is_hashtag(columns, "\t" in line):
            return
        if len(columns) < 2:
            self._problem = self._problem or f"a word has no tag (line {number:,})"
        if len(self._tokens) >= _MOST_WORDS:
            self._problem = self._problem or f"it has more than {_MOST_WORDS:,} words without a blank line"
            return
        universal = len(columns) == _UNIVERSAL and columns[0].partition("-")[0].partition(".")[0].isdigit()
        if universal and not columns[0].isdigit():
            return  # several words written as one, which follow one by one
        self._tokens.append(columns[1 if universal else 0][: base.RAW_CHARS])
        self._tags.append(columns[3 if universal else -1][: base.RAW_CHARS])

    def end(self) -> None:
        """The lines since the last end are one sentence."""
        if self._tokens:
            self._number += 1
            if self._problem:
                self._rows.append(self._reading.bad(self._number, self._problem, " ".join(self._tokens)))
            else:
                self._rows.append(self._reading.good(self._number, {"tokens": self._tokens, "tags": self._tags}))
        self._tokens, self._tags, self._problem = [], [], None

    def take(self) -> list[Row]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows


def _is_hashtag(columns: list[str], by_tabs: bool) -> bool:
    """Whether a line that begins with "#" is a word and its tag instead of a comment: posts begin with hashtags."""
    word = columns[0]
    if not word.startswith("#") or len(columns) < 2 or " " in word:
        return False
    return by_tabs or (_TAG.fullmatch(columns[-1]) is not None and (word != "#" or len(columns) == 2))


def _columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.rstrip("\r\n").split("\t")] if "\t" in line else line.split()
