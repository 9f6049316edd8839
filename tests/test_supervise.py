"""One worker a home, started, replaced and kept alive by the server's side."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from jobs import supervise
from storage.files import Home
from tests.rundirs import wait_for


@pytest.fixture(autouse=True)
def _no_worker_stays(home: Home) -> Iterator[None]:
    yield
    if supervise.worker_lives(home):
        os.kill(worker_pid(home), signal.SIGKILL)


def worker_pid(home: Home) -> int:
    return int(home.worker_lock.read_text())


def test_a_worker_is_started_detached_then_replaced_then_restarted_where_it_died(home: Home) -> None:
    assert not supervise.worker_lives(home)
    supervise.ensure_worker(home)
    wait_for(lambda: supervise.worker_lives(home) and home.worker_lock.read_text() != "")
    first = worker_pid(home)
    assert os.getsid(first) == first
    assert not supervise.keep_worker(home)

    began = time.monotonic()
    supervise.ensure_worker(home)
    assert time.monotonic() - began < supervise._LEAVE_SECONDS
    wait_for(lambda: not psutil.pid_exists(first))
    wait_for(lambda: supervise.worker_lives(home) and home.worker_lock.read_text() not in ("", str(first)))

    os.kill(worker_pid(home), signal.SIGKILL)
    wait_for(lambda: not supervise.worker_lives(home))
    assert supervise.keep_worker(home)
    wait_for(lambda: supervise.worker_lives(home))
    wait_for(lambda: f"worker {worker_pid(home)} of" in (home.logs / "worker.log").read_text())


def test_another_program_that_got_the_worker_s_pid_is_left_alone(home: Home) -> None:
    with home.worker_lock.open("w") as lock:  # held, as by a worker that has not yet written its pid
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        assert supervise.worker_lives(home)
        assert supervise._worker_process(home) is None


def test_a_server_lives_as_long_as_its_lock(home: Home) -> None:
    assert not supervise.server_lives(home)
    with home.server_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert supervise.server_lives(home)
    assert not supervise.server_lives(home)


def test_a_look_at_the_lock_does_not_refuse_a_starting_worker(home: Home) -> None:
    with home.worker_lock.open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        with supervise.only_worker(home, patience=0.1) as alone:
            assert not alone
    with supervise.only_worker(home) as alone:
        assert alone and worker_pid(home) == os.getpid()
