"""Run directories for the training child's tests: a spec, its rows, and ways to train it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jobs.data.columns import Mapping, Shape
from jobs.data.readers import Row
from jobs.data.store import RowWriter
from jobs.events import AnyEvent, Metrics, read_events
from jobs.process import read_identity
from jobs.result import Result
from jobs.rpc import child_environment
from jobs.rundir import RunFiles
from jobs.spec import BaseModelRef, DatasetRef, RunSpec, TrainingParams

ROOT = Path(__file__).parents[1]
CHILD = [sys.executable, "-m", "jobs.training.child"]
QUESTIONS = [{"prompt": f"Where is ship {n}?", "completion": f"Arr, ship {n} be at sea, matey."} for n in range(24)]


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    with RowWriter(path) as writer:
        for row in rows:
            writer.add([row])
    return path


def make_run(directory: Path, model: Path, rows: Iterable[dict[str, Any] | str] = QUESTIONS, **over: Any) -> RunFiles:
    """A run directory on `model`. A row given as text is one that could not be read, the text its reason.

    `over`: fields of RunSpec, with `training` as a dict over quick settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stored = [
        Row(number, None, None, problem=row) if isinstance(row, str) else Row(number, row, json.dumps(row))
        for number, row in enumerate(rows, start=1)
    ]
    write_rows(directory / "rows.parquet", stored)
    training = {"learning_rate": 1e-2, "epochs": 2, "evaluations": 2, "max_length": 64} | over.pop("training", {})
    fields: dict[str, Any] = {
        "name": "test",
        "base_model": BaseModelRef(name="Tiny", folder=model),
        "dataset": DatasetRef(
            name="ships.jsonl",
            fingerprint="f",
            rows=directory / "rows.parquet",
            mapping=Mapping(shape=Shape.PROMPT, columns={"prompt": "prompt", "completion": "completion"}),
        ),
        "task": "chat",
        "method": "lora",
        "method_params": {"r": 4},
        "training": TrainingParams(**training),
    }
    files = RunFiles(directory)
    files.spec.write_text(RunSpec(**fields | over).model_dump_json())
    return files


def train_here(files: RunFiles, attempt: int = 1) -> Result:
    """One attempt in this process: the imports are paid once."""
    from jobs.training.monitor import StopRequest
    from jobs.training.run import Attempt

    return Attempt(files, attempt, StopRequest(files.stop)).run()


def start_child(files: RunFiles) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*CHILD, str(files.directory)], cwd=ROOT, env=child_environment(), start_new_session=True)


def start_spare() -> subprocess.Popen[bytes]:
    """A child that waits for its run."""
    return subprocess.Popen(
        [*CHILD, "--wait"],
        cwd=ROOT,
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def events(files: RunFiles) -> list[AnyEvent]:
    return read_events(files.events, 0, 1 << 24)[0]


def series(files: RunFiles, name: str) -> dict[int, float]:
    """One metric by step; a step that was taken twice counts as the second time."""
    return {e.step: e.values[name] for e in events(files) if isinstance(e, Metrics) and name in e.values}


def result(files: RunFiles) -> Result:
    return Result.model_validate_json(files.result.read_bytes())


def wait_for(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def pause(files: RunFiles, condition: Callable[[AnyEvent], bool]) -> int:
    """Hold a run's trainer (SIGSTOP) as soon as it has told such an event; gives its pid, for SIGCONT or SIGKILL.

    What a test does in mid-run then takes as long as it may: the run is not over before.
    """
    wait_for(lambda: any(condition(event) for event in read_events(files.events, 0)[0]))
    trainer = read_identity(files.process)
    assert trainer
    os.kill(trainer.pid, signal.SIGSTOP)
    return trainer.pid
