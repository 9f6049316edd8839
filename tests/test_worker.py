"""The worker as its own process, with children as real processes: killed, replaced, stopped, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from sqlalchemy import Engine

import jobs.worker
from jobs import process, supervise
from jobs.executors.local import LocalExecutor
from jobs.rundir import RunFiles
from jobs.service.runs import Runs, RunView
from jobs.worker import Worker
from storage.db import read
from storage.files import Home
from storage.states import RunState
from storage.tables import Adapter
from tests import standin
from tests.standin import steps_of, wait, workers


@pytest.fixture
def start_worker(home: Home, engine: Engine) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    with workers(home, "tests.standin", "worker", str(home.root)) as start:
        yield start


def queue(runs: Runs, name: str = "run", **behaviour: object) -> int:
    return runs.start(standin.spec(name, **behaviour), 1, 1).id


def ended(runs: Runs, run_id: int) -> RunView:
    return wait(runs, run_id, lambda run: run.state.ended)


def child_of(home: Home, run_id: int) -> process.Identity:
    identity = process.read_identity(RunFiles(home.run(run_id)).process)
    assert identity
    return identity


def test_a_run_completes_and_all_it_said_is_in_the_catalog(
    home: Home, engine: Engine, runs: Runs, start_worker
) -> None:
    run_id = queue(runs, "My run", steps=10)
    start_worker()
    run = ended(runs, run_id)
    assert (run.state, run.reason, run.step, run.total_steps) == (RunState.COMPLETED, None, 10, 10)
    assert (run.best_step, run.best_eval_loss, run.peak_memory, run.device) == (10, 0.1, 5000, "abacus")
    assert (run.train_rows, run.validation_rows, run.trainable_parameters) == (9, 1, 100)
    assert run.phase == "" and run.eta_seconds is None and run.started_at and run.ended_at and not run.can_resume
    assert steps_of(engine, run_id) == list(range(1, 11))
    assert [(a.step, a.tuned) for a in runs.answers(run_id)] == [(5, "t1"), (10, "t1")]
    with read(engine) as session:
        adapter = session.get_one(Adapter, run.adapter_id)
    assert (adapter.name, adapter.method, adapter.task, adapter.step) == ("My run", "lora", "text", 10)
    assert home.absolute(adapter.path) == home.run(run_id) / "adapter" and adapter.size_bytes == 2


def test_a_worker_killed_in_mid_run_loses_and_doubles_nothing(
    home: Home, engine: Engine, runs: Runs, start_worker
) -> None:
    run_id = queue(runs, steps=120, seconds=0.03)
    for step in (10, 40, 70):
        worker = start_worker()
        wait(runs, run_id, lambda run, step=step: run.step >= step)
        worker.kill()
        worker.wait()
        assert process.alive(child_of(home, run_id))
    start_worker()
    assert ended(runs, run_id).state == RunState.COMPLETED
    assert steps_of(engine, run_id) == list(range(1, 121))


def test_what_ended_while_no_worker_lived_is_taken_up(home: Home, engine: Engine, runs: Runs, start_worker) -> None:
    run_id = queue(runs, steps=20, seconds=0.03)
    worker = start_worker()
    wait(runs, run_id, lambda run: run.step >= 2)
    worker.kill()
    child = child_of(home, run_id)
    while process.alive(child):
        time.sleep(0.02)
    assert runs.get(run_id).state == RunState.RUNNING
    start_worker()
    assert ended(runs, run_id).state == RunState.COMPLETED
    assert steps_of(engine, run_id) == list(range(1, 21))


def test_a_worker_told_to_go_leaves_the_training_alone(home: Home, runs: Runs, start_worker) -> None:
    run_id = queue(runs, steps=40, seconds=0.03)
    worker = start_worker()
    wait(runs, run_id, lambda run: run.step >= 2)
    worker.terminate()
    assert worker.wait(60) == 0
    assert process.alive(child_of(home, run_id))
    start_worker()
    assert ended(runs, run_id).state == RunState.COMPLETED


def test_a_killed_child_is_marked_interrupted_with_the_reason(runs: Runs, home: Home, start_worker) -> None:
    run_id = queue(runs, steps=1000, seconds=0.03)
    start_worker()
    wait(runs, run_id, lambda run: run.step >= 2)
    os.kill(child_of(home, run_id).pid, signal.SIGKILL)
    run = ended(runs, run_id)
    assert run.state == RunState.INTERRUPTED
    assert run.reason and "signal 9 (killed)" in run.reason and "memory" in run.reason
    assert run.step >= 2 and run.peak_memory


def test_a_stopped_run_keeps_an_adapter(runs: Runs, start_worker) -> None:
    run_id = queue(runs, steps=1000, seconds=0.03)
    start_worker()
    wait(runs, run_id, lambda run: run.step >= 6)
    assert runs.stop(run_id).stop_requested
    run = ended(runs, run_id)
    assert (run.state, run.reason) == (RunState.STOPPED, "You stopped it.")
    assert run.adapter_id and run.can_resume


def test_a_resumed_attempt_makes_the_curve_whole(engine: Engine, runs: Runs, start_worker) -> None:
    run_id = queue(runs, steps=12, die_at=8, half_line=True, seconds=0.01)
    start_worker()
    assert ended(runs, run_id).state == RunState.INTERRUPTED
    assert steps_of(engine, run_id) == list(range(1, 9))
    last = runs.last_metric_id(run_id)
    run = runs.resume(run_id)
    assert (run.state, run.attempt, run.reason, run.ended_at) == (RunState.QUEUED, 2, None, None)
    run = ended(runs, run_id)
    assert (run.state, run.attempt, run.step) == (RunState.COMPLETED, 2, 12)
    assert steps_of(engine, run_id) == list(range(1, 13))
    assert [(a.step, a.tuned) for a in runs.answers(run_id)] == [(5, "t1"), (10, "t2")]
    # A page that had seen the voided rows still gets every new one.
    assert [m.step for m in runs.metrics_after(run_id, last) if m.name == "loss"] == list(range(6, 13))


def test_a_stopped_run_goes_on_to_the_same_adapter(engine: Engine, runs: Runs, start_worker) -> None:
    run_id = queue(runs, steps=30, seconds=0.03)
    start_worker()
    wait(runs, run_id, lambda run: run.step >= 6)
    runs.stop(run_id)
    adapter_id = ended(runs, run_id).adapter_id
    runs.resume(run_id)
    run = ended(runs, run_id)
    assert (run.state, run.adapter_id) == (RunState.COMPLETED, adapter_id)
    with read(engine) as session:
        assert session.get_one(Adapter, adapter_id).step == 30


def test_two_queued_runs_train_one_after_the_other_in_order(runs: Runs, start_worker) -> None:
    first, second = (queue(runs, name, steps=10, seconds=0.02, linger=0.3) for name in ("a", "b"))
    assert (runs.queue_position(first), runs.queue_position(second)) == (0, 1)
    start_worker()
    wait(runs, first, lambda run: run.state == RunState.RUNNING)
    assert runs.get(second).state == RunState.QUEUED and runs.queue_position(second) == 1
    done, later = ended(runs, first), ended(runs, second)
    assert done.state == later.state == RunState.COMPLETED
    assert done.ended_at and later.started_at and done.ended_at < later.started_at


def test_a_run_stopped_in_the_queue_never_starts(home: Home, runs: Runs, start_worker) -> None:
    run_id = queue(runs)
    assert runs.stop(run_id).state == RunState.STOPPED
    start_worker()
    other = queue(runs)
    ended(runs, other)
    assert runs.get(run_id).state == RunState.STOPPED and not home.run(run_id).exists()


def test_a_second_worker_is_refused(home: Home, engine: Engine, start_worker) -> None:
    worker = start_worker("--idle", "600")  # it must outlive the second one's imports, however slow they are
    wait_for_worker(home, worker.pid)
    second = subprocess.run(
        [sys.executable, "-m", "jobs.worker", "--home", str(home.root)],
        cwd=standin.ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert second.returncode == 1
    assert f"is running (pid {worker.pid})" in second.stderr and "Traceback" not in second.stderr


def wait_for_worker(home: Home, pid: int) -> None:
    deadline = time.monotonic() + 120
    while not (supervise.worker_lives(home) and home.worker_lock.read_text() == str(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_that_dies_at_once_says_why_in_the_run_s_log(runs: Runs, start_worker) -> None:
    run_id = queue(runs, exit=3, says="ImportError: no")
    start_worker()
    run = ended(runs, run_id)
    assert run.state == RunState.FAILED
    assert run.reason and run.reason.endswith("error code 3. The log's last line says: “ImportError: no”.")
    assert runs.log(run_id) == ("ImportError: no\n", 16)


def test_a_worker_that_died_between_claim_and_start_starts_the_run_after_all(
    home: Home, engine: Engine, runs: Runs, start_worker
) -> None:
    from storage import runs as rows
    from storage.db import write

    run_id = queue(runs, steps=3)
    with write(engine) as session:
        claimed = rows.claim(session, 1)
    assert claimed and runs.get(run_id).state == RunState.STARTING
    start_worker()
    assert ended(runs, run_id).state == RunState.COMPLETED


def test_a_worker_stays_while_a_run_is_at_work_and_goes_when_nothing_is_left(runs: Runs, start_worker) -> None:
    run_id = queue(runs, steps=1, seconds=2)
    worker = start_worker("--idle", "1")
    assert ended(runs, run_id).state == RunState.COMPLETED
    assert worker.wait(60) == 0


def test_an_idle_worker_costs_next_to_nothing(home: Home, engine: Engine, start_worker) -> None:
    worker = psutil.Process(start_worker("--idle", "600").pid)
    wait_for_worker(home, worker.pid)
    time.sleep(1.5)
    before, began = sum(worker.cpu_times()[:2]), time.monotonic()
    time.sleep(3)
    assert (sum(worker.cpu_times()[:2]) - before) / (time.monotonic() - began) < 0.02


def test_a_worker_whose_home_is_deleted_goes(home: Home, runs: Runs, start_worker) -> None:
    worker = start_worker()
    ended(runs, queue(runs, steps=1))
    home.database.unlink()
    assert worker.wait(60) == 0


def in_this_process(home: Home, until: Callable[[], object]) -> None:
    """A worker's rounds in the test's own process, so that its patience can be shortened."""
    worker = Worker(home, LocalExecutor(home.logs, standin.COMMAND))
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        worker.tick()
        time.sleep(0.02)
    worker.executor.close()


def test_a_child_that_does_not_stop_is_ended_after_its_grace(
    home: Home, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.worker, "STOP_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(jobs.worker, "END_GRACE_SECONDS", 0.3)
    run_id = queue(runs, steps=2, seconds=60, deaf=True)
    in_this_process(home, lambda: runs.get(run_id).state == RunState.RUNNING)
    assert runs.stop(run_id).stop_requested
    in_this_process(home, lambda: runs.get(run_id).state.ended)  # a second worker: the stop is not forgotten
    run = runs.get(run_id)
    assert run.state == RunState.STOPPED
    assert run.reason and run.reason.startswith("It did not answer the request to stop and was ended")


def test_a_child_that_stays_after_its_result_is_ended_before_the_next_run(
    home: Home, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.worker, "EXIT_SECONDS", 0.3)
    first, second = queue(runs, steps=1, linger=60), queue(runs, steps=1)
    in_this_process(home, lambda: runs.get(second).state.ended)
    assert runs.get(first).state == runs.get(second).state == RunState.COMPLETED
    assert not process.alive(child_of(home, first))
