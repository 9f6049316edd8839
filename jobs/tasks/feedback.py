"""KTO (Ethayarajh et al. 2024): single answers, each with a thumb up or down. Pairs serve as one of each.

The formula is TRL 1.16's, held against it in tests/test_tasks_preference.py.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.data.columns import Mapping, Shape
from jobs.data.conversation import before_answer
from jobs.data.preferences import feedback_of, pair_of, thumb
from jobs.data.rendering import Rendered
from jobs.data.templates import Templated
from jobs.errors import RowProblem
from jobs.tasks.base import Encoded, Scores, Task
from jobs.tasks.chat import needs_template
from jobs.tasks.comparing import cut_both, mean, one_by_one, reference_log_probs, render_since

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.load import Device
    from jobs.training.objective import Setting


@dataclass(frozen=True)
class _Known:
    """Of one answer: its log-probability before training; its prompt with another row's answer, and of that, too."""

    reference: float
    mate: Row
    mate_reference: float


@dataclass(frozen=True)
class Prepared:
    known: dict[int, tuple[_Known, ...]]  # by row number: of its one answer, or of the better and the worse
    weights: tuple[float, float]  # of a bad answer, of a good one


class KTO(Task):
    name = "kto"
    label = "Thumbs up and down (KTO)"
    help = "Learns from single answers that were found good or bad, so that good ones become likelier. Needs no pairs."
    order = 32
    shapes = (Shape.FEEDBACK, Shape.PREFERENCE)
    borrowed: ClassVar[tuple[Shape, ...]] = (Shape.PREFERENCE,)
    rate_scale: ClassVar[float] = 0.2
    sequences = 2  # the answer, or two of them; and what no gradient is kept of, its mate
    follows_steps = True

    class Params(Templated):
        beta: float = Field(
            0.1,
            ge=0.001,
            le=5,
            title="Beta",
            description="How firmly the model is held to what it said before: lower lets it change more.",
        )
        balance: bool = Field(
            True,
            title="Balance thumbs",
            description="Counts the rarer thumb more, so that good and bad answers pull alike.",
        )

    def check_data(self, params: Any, mapping: Mapping, has_chat_template: bool) -> list[str]:
        return [
            *super().check_data(params, mapping, has_chat_template),
            *needs_template(params, has_chat_template),
        ]

    def texts(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> tuple[Rendered, ...]:
        if mapping.shape is Shape.PREFERENCE:
            pair = pair_of(row, mapping)
            return tuple(render_since(tokenizer, turns, pair.shared) for turns in (pair.chosen, pair.rejected))
        feedback = feedback_of(row, mapping)
        return (render_since(tokenizer, feedback.turns, feedback.shared),)

    def encode_batch(
        self, rows: Sequence[dict[str, Any]], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> list[Encoded | RowProblem]:
        encoded = super().encode_batch(rows, mapping, tokenizer, params)
        if mapping.shape is Shape.PREFERENCE:
            return encoded
        column = mapping.columns["label"]
        return [
            item if isinstance(item, RowProblem) else replace(item, target=thumb(row, column))
            for item, row in zip(encoded, rows, strict=True)
        ]

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        return cut_both(encoded, max_length) if encoded.second else encoded.cut(max_length)

    def prompt_messages(self, row: dict[str, Any], mapping: Mapping) -> list[dict[str, str]]:
        pairs = mapping.shape is Shape.PREFERENCE
        return before_answer(pair_of(row, mapping).chosen if pairs else feedback_of(row, mapping).turns)

    def items(self, row: Row) -> int:
        return 2 if row.second else 1

    def prepare(
        self,
        model: Any,
        train: Sequence[Row],
        validation: Sequence[Row],
        setting: Setting,
        *,
        device: Device,
        batch_size: int,
        progress: Callable[[int, int], None],
    ) -> Prepared:
        rows = [*train, *validation]
        answers = one_by_one(rows)
        # Row by row, the better answers' mates among the better ones: no prompt meets an answer of its own.
        mates = [_mated(row, before) for row, before in zip(rows, [rows[-1], *rows[:-1]], strict=True)]
        every = [*answers, *one_by_one(mates)]
        found = reference_log_probs(
            model,
            every,
            setting.pad_token_id,
            device=device,
            batch_size=2 * batch_size,
            progress=lambda done: progress(done * len(rows) // len(every), len(rows)),
        )
        known: dict[int, tuple[_Known, ...]] = {}
        for place, answer in enumerate(answers):
            mate = place + len(answers)
            known[answer.number] = (
                *known.get(answer.number, ()),
                _Known(found[place], every[mate], found[mate]),
            )
        return Prepared(known, _weights(train) if setting.params.balance else (1.0, 1.0))

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        import torch

        from jobs.training.data import collate

        prepared: Prepared = setting.prepared
        seconds = [row for row in rows if row.second]
        known = [prepared.known[row.number][0] for row in rows] + [prepared.known[row.number][1] for row in seconds]
        mates = collate([each.mate for each in known], setting.pad_token_id)
        good = [bool(row.second) or row.target for row in rows] + [False] * len(seconds)
        return {
            **collate(one_by_one(rows), setting.pad_token_id),
            **{f"mate_{name}": value for name, value in mates.items()},
            "reference": torch.tensor([each.reference for each in known]),
            "mate_reference": torch.tensor([each.mate_reference for each in known]),
            "good": torch.tensor(good),
        }

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], setting: Setting, predictions: list[Any] | None = None
    ) -> torch.Tensor:
        import torch

        from jobs.training.loss import answer_log_probs

        beta = setting.params.beta
        mates = {name.removeprefix("mate_"): value for name, value in batch.items() if name.startswith("mate_")}
        with torch.no_grad():
            strayed = (answer_log_probs(model, mates) - batch["mate_reference"]).mean().clamp(min=0)
        ratios = answer_log_probs(model, batch) - batch["reference"]
        good = batch["good"]
        if predictions is not None:
            predictions += zip(good.tolist(), (beta * ratios.detach()).tolist(), strict=True)
        bad_weight, good_weight = setting.prepared.weights
        weights = torch.where(good, good_weight, bad_weight)
        return (weights * answer_losses(ratios, strayed, good, beta)).sum()

    def step_values(self, predictions: list[Any]) -> dict[str, float]:
        good, bad = _rewards(predictions)
        return {"train_reward_margin": mean(good) - mean(bad)} if good and bad else {}

    def score(self, loss: float, predictions: list[Any], rows: Sequence[Row], setting: Setting) -> Scores:
        good, bad = _rewards(predictions)
        values: dict[str, float] = {}
        if good:
            values["chosen_reward"] = mean(good)
        if bad:
            values["rejected_reward"] = mean(bad)
        if good and bad:
            values["reward_margin"] = mean(good) - mean(bad)
            # How often a good answer stands above a bad one: every one against every other.
            bad.sort()
            values["preference_accuracy"] = mean([bisect.bisect_left(bad, up) / len(bad) for up in good])
        return Scores(loss, values)


def answer_losses(ratios: torch.Tensor, strayed: torch.Tensor, good: torch.Tensor, beta: float) -> torch.Tensor:
    """KTO's equation 7, [answers]: `ratios` are log(policy / reference), `strayed` the batch's estimate of how far the
    policy is from the reference, from answers that belong to other prompts."""
    import torch

    sign = torch.where(good, 1.0, -1.0)
    return 1 - torch.sigmoid(beta * sign * (ratios - strayed))


def _mated(row: Row, other: Row) -> Row:
    """The row's prompt with the other row's answer; both of them, where they have two."""
    import numpy as np

    prompt, answer = int(row.trained.argmax()), int(other.trained.argmax())
    length = max(len(row.input_ids), len(other.input_ids))  # no longer than any row
    return replace(
        row,
        input_ids=np.concatenate([row.input_ids[:prompt], other.input_ids[answer:]])[:length],
        trained=np.concatenate([row.trained[:prompt], other.trained[answer:]])[:length],
        second=_mated(row.second, other.second) if row.second and other.second else None,
    )


def _weights(rows: Sequence[Row]) -> tuple[float, float]:
    """(of a bad answer, of a good one), such that both kinds weigh the same in all and an answer 1 in the mean."""
    good = sum(bool(row.second) or bool(row.target) for row in rows)
    bad = sum(bool(row.second) or not row.target for row in rows)
    return ((good + bad) / (2 * bad), (good + bad) / (2 * good)) if good and bad else (1.0, 1.0)


def _rewards(predictions: Sequence[tuple[bool, float]]) -> tuple[list[float], list[float]]:
    """Those of the good answers, those of the bad ones."""
    good = [reward for up, reward in predictions if up]
    return good, [reward for up, reward in predictions if not up]
