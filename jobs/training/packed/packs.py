"""Rows of a step, laid one after another: few long sequences without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.spec import TrainingParams
from jobs.training.data import epoch_order
from jobs.training.rows import Row


@dataclass(frozen=True)
class Pack:
    """Documents (texts of rows) in one sequence of `tokens`, and the `kept` places whose next token is trained."""

    rows: tuple[Row, ...]
    input_ids: np.ndarray  # int64 [tokens]
    positions: np.ndarray  # int64 [tokens]: from 0 in each document
    ends: np.ndarray  # int32 [documents + 1]: where each document begins, and the end of the last
    kept: np.ndarray  # int64 [kept]
    targets: np.ndarray  # int64 [kept]: the token that each of them should predict
    texts: np.ndarray  # int64 [kept]: the number of the document it stands in
    adapters: np.ndarray | None = None  # int32 [tokens]: whose each is, of several adapters that train together

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


def step_rows(rows: Sequence[Row], training: TrainingParams, total_steps: int, begin: int) -> Iterator[list[Row]]:
    """The rows of each step after `begin`, in the order that every loop keeps (jobs.training.loop.TrainingLoop)."""
    each = training.batch_size * training.gradient_accumulation
    an_epoch = training.steps_an_epoch(len(rows))
    order, epoch = [], -1
    for step in range(begin, total_steps):
        if step // an_epoch != epoch:
            epoch = step // an_epoch
            order = epoch_order(len(rows), training.seed, epoch)
        start = step % an_epoch * each
        yield [rows[place] for place in order[start : start + each]]


def pack_rows(rows: Sequence[Row], capacity: int) -> list[Pack]:
    """As few packs of at most `capacity` tokens as first-fit finds, longest rows first. A row is never divided: both
    texts of a pair stand in one pack; a row that is longer than `capacity` has a pack to itself."""
    bins: list[tuple[int, list[Row]]] = []
    for row in sorted(rows, key=len, reverse=True):
        for index, (used, members) in enumerate(bins):
            if used + len(row) <= capacity:
                members.append(row)
                bins[index] = (used + len(row), members)
                break
        else:
            bins.append((len(row), [row]))
    return [lay_out(members) for _, members in bins]


def lay_out(rows: Sequence[Row]) -> Pack:
    """All of them as one pack: their first texts, then their second ones, as jobs.training.data.collate has them."""
    texts = [*rows, *(row.second for row in rows if row.second)]
    lengths = [len(text.input_ids) for text in texts]
    ends = np.zeros(len(texts) + 1, dtype=np.int32)
    np.cumsum(lengths, out=ends[1:])
    input_ids = np.concatenate([text.input_ids for text in texts]).astype(np.int64)
    # A document's first token is predicted from nothing, and nothing follows its last.
    trained = np.concatenate([text.trained for text in texts])
    trained[ends[:-1]] = False
    places = np.flatnonzero(trained)
    return Pack(
        rows=tuple(rows),
        input_ids=input_ids,
        positions=np.concatenate([np.arange(length) for length in lengths]),
        ends=ends,
        kept=places - 1,
        targets=input_ids[places],
        texts=np.searchsorted(ends, places, side="right") - 1,
    )


def join(packs: Mapping[int, Pack]) -> Pack:
    """Packs of several adapters, by the adapter's number, as one."""
    each = list(packs.values())
    begins = np.cumsum([0, *(pack.tokens for pack in each)])
    documents = np.cumsum([0, *(len(pack.ends) - 1 for pack in each)])
    ends = [pack.ends[1:] + begin for pack, begin in zip(each, begins, strict=False)]
    return Pack(
        rows=tuple(row for pack in each for row in pack.rows),
        input_ids=np.concatenate([pack.input_ids for pack in each]),
        positions=np.concatenate([pack.positions for pack in each]),
        ends=np.concatenate([[0], *ends]).astype(np.int32),
        kept=np.concatenate([pack.kept + begin for pack, begin in zip(each, begins, strict=False)]),
        targets=np.concatenate([pack.targets for pack in each]),
        texts=np.concatenate([pack.texts + before for pack, before in zip(each, documents, strict=False)]),
        adapters=np.repeat(np.array(list(packs), dtype=np.int32), [pack.tokens for pack in each]),
    )
