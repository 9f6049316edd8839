"""From rows.parquet to batches: tokens by the task's own encoding, the seeded split, the order of each epoch.

Which rows a step sees depends on the spec and the step alone, not on the loop that takes it: a resumed run, and
another loop, see the same batches.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.data.store import Stored
from jobs.errors import RowProblem, UserError
from jobs.spec import RunSpec, TrainingParams
from jobs.tasks.base import Encoded, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_CHUNK = 500  # rows tokenised at once, and between two words of progress
IGNORED = -100  # the label that no loss counts


@dataclass(frozen=True, eq=False)
class Row:
    """One row's tokens, cut to the maximum length; `trained` says which of them the loss counts."""

    number: int
    input_ids: np.ndarray  # int32
    trained: np.ndarray  # bool
    second: Row | None = None  # a pair's other text (jobs.tasks.base.Encoded)
    target: Any = None  # what a head learns
    types: np.ndarray | None = None  # int8: to which of a pair of texts a token belongs

    def __len__(self) -> int:
        return len(self.input_ids) + (len(self.second) if self.second else 0)


def encode_rows(
    spec: RunSpec,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Stored],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Row], int]:
    """Every usable row, cut to the maximum length, and how many were left out.

    Raises UserError with the first bad row where the spec does not say to leave those out.
    """
    params = task.Params(**spec.task_params)
    good: list[Row] = []
    left_out = done = 0
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, _CHUNK)):
        readable = [values for _, values, _ in chunk if values is not None]
        encoded = iter(task.encode_batch(readable, spec.dataset.mapping, tokenizer, params))
        for number, values, problem in chunk:
            result = RowProblem(problem or "it cannot be read") if values is None else next(encoded)
            try:
                good.append(_row(number, result, task, spec.training.max_length))
            except RowProblem as bad:
                if not spec.training.leave_out_bad_rows:
                    raise UserError(
                        f"Row {number:,} cannot be used: {bad}. Mend it in the file, or turn on Leave out bad rows."
                    ) from bad
                left_out += 1
                logger.warning("Row %d is left out: %s", number, bad)
        done += len(chunk)
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


def split(rows: Sequence[Row], count: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and `count` rows kept aside, drawn by the seed.

    Rows with the same tokens stay on one side, else the validation loss would praise memory. Where that leaves nothing
    to keep aside (all rows alike), they are split all the same.
    """
    if count == 0:
        return list(rows), []
    alike: dict[bytes, list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(row.input_ids.tobytes(), []).append(index)
    groups = list(alike.values())
    random.Random(seed).shuffle(groups)
    aside: set[int] = set()
    for group in groups:
        if len(aside) + len(group) <= count:
            aside.update(group)
    if not aside:
        aside = {index for group in groups for index in group[:count]}
        aside = set(sorted(aside)[:count])
    train = [row for index, row in enumerate(rows) if index not in aside]
    return train, [row for index, row in enumerate(rows) if index in aside]


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch sees `count` rows."""
    return np.random.default_rng((seed, epoch)).permutation(count).tolist()


def rows_taken(rows: Sequence[Row], training: TrainingParams, steps: int) -> list[Row]:
    """Those of `rows` that the run's steps will see: all, but where it ends within its first epoch."""
    count = min(len(rows), steps * training.batch_size * training.gradient_accumulation)
    return [rows[index] for index in epoch_order(len(rows), training.seed, 0)[:count]]


def in_batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Rows of similar length together, so that little is padded; for passes in which the order does not matter."""
    ordered = sorted(rows, key=len)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


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
