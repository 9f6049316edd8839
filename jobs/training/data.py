"""From rows.parquet to batches: tokens by the task's own encoding, the seeded split, the order of each epoch.

Which rows a step sees depends on the spec and the step alone, not on the loop that takes it: a resumed run, and
another loop, see the same batches.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.data.encoding import encode_in_batches
from jobs.data.store import Stored
from jobs.errors import RowProblem, UserError
from jobs.spec import RunSpec, TrainingParams
from jobs.tasks.base import Encoded, Task
from jobs.training.rows import Row, Rows, take
from jobs.training.strata import Strata

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_ENOUGH = 0.5  # of the rows to keep aside, before rows with one prompt are parted
IGNORED = -100  # the label that no loss counts
_LISTED = 10_000  # rows left out whose reasons are remembered


@dataclass
class LeftOut:
    """The rows of a run that cannot be used, each told in its log."""

    count: int = 0
    listed: list[tuple[int, str]] = field(default_factory=list)  # number and reason of the first of them

    def add(self, number: int, reason: str) -> None:
        self.count += 1
        if self.count <= _LISTED:
            self.listed.append((number, reason))
        logger.warning("Row %d is left out: %s", number, reason)


def encode_rows(
    spec: RunSpec,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Stored],
    progress: Callable[[int], None] = lambda done: None,
    folder: Path | None = None,
) -> tuple[Rows, LeftOut]:
    """Every usable row, cut to the maximum length, and those that were left out. `folder`: for what memory cannot hold.

    Raises UserError with the first bad row where the spec does not say to leave those out.
    """
    params = task.Params(**spec.task_params)
    good, left_out = Rows(folder), LeftOut()
    done = 0
    for batch in encode_in_batches(rows, spec.dataset.mapping, task, params, tokenizer):
        for (number, _, _), result in batch:
            try:
                good.add(_row(number, result, task, spec.training.max_length))
            except RowProblem as bad:
                if not spec.training.leave_out_bad_rows:
                    raise UserError(
                        f"Row {number:,} cannot be used: {bad}. Mend it on the dataset's page, or turn on "
                        "Leave out bad rows."
                    ) from bad
                left_out.add(number, str(bad))
        done += len(batch)
        progress(done)
    if not good:
        raise UserError(f"No row of {spec.dataset.name} can be trained on; the log lists each row's reason.")
    return good, left_out


def _row(number: int, encoded: Encoded | RowProblem, task: Task, max_length: int) -> Row:
    if isinstance(encoded, RowProblem):
        raise encoded
    return as_row(number, task.cut(encoded, max_length))


def as_row(number: int, encoded: Encoded) -> Row:
    return Row(
        number,
        np.array(encoded.input_ids, dtype=np.int32),
        np.array(encoded.trained, dtype=np.bool_),
        as_row(number, encoded.second) if encoded.second else None,
        encoded.target,
        None if encoded.types is None else np.array(encoded.types, dtype=np.int8),
    )


def split(
    rows: Sequence[Row], count: int, seed: int, labels: Callable[[Row], Sequence[str]] | None = None
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Rows to train on, and `count` rows kept aside, drawn by the seed.

    Rows with the same prompt stay on one side, else the validation loss would praise memory. Where that would keep too
    few aside (one prompt has most of the rows) it is the rows with the same tokens; where all are alike they are split
    all the same.

    `labels`: those of a row. Each is kept aside in its share, and some of its rows are always left to train on: fewer
    than `count` rows are kept aside where that leaves no other choice, none where every label has a single row.
    """
    if count == 0:
        return rows, []
    strata = Strata(rows, labels) if labels else None
    aside, kept = np.zeros(0, dtype=np.bool_), 0
    for prompts in (True, False):
        if kept < _ENOUGH * count:
            group_of, sizes = alike(rows, prompts)
            drawn = strata.whole_groups(group_of, sizes, count, seed) if strata else _whole_groups(sizes, count, seed)
            aside, kept = drawn[0][group_of], drawn[1]
    if not kept and strata:
        aside, kept = strata.whole_groups(np.arange(len(rows)), [1] * len(rows), count, seed)
    elif not kept:
        seen = [0] * len(sizes)
        for place, group in enumerate(group_of.tolist()):
            seen[group] += 1
            if seen[group] <= count and kept < count:
                aside[place] = True
                kept += 1
    return take(rows, np.flatnonzero(~aside)), take(rows, np.flatnonzero(aside))


def _whole_groups(sizes: list[int], count: int, seed: int) -> tuple[np.ndarray, int]:
    """(which groups are kept aside, how many rows those have: at most `count`)."""
    groups = list(range(len(sizes)))
    random.Random(seed).shuffle(groups)
    aside = np.zeros(len(sizes), dtype=np.bool_)
    kept = 0
    for group in groups:
        if kept + sizes[group] <= count:
            aside[group] = True
            kept += sizes[group]
    return aside, kept


def _prompt(row: Row) -> np.ndarray:
    """The tokens before the first that is trained; all of them where none stands before it, or none is trained."""
    first = int(row.trained.argmax())
    return row.input_ids[:first] if first > 1 else row.input_ids


def alike(rows: Sequence[Row], prompts: bool) -> tuple[np.ndarray, list[int]]:
    """(for each row the number of its group, in the order of their first rows; how many rows each group has).

    A group has the same tokens, or with `prompts` the same before the first that is trained.
    """
    tokens = (_prompt(row) if prompts else row.input_ids for row in rows)
    digests = (hashlib.blake2b(ids.tobytes(), digest_size=8).digest() for ids in tokens)
    keys = np.fromiter((int.from_bytes(digest) for digest in digests), dtype=np.uint64, count=len(rows))
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    group_of = rank[inverse]
    return group_of, np.bincount(group_of).tolist()


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch sees `count` rows."""
    return np.random.default_rng((seed, epoch)).permutation(count).tolist()


def rows_taken(rows: Sequence[Row], training: TrainingParams, steps: int) -> Sequence[Row]:
    """Those of `rows` that the run's steps will see: all, but where it ends within its first epoch.

    One micro-batch more than it trains: the loader collates the next one before it hands out the last.
    """
    count = min(len(rows), (steps * training.gradient_accumulation + 1) * training.batch_size)
    return take(rows, epoch_order(len(rows), training.seed, 0)[:count])


def in_batches(rows: Sequence[Row], size: int, tokens: int | None = None) -> Iterator[list[Row]]:
    """Rows of similar length together, so that little is padded; for passes in which the order does not matter.

    `tokens`: a batch has no more of them, padding included, unless one row alone has."""
    ordered = sorted(rows, key=len)
    for part in batches([len(row) for row in ordered], size, tokens):
        yield ordered[part]


def batches(lengths: Sequence[int], size: int, tokens: int | None = None) -> Iterator[slice]:
    """The same of rows that stand in the order of their lengths, as places."""
    begin = 0
    for place, length in enumerate(lengths):
        count = place - begin
        if count == size or (count and tokens and (count + 1) * length > tokens):
            yield slice(begin, place)
            begin = place
    if begin < len(lengths):
        yield slice(begin, len(lengths))


def collate(rows: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right to its longest row: input_ids, attention_mask and labels, each [rows, tokens].

    Padding is known by length, never by token: many models pad with a token that also ends answers.
    """
    import torch

    longest = max(len(row) for row in rows)
    input_ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    labels = np.full((len(rows), longest), IGNORED, dtype=np.int64)
    for index, row in enumerate(rows):
        length = len(row)
        input_ids[index, :length] = row.input_ids
        mask[index, :length] = 1
        labels[index, :length] = np.where(row.trained, row.input_ids, IGNORED)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }
