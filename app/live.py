"""The live side: one tailer a run, shared by all who look, and HTML fragments that are sent when they change.

One task asks the catalog every 50 ms whether anything was committed (microseconds); only then do the channels look.
Nobody gets the history twice: a page takes a reduced snapshot once, then what came after the last id it has.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from app.charts import charts_json
from app.evaluation import evaluation_html
from app.messages import Update, Viewer, answers_json, dumps
from app.run_words import details, header
from jobs.errors import UserError
from jobs.service import Changes, Service

TICK = 0.05  # seconds between two looks at the catalog's version
RUN_INTERVAL = 0.08  # at least between two looks at one run
FRAGMENT_INTERVAL = 0.5
LOG_INTERVAL = 0.5
ANSWERS_INTERVAL = 0.5  # they are long, and come at checkpoints only
AFTER_AN_ERROR = 1.0
SNAPSHOT_KEPT = 10.0  # seconds: what came since follows over the socket

log = logging.getLogger("graft.live")

Fragment = Callable[[Service], str]


class Channel:
    """Something people look at: looked up once for all of them when the catalog has changed."""

    interval = RUN_INTERVAL  # seconds, at least, between two looks
    stale = math.inf  # seconds after which to look although nothing changed

    def __init__(self) -> None:
        self.viewers: set[Viewer] = set()
        self.dirty = True
        self.busy = False
        self.looked = 0.0

    def look(self) -> list[Update | str]:
        """What is new, for everyone. Runs on a thread."""
        raise NotImplementedError

    def look_for(self, viewer: Viewer) -> list[str]:
        """What only this viewer wants (its log). Runs on a thread."""
        return []


class RunChannel(Channel):
    def __init__(self, service: Service, run_id: int) -> None:
        super().__init__()
        self._service = service
        self._run_id = run_id
        run = service.runs.get(run_id)  # raises UserError where there is none
        self.last_id = service.runs.last_metric_id(run_id)
        self.header = header(service, run)
        self._told_details = dumps(details(run))
        self._answers = {(a.step, a.position): a for a in service.runs.answers(run_id)}
        self._evaluated, self._evaluation = newest_evaluation(service, run_id)
        self._answers_asked = time.monotonic()

    def hello(self, answers: int) -> str:
        """The first message to a viewer who has `answers` of the run's answers."""
        message: dict[str, Any] = {"run": self.header, "details": json.loads(self._told_details), "now": time.time()}
        if self._evaluated is not None:
            message["evaluation"] = self._evaluation
        if answers != len(self._answers):
            message |= {"answers": answers_json(self._answers.values()), "answers_anew": True}
        return dumps(message)

    def missed(self, viewer: Viewer, limit: int = 5_000) -> Update | None:
        """What was written between the viewer's snapshot and now, a portion at a time. Runs on a thread."""
        points = self._service.runs.metrics_after(self._run_id, viewer.last_id, limit)
        return Update(points, {}) if points else None

    def look(self) -> list[Update | str]:
        try:
            run = self._service.runs.get(self._run_id)
        except UserError as error:
            return [dumps({"gone": str(error)})]
        rest: dict[str, Any] = {}
        now = header(self._service, run)
        if changed := {name: value for name, value in now.items() if self.header.get(name) != value}:
            rest["run"] = changed
        turned = bool(changed.keys() & {"state", "attempt", "words", "best_step"})
        self.header = now
        if turned and (told := dumps(details(run))) != self._told_details:
            self._told_details = told
            rest["details"] = json.loads(told)
        points = self._service.runs.metrics_after(self._run_id, self.last_id)
        if points:
            self.last_id = points[-1].id
        if turned or time.monotonic() - self._answers_asked > ANSWERS_INTERVAL:
            self._answers_asked = time.monotonic()
            rest |= self._new_answers() | self._new_evaluation()
        else:
            self.dirty = True  # what changed may have been answers: look again when it is time for them
        return [Update(points, rest)] if points or rest else []

    def _new_answers(self) -> dict[str, Any]:
        found = {(a.step, a.position): a for a in self._service.runs.answers(self._run_id)}
        before, self._answers = self._answers, found
        if before.keys() - found.keys():  # a later attempt forgot them
            return {"answers": answers_json(found.values()), "answers_anew": True}
        new = [answer for key, answer in found.items() if before.get(key) != answer]
        return {"answers": answers_json(new)} if new else {}

    def _new_evaluation(self) -> dict[str, Any]:
        steps = self._service.runs.evaluation_steps(self._run_id)
        if (steps[-1] if steps else None) == self._evaluated:
            return {}
        self._evaluated, self._evaluation = newest_evaluation(self._service, self._run_id)
        return {"evaluation": self._evaluation}

    def look_for(self, viewer: Viewer) -> list[str]:
        if viewer.log_offset is None:
            return []
        text, offset = self._service.runs.log(self._run_id, viewer.log_offset)
        anew = viewer.log_offset < 0 or offset < viewer.log_offset
        if not text and not anew:
            return []
        viewer.log_offset = offset
        return [dumps({"log": text, "log_anew": anew, "log_offset": offset})]


def newest_evaluation(service: Service, run_id: int) -> tuple[int | None, str]:
    """The step of the newest evaluation that has more to show than numbers, and what it shows; None and nothing where
    there is none."""
    found = service.runs.evaluation(run_id)
    return (found.step, evaluation_html(found.step, found.details)) if found else (None, "")


class FragmentChannel(Channel):
    interval = FRAGMENT_INTERVAL
    stale = 30.0  # "5 min ago" does not stay true

    def __init__(self, service: Service, render: Fragment) -> None:
        super().__init__()
        self._service = service
        self._render = render
        self.html: str | None = None

    def hello(self) -> str:
        return dumps({"html": self.html})

    def look(self) -> list[Update | str]:
        html = self._render(self._service)
        if html == self.html:
            return []
        self.html = html
        return [dumps({"html": html})]


class Hub:
    """Every channel that someone looks at, and the task that keeps them fresh."""

    def __init__(self, service: Service, fragments: dict[str, Fragment]) -> None:
        self.service = service
        self._renders = fragments
        self._runs: dict[int, RunChannel] = {}
        self._fragments: dict[str, FragmentChannel] = {}
        self._snapshots: dict[int, tuple[float, bytes]] = {}
        self._snapshot_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._prepared = -1  # the version of the starter's preparation that was told last
        self._logged = 0.0  # monotonic time of the last look at logs

    async def run(self) -> None:
        """Until cancelled."""
        changes = self.service.changes()
        try:
            while True:
                await asyncio.sleep(TICK)
                try:
                    self._tick(changes)
                except Exception:  # what is in the way may be gone in a moment, and every page waits for this task
                    log.exception("looking for changes failed")
                    changes.forget()
                    await asyncio.sleep(AFTER_AN_ERROR)
        finally:
            changes.close()

    def _tick(self, changes: Changes) -> None:
        """Begin the looks that are due."""
        channels: list[Channel] = [*self._runs.values(), *self._fragments.values()]
        if not channels:
            return
        changed = changes.any()
        if self._prepared != self.service.preparation.version:
            self._prepared, changed = self.service.preparation.version, True
        now = time.monotonic()
        look_at_logs = now - self._logged > LOG_INTERVAL
        if look_at_logs:
            self._logged = now
        for channel in channels:
            channel.dirty |= changed or now - channel.looked > channel.stale
            wants_log = look_at_logs and any(viewer.log_offset is not None for viewer in channel.viewers)
            due = channel.dirty and now - channel.looked >= channel.interval
            if (due or wants_log) and not channel.busy:
                self._spawn(self._look(channel, due))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self, channel: Channel, due: bool) -> None:
        channel.busy = True
        try:
            if due:
                channel.dirty, channel.looked = False, time.monotonic()
                for message in await asyncio.to_thread(channel.look):
                    for viewer in channel.viewers:
                        viewer.tell(message)
            for viewer in [viewer for viewer in channel.viewers if viewer.log_offset is not None]:
                for text in await asyncio.to_thread(channel.look_for, viewer):
                    viewer.tell(text)
        except Exception:
            log.exception("looking for something new failed")
            channel.dirty = True
        finally:
            channel.busy = False

    async def run_channel(self, run_id: int) -> RunChannel:
        """The channel that everyone shares who looks at this run. Raises UserError where there is no such run."""
        if run_id not in self._runs:
            made = await asyncio.to_thread(RunChannel, self.service, run_id)
            self._runs.setdefault(run_id, made)  # two may have come at once
        return self._runs[run_id]

    async def fragment_channel(self, name: str) -> FragmentChannel:
        """Raises UserError for a name that is none."""
        if name not in self._fragments:
            if name not in self._renders:
                raise UserError(f"There is no live part {name!r}.")
            made = FragmentChannel(self.service, self._renders[name])
            await asyncio.to_thread(made.look)
            self._fragments.setdefault(name, made)
        return self._fragments[name]

    def leave(self, channel: Channel, viewer: Viewer) -> None:
        channel.viewers.discard(viewer)
        if not channel.viewers:
            self._runs = {key: other for key, other in self._runs.items() if other is not channel}
            self._fragments = {key: other for key, other in self._fragments.items() if other is not channel}

    async def snapshot(self, run_id: int) -> bytes:
        """A run's page as gzipped JSON. Twenty pages that open at once share one."""
        async with self._snapshot_lock:
            made, body = self._snapshots.get(run_id, (0.0, b""))
            if time.monotonic() - made > SNAPSHOT_KEPT:
                body = await asyncio.to_thread(self._make_snapshot, run_id)
                self._snapshots = dict(list(self._snapshots.items())[-7:])
                self._snapshots[run_id] = (time.monotonic(), body)
            return body

    def forget(self, run_id: int) -> None:
        self._snapshots.pop(run_id, None)

    def _make_snapshot(self, run_id: int) -> bytes:
        runs = self.service.runs
        run = runs.get(run_id)
        answers = runs.answers(run_id)
        series, last_id = runs.snapshot(run_id)
        columns = {
            name: {"steps": [step for step, _ in points], "values": [float(f"{value:.7g}") for _, value in points]}
            for name, points in series.items()
        }
        page = {
            "run": header(self.service, run),
            "details": details(run),
            "charts": charts_json(),
            "answers": answers_json(answers),
            "evaluation": newest_evaluation(self.service, run_id)[1],
            "series": columns,
            "last_id": last_id,
        }
        return gzip.compress(dumps(page).encode(), compresslevel=3)
