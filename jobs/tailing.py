"""From what a training child says (jobs.events) to what the catalog keeps, exactly once.

Each batch of events and the offset behind it are committed together: a worker killed at any moment neither loses nor
doubles a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from jobs.events import Answers, AnyEvent, Checkpoint, Evaluation, Metrics, Phase, Started, read_events
from storage import runs
from storage.db import write
from storage.states import RunState

_CHUNK = 1 << 20  # bytes


@dataclass
class Digest:
    """What a batch of events changes in the catalog."""

    fields: dict[str, Any] = field(default_factory=dict)  # of the run's row
    metrics: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    rewind_to: int | None = None  # rows of later steps are an earlier attempt's: forget them first


def digest(events: Iterable[AnyEvent], stopping: bool = False) -> Digest:
    """What `events` mean, in their order. `stopping`: the run stays so though the child has just begun."""
    result = Digest()
    fields = result.fields
    for event in events:
        match event:
            case Phase():
                fields["phase"] = event.text
            case Started():
                if event.attempt > 1:
                    _rewind(result, event.step or -1)  # what was measured before the first step is measured again
                if not stopping:
                    fields["state"] = RunState.RUNNING
                fields |= {"step": event.step, "total_steps": event.total_steps}
                fields |= {"train_rows": event.train_rows, "validation_rows": event.validation_rows}
                fields |= {"trainable_parameters": event.trainable_parameters}
                fields |= {"hardware": event.hardware, "packages": event.packages}
            case Metrics():
                fields["step"] = event.step
                if event.eta_seconds is not None:
                    fields["eta_seconds"] = event.eta_seconds
                if memory := event.values.get("memory"):
                    fields["peak_memory"] = max(int(memory), fields.get("peak_memory", 0))
                result.metrics += [
                    {"step": event.step, "name": name, "value": value, "time": event.time}
                    for name, value in event.values.items()
                    if math.isfinite(value)  # SQLite and JSON have no NaN; the child says in words that it diverged
                ]
            case Checkpoint():
                if event.best:
                    fields |= {"best_step": event.step, "best_eval_loss": event.eval_loss}
            case Evaluation():
                result.evaluations = [row for row in result.evaluations if row["step"] != event.step]
                result.evaluations.append({"step": event.step, "details": event.details})
            case Answers():
                result.answers += [
                    {"step": event.step, "position": position, **answer.model_dump()}
                    for position, answer in enumerate(event.answers)
                ]
    return result


def _rewind(result: Digest, step: int) -> None:
    """A later attempt goes on from `step`: what was said of later steps, here or in the catalog, is void."""
    result.rewind_to = step if result.rewind_to is None else min(step, result.rewind_to)
    result.metrics = [row for row in result.metrics if row["step"] <= step]
    result.answers = [row for row in result.answers if row["step"] <= step]
    result.evaluations = [row for row in result.evaluations if row["step"] <= step]
    if (result.fields.get("best_step") or 0) > step:
        result.fields |= {"best_step": None, "best_eval_loss": None}


class Tail:
    """The worker's place in one run's events.jsonl."""

    def __init__(self, run_id: int, path: Path, offset: int) -> None:
        self._run_id = run_id
        self._path = path
        self._offset = offset

    def catch_up(self, engine: Engine, stopping: bool) -> bool:
        """Record every whole line there is. True where there was one."""
        moved = False
        while self._pending():
            limit = _CHUNK
            events, after = read_events(self._path, self._offset, limit)
            while after == self._offset and self._pending() > limit:
                limit *= 2  # one line longer than the chunk
                events, after = read_events(self._path, self._offset, limit)
            if after == self._offset:
                break  # half a line: the child is writing it
            found = digest(events, stopping)
            with write(engine) as session:
                recorded = runs.record(
                    session,
                    self._run_id,
                    (self._offset, after),
                    found.fields,
                    found.metrics,
                    found.answers,
                    found.evaluations,
                    found.rewind_to,
                )
            if not recorded:
                raise RuntimeError(f"run {self._run_id}: the catalog does not stand at byte {self._offset}")
            self._offset, moved = after, True
        return moved

    def _pending(self) -> int:
        """Bytes of the file that are not recorded."""
        try:
            return self._path.stat().st_size - self._offset
        except FileNotFoundError:
            return 0
