"""result.json: how an attempt ended, written last by the child. Its presence means that everything else is complete."""

from __future__ import annotations

from typing import Literal

from jobs.frozen import Frozen


class Result(Frozen):
    state: Literal["completed", "stopped", "failed"]
    reason: str | None = None  # one sentence, in the user's words
    step: int = 0
    best_step: int | None = None
    best_eval_loss: float | None = None
    adapter_step: int | None = None  # the step whose weights lie in adapter/; None where nothing usable was saved
    trainable_parameters: int = 0
    peak_memory: int | None = None  # bytes
    seconds: float = 0.0
