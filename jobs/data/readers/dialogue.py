"""Questions and answers written out as text: "Q: ... A: ...", "User: ... Assistant: ...", "### Instruction ...".

A question with its answer is a row, or a conversation where the text shows where each ends. Every row keeps its own
text beside what was read out of it, so that a person who meant plain text only has to say so. What speakers other than
a question's and an answer's say, as in a play, is no dialogue here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from jobs.data.readers import base
from jobs.data.readers.base import Reader, Reading, Row, too_large
from jobs.data.readers.lines import Lines, line_blocks, opening

Says = Literal["system", "user", "input", "assistant"]
Ends = Literal["question", "line", "blank", "system"]  # what a row ends before

_LOOKED_AT = 64_000  # characters
_ANSWERED = 0.8  # of the questions, at least
_LONG_TURN = 3_000  # characters; longer ones on average are texts in which a question happens to stand
_PREAMBLE = 3  # lines before the first question, such as a title
_LINE = re.compile(r"\s*([-*=_#~]{3,}|<\|endoftext\|>)\s*")


@dataclass(frozen=True)
class Family:
    """Words that belong together: who asks and who answers. `talks`: a row may hold more than one question."""

    user: tuple[str, ...]
    assistant: tuple[str, ...]
    system: tuple[str, ...] = ()
    input: tuple[str, ...] = ()
    talks: bool = False
    names: tuple[str, str] = ("question", "answer")  # the columns of a row with one question

    @cached_property
    def marks(self) -> re.Pattern[str]:
        """A line on which somebody begins: the word, and what stands on the line after it."""
        words = "|".join(re.escape(word) for word in (*self.user, *self.assistant, *self.system, *self.input))
        return re.compile(
            rf"\s{{0,3}}(?:#{{1,6}}\s*)?[*_>]{{0,3}}\s?({words})\s*#?\d{{0,4}}\s*[*_]{{0,3}}[:：][*_]{{0,3}}\s*(.*)"
            rf"|#{{1,6}}\s*({words})\s*#?\d{{0,4}}\s*",
            re.IGNORECASE | re.DOTALL,
        )

    def says(self, line: str) -> tuple[Says, str] | None:
        """Who begins on the line and what stands on it; None where it goes on."""
        found = self.marks.fullmatch(line.rstrip("\r\n"))
        if not found:
            return None
        word = (found[1] or found[3]).lower()
        roles: tuple[tuple[Says, tuple[str, ...]], ...] = (
            *(("user", self.user), ("assistant", self.assistant)),
            *(("system", self.system), ("input", self.input)),
        )
        return next(role for role, words in roles if word in words), found[2] or ""


FAMILIES = (
    Family(("q",), ("a",)),
    Family(("question",), ("answer",)),
    Family(("frage",), ("antwort",)),
    Family(
        ("instruction", "prompt"),
        ("response", "output", "completion"),
        input=("input", "context"),
        names=("instruction", "output"),
    ),
    Family(
        ("user", "human", "customer", "client", "patient", "student"),
        ("assistant", "ai", "bot", "chatbot", "gpt", "chatgpt", "model", "agent", "doctor", "tutor"),
        system=("system",),
        talks=True,
    ),
)


@dataclass(frozen=True)
class _Seen:
    """What a family finds in the beginning of a text."""

    family: Family
    roles: list[tuple[int, Says]]  # the numbers of lines on which somebody begins
    lines: list[str]

    @cached_property
    def answered(self) -> int:
        """Questions that are followed by their answer."""
        order = [role for _, role in self.roles if role != "input"]
        return sum(pair == ("user", "assistant") for pair in itertools.pairwise(order))

    @property
    def is_dialogue(self) -> bool:
        most = max(sum(said == role for _, said in self.roles) for role in _SPEAKERS)
        if not self.answered or self.answered < _ANSWERED * most:
            return False
        before = sum(not line.isspace() for line in self.lines[: self.roles[0][0]])
        if before > (_PREAMBLE if self.answered > 1 else 0):
            return False
        return sum(map(len, self.lines)) <= _LONG_TURN * len(self.roles)

    @property
    def ends(self) -> Ends:
        """What tells the rows apart."""
        if not self.family.talks:
            return "question"
        if any(self._ruled(place) for place, role in self.roles[1:] if role != "assistant"):
            return "line"
        if any(role == "system" for _, role in self.roles):
            return "system"
        apart = {role: [self._parted(place) for place, each in self.roles[1:] if each == role] for role in _SPEAKERS}
        return "blank" if any(apart["user"]) and not any(apart["assistant"]) else "question"

    def _ruled(self, place: int) -> bool:
        above = [line for line in self.lines[max(0, place - 3) : place] if not line.isspace()]
        return bool(above) and _LINE.fullmatch(above[-1].rstrip("\r\n")) is not None

    def _parted(self, place: int) -> bool:
        return self.lines[place - 1].isspace()


_SPEAKERS: tuple[Says, Says] = ("user", "assistant")


def _look(lines: list[str]) -> _Seen:
    """The family that finds the most."""

    def seen(family: Family) -> _Seen:
        found = ((place, family.says(line)) for place, line in enumerate(lines))
        return _Seen(family, [(place, said[0]) for place, said in found if said], lines)

    return max(map(seen, FAMILIES), key=lambda each: each.answered)


def is_dialogue(text: str) -> bool:
    """Whether a file's beginning is questions and answers."""
    lines = text[:_LOOKED_AT].splitlines(keepends=True)
    return _look(lines).is_dialogue


class Dialogue(Reader):
    name = "dialogue"
    label = "questions and answers as text"
    order = 68

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        assert encoding
        parts = line_blocks(path, encoding, reading)
        begin = opening(parts, _LOOKED_AT)
        seen = _look("".join(line for part in begin for line in part.lines)[:_LOOKED_AT].splitlines(keepends=True))
        rows = _Rows(seen.family, seen.ends, reading)
        for part in begin:
            yield rows.read(part)
        begin.clear()
        for part in parts:
            yield rows.read(part)
        yield rows.end()


class _Rows:
    """Lines to rows."""

    def __init__(self, family: Family, ends: Ends, reading: Reading) -> None:
        self._family, self._ends, self._reading = family, ends, reading
        self._talks = family.talks and ends != "question"
        self._number = 0
        self._turns: list[tuple[Says, list[str]]] = []
        self._lines: list[str] = []  # of the row that is being gathered
        self._chars = 0
        self._rule: str | None = None  # a line of dashes: it ends a row where the next one begins, else it is text
        self._blank = False
        self._before = 0  # lines before the first question
        self._unread = 0  # system turns of rows that have no place for one
        self._rows: list[Row] = []
        self._words: dict[str, None] = {}

    def read(self, part: Lines) -> list[Row]:
        for line in part.lines:
            self._line(line)
        return self._take()

    def end(self) -> list[Row]:
        self._finish()
        *most, last = (f'"{word}"' for word in self._words or ("",))
        rows = {
            "question": "each question with its answer is one row",
            "line": "a line of dashes ends a conversation",
            "blank": "a blank line ends a conversation",
            "system": "each system turn begins a conversation",
        }[self._ends]
        if self._family.talks and self._ends == "question":
            rows += ": put a line of --- between conversations to keep them whole"
        self._reading.notes.append(f"{', '.join(most)} and {last} are read as speakers; {rows}.")
        if self._before:
            lines = "1 line" if self._before == 1 else f"{self._before:,} lines"
            self._reading.notes.append(f"What stands before the first question ({lines}) is not read.")
        if self._unread:
            turns = "1 system turn is" if self._unread == 1 else f"{self._unread:,} system turns are"
            self._reading.notes.append(f"{turns} not read: a question with its answer has no place for one.")
        return self._take()

    def _line(self, line: str) -> None:
        said = self._family.says(line)
        if said:
            if self._begins_row(said[0]):
                self._finish()
            elif self._rule is not None:
                self._add(self._rule)
            self._rule = None
            self._turns.append((said[0], []))
            self._keep_word(line, said[1])
            self._add(line, said[1])
        elif _LINE.fullmatch(line.rstrip("\r\n")) and self._rule is None and self._turns:
            self._rule = line
        else:
            if self._rule is not None and not line.isspace():
                self._add(self._rule)
                self._rule = None
            if not self._turns:
                self._before += not line.isspace()
            else:
                self._add(line)
        self._blank = line.isspace()

    def _begins_row(self, role: Says) -> bool:
        if not self._turns:
            return True
        if self._ends == "system":
            return role == "system"
        if role in ("assistant", "input"):
            return False
        if all(said == "system" for said, _ in self._turns):
            return self._rule is not None
        return self._ends == "question" or self._rule is not None or (self._ends == "blank" and self._blank)

    def _add(self, line: str, said: str | None = None) -> None:
        self._chars += len(line)
        if self._chars <= base.MAX_ROW_CHARS:
            self._lines.append(line)
            self._turns[-1][1].append(line if said is None else f"{said}\n")

    def _keep_word(self, line: str, rest: str) -> None:
        """How the words are written here, for what is said about the file."""
        mark = line.strip().removesuffix(rest.strip()).strip(" *_#>") or line.strip()
        mark = re.sub(r"\s*#?\d+", "", mark)
        if len(self._words) < 4 and len(mark) < 20:
            self._words.setdefault(mark)

    def _finish(self) -> None:
        if self._turns:
            self._number += 1
            text = "".join(self._lines).strip()
            if self._chars > base.MAX_ROW_CHARS:
                self._rows.append(self._reading.bad(self._number, too_large(self._chars), text))
            else:
                turns = [(role, "".join(lines).strip()) for role, lines in self._turns]
                values = self._conversation(turns) if self._talks else self._pair(turns)
                self._rows.append(self._reading.good(self._number, {**values, "text": text}))
        self._turns, self._lines, self._chars = [], [], 0

    def _conversation(self, turns: list[tuple[Says, str]]) -> dict[str, object]:
        return {"messages": [{"role": role, "content": said} for role, said in turns]}

    def _pair(self, turns: list[tuple[Says, str]]) -> dict[str, object]:
        asked, answer = self._family.names
        self._unread += sum(role == "system" for role, _ in turns)
        parts = {
            role: "\n".join(said for each, said in turns if each == role) for role in ("user", "input", "assistant")
        }
        between = {"input": parts["input"]} if self._family.input else {}
        return {asked: parts["user"], **between, answer: parts["assistant"]}

    def _take(self) -> list[Row]:
        rows, self._rows = self._rows, []
        return rows
