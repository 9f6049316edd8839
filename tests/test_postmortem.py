"""Each kind of silent death, told from what it leaves: the exit code, the log, the time."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from jobs import postmortem, process
from jobs.postmortem import cause_of_death, oom_kills
from jobs.process import Identity
from jobs.rundir import RunFiles
from storage.states import RunState

FAILED, INTERRUPTED = RunState.FAILED, RunState.INTERRUPTED


@pytest.mark.parametrize(
    ("exit_code", "log", "state", "words"),
    [
        (
            0,
            "step 1\r2026-11-22 18:17:09,350 step 2\n\n",
            INTERRUPTED,
            "without a word. The log's last line says: “step 2”.",
        ),
        (None, "", INTERRUPTED, "from outside, most often because memory ran out. Its log is empty."),
        (3, "Traceback\nImportError: no\n", FAILED, "error code 3. The log's last line says: “ImportError: no”."),
        (1, "OSError: [Errno 28] No space left on device", FAILED, "The disk is full."),
        (1, "torch.OutOfMemoryError: CUDA out of memory.", FAILED, "ran out of memory"),
        (-signal.SIGKILL, "step 7", INTERRUPTED, "signal 9 (killed): most often the system ran out of memory"),
        (-signal.SIGSEGV, "step 7", FAILED, "signal 11 (segmentation fault)"),
        (-signal.SIGTERM, "", INTERRUPTED, "signal 15 (terminated)"),
    ],
)
def test_a_silent_death_gets_its_reason(
    tmp_path: Path, exit_code: int | None, log: str, state: RunState, words: str
) -> None:
    files = RunFiles(tmp_path)
    files.log.write_text(log)
    found, reason = cause_of_death(files, process.identify(), exit_code, oom_kills())
    assert found == state
    assert words in reason


def test_a_child_older_than_the_system_fell_to_a_restart(tmp_path: Path) -> None:
    old = Identity(pid=1_000_000, start_time=1_000_000.0)
    state, reason = cause_of_death(RunFiles(tmp_path), old, None, oom_kills())
    assert state == INTERRUPTED and "was restarted" in reason


def test_a_kill_by_the_kernel_for_want_of_memory_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = tmp_path / "memory.events"
    monkeypatch.setattr(postmortem, "_OOM_COUNTERS", (counter,))
    counter.write_text("low 0\noom 0\noom_kill 0\noom_group_kill 0\n")
    before = oom_kills()
    counter.write_text("low 0\noom 1\noom_kill 1\noom_group_kill 0\n")
    for exit_code in (-signal.SIGKILL, None):
        state, reason = cause_of_death(RunFiles(tmp_path), process.identify(), exit_code, before)
        assert state == INTERRUPTED and reason.startswith("The system ran out of memory")


def test_what_a_resumed_run_goes_on_from_is_said_where_there_is_a_whole_checkpoint(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    (files.checkpoints / ".checkpoint-1300.half").mkdir(parents=True)
    _, reason = cause_of_death(files, process.identify(), None, oom_kills())
    assert "Resume" not in reason
    for step in (900, 1200):
        (files.checkpoints / f"checkpoint-{step}").mkdir()
    for exit_code in (None, -signal.SIGKILL):
        _, reason = cause_of_death(files, process.identify(), exit_code, oom_kills())
        assert reason.endswith("Resume goes on from step 1,200.") and "memory" in reason


def test_a_long_last_line_is_cut(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.log.write_text("x" * 100_000)
    _, reason = cause_of_death(files, process.identify(), 0, oom_kills())
    assert len(reason) < 500
