"""What the tasks share that weigh whole answers against each other: two texts a row, their log-probabilities as one
batch, and those of the untrained model, which the answers are measured against.

The reference is computed once, before a method is attached: then no second model is needed, every method has the same
one (those too that change the base as they attach), and a step costs no pass through it. Ends where a loss begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.data.rendering import Rendered, render_answers
from jobs.data.turns import Turn
from jobs.errors import RowProblem
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


def reference_log_probs(
    model: Any,
    rows: Sequence[Row],
    pad_token_id: int,
    *,
    device: Device,
    batch_size: int,
    progress: Callable[[int], None],
) -> list[float]:
    """The log-probability of each row's trained tokens under a model that is not trained yet, in the rows' order.

    Leaves the model in the mode it was in. `progress` is told how many rows are done.
    """
    import torch

    from jobs.training.data import collate
    from jobs.training.loss import answer_log_probs

    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # little padding
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), device.autocast():
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                batch = collate([rows[place] for place in places], pad_token_id)
                batch = {name: value.to(device.name) for name, value in batch.items()}
                for place, value in zip(places, answer_log_probs(model, batch).tolist(), strict=True):
                    found[place] = value
                progress(start + len(places))
    finally:
        model.train(training)
    return found


def answer_lengths(labels: torch.Tensor) -> torch.Tensor:
    """How many trained tokens each row has: [rows]."""
    from jobs.training.data import IGNORED

    return (labels[:, 1:] != IGNORED).sum(dim=1)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
