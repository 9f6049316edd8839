"""What a training child says while it works: typed lines in events.jsonl, appended whole, tailed by byte offset."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from jobs.frozen import Frozen


class Event(Frozen):
    time: float = Field(default_factory=time.time)  # seconds since the epoch


class Phase(Event):
    """What the child is doing now, in words: "Loading the base model"."""

    type: Literal["phase"] = "phase"
    text: str


class Started(Event):
    """Everything is loaded; the first step comes next. On a resumed attempt `step` is where it goes on."""

    type: Literal["started"] = "started"
    attempt: int
    step: int
    total_steps: int
    train_rows: int
    validation_rows: int
    left_out_rows: int
    trainable_parameters: int
    total_parameters: int
    hardware: dict[str, Any]
    packages: dict[str, str]


class Metrics(Event):
    """Values at one step: loss, eval_loss, learning_rate, grad_norm, tokens_per_second, memory (bytes), and the task's
    own measures (accuracy, ...)."""

    type: Literal["metrics"] = "metrics"
    step: int
    values: dict[str, float]
    eta_seconds: float | None = None


class Evaluation(Event):
    """What a task measured beside numbers at one evaluation: a confusion matrix, predictions for a few rows."""

    type: Literal["evaluation"] = "evaluation"
    step: int
    details: dict[str, Any]


class Checkpoint(Event):
    """A checkpoint is complete on disk."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    best: bool  # the lowest validation loss so far
    eval_loss: float | None = None


class PromptAnswer(Frozen):
    prompt: str
    base: str
    tuned: str


class Answers(Event):
    """Base and tuned answers to the run's fixed prompts."""

    type: Literal["answers"] = "answers"
    step: int
    answers: tuple[PromptAnswer, ...]


AnyEvent = Annotated[Phase | Started | Metrics | Evaluation | Checkpoint | Answers, Field(discriminator="type")]
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


class EventLog:
    """The child's end: appends events. One write a line, so a reader never sees half of one but at the very end."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, event: AnyEvent) -> None:
        os.write(self._file, event.model_dump_json().encode() + b"\n")


def read_events(path: Path, offset: int, limit: int = 1 << 20) -> tuple[list[AnyEvent], int]:
    """The events after byte `offset`, up to about `limit` bytes, and the offset after the last whole line.

    A line that is not an event (a disk that filled up in mid-line) is passed over, not fatal.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit)
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].splitlines():
        try:
            events.append(_EVENT.validate_json(line))
        except ValueError:
            continue
    return events, offset + end
