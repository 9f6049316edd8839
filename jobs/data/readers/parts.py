"""Several files as one dataset: what an archive holds, or a dataset on the Hub.

Files with the same columns are read one after another. Where they differ, the largest group is read and the rest is
named, as are a README and its like beside other files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobs.data.encodings import check_encoding
from jobs.data.readers.base import Reading, Row
from jobs.errors import UserError

_NAMED = 5  # files in a note
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|changelog|citation)\b.*\.(md|markdown|txt)$", re.IGNORECASE)
_OPEN_FORMATS = ("json", "jsonl")  # whose rows need not all have every column


@dataclass
class Part:
    """One file, and the name under which the person knows it."""

    path: Path
    name: str
    format: str = ""
    encoding: str | None = None
    columns: frozenset[str] = frozenset()
    size: int = 0


def part_blocks(parts: list[Part], reading: Reading) -> Iterator[list[Row]]:
    """The rows of all parts that go together, numbered through. Raises UserError where nothing can be read."""
    readable: list[Part] = []
    unreadable: list[str] = []  # why, in sentences
    for part in parts:
        try:
            _look_at(part, reading)
            readable.append(part)
        except UserError as error:
            unreadable.append(str(error))
    if not readable:
        raise UserError(*(unreadable or [f"{reading.filename} holds no file that can be read."]))
    about = [part for part in readable if _ABOUT.match(PurePosixPath(part.name).name)]
    chosen, rest = _largest_group([part for part in readable if part not in about] or about)
    about = [part for part in about if part not in chosen]
    total = sum(part.size for part in chosen)
    done = number = 0

    def share() -> float:
        return done / total

    reading.progress = share
    for part in chosen:
        before = number
        for rows in _read(part, reading):
            for row in rows:
                row.number += before
                if row.problem:
                    row.problem = _in_file(row.problem, part.name)
            number += len(rows)
            yield rows
        done += part.size
    if len(parts) > 1:
        reading.notes.append(
            f"{len(chosen)} files are read one after another: {_listed(chosen)}."
            if len(chosen) > 1
            else f"{chosen[0].name} is read."
        )
    if rest:
        have = "has other columns and is" if len(rest) == 1 else "have other columns and are"
        reading.notes.append(f"{_listed(rest)} {have} not read; upload {'it' if len(rest) == 1 else 'them'} alone.")
        files = "1 file with other columns is" if len(rest) == 1 else f"{len(rest):,} files with other columns are"
        reading.brief.append(f"{files} not read.")
    if about:
        are = "tells about the data and is" if len(about) == 1 else "tell about the data and are"
        reading.notes.append(f"{_listed(about)} {are} not read.")
    reading.notes += unreadable[:_NAMED]


def _look_at(part: Part, reading: Reading) -> None:
    """Fill in what the file is. Raises UserError where it cannot be read."""
    from jobs.data.formats import sniff

    sniffed = sniff(part.path, part.name)
    if sniffed.format == "zip":
        raise UserError(f"{part.name} is an archive within the archive, which is not read. Unpack it and upload it.")
    part.format, part.encoding, part.size = sniffed.format, sniffed.encoding, part.path.stat().st_size
    if part.encoding:
        part.encoding, notes = check_encoding(part.path, part.name, part.encoding)
        reading.notes += [f"{part.name}: {note}" for note in notes]
    inner = Reading(part.name, reading.header)
    if not any(_blocks(part, inner)):  # read up to the first rows
        raise UserError(f"{part.name} has no rows.")
    part.columns = frozenset(inner.columns)


def _blocks(part: Part, reading: Reading) -> Iterator[list[Row]]:
    from jobs.data.readers import all_readers

    return all_readers()[part.format].blocks(part.path, part.encoding, reading)


def _read(part: Part, reading: Reading) -> Iterator[list[Row]]:
    inner = Reading(part.name, reading.header)
    for rows in _blocks(part, inner):
        yield rows
        reading.add_columns(inner.columns)
        reading.first_row = reading.first_row or inner.first_row
    reading.notes += [note for note in inner.notes if note not in reading.notes]


def _largest_group(parts: list[Part]) -> tuple[list[Part], list[Part]]:
    groups: list[list[Part]] = []
    for part in parts:
        for group in groups:
            if _agree(group[0], part):
                group.append(part)
                break
        else:
            groups.append([part])
    chosen = max(groups, key=lambda group: sum(part.size for part in group))
    return chosen, [part for part in parts if part not in chosen]


def _agree(one: Part, other: Part) -> bool:
    if one.columns == other.columns:
        return True
    both_open = one.format in _OPEN_FORMATS and other.format in _OPEN_FORMATS
    return both_open and (one.columns <= other.columns or other.columns <= one.columns)


def _in_file(problem: str, name: str) -> str:
    """The problem with the file's name among what is in brackets at its end."""
    return f"{problem[:-1]}; {name})" if problem.endswith(")") else f"{problem} ({name})"


def _listed(parts: list[Part]) -> str:
    names = [part.name for part in parts]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
