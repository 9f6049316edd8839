"""Training children on this machine, one at a time, the next one's imports done ahead.

A spare child has imported torch and its kin and waits for one line on its standard input: with it a run starts in
about a second instead of ten. A spare whose worker dies reads the end of its input and goes; a child at work has its
own session and outlives the worker. Ends where jobs.training.child begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from jobs import process
from jobs.process import Identity
from jobs.rpc import child_environment
from jobs.rundir import RunFiles

CHILD = (sys.executable, "-m", "jobs.training.child", "--wait")
_RETRY_SECONDS = 30.0  # a spare that cannot even import is not tried again at once


class LocalExecutor:
    slots = 1

    def __init__(self, logs: Path, command: Sequence[str] = CHILD) -> None:
        """`logs` takes what a child prints before it has a run."""
        self._logs = logs
        self._command = list(command)
        self._spare: subprocess.Popen[bytes] | None = None
        self._next_spare = 0.0  # monotonic
        self._children: dict[int, subprocess.Popen[bytes]] = {}  # at work, by pid
        self._codes: dict[Identity, int] = {}  # of children that ended
        self._lock = threading.Lock()  # `end` may wait on a thread of its own

    def start(self, directory: Path, attempt: int) -> Identity:
        if self._spare is not None and self._spare.poll() is not None:
            self._drop_spare()
        child, self._spare = self._spare or self._spawn(), None
        identity = process.identify(child.pid) or Identity(pid=child.pid, start_time=time.time())
        # Before the hand-over: a worker that dies right after it must find this child, not start a second one.
        files = RunFiles(directory)
        identity.write(files.process)
        self._startup_log(child.pid).replace(files.startup)
        self._children[child.pid] = child
        with contextlib.suppress(OSError):  # it died just now: `alive` will say so
            assert child.stdin is not None
            # The pipe keeps the line until the imports are done: a cold child needs no other treatment.
            child.stdin.write(json.dumps({"directory": str(directory), "attempt": attempt}).encode() + b"\n")
            child.stdin.close()
        return identity

    def alive(self, identity: Identity) -> bool:
        with self._lock:
            child = self._children.get(identity.pid)
            if child is None:
                return identity not in self._codes and process.alive(identity)
            if not _has_ended(child.pid):
                return True
            # Not reaped yet, so its pid, which is its group's, cannot be another's: end what it left behind.
            process.signal_group(identity, signal.SIGKILL)
            self._codes[identity] = child.wait()
            del self._children[identity.pid]
            return False

    def exit_code(self, identity: Identity) -> int | None:
        return self._codes.get(identity)

    def end(self, identity: Identity, grace: float) -> None:
        if not self.alive(identity):
            return
        process.signal_group(identity, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while self.alive(identity) and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.alive(identity):
            process.signal_group(identity, signal.SIGKILL)
        while self.alive(identity):
            time.sleep(0.02)

    def warm(self) -> None:
        """Start a spare where there is none. It computes for some seconds: not to be called beside a run."""
        if self._spare is not None:
            if self._spare.poll() is None:
                return
            self._drop_spare()
            self._next_spare = time.monotonic() + _RETRY_SECONDS
        if time.monotonic() >= self._next_spare:
            self._spare = self._spawn()

    def close(self) -> None:
        if self._spare is not None:
            self._spare.kill()  # it holds nothing yet; its imports need not be waited for
            self._drop_spare()

    def _drop_spare(self) -> None:
        assert self._spare is not None
        self._spare.wait()
        self._startup_log(self._spare.pid).unlink(missing_ok=True)
        self._spare = None

    def _startup_log(self, pid: int) -> Path:
        return self._logs / f"child-{pid}.log"

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._logs.mkdir(parents=True, exist_ok=True)
        new = self._logs / f"child-new-{os.getpid()}.log"
        # A file, not a pipe: a child whose worker died in the meantime must still be able to print.
        with new.open("wb") as log:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=child_environment(),
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        new.rename(self._startup_log(child.pid))
        return child


def _has_ended(pid: int) -> bool:
    """Whether our child has ended, without reaping it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True
