"""Excel workbooks. Sheets with the same columns are read one after another; what is left out is said by name."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.data.readers.base import Reader, Reading, Row
from jobs.data.readers.tables import column_names
from jobs.errors import UserError
from jobs.sizes import bytes_texts

MOST_UNPACKED = 800_000_000  # bytes: a sheet is read into memory whole, and takes about as much there
_BLOCK_ROWS = 500


class Excel(Reader):
    name = "xlsx"
    label = "Excel"
    order = 25
    extensions = (".xlsx", ".xlsm", ".xlsb")
    is_text = False

    def claims(self, path: Path, head: bytes) -> bool:
        if not head.startswith(b"PK\x03\x04"):
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.startswith("xl/workbook.") for name in archive.namelist())
        except zipfile.BadZipFile:
            return False

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        import python_calamine as calamine

        _refuse_large(path, reading.filename)
        try:
            workbook = calamine.CalamineWorkbook.from_path(path)
            yield from _sheets(workbook, reading)
        except (calamine.CalamineError, OSError) as error:
            raise UserError(
                f"{reading.filename} is an Excel workbook that cannot be read ({str(error)[:200]}). If it is protected "
                "by a password, take that off; else save it again in Excel and upload that."
            ) from None


def _sheets(workbook: Any, reading: Reading) -> Iterator[list[Row]]:
    first: list[str] | None = None  # the row that the columns of the first sheet are named by
    names: list[str] = []
    number = 0
    used: list[str] = []
    other: list[str] = []
    titles = workbook.sheet_names
    for done, title in enumerate(titles):
        sheet = workbook.get_sheet_by_name(title)
        rows = _filled(sheet)
        head = next(rows, None)
        if head is None:
            continue
        width = max(place for place, cell in enumerate(head, 1) if cell != "")
        words = [_word(cell) for cell in head]
        if first is None:
            width = _width(sheet)
            first = words
            names, first_is_data = column_names((words + [""] * width)[:width], reading)
        elif words[:width] != first[:width] or any(first[width:]):
            other.append(title)
            continue
        if first_is_data:
            rows = _filled(sheet)
        used.append(title)
        height = max(1, sheet.total_height)
        base, before = number, done

        def share() -> float:
            return (before + min(1.0, (number - base) / height)) / len(titles)  # noqa: B023 - read while this sheet is

        reading.progress = share
        block: list[Row] = []
        for cells in rows:
            number += 1
            values = dict(zip(names, (_value(cell) for cell in (cells + [""] * len(names))[: len(names)]), strict=True))
            block.append(reading.good(number, values))
            if len(block) == _BLOCK_ROWS:
                yield block
                block = []
        yield block
    if len(used) > 1:
        reading.notes.append(f"The sheets {_listed(used)} have the same columns and are read one after another.")
    elif other:
        reading.notes.append(f"The sheet {_listed(used)} is read.")
    if other:
        are = "The sheet {} has other columns and is" if len(other) == 1 else "The sheets {} have other columns and are"
        reading.notes.append(f"{are.format(_listed(other))} not read; upload it alone to use it.")


def _filled(sheet: Any) -> Iterator[list[Any]]:
    """The sheet's rows that are not empty."""
    return (row for row in sheet.iter_rows() if any(cell != "" for cell in row))


def _width(sheet: Any) -> int:
    """Columns up to the last that holds anything."""
    return max((place for row in sheet.iter_rows() for place, cell in enumerate(row, 1) if cell != ""), default=0)


def _value(cell: Any) -> Any:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)  # Excel knows only one kind of number
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return str(cell.date())
    return cell if isinstance(cell, str | int | float) else str(cell)


def _word(cell: Any) -> str:
    return str(_value(cell))


def _listed(titles: list[str]) -> str:
    return ", ".join(f'"{title}"' for title in titles[:10]) + (" ..." if len(titles) > 10 else "")


def _refuse_large(path: Path, filename: str) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > MOST_UNPACKED:
        size, most = bytes_texts(unpacked, MOST_UNPACKED)
        raise UserError(
            f"{filename} unpacks to {size}, more than the {most} that a workbook may hold. Save it as CSV UTF-8 in "
            "Excel and upload that file."
        )
