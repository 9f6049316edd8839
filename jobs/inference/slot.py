"""The one place of an engine: which base model is in memory, who uses it, and when it leaves again.

At most one engine process lives at a time. Someone who needs another base model waits until its users are done;
an engine that nobody asked for a while is ended, and one whose memory training needs is ended at once.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from jobs.inference.client import Client
from jobs.spec import BaseModelRef

IDLE_SECONDS = 15 * 60.0
C = TypeVar("C", bound=Client)


@dataclass
class Seat(Generic[C]):
    """A base model in the place, and how many use it now."""

    base: BaseModelRef
    client: C
    users: int = 0
    used: float = 0.0  # time.monotonic of the last use
    ended_because: str | None = None  # set where the engine was ended under its users


class Slot:
    def __init__(self, log: Path, idle_seconds: float = IDLE_SECONDS) -> None:
        self._log = log
        self._idle = idle_seconds
        self._changed = threading.Condition()
        self._seat: Seat[Any] | None = None
        self._timer: threading.Timer | None = None

    def take(self, base: BaseModelRef, kind: type[C], wait: float = 0.5) -> tuple[Seat[C] | None, str | None]:
        """A seat to use until `leave`, and the name of the model that had to go for it. `kind`: who answers on it.

        No seat, and the name of the model that others still use, where it is not free within `wait` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._free_for(base, kind), wait):
                return None, self._seat.base.name if self._seat else None
            old = self._seat
            gone = None
            if old is None or not _is(old, base, kind):
                if old:
                    gone = old.base.name if old.client.alive else None
                    old.client.close()
                self._seat = old = Seat(base, kind(base, self._log))
            old.users += 1
            return old, gone

    def _free_for(self, base: BaseModelRef, kind: type[Client]) -> bool:
        return self._seat is None or _is(self._seat, base, kind) or not self._seat.users

    def leave(self, seat: Seat[Any]) -> None:
        with self._changed:
            seat.users -= 1
            seat.used = time.monotonic()
            if seat is not self._seat:  # it was cleared; a request that came in between has started its child anew
                seat.client.close()
            self._changed.notify_all()
            if self._timer:
                self._timer.cancel()
            self._timer = threading.Timer(self._idle, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def _expire(self) -> None:
        with self._changed:
            seat = self._seat
            if seat and not seat.users and time.monotonic() - seat.used >= self._idle:
                self._seat = None
                seat.client.close()

    def clear(self, because: str) -> str | None:
        """End the engine now, whoever uses it; the name of its model where one was in memory."""
        with self._changed:
            seat, self._seat = self._seat, None
            if self._timer:
                self._timer.cancel()
            self._changed.notify_all()
        if seat is None:
            return None
        was_alive = seat.client.alive
        seat.ended_because = because
        seat.client.close()
        return seat.base.name if was_alive else None


def _is(seat: Seat[Any], base: BaseModelRef, kind: type[Client]) -> bool:
    return seat.base == base and type(seat.client) is kind
