"""The local executor with real processes: spare, hand-over, ending, identities."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs import process
from jobs.executors.local import LocalExecutor
from jobs.process import Identity
from jobs.result import Result
from jobs.rundir import RunFiles, prepare
from tests import standin
from tests.rundirs import wait_for


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(tmp_path / "logs", standin.COMMAND)
    yield executor
    executor.close()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunFiles]:
    def make(**behaviour: object) -> RunFiles:
        files = RunFiles(tmp_path / "run")
        prepare(files, standin.spec(**behaviour).model_dump(mode="json"))
        return files

    return make


def test_a_waiting_spare_takes_the_run_and_is_named_before_it_begins(
    executor: LocalExecutor, run, tmp_path: Path
) -> None:
    executor.warm()
    wait_for(lambda: any("ready" in log.read_text() for log in (tmp_path / "logs").glob("child-*.log")))
    files = run()
    identity = executor.start(files.directory, 1)
    assert process.read_identity(files.process) == identity
    wait_for(lambda: not executor.alive(identity))
    assert executor.exit_code(identity) == 0
    assert Result.model_validate_json(files.result.read_bytes()).state == "completed"


def test_without_a_spare_a_run_starts_cold(executor: LocalExecutor, run) -> None:
    files = run()
    identity = executor.start(files.directory, 1)
    wait_for(lambda: not executor.alive(identity))
    assert files.result.exists()


def test_a_child_leads_its_own_session(executor: LocalExecutor, run) -> None:
    identity = executor.start(run(steps=1000, seconds=0.05).directory, 1)
    assert os.getsid(identity.pid) == identity.pid != os.getsid(0)
    executor.end(identity, grace=5)
    assert executor.exit_code(identity) == -signal.SIGTERM


def test_a_child_deaf_to_terminate_is_killed_after_the_grace(executor: LocalExecutor, run) -> None:
    files = run(steps=1000, seconds=0.05, deaf=True)
    identity = executor.start(files.directory, 1)
    wait_for(lambda: files.events.exists())
    executor.end(identity, grace=0.3)
    assert executor.exit_code(identity) == -signal.SIGKILL
    assert not psutil.pid_exists(identity.pid)


def test_what_a_dead_child_started_is_ended_with_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; sys.stdin.readline();"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)"
    )
    executor = LocalExecutor(tmp_path / "logs", (sys.executable, "-c", script))
    (tmp_path / "run").mkdir()
    identity = executor.start(tmp_path / "run", 1)
    wait_for(lambda: not executor.alive(identity))
    grandchild = int(RunFiles(tmp_path / "run").startup.read_text())
    wait_for(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE)


def test_a_spare_goes_when_its_worker_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from jobs.executors.local import LocalExecutor;"
        "from tests.standin import COMMAND; e = LocalExecutor(Path(sys.argv[1]), COMMAND); e.warm();"
        "print(e._spare.pid, flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=standin.ROOT)
    assert worker.stdout
    spare = int(worker.stdout.readline())
    worker.kill()
    worker.wait()
    worker.stdout.close()
    wait_for(lambda: not psutil.pid_exists(spare) or psutil.Process(spare).status() == psutil.STATUS_ZOMBIE)


def test_a_spare_that_cannot_start_is_not_tried_again_at_once(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, (sys.executable, "-c", "raise SystemExit(1)"))
    executor.warm()
    first = executor._spare
    assert first and first.wait(60) == 1
    executor.warm()
    executor.warm()
    assert executor._spare is None
    assert not list(tmp_path.glob("child-*"))


def test_a_closed_executor_leaves_no_spare_and_no_file(executor: LocalExecutor, tmp_path: Path) -> None:
    executor.warm()
    spare = executor._spare
    assert spare
    executor.close()
    assert spare.returncode == -signal.SIGKILL
    assert not list((tmp_path / "logs").iterdir())


def test_a_pid_with_another_start_time_is_another_process() -> None:
    me = process.identify()
    assert me and process.alive(me)
    assert not process.alive(Identity(pid=me.pid, start_time=me.start_time - 60))


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    identity = process.identify(child.pid)
    assert identity
    wait_for(lambda: not process.alive(identity))
    child.wait()


def test_an_unreadable_identity_is_none(tmp_path: Path) -> None:
    assert process.read_identity(tmp_path / "process.json") is None
    (tmp_path / "process.json").write_text('{"pid": 1')
    assert process.read_identity(tmp_path / "process.json") is None
