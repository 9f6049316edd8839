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


def train(files: RunFiles, *, cold: bool = False, limit: float = 1800) -> Told:
    """Train what stands in the run directory. `cold`: the clock runs from the child's start, imports included. `limit`
    in seconds.

    Ends the program where the run does not complete.
    """
    return train_together([files], cold=cold, limit=limit)[0]


def train_together(runs: list[RunFiles], *, cold: bool = False, limit: float = 1800) -> list[Told]:
    """The same of several runs of one base, which share their steps."""
    began = time.time()
    child = subprocess.Popen(
        [sys.executable, "-m", "jobs.training.child", "--wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,
    )
    assert child.stdin and child.stdout
    imports = None
    if not cold:
        child.stdout.readline()
        imports = time.time() - began
        began = time.time()
    alone = {"directory": str(runs[0].directory)}
    order = alone if len(runs) == 1 else {"together": [str(files.directory) for files in runs]}
    child.stdin.write(json.dumps(order).encode() + b"\n")
    child.stdin.close()
    try:
        child.wait(limit)
    finally:
        child.kill()
    found = []
    for files in runs:
        result = Result.model_validate_json(files.result.read_bytes())
        if result.state != "completed":
            raise SystemExit(f"The run did not complete: {result.reason}\n{runs[0].log.read_text()[-3000:]}")
        found.append(Told(read_events(files.events, 0, 1 << 26)[0], result, began, imports))
    return found
