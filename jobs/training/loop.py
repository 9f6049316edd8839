"""The seam between a run and the loop that trains it: what a loop is given, and what it must do.

A loop computes steps and nothing else. Events, evaluations, checkpoints, answers and the end of the run are the
monitor's, so a faster loop replaces jobs.training.plain without touching them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jobs.card import AdapterCard
from jobs.data import templates
from jobs.memory.estimate import Planner
from jobs.methods.base import Method
from jobs.spec import RunSpec
from jobs.training import heads
from jobs.training.checkpoints import Progress
from jobs.training.data import Row
from jobs.training.load import Device
from jobs.training.objective import Objective

if TYPE_CHECKING:
    from jobs.training.monitor import Monitor


@dataclass(frozen=True)
class Job:
    """A run with everything loaded."""

    spec: RunSpec
    folder: Path  # the run's checkpoints/, for loops that must name a folder
    model: Any  # with the method attached; on resuming with the checkpoint's weights
    device: Device
    method: Method
    method_params: Any
    objective: Objective
    train: Sequence[Row]
    validation: Sequence[Row]
    total_steps: int
    progress: Progress  # where to go on
    planner: Callable[[int], Planner]  # of its memory, with so many adapters like this one
    state: Path | None  # what the loop saved there (`Monitor.step_done(save_state=)`); None at the beginning
    new: tuple[str, ...] = ()  # parameters of a new head that the method leaves to jobs.training.heads

    def complete_adapter(self, folder: Path) -> None:
        """Put what the head is beside the method's own files, its weights where the method lacks them, and the chat
        template where the settings choose one."""
        setting = self.objective.setting
        heads.save(self.model, self.new, folder)
        templates.save(setting.tokenizer, setting.params, folder)
        AdapterCard(
            base_model=self.spec.base_model.name,
            task=self.spec.task,
            task_params=self.spec.task_params,
            labels=setting.labels,
            facts=setting.facts,
            max_length=setting.max_length,
        ).write(folder)


class TrainingLoop(Protocol):
    def __call__(self, job: Job, monitor: Monitor) -> None:
        """Take the steps after `job.progress.step`, in the order of `jobs.training.data.epoch_order`, each over
        batch_size x gradient_accumulation rows of an epoch (its last step takes the rest), and hand each to
        `monitor.step_done`. Return where that says so, or after the last step. Raises what goes wrong.
        """
        ...
