"""Who a process is: its pid and its start time. A pid alone comes back for another program, and then lies.

Used for children that must be found again after their parent is gone: training children and the worker. And how a
process stands back for the others.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

from jobs.files import write_whole
from jobs.frozen import Frozen

# The start time counts from the boot time, a whole second that clock corrections may move.
_TOLERANCE_SECONDS = 2.0
_NICENESS = 10  # a tenth of the processor where another wants it, all of it where nobody does


class Identity(Frozen):
    pid: int
    start_time: float  # seconds since the epoch, psutil's create_time

    def write(self, path: Path) -> None:
        write_whole(path, self.model_dump_json())


def identify(pid: int | None = None) -> Identity | None:
    """The process with this pid (or the caller); None where there is none."""
    try:
        process = psutil.Process(pid)
        return Identity(pid=process.pid, start_time=process.create_time())
    except psutil.Error:
        return None


def read_identity(path: Path) -> Identity | None:
    """What `Identity.write` wrote; None where there is no such file, or not a whole one."""
    try:
        return Identity.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def alive(identity: Identity) -> bool:
    """Whether that very process still runs; a zombie does not."""
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.start_time) <= _TOLERANCE_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def signal_group(identity: Identity, number: int) -> None:
    """Send a signal to the process group that `identity` leads; nothing where it is gone."""
    try:
        os.killpg(identity.pid, number)
    except (ProcessLookupError, PermissionError):
        return


def give_way() -> None:
    """Lower the priority of the caller's session for good: every thread that it has, and what it starts. A session that
    another process leads, a terminal's for example, is left as it is."""
    if os.getsid(0) != os.getpid():
        return
    niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PGRP, 0, niceness)
    # Linux desktops share the processor out among sessions first, and only then among their processes.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))
