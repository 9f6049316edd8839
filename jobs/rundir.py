"""A run's directory: the names in it, which are the run contract; made ready for an attempt, and read after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jobs.files import write_whole
from jobs.result import Result
from jobs.spec import RunSpec

_TAIL = 16_384  # bytes of a log that are worth reading


class RunFiles:
    """The names inside a run directory: the run contract."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spec = directory / "spec.json"  # in
        self.stop = directory / "stop"  # in: its presence asks the child to finish the step, save and end
        self.process = directory / "process.json"  # out: pid and start time of the child
        self.startup = directory / "startup.txt"  # out: what the child printed before log.txt began
        self.events = directory / "events.jsonl"  # out
        self.log = directory / "log.txt"  # out
        self.checkpoints = directory / "checkpoints"  # out: checkpoint-<step>, renamed into place when whole
        self.adapter = directory / "adapter"  # out: a standard PEFT folder
        self.result = directory / "result.json"  # out, last


def prepare(files: RunFiles, spec: dict[str, Any]) -> None:
    """Ready for the next attempt: the spec in, an earlier attempt's words out, its events and checkpoints kept."""
    files.directory.mkdir(parents=True, exist_ok=True)
    for old in (files.result, files.process, files.stop):
        old.unlink(missing_ok=True)
    write_whole(files.spec, RunSpec.model_validate(spec).model_dump_json(indent=2))
    if said(files):
        with files.events.open("rb+") as events:
            events.seek(-1, os.SEEK_END)
            if events.read(1) != b"\n":  # a killed attempt's half line must not swallow the next one's first
                events.write(b"\n")


def said(files: RunFiles) -> int:
    """Bytes of events written so far."""
    return files.events.stat().st_size if files.events.exists() else 0


def read_result(files: RunFiles) -> Result | None:
    """How the attempt ended; None where its child has not said so."""
    try:
        return Result.model_validate_json(files.result.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return Result(state="failed", reason="The training process left a result.json that cannot be read.")


def newest_step(files: RunFiles) -> int | None:
    """The step of the newest whole checkpoint, from which a resumed run goes on; None where there is none."""
    names = (folder.name.removeprefix("checkpoint-") for folder in files.checkpoints.glob("checkpoint-*"))
    return max((int(name) for name in names if name.isdecimal()), default=None)


def keep_startup_log(files: RunFiles, since: float) -> None:
    """A child that died before its own log began said why elsewhere: put that where the page looks for it.

    `since`: when the attempt began, seconds since the epoch; an older log is an earlier attempt's.
    """
    if files.log.is_file() and files.log.stat().st_mtime >= since:
        return
    if text := tail(files.startup).removeprefix("ready\n"):
        with files.log.open("a", encoding="utf-8") as log:
            log.write(text)


def tail(path: Path) -> str:
    """The end of a log; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
