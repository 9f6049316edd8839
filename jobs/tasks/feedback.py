"""KTO (Ethayarajh et al. 2024): single answers, each with a thumb up or down. Pairs serve as one of each.

The formula is TRL 1.16's, held against it in tests/test_tasks_preference.py.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from jobs.data.columns import Mapping, Shape
from jobs.data.conversation import before_answer
from jobs.data.preferences import feedback_of, pair_of, thumb
from jobs.data.rendering import Rendered
from jobs.data.templates import Templated
from jobs.errors import RowProblem
from jobs.tasks.base import Encoded, Scores, Task
from jobs.tasks.chat import needs_template
from jobs.tasks.comparing import Reference, cut_both, mean, one_by_one, reference, render_since

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.load import Device
    from jobs.training.objective import Setting


_ANSWERS = 2  # that a row has at most; its texts are those, and its mates: its prompt with another row's answers


@dataclass(frozen=True, eq=False)
class Prepared:
    rows: Sequence[Row]
    others: np.ndarray  # int64: the place in `rows` of the row whose answers stand in a row's mates
    reference: Reference  # of each row's answers and mates: [rows, 2 * _ANSWERS]
    weights: tuple[float, float]  # of a bad answer, of a good one

    def mates(self, rows: Sequence[Row]) -> list[Row]:
        others = self.others[self.reference.places_of(rows)].tolist()
        return [_mated(row, self.rows[other]) for row, other in zip(rows, others, strict=True)]


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
    unknown_before: ClassVar[tuple[str, ...]] = ("preference_accuracy",)

    weighing = frozenset({"beta", "balance"})

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
        from jobs.training.data import alike
        from jobs.training.rows import Joined

        rows = Joined(train, validation)
        others = _with_other_prompts(alike(rows, prompts=True)[0])

        def texts(place: int) -> list[Row]:
            row = rows[place]
            return one_by_one([row]) + one_by_one([_mated(row, rows[int(others[place])])])

        found = reference(
            model,
            rows,
            texts,
            2 * _ANSWERS if rows[0].second else _ANSWERS,
            setting.pad_token_id,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
        return Prepared(rows, others, found, _weights(train) if setting.params.balance else (1.0, 1.0))

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        import torch

        from jobs.training.data import collate

        prepared: Prepared = setting.prepared
        known = torch.from_numpy(prepared.reference.log_probs[prepared.reference.places_of(rows)])
        answers, mates = known.chunk(2, dim=1)  # each [rows, answers]
        mated = collate(one_by_one(prepared.mates(rows)), setting.pad_token_id)
        good = [bool(row.second) or row.target for row in rows] + [False for row in rows if row.second]
        return {
            **collate(one_by_one(rows), setting.pad_token_id),
            **{f"mate_{name}": value for name, value in mated.items()},
            "reference": answers.T.flatten(),
            "mate_reference": mates.T.flatten(),
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


def _with_other_prompts(groups: np.ndarray) -> np.ndarray:
    """For each row the place of the nearest one before it whose prompt is another: [rows]. The last row stands before
    the first. Where all have one prompt, the row before it.

    `groups`: the number of each row's prompt. A shift by one row, which TRL makes within a batch, would give a prompt
    an answer of its own wherever it stands in two rows that follow one another.
    """
    before = np.arange(len(groups)) - 1
    before[0] = len(groups) - 1
    begins = np.flatnonzero(groups != groups[before])  # here the row before has another prompt
    if not len(begins):
        return before
    # The newest beginning at or before each row; of the rows before the first, the last one's, round the end.
    newest = begins[np.searchsorted(begins, np.arange(len(groups)), side="right") - 1]
    return before[newest]


def _mated(row: Row, other: Row) -> Row:
    """The row's prompt with the other row's answer; both of them, where they have two."""
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
