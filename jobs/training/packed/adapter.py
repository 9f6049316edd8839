"""One adapter's side of the loop: its weights, its optimizer and schedule, its rows, and what is told of its steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.errors import UserError
from jobs.loops import PACKED_STATE
from jobs.training.failures import LossIsNotANumber
from jobs.training.loop import Job
from jobs.training.monitor import Monitor
from jobs.training.packed.model import flat_weights
from jobs.training.packed.packs import step_rows
from jobs.training.rows import Row
from jobs.training.schedule import make_optimizer, parameter_groups


@dataclass(frozen=True)
class _Step:
    """A step that was begun; its numbers may still be on their way from the device."""

    number: int
    learning_rate: float
    tokens: int
    measures: dict[str, float]  # Objective.step_values
    found: torch.Tensor  # [2]: loss, the gradient's length; where it is computed
    arrived: torch.cuda.Event | None

    def values(self) -> dict[str, Any]:
        """Waits for them."""
        if self.arrived:
            self.arrived.synchronize()
        loss, norm = self.found.tolist()
        return {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": self.learning_rate,
            "tokens": self.tokens,
            "measures": self.measures,
        }


class Adapter:
    """`place`: among those that were begun together. On resuming it goes on from the job's state."""

    def __init__(self, place: int, job: Job, monitor: Monitor) -> None:
        job.model.train()
        self.place, self.job, self.monitor = place, job, monitor
        self.ended = False
        self.error: Exception | None = None
        self.weights = flat_weights(job.model, parameter_groups(job))
        self._optimizer, self._schedule = make_optimizer(job, self.weights.groups)
        self._rate = 0.0
        self._number = job.progress.step  # of the step that was begun last
        self._behind: _Step | None = None
        self._begun = False
        if job.state:
            self._restore(job.state)
        self.rows: Iterator[list[Row]] = step_rows(job.train, job.spec.training, job.total_steps, job.progress.step)

    @property
    def steps_left(self) -> int:
        return self.job.total_steps - self._number

    def begin(self) -> None:
        """Before its first step; once."""
        if not self._begun:
            self._begun = True
            self.monitor.begin()

    def clip(self) -> torch.Tensor:
        """The length of the gradients that were found, a scalar on the device; what is too long is shortened."""
        return self.weights.clip(self.job.spec.training.max_grad_norm)

    def step(self) -> None:
        """Take it with these gradients."""
        self._rate = float(self._schedule.get_last_lr()[0])
        self._optimizer.step()
        self._schedule.step()
        self._number += 1

    def take_back(self, rows: list[Row]) -> None:
        """The step over these rows was not taken: they are the next one's."""
        self.weights.gradients.zero_()
        self.rows = itertools.chain([rows], self.rows)

    def break_off(self) -> None:
        """The step that was begun brought numbers that are none: the run ends."""
        self.ended, self.error = True, LossIsNotANumber(self._number + 1)

    def tell(self, rows: list[Row], found: torch.Tensor, arrived: torch.cuda.Event | None) -> None:
        """Of the step that was taken over `rows`; `found` and `arrived` as a _Step has them. While the device is busy
        with the next one it is told of the one before, unless something must see the weights as they are now."""
        measures = self.job.objective.step_values()
        step = _Step(self._number, self._rate, sum(map(len, rows)), measures, found, arrived)
        try:
            if self._behind:
                self.monitor.report(self._behind.number, **self._behind.values())
            self._behind = step
            if arrived is None or self.monitor.due(step.number):
                self._behind = None
                self.ended = not self.monitor.step_done(step.number, **step.values(), save_state=self._save_state_to)
        except Exception as error:  # its loss, its disk: nothing of the others'
            self.ended, self.error = True, error

    def _save_state_to(self, folder: Path) -> None:
        state: dict[str, Any] = {
            "optimizer": self._optimizer.state_dict(),
            "order": self._order(),
            "schedule": self._schedule.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self.job.device.is_cuda:
            state["random_cuda"] = torch.cuda.get_rng_state(self.job.device.name)
        torch.save(state, folder / PACKED_STATE)

    def _restore(self, folder: Path) -> None:
        """Go on as after the step at which the state was saved."""
        state = torch.load(folder / PACKED_STATE, weights_only=True)
        if state["order"] != self._order():  # the moments would go to other parameters than their own, without a word
            raise UserError(
                "This run was begun by another version of Graft, which kept its optimizer in another order. "
                "Start it again from its settings, or resume it with the version that began it."
            )
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        if self.job.device.is_cuda and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self.job.device.name)

    def _order(self) -> list[list[str]]:
        """The trained parameters' names as they lie in each group of the flat weights."""
        names = {id(parameter): name for name, parameter in self.job.model.named_parameters()}
        return [[names[id(parameter)] for parameter in group] for group in self.weights.order]
