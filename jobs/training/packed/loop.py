"""The loop itself: pack the rows of a step, add up their gradients, step once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.errors import UserError
from jobs.loops import PACKED_STATE
from jobs.training.loop import Job
from jobs.training.monitor import Monitor
from jobs.training.packed.model import PackedModel
from jobs.training.packed.packs import Pack, pack_rows, step_rows
from jobs.training.packed.passes import Passes
from jobs.training.rows import Row
from jobs.training.schedule import make_optimizer, parameter_groups

_SAMPLE = 100  # steps, to see how large their packs are


def train(job: Job, monitor: Monitor) -> None:
    """A TrainingLoop (jobs.training.loop)."""
    loop = _Packed(job)
    if job.state:
        loop.restore(job.state)
    monitor.begin()
    try:
        behind: _Step | None = None
        rows_of_steps = step_rows(job.train, job.spec.training, job.total_steps, job.progress.step)
        for number, rows in enumerate(rows_of_steps, start=job.progress.step + 1):
            step = loop.step(number, rows)
            if behind:  # told while the device is busy with the next one already
                monitor.report(behind.number, **behind.values())
            behind = step
            if step.arrived is None or monitor.due(number):
                behind = None
                if not monitor.step_done(number, **step.values(), save_state=loop.save_state_to):
                    return
    finally:
        loop.release()


@dataclass(frozen=True)
class _Step:
    """A step that was begun; its numbers may still be on their way from the device."""

    number: int
    learning_rate: float
    tokens: int
    measures: dict[str, float]  # Objective.step_values
    found: torch.Tensor  # [2]: loss, the gradient's length; where it is computed
    arrived: torch.cuda.Event | None = None

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


class _Packed:
    def __init__(self, job: Job) -> None:
        training = job.spec.training
        job.model.train()
        self._job = job
        self._device = job.device
        self._model = PackedModel(
            job.model,
            parameter_groups(job),
            job.device.dtype,
            recomputed=10**6 if training.recompute else 0,
            longest=training.max_length,
        )
        self._weights = self._model.weights
        self._optimizer, self._schedule = make_optimizer(job, self._weights.groups)
        self._capacity = training.batch_size * training.max_length * job.objective.task.sequences
        sample = self._sample() if job.device.is_cuda else []
        steps = job.total_steps - job.progress.step
        self._passes = Passes(
            self._model, job.objective, job.device, sample, steps * len(sample) // max(1, min(steps, _SAMPLE))
        )

    def _sample(self) -> list[Pack]:
        """The packs of the first steps."""
        job = self._job
        steps = step_rows(job.train, job.spec.training, job.total_steps, job.progress.step)
        return [pack for rows in itertools.islice(steps, _SAMPLE) for pack in pack_rows(rows, self._capacity)]

    def step(self, number: int, rows: list[Row]) -> _Step:
        """Take it. On a GPU it is only begun: nothing here waits for the device."""
        items = max(1, self._job.objective.items(rows))
        rate = float(self._schedule.get_last_lr()[0])
        total = torch.zeros((), device=self._device.name)
        with self._model.engaged():
            for pack in pack_rows(rows, self._capacity):
                total += self._passes(pack, items)
        norm = self._weights.clip(self._job.spec.training.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self._weights.stepped()
        found, arrived = torch.stack((total, norm)), None
        if self._device.is_cuda:
            host = torch.empty(2, pin_memory=True)
            host.copy_(found, non_blocking=True)
            found, arrived = host, torch.cuda.Event()
            arrived.record()
        return _Step(number, rate, sum(map(len, rows)), self._job.objective.step_values(), found, arrived)

    def save_state_to(self, folder: Path) -> None:
        state: dict[str, Any] = {
            "optimizer": self._optimizer.state_dict(),
            "order": self._order(),
            "schedule": self._schedule.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self._device.is_cuda:
            state["random_cuda"] = torch.cuda.get_rng_state(self._device.name)
        torch.save(state, folder / PACKED_STATE)

    def restore(self, folder: Path) -> None:
        """Go on as after the step at which `save_state_to` was called."""
        state = torch.load(folder / PACKED_STATE, weights_only=True)
        if state["order"] != self._order():  # the moments would go to other parameters than their own, without a word
            raise UserError(
                "This run was begun by another version of Graft, which kept its optimizer in another order. "
                "Start it again from its settings, or resume it with the version that began it."
            )
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        if self._device.is_cuda and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self._device.name)

    def release(self) -> None:
        self._model.release()

    def _order(self) -> list[list[str]]:
        """The trained parameters' names as they lie in each group of the flat weights."""
        names = {id(parameter): name for name, parameter in self._job.model.named_parameters()}
        return [[names[id(parameter)] for parameter in group] for group in self._weights.order]
