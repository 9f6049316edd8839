"""What the live sockets say: updates, encoded once for every viewer, and the viewers they wait for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Iterable
from typing import Any

from jobs.service.runs import AnswerView, MetricPoint

QUEUE_LIMIT = 200  # messages that one slow viewer may be behind before it is sent away to connect anew


def dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def points_json(points: Iterable[MetricPoint]) -> dict[str, list[tuple[int, float]]]:
    """Points by metric, in order. Seven digits are more than a chart shows."""
    series: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        if math.isfinite(point.value):
            series.setdefault(point.name, []).append((point.step, float(f"{point.value:.7g}")))
    return series


def answers_json(answers: Iterable[AnswerView]) -> list[dict[str, Any]]:
    return [answer.model_dump() for answer in answers]


class Update:
    """What happened to a run since the last look: told to every viewer, encoded once."""

    def __init__(self, points: list[MetricPoint], rest: dict[str, Any]) -> None:
        self.points = points
        self._rest = rest
        self._text: str | None = None

    def text_after(self, last_id: int) -> tuple[str | None, int]:
        """The message for a viewer who has everything up to `last_id`, and the id it has then."""
        if not self.points or self.points[0].id > last_id:
            if self._text is None:
                self._text = self._encode(self.points)
            return self._text, self.points[-1].id if self.points else last_id
        left = [point for point in self.points if point.id > last_id]
        text = self._encode(left) if left or self._rest else None
        return text, max(last_id, self.points[-1].id)

    def _encode(self, points: list[MetricPoint]) -> str:
        message = dict(self._rest)
        if points:
            message["id"] = points[-1].id
            message["points"] = points_json(points)
        return dumps(message)


class Viewer:
    """One open socket."""

    def __init__(self, last_id: int = 0) -> None:
        self.queue: asyncio.Queue[Update | str | None] = asyncio.Queue(QUEUE_LIMIT)
        self.last_id = last_id
        self.log_offset: int | None = None  # None: the log is closed
        self.lost = False

    def tell(self, message: Update | str) -> None:
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.lost = True  # it connects anew and asks for what it missed

    def end(self) -> None:
        self.lost = True
        with contextlib.suppress(asyncio.QueueFull):
            self.queue.put_nowait(None)
