"""A task bound to one run: its settings, its labels, its model's padding. What every training loop computes."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jobs.memory.packed import evaluated_at_once
from jobs.tasks.base import Encoded, Scores, Task
from jobs.training.data import Row, in_batches

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.load import Device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What a task's own code may need of the run it works in."""

    params: Any  # the task's Params
    labels: tuple[str, ...]
    pad_token_id: int
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    prepared: Any = None  # what the task's `prepare` found out
    facts: dict[str, Any] = field(default_factory=dict)  # what the task's `facts` found out
    samples: dict[int, Encoded] = field(default_factory=dict)  # validation rows by number, shown with each evaluation


@dataclass(frozen=True)
class Objective:
    task: Task
    setting: Setting
    _step: list[Any] = field(default_factory=list, repr=False)  # what was predicted since `step_values` was asked

    def items(self, rows: Sequence[Row]) -> int:
        return sum(self.task.items(row) for row in rows)

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        return self.task.collate(rows, self.setting)

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Summed; divide by the items of the whole step."""
        return self.task.loss(model, batch, self.setting, self._step if self.task.follows_steps else None)

    def packed_loss(self, losses: torch.Tensor, texts: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """The same from the losses of the rows' trained tokens (Task.packed_loss)."""
        follows = self._step if self.task.follows_steps else None
        return self.task.packed_loss(losses, texts, rows, self.setting, follows)

    def forget_step(self) -> None:
        """What `loss` was given since `step_values` was asked is computed once more."""
        self._step.clear()

    def step_values(self) -> dict[str, float]:
        """The task's measures of the rows that `loss` was given since it was last asked."""
        values = self.task.step_values(self._step) if self._step else {}
        self._step.clear()
        return values

    def evaluate(self, model: Any, rows: Sequence[Row], batch_size: int, device: Device) -> Scores:
        """The task's measures over `rows`. Leaves the model in the mode it was in.

        Where memory runs out the rows are read once more, one at a time: hours of training are worth the wait.
        """
        import torch

        try:
            return self._evaluated(model, rows, batch_size, device)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            # Not in the words by which jobs.postmortem knows what ended a run: this one goes on.
            logger.info("Memory ran out while rows were read together; now they are read one at a time.")
        gc.collect()  # out of `except`: what failed no longer holds what it had made
        if device.is_cuda:
            torch.cuda.empty_cache()
        return self._evaluated(model, rows, 1, device)

    def _evaluated(self, model: Any, rows: Sequence[Row], batch_size: int, device: Device) -> Scores:
        import torch

        training = model.training
        model.eval()
        total = 0.0
        predictions: list[Any] = []
        seen: list[Row] = []
        most = evaluated_at_once(device.is_cuda)
        try:
            with torch.inference_mode(), device.autocast():
                for part in in_batches(rows, batch_size, most if self.task.packs else None):
                    batch = {name: value.to(device.name) for name, value in self.collate(part).items()}
                    total += self.task.loss(model, batch, self.setting, predictions).item()
                    seen += part
                scores = self.task.score(total / max(self.items(seen), 1), predictions, seen, self.setting)
                more = self.task.write_and_measure(model, rows, self.setting)
            if more:
                values, details = {**scores.values, **more.values}, {**scores.details, **more.details}
                scores = replace(scores, values=values, details=details)
            return scores
        finally:
            model.train(training)
