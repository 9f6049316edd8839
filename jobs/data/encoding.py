"""Many rows through a task's `encode_batch`, in their order: what the check of a dataset and the training share.

Two batches are in work at once: while one is tokenised, on every core and without Python's lock, the other is rendered
by its chat template. Memory is bounded by a few batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from jobs.data.columns import Mapping
from jobs.data.store import Stored
from jobs.errors import RowProblem
from jobs.tasks.base import Encoded, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 512
_BATCH_CHARS = 1_000_000  # a token takes about 100 bytes while its batch is in work
_AT_ONCE = 2

EncodedRow = tuple[Stored, Encoded | RowProblem]


def encode_in_batches(
    rows: Iterable[Stored], mapping: Mapping, task: Task, params: Any, tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[EncodedRow]]:
    """Every row with its tokens, or with why it has none. Raises UserError where the tokenizer cannot be used."""

    def encode(batch: list[Stored]) -> list[EncodedRow]:
        readable = [values for _, values, _ in batch if values is not None]
        results = iter(task.encode_batch(readable, mapping, tokenizer, params))
        return [
            (stored, RowProblem(stored[2] or "it cannot be read") if stored[1] is None else next(results))
            for stored in batch
        ]

    batches = _batches(rows)
    for batch in batches:
        yield encode(batch)  # alone: a tokenizer's first call may change its settings
        break
    waiting: deque[Future[list[EncodedRow]]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="encode") as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(encode, batch))
                if len(waiting) > _AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(rows: Iterable[Stored]) -> Iterator[list[Stored]]:
    batch: list[Stored] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += _size(row[1])
        if len(batch) >= _BATCH_ROWS or chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _size(value: Any) -> int:
    """About how many characters a row holds, without writing it out."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum([_size(item) for item in value.values()])
    return sum([_size(item) for item in value]) if isinstance(value, list) else 8
