"""A training child that follows the run contract without torch, and misbehaves on request; and a worker that uses it.

For the odd cases that a real child does not show when asked: its spec's `task_params` say how it behaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Engine, select

from jobs import process
from jobs.data.columns import Mapping, Shape
from jobs.events import Answers, Checkpoint, EventLog, Metrics, Phase, PromptAnswer, Started
from jobs.executors.local import LocalExecutor
from jobs.files import write_whole
from jobs.result import Result
from jobs.rundir import RunFiles
from jobs.service.runs import Runs, RunView
from jobs.spec import BaseModelRef, DatasetRef, RunSpec
from storage.db import read, write
from storage.files import Home
from storage.tables import BaseModel, Dataset, Metric

COMMAND = (sys.executable, "-m", "tests.standin", "child")
ROOT = Path(__file__).parents[1]


def spec(name: str = "run", **behaviour: object) -> RunSpec:
    """`steps`, `seconds` a step, `checkpoint_every`, and one of: die_at (step, by signal `signal`), exit (code),
    says (a line for the log), half_line, deaf, linger."""
    return RunSpec(
        name=name,
        base_model=BaseModelRef(name="tiny", folder=Path("tiny")),
        dataset=DatasetRef(
            name="rows", fingerprint="f", rows=Path("rows.parquet"), mapping=Mapping(shape=Shape.TEXT, columns={})
        ),
        task="text",
        task_params=dict(behaviour),
        method="lora",
    )


def fill(engine: Engine) -> None:
    """A base model and a dataset, both with id 1, for runs to refer to."""
    with write(engine) as session:
        session.add(BaseModel(name="tiny", source="folder", location="tiny", shape={}))
        session.add(
            Dataset(
                fingerprint="f",
                name="rows",
                filename="rows.csv",
                format="csv",
                size_bytes=1,
                rows=1,
                columns=[],
                detection={},
            )
        )


@contextlib.contextmanager
def workers(home: Home, *command: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts workers of `home`: `python -m` `command` and what else is asked. Ends them and their children after."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-m", *command, *options], cwd=ROOT, start_new_session=True))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        worker.wait()
    for folder in home.runs.iterdir():
        identity = process.read_identity(RunFiles(folder).process)
        if identity and process.alive(identity):
            os.killpg(identity.pid, signal.SIGKILL)


def wait(runs: Runs, run_id: int, condition: Callable[[RunView], object], seconds: float = 240.0) -> RunView:
    """The run as soon as `condition` holds of it."""
    deadline = time.monotonic() + seconds
    while not condition(run := runs.get(run_id)):
        assert time.monotonic() < deadline, f"still {run.state}, step {run.step}, {run.reason}"
        time.sleep(0.02)
    return run


def steps_of(engine: Engine, run_id: int, name: str = "loss") -> list[int]:
    """The steps of one of a run's curves, in the order of their rows."""
    with read(engine) as session:
        found = select(Metric.step).where(Metric.run_id == run_id, Metric.name == name).order_by(Metric.id)
        return list(session.scalars(found))


def child() -> None:
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        return
    order = json.loads(line)
    files, attempt = RunFiles(Path(order["directory"])), order["attempt"]
    log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    identity = process.identify()
    assert identity
    identity.write(files.process)
    train(files, attempt, RunSpec.model_validate_json(files.spec.read_bytes()).task_params)


def train(files: RunFiles, attempt: int, behaviour: dict) -> None:  # type: ignore[type-arg]
    steps, events = behaviour.get("steps", 10), EventLog(files.events)
    done = [int(folder.name.split("-")[1]) for folder in files.checkpoints.glob("checkpoint-*")] if attempt > 1 else []
    first = max(done, default=0)
    if says := behaviour.get("says"):
        print(says, flush=True)
    if "exit" in behaviour:
        sys.exit(behaviour["exit"])
    if behaviour.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    events.append(Phase(text="Loading the base model"))
    events.append(
        Started(
            attempt=attempt, step=first, total_steps=steps, train_rows=9, validation_rows=1, left_out_rows=0,
            trainable_parameters=100, total_parameters=1000, hardware={"name": "abacus"}, packages={"torch": "0"},
        )
    )  # fmt: skip
    state, step = "completed", first
    for step in range(first + 1, steps + 1):
        time.sleep(behaviour.get("seconds", 0.0))
        events.append(Metrics(step=step, values={"loss": 1 / step, "memory": 1000.0 + step}, eta_seconds=steps - step))
        if step % behaviour.get("checkpoint_every", 5) == 0:
            (files.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
            events.append(Answers(step=step, answers=(PromptAnswer(prompt="p", base="b", tuned=f"t{attempt}"),)))
            events.append(Checkpoint(step=step, best=True, eval_loss=1 / step))
        if attempt == 1 and step == behaviour.get("die_at"):
            if behaviour.get("half_line"):
                with files.events.open("a") as file:
                    file.write('{"type":"metrics","ste')
            os.kill(os.getpid(), behaviour.get("signal", signal.SIGKILL))
        if files.stop.exists() and not behaviour.get("deaf"):
            state = "stopped"
            break
    files.adapter.mkdir(exist_ok=True)
    (files.adapter / "adapter_config.json").write_text("{}")
    result = Result(
        state=state, reason="You stopped it." if state == "stopped" else None, step=step, adapter_step=step,  # type: ignore[arg-type]
        trainable_parameters=100, peak_memory=5000,
    )  # fmt: skip
    write_whole(files.result, result.model_dump_json())
    time.sleep(behaviour.get("linger", 0.0))


def main() -> int:
    if sys.argv[1] == "child":
        child()
        return 0
    from jobs import worker

    home = Home(Path(sys.argv[2]))
    return worker.main(["--home", *sys.argv[2:]], LocalExecutor(home.logs, COMMAND))


if __name__ == "__main__":
    sys.exit(main())
