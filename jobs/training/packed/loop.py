"""The loop itself: pack the rows of a step, add up their gradients, step once.

One adapter, or several of one base, each with its own rows, rate, clipping, schedule, evaluations and end: together
they take their steps in the same passes. What belongs to one is adapter.py's.
"""

from __future__ import annotations

import gc
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jobs.hardware import give_freed_memory_back
from jobs.memory.plan import MemoryPlan
from jobs.training.loop import Job
from jobs.training.monitor import Monitor
from jobs.training.packed.adapter import Adapter
from jobs.training.packed.model import PackedModel
from jobs.training.packed.packs import Pack, join, pack_rows, step_rows
from jobs.training.packed.passes import Passes, can_record, is_small
from jobs.training.rows import Row

logger = logging.getLogger(__name__)

_SAMPLE, _SAMPLED = 100, 3_000  # steps, and rows, to see how large their packs are: someone waits for the first loss
_STEPS_KEPT = 16  # so many may leave freed memory behind


def train(job: Job, monitor: Monitor) -> None:
    """A TrainingLoop (jobs.training.loop)."""

    def left(place: int, error: Exception | None) -> None:
        if error:
            raise error

    train_together([(job, monitor)], left)


def train_together(runs: Sequence[tuple[Job, Monitor]], left: Callable[[int, Exception | None], None]) -> None:
    """Several runs of one base (jobs.loops.why_apart), as `train` does each. `left` is called with a run's place as
    soon as it has ended, and with what ended it where that was an error of its own. Raises what concerns all."""
    adapters = []
    for place, (job, monitor) in enumerate(runs):
        try:
            adapters.append(Adapter(place, job, monitor))
        except Exception as error:  # its checkpoint
            left(place, error)
    tightened: MemoryPlan | None = None
    while adapters:
        crew = _Crew(adapters, tightened)
        for adapter in adapters:
            adapter.begin()
        if not any(adapter.ended for adapter in adapters):
            crew.step_until_one_ends()
        crew.release()
        tightened = crew.tightened
        del crew  # with its leaves and recorded passes, before the next one makes its own
        for adapter in adapters:
            if adapter.ended:
                left(adapter.place, adapter.error)
        adapters = [adapter for adapter in adapters if not adapter.ended]


@dataclass(frozen=True)
class _Step:
    """A step that was begun; its numbers may still be on their way from the device."""

    rows: Sequence[list[Row]]  # of each adapter
    found: torch.Tensor  # [2 x adapters]: their losses, their gradients' lengths
    arrived: torch.cuda.Event | None

    def values(self) -> tuple[list[float], list[float]]:
        """Waits for them."""
        if self.arrived:
            self.arrived.synchronize()
        found = self.found.tolist()
        return found[: len(self.rows)], found[len(self.rows) :]


class _Crew:
    """Adapters that step together, until one of them ends.

    `tightened`: the plan that those before ended with, where memory had run out with the one they began with.
    """

    def __init__(self, adapters: Sequence[Adapter], tightened: MemoryPlan | None = None) -> None:
        self._adapters = adapters
        self._job = adapters[0].job
        self._device = self._job.device
        # Of several the one that needs the most speaks for all.
        planners = [adapter.job.planner(len(adapters)) for adapter in adapters]
        self._planner = max(planners, key=lambda each: each.of(each.plans[0]).total)
        self._broken = torch.zeros((), device=self._device.name)
        self._limited = any(adapter.job.spec.training.memory_limit_gb for adapter in adapters)
        self._longest, self._since = 0, 0  # tokens of a step; steps since what was freed was given back
        self.tightened = tightened
        self._set_up(tightened or self._planner.planned()[0])

    def step_until_one_ends(self) -> None:
        """On a GPU a step is told while the next one is computed, unless someone must see the weights as they are."""
        behind: _Step | None = None
        while True:
            step = self._step([next(adapter.rows) for adapter in self._adapters])
            if behind and not self._tell(behind, step):
                return
            behind = step
            if step.arrived is None or any(adapter.due for adapter in self._adapters):
                if not self._tell(step):
                    return
                behind = None

    def release(self) -> None:
        self._model.release()

    def _step(self, rows: Sequence[list[Row]]) -> _Step:
        """Begin it: nothing here waits for a GPU, but for a run's first few passes, which may be timed (passes.py)."""
        self._give_back(rows)
        before = self._passes.once_seconds
        losses = self._gradients(rows)
        if once := max(0.0, self._passes.once_seconds - before):
            for adapter in self._adapters:
                adapter.monitor.set_aside(once)
        norms = torch.stack([adapter.clip() for adapter in self._adapters])
        if len(rows) > 1:
            # One adapter's numbers that are none reach the others' gradients, since 0 times one is none either: then
            # no step is taken any more, until `_tell` has found whose they are.
            self._broken = torch.maximum(self._broken, 1.0 - torch.isfinite(losses + norms).all().float())
        for adapter in self._adapters:
            adapter.step(self._broken if len(rows) > 1 else None)
        self._model.leaves.stepped()
        found, arrived = torch.cat((losses, norms)), None
        if self._device.is_cuda:
            host = torch.empty(len(found), pin_memory=True)
            host.copy_(found, non_blocking=True)
            found, arrived = host, torch.cuda.Event()
            arrived.record()
        return _Step(rows, found, arrived)

    def _give_back(self, rows: Sequence[list[Row]]) -> None:
        """On a CPU, before a step over `rows`, what earlier steps have freed: it lies in pieces that steps of other
        sizes do not fill. Before each step only where a memory limit is to be kept, since taking it anew can take as
        long as a third of a small step; else before the longest so far, and now and then."""
        if self._device.is_cuda:
            return
        self._since += 1
        tokens = sum(len(row) for own in rows for row in own)
        if self._limited or tokens > self._longest or self._since == _STEPS_KEPT:
            give_freed_memory_back()
            self._longest, self._since = max(tokens, self._longest), 0

    def _tell(self, step: _Step, begun: _Step | None = None) -> bool:
        """Whether all go on. `begun`: the step after it, where that was begun already."""
        losses, norms = step.values()
        finite = [math.isfinite(loss + norm) for loss, norm in zip(losses, norms, strict=True)]
        if len(losses) > 1 and not all(finite):
            self._break_off([step, begun] if begun else [step], losses)
            return False
        for place, adapter in enumerate(self._adapters):
            if not adapter.ended:
                adapter.tell(step.rows[place], losses[place], norms[place], began=1 if begun else 0)
        if not any(adapter.ended for adapter in self._adapters):
            return True
        if begun and len(losses) > 1:  # one could not be told; the others have taken the step after it, too
            self._tell(begun)
        return False

    def _break_off(self, steps: Sequence[_Step], losses: Sequence[float]) -> None:
        """Who brought numbers that are none goes; the others take these steps again without it."""
        broken = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
        broken = broken or self._broken_alone(steps[0].rows)
        for place, adapter in enumerate(self._adapters):
            adapter.take_back([step.rows[place] for step in steps])
            if place in broken:
                adapter.break_off()

    def _broken_alone(self, rows: Sequence[list[Row]]) -> list[int]:
        """Whose gradients are no numbers, where all losses are: each is tried by itself. All, where it is nobody's."""
        found = []
        for place, adapter in enumerate(self._adapters):
            for other in self._adapters:
                other.weights.gradients.zero_()
            self._gradients([own if other == place else [] for other, own in enumerate(rows)])
            if not bool(torch.isfinite(adapter.weights.gradients).all()):
                found.append(place)
        return found or list(range(len(rows)))

    def _set_up(self, plan: MemoryPlan) -> None:
        self._plan = plan
        self._model = PackedModel(
            [adapter.job.model for adapter in self._adapters],
            [adapter.weights for adapter in self._adapters],
            self._device.dtype,
            plan=plan,
            longest=max(adapter.job.spec.training.max_length for adapter in self._adapters),
            rounded=self._job.method.quantization(self._job.method_params) == "fp8",
        )
        objectives = [adapter.job.objective for adapter in self._adapters]
        sample, passes = self._sample() if can_record(self._model, objectives, self._device) else ([], 0)
        self._passes = Passes(self._model, objectives, self._device, sample, passes)

    def _gradients(self, rows: Sequence[list[Row]]) -> torch.Tensor:
        """The step's mean losses, [adapters], on the device. On a GPU they are only begun.

        Where its memory runs out the step is taken once more, in less.
        """
        while True:
            try:
                items = [
                    max(1, adapter.job.objective.items(own)) for adapter, own in zip(self._adapters, rows, strict=True)
                ]
                total = torch.zeros(len(rows), device=self._device.name)
                with self._model.engaged():
                    for pack in self._packs(rows):
                        total += self._passes(pack, items)
                return total
            except torch.OutOfMemoryError:
                plan = self._planner.tighter(self._plan)
                if plan is None:
                    raise
                # Not in the words by which jobs.postmortem knows what ended a run: this one goes on.
                logger.info("Memory ran out with packs of %s tokens.", f"{self._plan.pack_tokens:,}")
            # Out of `except`: what failed no longer holds what it had made.
            self._tighten(plan)

    def _tighten(self, plan: MemoryPlan) -> None:
        said = plan.sentence(self._model.layers)
        logger.info("Going on with packs of %s tokens. %s", f"{plan.pack_tokens:,}", said)
        self._model.release()
        if self._device.is_cuda:
            torch.cuda.synchronize()  # nothing is given back that is still computed with
        del self._passes, self._model
        for adapter in self._adapters:
            adapter.weights.gradients.zero_()
            adapter.job.objective.forget_step()
        gc.collect()
        self.tightened = plan
        self._set_up(plan)

    def _packs(self, rows: Sequence[list[Row]]) -> list[Pack]:
        if len(rows) == 1:
            return pack_rows(rows[0], self._plan.pack_tokens)
        share = self._plan.pack_tokens // len(rows)
        of_each = itertools.zip_longest(*(pack_rows(own, share) for own in rows))
        return [join({place: pack for place, pack in enumerate(packs) if pack}) for packs in of_each]

    def _sample(self) -> tuple[list[Pack], int]:
        """The packs of the first steps, up to the first that is not small, and about how many there will be in all."""
        ahead = []
        for adapter in self._adapters:
            job = adapter.job
            ahead.append(step_rows(job.train, job.spec.training, job.total_steps, adapter.monitor.progress.step))
        packs: list[Pack] = []
        steps = seen = 0
        for rows in zip(*ahead, strict=False):
            steps, seen = steps + 1, seen + sum(map(len, rows))
            packs += self._packs(rows)
            if seen >= _SAMPLED or steps == _SAMPLE or not is_small(packs[-1], self._model):
                break
        return packs, max(adapter.steps_left for adapter in self._adapters) * len(packs) // max(1, steps)
