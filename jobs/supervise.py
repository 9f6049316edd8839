"""Who is at work in a home: one server, one worker, each known by a lock it holds for as long as it lives.

The server calls `ensure_worker` at its start and `keep_worker` every few seconds. The worker is a process of its own
(jobs.worker): it outlives the server while runs are left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from storage.files import Home

_LEAVE_SECONDS = 10.0  # an older worker's time to go; its children at work are left alone

_started: dict[Path, subprocess.Popen[bytes]] = {}  # by home: the worker that this process started last


def ensure_worker(home: Home) -> None:
    """A fresh worker of this code: an older one is told to go first (what it had started trains on)."""
    began = time.monotonic()
    told: set[int] = set()
    while worker_lives(home):
        old, waited = _worker_process(home), time.monotonic() - began
        if waited > 2 * _LEAVE_SECONDS:
            return  # not a process of ours to end; it works, if by older code
        with contextlib.suppress(psutil.Error):
            if old and waited > _LEAVE_SECONDS:
                old.kill()
            elif old and old.pid not in told:
                told.add(old.pid)
                old.terminate()
        time.sleep(0.02)
    _start(home)


def keep_worker(home: Home) -> bool:
    """Start a worker where none lives; True where one was started. Cheap enough to ask every second."""
    started = _started.get(home.root)
    if worker_lives(home) or (started and started.poll() is None):  # it has yet to take its lock
        return False
    _start(home)
    return True


def worker_lives(home: Home) -> bool:
    """Whether a worker holds this home's lock."""
    return _held(home.worker_lock)


def server_lives(home: Home) -> bool:
    """Whether a server holds this home's lock."""
    return _held(home.server_lock)


@contextlib.contextmanager
def only_worker(home: Home, patience: float = 1.0) -> Iterator[bool]:
    """Holds the worker lock, our pid in it, for the block; False where another worker holds it.

    A little patience, because `worker_lives` takes the lock for an instant.
    """
    with home.worker_lock.open("a+") as lock:
        deadline = time.monotonic() + patience
        while not _lock(lock.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                yield False
                return
            time.sleep(0.05)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield True


def _held(path: Path) -> bool:
    with path.open("a") as lock:
        return not _lock(lock.fileno(), fcntl.LOCK_SH)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _worker_process(home: Home) -> psutil.Process | None:
    """The worker that the lock names; None where that pid is by now another program's."""
    try:
        found = psutil.Process(int(home.worker_lock.read_text()))
        return found if "jobs.worker" in " ".join(found.cmdline()) else None
    except (ValueError, OSError, psutil.Error):
        return None


def _start(home: Home) -> None:
    with (home.logs / "worker.log").open("ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "jobs.worker", "--home", str(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
        )
    _started[home.root] = worker
    threading.Thread(target=worker.wait, daemon=True).start()  # no zombie where it goes before us
