"""What every table needs: whether its first row names the columns, and names that are whole and different."""

from __future__ import annotations

from jobs.data.columns import KNOWN_NAMES, plain_name
from jobs.data.numbers import is_number
from jobs.data.readers.base import Reading


def column_names(first: list[str], reading: Reading) -> tuple[list[str], bool]:
    """(the columns' names, whether the first row is data), by the look of the first row unless the person said it."""
    first_is_data = reading.header == "data" or (reading.header == "auto" and not looks_like_header(first))
    reading.first_row = "data" if first_is_data else "header"
    names = _numbered(len(first), reading) if first_is_data else _names(first, reading)
    reading.add_columns(names)
    return names, first_is_data


def looks_like_header(fields: list[str]) -> bool:
    cells = [cell.strip() for cell in fields]
    if any(plain_name(cell) in KNOWN_NAMES for cell in cells):
        return True
    return not any(
        len(cell) > 60 or "\n" in cell or cell.endswith((".", "?", "!")) or is_number(cell) for cell in cells
    )


def _numbered(count: int, reading: Reading) -> list[str]:
    why = (
        "You said that the first row is data"
        if reading.header == "data"
        else ("The first row looks like data, not like column names")
    )
    reading.notes.append(f"{why}, so the columns are called column 1, column 2, ...")
    return [f"column {position}" for position in range(1, count + 1)]


def _names(fields: list[str], reading: Reading) -> list[str]:
    names: list[str] = []
    for position, cell in enumerate(fields, 1):
        name = cell.strip() or f"column {position}"
        if not cell.strip():
            reading.notes.append(f"Column {position} has no name; it is called {name}.")
        twin = name
        count = 1
        while name in names:
            count += 1
            name = f"{twin} ({count})"
        if count > 1:
            reading.notes.append(f"Two columns are named {twin}; the later one is called {name}.")
        names.append(name)
    return names
