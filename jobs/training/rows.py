"""The rows of a run, tokenised: a million of them in bounded memory.

They are packed into one buffer: in memory while it is small, beyond that in an unnamed file, of which the system keeps
in memory what it has room for. A row is unpacked each time it is asked for, which costs some microseconds.
"""

from __future__ import annotations

import bisect
import itertools
import shutil
import struct
import tempfile
import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, overload

import numpy as np

from jobs.data.codec import dumps, loads

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_IN_MEMORY = 128 << 20  # bytes
_COPIED = 1 << 20  # bytes at once
_HEAD = struct.Struct("<qIIII")  # number, tokens, bytes of types, of target, of the second text


@dataclass(frozen=True, eq=False)
class Row:
    """One row's tokens, cut to the maximum length; `trained` says which of them the loss counts."""

    number: int
    input_ids: np.ndarray  # int32
    trained: np.ndarray  # bool
    second: Row | None = None  # a pair's other text (jobs.tasks.base.Encoded)
    target: Any = None  # what a head learns, as JSON holds it
    types: np.ndarray | None = None  # int8: to which of a pair of texts a token belongs

    def __len__(self) -> int:
        return len(self.input_ids) + (len(self.second) if self.second else 0)


class Rows(Sequence[Row]):
    """Rows in the order they were added, or some of them in another order (`take`)."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where the file is, if one is needed; it has no name there, and goes with this process."""
        where = str(folder) if folder else None
        self._file: IO[bytes]
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=where)  # noqa: SIM115 - it lives as long as the rows
        self._lock = threading.Lock()
        self._ends = array("q", [0])
        self._chosen: np.ndarray | None = None  # int64

    def add(self, row: Row) -> None:
        packed = _pack(row)
        self._file.seek(self._ends[-1])
        self._file.write(packed)
        self._ends.append(self._ends[-1] + len(packed))

    @classmethod
    def of_file(cls, file: BinaryIO, ends: array[int]) -> Rows:
        """Rows that `write` wrote to the beginning of this file, read from there as they are asked for."""
        rows = cls()
        rows._file, rows._ends = file, ends
        return rows

    @property
    def packed_bytes(self) -> int:
        return self._ends[-1]

    def write(self, file: SupportsWrite[bytes]) -> array[int]:
        """Everything that was added, as it is packed; returns where each row ends, after a first 0."""
        with self._lock:
            self._file.seek(0)
            shutil.copyfileobj(self._file, file, _COPIED)
        return self._ends

    def take(self, places: np.ndarray) -> Rows:
        """The rows at these places. They are not copied."""
        taken = object.__new__(Rows)
        taken.__dict__ = dict(self.__dict__)
        places = np.asarray(places, dtype=np.int64)
        taken._chosen = places if self._chosen is None else self._chosen[places]
        return taken

    def largest(self, count: int) -> Rows:
        """Those that take the most room."""
        room = np.diff(np.frombuffer(self._ends, dtype=np.int64))
        if self._chosen is not None:
            room = room[self._chosen]
        return self.take(np.argsort(room)[::-1][:count])

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._chosen is None else len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        if self._chosen is not None:
            place = int(self._chosen[place])
        begin, end = self._ends[place], self._ends[place + 1]
        with self._lock:
            self._file.seek(begin)
            packed = bytearray(self._file.read(end - begin))  # what can be written to makes arrays that can
        return _unpack(packed)


class Joined(Sequence[Row]):
    """Several sequences of rows as one. Nothing is copied."""

    def __init__(self, *parts: Sequence[Row]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        part = bisect.bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]


def take(rows: Sequence[Row], places: Iterable[int]) -> Sequence[Row]:
    """The rows at these places, in this order."""
    if isinstance(rows, Rows):
        return rows.take(np.fromiter(places, dtype=np.int64))
    return [rows[place] for place in places]


def _pack(row: Row) -> bytes:
    types = b"" if row.types is None else row.types.astype(np.int8).tobytes()
    target = b"" if row.target is None else dumps(row.target).encode()
    second = _pack(row.second) if row.second else b""
    head = _HEAD.pack(row.number, len(row.input_ids), len(types), len(target), len(second))
    ids, trained = row.input_ids.astype(np.int32).tobytes(), row.trained.astype(np.bool_).tobytes()
    return b"".join((head, ids, trained, types, target, second))


def _unpack(packed: bytearray) -> Row:
    number, tokens, types, target, second = _HEAD.unpack_from(packed)
    at = _HEAD.size
    trained_at = at + 4 * tokens
    types_at = trained_at + tokens
    target_at = types_at + types
    second_at = target_at + target
    return Row(
        number,
        np.frombuffer(packed, np.int32, tokens, at),
        np.frombuffer(packed, np.bool_, tokens, trained_at),
        _unpack(packed[second_at : second_at + second]) if second else None,
        loads(packed[target_at:second_at].decode()) if target else None,
        np.frombuffer(packed, np.int8, types, types_at) if types else None,
    )
