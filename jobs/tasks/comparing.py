"""What the tasks share that weigh whole answers against each other: two texts a row, their log-probabilities as one
batch, and those of the untrained model, which the answers are measured against.

The reference is computed once, before a method is attached: then no second model is needed, every method has the same
one (those too that change the base as they attach), and a step costs no pass through it. Ends where a loss begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.data.rendering import Rendered, render_answers
from jobs.data.turns import Turn
from jobs.errors import RowProblem
from jobs.memory.packed import evaluated_at_once
from jobs.tasks.base import Encoded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.load import Device


def render_since(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], shared: int) -> Rendered:
    """The whole conversation, with the answers from turn `shared` on to train on. Raises RowProblem."""
    before = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in turns[:shared]]
    return render_answers(tokenizer, [*before, *turns[shared:]], last_only=shared == len(turns) - 1)


def cut_both(encoded: Encoded, max_length: int) -> Encoded:
    """Both texts' first tokens. Raises RowProblem where an answer is cut off whole, or nothing tells the two apart."""
    assert encoded.second is not None
    first, second = encoded.cut(max_length), encoded.second.cut(max_length)
    if first.input_ids == second.input_ids:
        raise RowProblem(f"its two answers are the same up to the maximum length ({max_length:,} tokens are used)")
    return replace(first, second=second)


def one_by_one(rows: Sequence[Row]) -> list[Row]:
    """The rows' first texts, then their second ones."""
    return [replace(row, second=None) for row in rows] + [row.second for row in rows if row.second]


@dataclass(frozen=True, eq=False)
class Reference:
    """What the untrained model makes of the texts of each row. Numbers in arrays: a million rows take tens of MB."""

    numbers: np.ndarray  # int64, ascending: those of the rows
    places: np.ndarray  # int64: where each of those rows stands in `log_probs`
    log_probs: np.ndarray  # float32, [rows, texts]: of a text's trained tokens; NaN where a row has fewer texts

    def places_of(self, rows: Sequence[Row]) -> np.ndarray:
        """Where rows stand in `log_probs`, in their order: [rows]."""
        return self.places[np.searchsorted(self.numbers, [row.number for row in rows])]


def reference(
    model: Any,
    rows: Sequence[Row],
    texts_of: Callable[[int], list[Row]],
    most: int,
    pad_token_id: int,
    *,
    device: Device,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Reference:
    """The log-probabilities of the texts that each row has, at most `most`, under a model that is not trained yet.

    `texts_of` makes them from a row's place: they are there while their batch is computed, and at no other time.
    `batch_size` counts rows of two texts. Leaves the model in the mode it was in.
    """
    import torch

    from jobs.training.data import batches, collate
    from jobs.training.loss import answer_log_probs

    numbers = np.fromiter((row.number for row in rows), dtype=np.int64, count=len(rows))
    lengths = np.fromiter(
        (max(map(len, texts_of(place))) for place in range(len(rows))), dtype=np.int32, count=len(rows)
    )
    found = np.full((len(rows), most), np.nan, dtype=np.float32)
    order = np.argsort(lengths, kind="stable")  # little padding
    together, tokens = max(1, 2 * batch_size // most), evaluated_at_once(device.is_cuda)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), device.autocast():
            for part in batches((lengths[order] * most).tolist(), together, tokens):
                places = order[part].tolist()
                texts = {(place, which): text for place in places for which, text in enumerate(texts_of(place))}
                batch = collate(list(texts.values()), pad_token_id)
                batch = {name: value.to(device.name) for name, value in batch.items()}
                for at, value in zip(texts, answer_log_probs(model, batch).tolist(), strict=True):
                    found[at] = value
                progress(part.stop, len(rows))
    finally:
        model.train(training)
    by_number = np.argsort(numbers)
    return Reference(numbers[by_number], by_number, found)


def answer_lengths(labels: torch.Tensor) -> torch.Tensor:
    """How many trained tokens each row has: [rows]."""
    from jobs.training.data import IGNORED

    return (labels[:, 1:] != IGNORED).sum(dim=1)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
