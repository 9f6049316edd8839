"""A run from the queue to its adapter with the real training child on a tiny model: killed, stopped, resumed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sqlalchemy import Engine

from jobs.data.columns import Mapping, Shape
from jobs.data.readers import Row
from jobs.events import Answers, Metrics
from jobs.rundir import RunFiles
from jobs.service.runs import Runs
from jobs.spec import BaseModelRef, DatasetRef, RunSpec, TrainingParams
from storage.files import Home
from storage.states import RunState
from tests.rundirs import pause, wait_for, write_rows
from tests.standin import steps_of, wait, workers


@pytest.fixture
def start_worker(home: Home, engine: Engine) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    with workers(home, "jobs.worker", "--home", str(home.root)) as start:
        yield start


@pytest.fixture
def spec(tiny_llama: Path, tmp_path: Path) -> Callable[[int], RunSpec]:
    def make(steps: int) -> RunSpec:
        rows = tmp_path / "rows.parquet"
        texts = [json.dumps({"q": f"what is {n}", "a": f"it is {n} foxes"}) for n in range(40)]
        write_rows(rows, [Row(number=n, values=None, text=text) for n, text in enumerate(texts, 1)])
        mapping = Mapping(shape=Shape.PROMPT, columns={"prompt": "q", "completion": "a"})
        return RunSpec(
            name="foxes",
            base_model=BaseModelRef(name="tiny", folder=tiny_llama),
            dataset=DatasetRef(name="rows", fingerprint="f", rows=rows, mapping=mapping),
            task="chat",
            method="lora",
            training=TrainingParams(max_steps=steps, epochs=100, evaluations=4, early_stop=0, max_length=64),
            prompts=("what is 41",),
        )

    return make


def test_a_killed_worker_and_a_killed_trainer_leave_a_whole_curve(
    home: Home, engine: Engine, runs: Runs, spec, start_worker
) -> None:
    run_id = runs.start(spec(240), 1, 1).id
    worker = start_worker()
    files = RunFiles(home.run(run_id))
    child = pause(files, lambda event: isinstance(event, Metrics) and event.step >= 20)
    wait(runs, run_id, lambda run: run.step >= 20)
    threads = [int(thread.name) for thread in Path(f"/proc/{child}/task").iterdir()]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    given_way = own if torch.cuda.is_available() else max(10, own)  # the page comes first where they share the cores
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {given_way}
    worker.kill()
    worker.wait()
    os.kill(child, signal.SIGCONT)
    assert pause(files, lambda event: isinstance(event, Answers)) == child
    start_worker()
    wait(runs, run_id, lambda run: runs.answers(run_id))

    os.kill(child, signal.SIGKILL)
    run = wait(runs, run_id, lambda run: run.state.ended)
    assert run.state == RunState.INTERRUPTED and run.reason and run.can_resume and run.adapter_id is None

    runs.resume(run_id)
    run = wait(runs, run_id, lambda run: run.state.ended)
    assert (run.state, run.attempt, run.step, run.total_steps) == (RunState.COMPLETED, 2, 240, 240)
    assert steps_of(engine, run_id) == list(range(1, 241))
    assert steps_of(engine, run_id, "eval_loss") == [0, 60, 120, 180, 240]
    assert [a.step for a in runs.answers(run_id)] == [60, 120, 180, 240]
    assert run.adapter_id and run.peak_memory and run.trainable_parameters and run.validation_rows == 4
    assert (home.run(run_id) / "adapter" / "adapter_model.safetensors").is_file()


def test_a_stopped_run_saves_an_adapter_and_says_where_it_stopped(home: Home, runs: Runs, spec, start_worker) -> None:
    with home.server_lock.open("a") as lock:  # a server lives: the worker keeps a spare child ready
        fcntl.flock(lock, fcntl.LOCK_EX)
        start_worker()
        wait_for(lambda: any("ready" in log.read_text() for log in home.logs.glob("child-*.log")))
    run_id = runs.start(spec(4000), 1, 1).id
    wait(runs, run_id, lambda run: run.step >= 5)
    runs.stop(run_id)
    run = wait(runs, run_id, lambda run: run.state.ended)
    assert run.state == RunState.STOPPED
    assert run.reason == f"Stopped on request after step {run.step}."
    assert run.adapter_id and run.can_resume
    assert (home.run(run_id) / "adapter" / "adapter_config.json").is_file()
    text, _ = runs.log(run_id)
    assert "Step 1 of" in text and "Traceback" not in text
