"""One adapter's side of the loop: its weights, its optimizer and schedule, its rows, and what is told of its steps."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
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


class Adapter:
    """`place`: among those that were begun together. On resuming it goes on from the job's state."""

    def __init__(self, place: int, job: Job, monitor: Monitor) -> None:
        job.model.train()
        self.place, self.job, self.monitor = place, job, monitor
        self.ended = False
        self.error: Exception | None = None
        self.weights = flat_weights(job.model, parameter_groups(job))
        self._optimizer, self._schedule = make_optimizer(job, self.weights.groups)
        self._told: deque[tuple[float, dict[str, float]]] = deque()  # rate and measures of steps not yet told of
        self._number = job.progress.step  # of the step that was begun last
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
            try:
                self.monitor.begin()
            except Exception as error:  # its first evaluation
                self.ended, self.error = True, error

    @property
    def due(self) -> bool:
        """Whether something must see the weights as they are after the step that was begun last."""
        return self.monitor.due(self._number)

    def clip(self) -> torch.Tensor:
        """The length of the gradients that were found, a scalar on the device; what is too long is shortened."""
        return self.weights.clip(self.job.spec.training.max_grad_norm)

    def step(self, broken: torch.Tensor | None) -> None:
        """Take it with these gradients; the weights stay as they are where `broken` on the device is not 0."""
        self._told.append((float(self._schedule.get_last_lr()[0]), self.job.objective.step_values()))
        # PyTorch's way to skip without waiting. None, too: what was set for an earlier step would skip this one.
        self._optimizer.found_inf = broken  # type: ignore[attr-defined]
        self._optimizer.step()
        self._schedule.step()
        self._number += 1

    def take_back(self, steps: Sequence[list[Row]]) -> None:
        """The steps over these rows were not taken: they are the next ones'."""
        self.weights.gradients.zero_()
        self.rows = itertools.chain(steps, self.rows)
        self._number -= len(steps)
        self._told.clear()
        self._schedule.last_epoch -= len(steps) + 1
        self._schedule.step()

    def break_off(self) -> None:
        """The next step brings numbers that are none: the run ends."""
        self.ended, self.error = True, LossIsNotANumber(self._number + 1)

    def tell(self, rows: list[Row], loss: float, norm: float, began: int) -> None:
        """Of the step over `rows`, after which `began` more were begun."""
        rate, measures = self._told.popleft()
        number = self._number - began
        step: dict[str, Any] = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens": sum(map(len, rows)),
            "measures": measures,
        }
        try:
            if began:
                self.monitor.report(number, **step)
            else:
                self.ended = not self.monitor.step_done(number, **step, save_state=self._save_state_to)
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
