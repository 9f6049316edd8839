"""The states a run can be in. The only place that lists them."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        """An ended run never changes state; resuming it makes a new attempt."""
        return self in ENDED

    @property
    def active(self) -> bool:
        """A child process works on it (or is about to)."""
        return self in ACTIVE


ENDED = frozenset({RunState.COMPLETED, RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED})
ACTIVE = frozenset({RunState.STARTING, RunState.RUNNING, RunState.STOPPING})
