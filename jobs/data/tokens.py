"""Which characters a row's tokens stand for, asked of the tokenizer token by token.

The whole list of offsets costs more time than the rest of a row's tokens together, and only a preview reads it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from tokenizers import Encoding

Place = tuple[int, int]  # the characters text[start:end]; (0, 0) for a token that the tokenizer has added


class Offsets(Sequence[Place]):
    """The places of the first `count` tokens of an encoding, worked out when they are first read."""

    def __init__(self, encoding: Encoding, count: int) -> None:
        self._encoding = encoding
        self._count = count
        self._places: list[Place] | None = None

    def _all(self) -> list[Place]:
        if self._places is None:
            self._places = self._encoding.offsets[: self._count]
        return self._places

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Place]:
        return iter(self._all())

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Place]: ...
    def __getitem__(self, index: int | slice) -> Place | Sequence[Place]:
        if isinstance(index, slice) and not index.start and index.step in (None, 1):
            return Offsets(self._encoding, len(range(self._count)[index]))
        return self._all()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list


def trained_tokens(encoding: Encoding, count: int, spans: Iterable[tuple[int, int]]) -> list[bool]:
    """For each of the first `count` tokens whether it begins inside one of the character ranges `spans`.

    Tokens at either end that stand for no text, which the tokenizer has added, never do.
    """
    begin, end = 0, count
    while begin < end and _place(encoding, begin)[1] == 0:
        begin += 1
    while end > begin and _place(encoding, end - 1) == (0, 0):
        end -= 1
    trained = [False] * count
    for start, stop in spans:
        first = _first_from(encoding, start, begin, end)
        after = _first_from(encoding, stop, first, end)
        trained[first:after] = [True] * (after - first)
    return trained


def _first_from(encoding: Encoding, char: int, low: int, high: int) -> int:
    """The first token of [low, high) that begins at `char` or later; `high` where there is none."""
    if char == 0:
        return low
    found = encoding.char_to_token(char - 1)  # the first of those that the character before belongs to
    if found is None:  # it belongs to none: the tokenizer took it away
        return bisect.bisect_left(encoding.offsets, char, low, high, key=itemgetter(0))
    found = max(found, low)
    while found < high and _place(encoding, found)[0] < char:
        found += 1
    return min(found, high)


def _place(encoding: Encoding, token: int) -> Place:
    return encoding.token_to_chars(token) or (0, 0)
