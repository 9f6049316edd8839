"""What a mend declares: one class a mend, found by the registry in jobs.data.mends. A mend changes rows or leaves them
out as they are read; the uploaded file stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from pydantic import Field

from jobs.data.codec import dumps
from jobs.data.columns import ABSENT, Mapping, Shape, value_at
from jobs.data.store import Stored
from jobs.frozen import Frozen

Change = Callable[[Stored], Stored | None]  # a row as it is mended; the very same where nothing is; None: left out
Rows = Callable[[], Iterator[Stored]]  # reads the rows from the beginning


class Mend:
    """One thing that can be wrong with rows, put right."""

    name: ClassVar[str] = ""  # stored in the catalog and in specs: never change it
    label: ClassVar[str] = ""
    help: ClassVar[str] = ""
    order: ClassVar[int] = 100
    shapes: ClassVar[tuple[Shape, ...]] = tuple(Shape)
    drops: ClassVar[bool] = False  # it only leaves rows out
    in_order: ClassVar[bool] = False  # what becomes of a row depends on those before it

    class Params(Frozen):
        """What the mend must be told."""

    def begin(self, params: Any, mapping: Mapping, rows: Rows) -> Change:
        """A fresh change for one pass over the rows. `rows` is there for what has to be known of all of them first."""
        raise NotImplementedError


class MendRef(Frozen):
    """A mend as a dataset's settings hold it."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


def key_of(values: dict[str, Any], columns: tuple[str, ...]) -> int:
    """64 bits that tell what stands in these columns; equal for equal cells, within one process."""
    if len(columns) == 1 and type(value := values.get(columns[0])) is str:
        return hash(value)
    found = [value_at(values, column) for column in columns]
    if all(type(value) is str for value in found):
        return hash(tuple(found))
    return hash(dumps([None if value is ABSENT else value for value in found]))
