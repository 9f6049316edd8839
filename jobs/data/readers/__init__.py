"""From a checked file to rows in bounded memory, whatever the file's size. One module a format; one file adds one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from jobs.data.readers.base import FirstRow, Reader, Reading, Row

__all__ = ["FirstRow", "Reader", "Reading", "Row", "all_readers", "read"]


@cache
def all_readers() -> dict[str, Reader]:
    """Every reader by its format's name, in the order people think of them."""
    import jobs.data.readers as package
    from jobs.registry import collect

    return collect(package, Reader)


def read(
    path: Path, filename: str, file_format: str, encoding: str | None, header: FirstRow = "auto"
) -> tuple[Reading, Iterator[list[Row]]]:
    """The rows of a file whose encoding has been checked, in blocks. Raises UserError, also while iterating."""
    reading = Reading(filename, header)
    return reading, all_readers()[file_format].blocks(path, encoding, reading)
