"""Why a training child died without a word, as far as the machine can tell, in one sentence for the person.

A child that can still speak says it itself in result.json; this is for the others.
"""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import psutil

from jobs.process import Identity
from jobs.rundir import RunFiles, newest_step, tail
from storage.states import RunState

_FULL = 1_000_000  # bytes free: less is a full disk
_OOM_COUNTERS = (
    Path("/sys/fs/cgroup/memory.events"),  # this container, cgroup v2
    Path("/sys/fs/cgroup/memory/memory.oom_control"),  # this container, cgroup v1
    Path("/proc/vmstat"),  # the whole machine
)
_OOM_WORDS = re.compile(r"out of memory|OutOfMemoryError|MemoryError|Cannot allocate memory", re.IGNORECASE)
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ")  # logging's own
_DISK_WORDS = re.compile(r"No space left on device|ENOSPC|Disk quota exceeded", re.IGNORECASE)


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory, as far as it can be seen. Only a rise means
    something."""
    total = 0
    for path in _OOM_COUNTERS:
        try:
            text = path.read_text()
        except OSError:
            continue
        total += sum(int(number) for number in re.findall(r"^oom_kill (\d+)$", text, re.MULTILINE))
    return total


def cause_of_death(
    files: RunFiles, identity: Identity | None, exit_code: int | None, oom_kills_before: int
) -> tuple[RunState, str]:
    """The ended state and the reason for a child that left no result.json.

    `exit_code` is None where an earlier worker was its parent. Interrupted: from outside; failed: its own doing.
    """
    state, reason = _cause(files, identity, exit_code, oom_kills_before)
    step = newest_step(files)
    if state == RunState.INTERRUPTED and step is not None:
        reason += f" Resume goes on from step {step:,}."
    return state, reason


def _cause(
    files: RunFiles, identity: Identity | None, exit_code: int | None, oom_kills_before: int
) -> tuple[RunState, str]:
    log = tail(files.log)
    oom = oom_kills() > oom_kills_before
    if identity and exit_code is None and identity.start_time < _system_start() - 2:
        return RunState.INTERRUPTED, "The computer or container was restarted while this run trained."
    if _free_disk(files.directory) < _FULL or _DISK_WORDS.search(log):
        return RunState.FAILED, "The disk is full. Free some space on it, then resume this run."
    if oom and exit_code in (None, -signal.SIGKILL):
        return RunState.INTERRUPTED, (
            "The system ran out of memory and ended the training process. Choose a smaller micro-batch or maximum "
            "length, or let it recompute as needed."
        )
    if exit_code == -signal.SIGKILL:
        return RunState.INTERRUPTED, (
            "The training process was ended by signal 9 (killed): most often the system ran out of memory."
        )
    if exit_code is not None and exit_code < 0:
        what = (signal.strsignal(-exit_code) or "unknown").lower()
        state = (
            RunState.INTERRUPTED if -exit_code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) else RunState.FAILED
        )
        return state, f"The training process was ended by signal {-exit_code} ({what})." + _last_line(log)
    if _OOM_WORDS.search(log):
        return RunState.FAILED, (
            "Training ran out of memory. Choose a smaller micro-batch or maximum length, or let it recompute as needed."
        )
    if exit_code:
        return RunState.FAILED, f"The training process ended with error code {exit_code}." + _last_line(log)
    if exit_code is None:
        return RunState.INTERRUPTED, (
            "The training process ended without a word: it was ended from outside, most often because memory ran out."
            + _last_line(log)
        )
    return RunState.INTERRUPTED, "The training process ended without a word." + _last_line(log)


def _last_line(log: str) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]+", log) if line.strip()]
    return f" The log's last line says: “{_STAMP.sub('', lines[-1])[:300]}”." if lines else " Its log is empty."


def _free_disk(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return _FULL


def _system_start() -> float:
    """When the machine booted, or the container's first process began: a container restarts without its machine."""
    try:
        return max(psutil.boot_time(), psutil.Process(1).create_time())
    except psutil.Error:
        return psutil.boot_time()
