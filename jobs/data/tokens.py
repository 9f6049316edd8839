"""Texts to tokens, and which of the tokens begin inside a given range of characters.

Asked for offsets, a tokenizer needs a third more time, and the list of them as long again in Python; only a preview
reads it. So the tokens of a byte-level BPE, which most models have, are counted: each stands for a known number of
bytes. Where that does not prove the answer, and for every other tokenizer, the tokenizer is asked.
"""

from __future__ import annotations

import bisect
import json
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, overload
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Place = tuple[int, int]  # the characters text[start:end]; (0, 0) for a token that the tokenizer has added


class Tokens(Protocol):
    """One text's tokens."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def offsets(self) -> Sequence[Place]:
        """What each token stands for; worked out when it is first read."""

    def trained(self, spans: Iterable[tuple[int, int]]) -> list[bool]:
        """For each token whether it begins inside one of the character ranges `spans`.

        Tokens at either end that stand for no text, which the tokenizer has added, never do.
        """


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool) -> list[Tokens]:
    """Every text's tokens, on every core. `special`: the tokenizer adds its own beginning and end, but no second end
    token where the text has one."""
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    # A single text is a preview's, which wants the offsets anyway.
    asked = len(texts) == 1 or (special and backend.num_special_tokens_to_add(False))
    table = None if asked else _byte_table(tokenizer)
    if table and not backend.truncation and not backend.padding:
        encodings = backend.encode_batch_fast(texts, add_special_tokens=special)
        return [_Counted(tokenizer, table, text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]
    batch = tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    end_token = tokenizer.eos_token_id if special else None
    return [
        _Asked(encoding, _without_second_end(ids, encoding, end_token))
        for ids, encoding in zip(batch["input_ids"], batch.encodings or (), strict=True)
    ]


def _without_second_end(ids: list[int], encoding: Encoding, end_token: int | None) -> list[int]:
    if end_token is not None and ids[-2:] == [end_token, end_token] and not encoding.token_to_chars(len(ids) - 1):
        return ids[:-1]
    return ids


class _Asked:
    """Tokens whose places the tokenizer tells one by one."""

    def __init__(self, encoding: Encoding, ids: list[int]) -> None:
        self._encoding = encoding
        self.ids = ids

    @property
    def offsets(self) -> Sequence[Place]:
        return Offsets(lambda: self._encoding, len(self.ids))

    def trained(self, spans: Iterable[tuple[int, int]]) -> list[bool]:
        begin, end = 0, len(self.ids)
        trained = [False] * end
        while begin < end and self._place(begin)[1] == 0:
            begin += 1
        while end > begin and self._place(end - 1) == (0, 0):
            end -= 1
        for start, stop in spans:
            first = self._first_from(start, begin, end)
            after = self._first_from(stop, first, end)
            trained[first:after] = [True] * (after - first)
        return trained

    def _first_from(self, char: int, low: int, high: int) -> int:
        """The first token of [low, high) that begins at `char` or later; `high` where there is none."""
        if char == 0:
            return low
        found = self._encoding.char_to_token(char - 1)  # the first of those that the character before belongs to
        if found is None:  # it belongs to none: the tokenizer took it away
            return bisect.bisect_left(self._encoding.offsets, char, low, high, key=itemgetter(0))
        found = max(found, low)
        while found < high and self._place(found)[0] < char:
            found += 1
        return min(found, high)

    def _place(self, token: int) -> Place:
        return self._encoding.token_to_chars(token) or (0, 0)


class _Counted:
    """Tokens of which each stands for as many bytes as the table says."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, table: _ByteTable, text: str, ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._table = table
        self._text = text
        self.ids = ids

    def _encoding(self) -> Encoding:
        backend = self._tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        return backend.encode(self._text, add_special_tokens=False)

    @property
    def offsets(self) -> Sequence[Place]:
        return Offsets(self._encoding, len(self.ids))

    def trained(self, spans: Iterable[tuple[int, int]]) -> list[bool]:
        counted = self._count(spans)
        return _Asked(self._encoding(), self.ids).trained(spans) if counted is None else counted

    def _count(self, spans: Iterable[tuple[int, int]]) -> list[bool] | None:
        """None where counting does not prove it.

        A range has to begin and end between two tokens. Many tokenizers take the spaces before a word out of its
        offsets, so a token of nothing but spaces counts as beginning where it ends: next to one, nothing is proven.
        """
        import numpy as np

        text, ids, table = self._text, self.ids, self._table
        count = len(ids)
        if not count:
            return []
        ascii_only = text.isascii()
        if table.normalizes and not ascii_only and not unicodedata.is_normalized("NFC", text):
            return None
        ends = table.lengths[np.frombuffer(array("q", ids), np.int64)].cumsum()  # half the time of np.array(ids)
        if ends[-1] != (len(text) if ascii_only else len(text.encode())):
            return None
        if table.blank[ids[0]] or table.blank[ids[-1]]:
            return None
        trained = [False] * count
        for span in spans:
            edges = []
            for char in span:
                if char == 0 or char >= len(text):
                    edges.append(count if char else 0)
                    continue
                at = char if ascii_only else len(text[:char].encode())
                before = int(ends.searchsorted(at))
                if ends[before] != at or table.blank[ids[before]]:
                    return None
                edges.append(before + 1)
            trained[edges[0] : edges[1]] = [True] * (edges[1] - edges[0])
        return trained


class Offsets(Sequence[Place]):
    """The places of the first `count` tokens of an encoding, worked out when they are first read."""

    def __init__(self, encoding: Callable[[], Encoding], count: int) -> None:
        self._encoding = encoding
        self._count = count

    @cached_property
    def _all(self) -> list[Place]:
        return self._encoding().offsets[: self._count]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Place]:
        return iter(self._all)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Place]: ...
    def __getitem__(self, index: int | slice) -> Place | Sequence[Place]:
        if isinstance(index, slice) and not index.start and index.step in (None, 1):
            return Offsets(self._encoding, len(range(self._count)[index]))
        return self._all[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list


@dataclass(frozen=True)
class _ByteTable:
    lengths: np.ndarray  # int64: how many bytes of text each token stands for; far too many where that is not known
    blank: np.ndarray  # bool: the token holds nothing but spaces
    normalizes: bool  # the tokenizer composes accents (NFC) first


_UNKNOWN = 1 << 40
_TABLES: WeakKeyDictionary[Any, tuple[int, _ByteTable | None]] = WeakKeyDictionary()
# Of byte-level BPE: the bytes that are written as themselves. The others, the space among them, have letters beyond.
_SPACE = "\u0120"


def _byte_table(tokenizer: PreTrainedTokenizerBase) -> _ByteTable | None:
    size = len(tokenizer)
    known = _TABLES.get(tokenizer)
    if known is None or known[0] != size:  # tokens may have been added
        known = size, _make_byte_table(tokenizer)
        _TABLES[tokenizer] = known
    return known[1]


def _make_byte_table(tokenizer: PreTrainedTokenizerBase) -> _ByteTable | None:
    """None where not every token of the tokenizer stands for just the bytes that it is made of."""
    import numpy as np
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer).__call__ is not PreTrainedTokenizerFast.__call__:
        return None
    if getattr(type(tokenizer), "_encode_plus", None) is not PreTrainedTokenizerFast._encode_plus:
        return None
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    model = backend.model
    if not isinstance(model, models.BPE) or model.dropout or model.byte_fallback:
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix or not _by_bytes(_state(backend.pre_tokenizer)):
        return None
    normalizer = _state(backend.normalizer)
    if normalizer and normalizer.get("type") != "NFC":
        return None
    added = backend.get_added_tokens_decoder()
    if any(token.lstrip or token.rstrip for token in added.values()):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    letters = set(_byte_letters())
    if model.unk_token and not letters <= vocabulary.keys():  # bytes without a token would become others, not vanish
        return None
    size = 1 + max([*vocabulary.values(), *added])
    lengths = np.full(size, _UNKNOWN, dtype=np.int64)
    blank = np.zeros(size, dtype=np.bool_)
    for text, token in vocabulary.items():
        if letters.issuperset(text):
            lengths[token] = len(text)
            blank[token] = not text.strip(_SPACE)
    for token, about in added.items():
        lengths[token] = len(about.content.encode())
        blank[token] = not about.content.strip()
    return _ByteTable(lengths, blank, normalizer is not None)


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as its tokenizer.json has it."""
    return json.loads(part.__getstate__()) if part is not None else None


def _by_bytes(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether it only cuts the text, without taking from it or adding to it, and writes it as bytes."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    has_bytes = False
    for step in steps:
        match step:
            case {"type": "ByteLevel", "add_prefix_space": False}:
                has_bytes = True
            case {"type": "Digits"}:
                pass
            case {"type": "Split" | "Punctuation", "behavior": behavior} if behavior != "Removed":
                pass
            case _:
                return False
    return has_bytes


def _byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes with (GPT-2's table)."""
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = (byte for byte in range(256) if byte not in own)
    return [chr(byte) for byte in own] + [chr(256 + place) for place, _ in enumerate(others)]
