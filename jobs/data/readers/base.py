"""What every reader yields and declares. A reader is one class in one module of this package; `registry` finds it.

A row that cannot be read is yielded with its problem; only what makes the whole file unreadable raises. Row numbers
are counted as a person counts them: data rows from 1, without header and blank lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from jobs.data.codec import dumps

MAX_ROW_CHARS = 2_000_000  # about 500,000 tokens: more than any maximum length
RAW_CHARS = 2_000  # kept of a row that cannot be read
MAX_COLUMNS = 500


FirstRow = Literal["auto", "header", "data"]  # what a table's first row is; "auto": told by its look


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
    """One pass over a file. `columns` and `notes` are complete when its blocks are at their end."""

    filename: str
    header: FirstRow = "auto"  # of a table
    first_row: Literal["header", "data"] | None = None  # what a table's first row was read as
    columns: dict[str, None] = field(default_factory=dict)  # an ordered set
    notes: list[str] = field(default_factory=list)  # what the person should know about how it was read
    brief: list[str] = field(default_factory=list)  # what of that matters most, in a few words, for a list
    progress: Callable[[], float] = lambda: 0.0  # share of the file read so far

    def good(self, number: int, values: dict[str, Any], text: str | None = None) -> Row:
        """A readable row; `text` is its JSON where the file already holds it."""
        if not values.keys() <= self.columns.keys():
            self.add_columns(values)
        if text is None:
            text = dumps(values)
        if len(text) > MAX_ROW_CHARS:
            return self.bad(number, too_large(len(text)), text)
        return Row(number, values, text)

    def bad(self, number: int, problem: str, raw: str) -> Row:
        return Row(number, None, None, problem, raw[:RAW_CHARS])

    def add_columns(self, names: Any) -> None:
        """Take new names in, in their order, as far as there is room."""
        for name in names:
            if name not in self.columns and len(self.columns) < MAX_COLUMNS:
                self.columns[name] = None


def too_large(chars: int) -> str:
    return f"it is larger than a row may be (more than {MAX_ROW_CHARS:,} characters)"


class Reader:
    """One file format."""

    name: ClassVar[str] = ""  # stored in the catalog: never change it
    label: ClassVar[str] = ""  # as people call it
    order: ClassVar[int] = 100
    extensions: ClassVar[tuple[str, ...]] = ()
    is_text: ClassVar[bool] = True  # has an encoding; else `claims` knows it by its content

    def claims(self, path: Path, head: bytes) -> bool:
        """Whether a binary file is of this format, by its first bytes."""
        return False

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        """The file's rows in its order, some thousand characters to a few million at a time, in bounded memory.

        Raises UserError, also while iterating, for what cannot be read at all.
        """
        raise NotImplementedError
