"""Several runs of one base model in one process: one copy of the base, and every step of all of them in the same
passes (jobs.training.packed.loop.train_together).

Each run has its own directory, events, checkpoints, stop file and result, as if it were alone, and ends when it is its
time. Which runs can is jobs.loops.why_apart's to say.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Sequence
from typing import Any

from jobs import loops
from jobs.errors import UserError
from jobs.result import Result
from jobs.rundir import RunFiles
from jobs.spec import BaseModelRef, RunSpec
from jobs.training import load
from jobs.training.monitor import StopRequest
from jobs.training.run import Attempt, Ready


class SharedBase:
    """Stands for load.load_model: loads once, and gives everyone a model of their own around the same weights."""

    def __init__(self) -> None:
        self._loaded: tuple[Any, tuple[str, ...]] | None = None
        self._base: BaseModelRef | None = None

    def forget(self) -> None:
        """Nobody else will come: what they have made of their models need not be kept twice."""
        self._loaded = None

    def __call__(self, base: BaseModelRef, *asked: Any) -> tuple[Any, tuple[str, ...]]:
        if self._base not in (None, base):
            raise UserError(f"This run is of {base.name}, and trains beside runs of another base. Start it by itself.")
        if self._loaded is None:
            self._base, self._loaded = base, load.load_model(base, *asked)
        model, new = self._loaded
        shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
        return copy.deepcopy(model, shared), new


def run_together(runs: Sequence[tuple[RunFiles, int, StopRequest]]) -> list[Result]:
    """Train what stands in these run directories, each with the number of its attempt. Never raises: what goes wrong
    is the runs' result."""
    base = SharedBase()
    found = functools.cache(load.hardware_of)  # free memory before any of them took some: the base counts once
    attempts = [Attempt(files, number, stop, load_model=base, hardware_of=found) for files, number, stop in runs]
    apart = _why_apart([files for files, _, _ in runs])
    bodies = [attempt.prepared() for attempt in attempts]
    ready = [body.__enter__() for body in bodies]
    base.forget()
    waiting = [place for place, each in enumerate(ready) if each]

    def leave(place: int, error: BaseException | None) -> None:
        if place in waiting:
            waiting.remove(place)
        bodies[place].__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    for place in range(len(runs)):
        if place not in waiting:
            leave(place, None)
    begun = list(waiting)
    try:
        _train([each for each in ready if each], apart, lambda index, error: leave(begun[index], error))
    except BaseException as error:  # what concerns all that are left
        for place in list(waiting):
            leave(place, error)
    return [attempt.result for attempt in attempts if attempt.result]


def _train(ready: Sequence[Ready], apart: str | None, left: Any) -> None:
    from jobs.training.packed.loop import train_together

    other = next((each.choice.why for each in ready if each.choice.loop != "packed"), None)
    if apart or other:
        raise UserError(f"These runs cannot be trained together: {apart or other} Start each by itself.")
    train_together([(each.job, each.monitor) for each in ready], left)


def _why_apart(runs: Sequence[RunFiles]) -> str | None:
    specs = []
    for files in runs:
        with contextlib.suppress(OSError, ValueError):  # the run itself says so
            specs.append(RunSpec.model_validate_json(files.spec.read_bytes()))
    return loops.why_apart(specs) if specs else None
