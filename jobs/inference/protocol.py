"""What the playground and the engine's child say to each other over jobs.rpc. Imports no torch: both sides use it.

Requests: `answer` (rows, key) streams Replies; `stop` (key) ends the answer of that key, keeping what was said;
`load` waits until the base model is in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jobs.frozen import Frozen
from jobs.inference.sampling import Sampling
from jobs.tasks.predictions import Prediction

Finish = Literal["end", "length", "stopped"]


class Row(Frozen):
    """One pane: a conversation, and the adapter (a PEFT folder) that answers it; None is the bare base model.

    `messages` holds the system prompt, where there is one; `sampling.system` is not looked at.
    """

    adapter: Path | None = None
    messages: tuple[dict[str, Any], ...]
    sampling: Sampling = Sampling()


class More(Frozen):
    """What one row said since its last one. `seconds` counts from the moment the engine took the request up."""

    row: int
    text: str  # the new text alone
    tokens: int  # in all
    seconds: float
    finish: Finish | None = None


class Reply(Frozen):
    """One message of the child: any of its parts."""

    status: str | None = None  # what it is doing, in words
    engine: dict[str, Any] | None = None  # device, dtype, package versions, adapter fingerprints; before the first text
    more: tuple[More, ...] = ()


class Predicted(Frozen):
    """One message of the predicting child: what it is doing, or what one adapter says of every input."""

    loading: bool = False  # the adapter is not in memory yet
    predictions: tuple[Prediction, ...] | None = None
    baseline: Prediction | None = None  # what could be said without looking at the input
    seconds: float = 0.0
