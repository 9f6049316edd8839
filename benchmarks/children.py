"""A run in a real training child, as the worker starts one, and what it told: for every benchmark that trains."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass

from jobs.events import AnyEvent, read_events
from jobs.result import Result
from jobs.rpc import child_environment
from jobs.rundir import RunFiles


@dataclass(frozen=True)
class Told:
    events: list[AnyEvent]
    result: Result
    began: (
        float  # seconds since the epoch: when the run was handed over; where it counts the imports, the child's start
    )
    imports: float | None  # seconds; None with `cold`, where they count


def train(files: RunFiles, *, cold: bool = False) -> Told:
    """Train what stands in the run directory. `cold`: the clock runs from the child's start, imports included.

    Ends the program where the run does not complete.
    """
    with Children(1) as children:
        return completed(children.train([files], cold=cold), files)[0]


def completed(told: list[Told], files: RunFiles) -> list[Told]:
    """The same, where all runs did; else the program ends with what the log of `files` says."""
    for each in told:
        if each.result.state != "completed":
            raise SystemExit(f"The run did not complete: {each.result.reason}\n{files.log.read_text()[-3000:]}")
    return told


class Children:
    """Trainers, one after another. So many are started at once, and do their imports before the first of them trains:
    on a GPU's machine imports take as long as a short run, and beside one they would be felt."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._spares: list[_Child] = []

    def train(self, runs: list[RunFiles], *, cold: bool = False, limit: float = 1800) -> list[Told]:
        """What stands in these run directories: of several, runs that share their steps. `limit` in seconds. `cold`: a
        child that has imported nothing yet."""
        if not self._spares:
            self._spares = [_Child() for _ in range(self._at_once)]
            for child in self._spares:
                if not cold:
                    child.wait()
        return self._spares.pop(0).train(runs, cold, limit)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._spares:
            child.process.kill()
            child.process.wait()


class _Child:
    def __init__(self) -> None:
        self._began = time.time()
        self._imports: float | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.training.child", "--wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until its imports are done."""
        assert self.process.stdout
        self.process.stdout.readline()
        self._imports = time.time() - self._began

    def train(self, runs: list[RunFiles], cold: bool, limit: float) -> list[Told]:
        process, began = self.process, self._began if cold else time.time()
        assert process.stdin
        alone = {"directory": str(runs[0].directory)}
        order = alone if len(runs) == 1 else {"together": [str(files.directory) for files in runs]}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.close()
        try:
            process.wait(limit)
        finally:
            process.kill()
        return [
            Told(
                read_events(files.events, 0, 1 << 26)[0],
                Result.model_validate_json(files.result.read_bytes()),
                began,
                self._imports,
            )
            for files in runs
        ]
