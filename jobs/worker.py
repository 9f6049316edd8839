"""The worker: claims queued runs, starts their children, carries what they say into the catalog, ends what ended.

One a home (a lock sees to it). It may die or be replaced at any moment: children at work outlive it, and the next
worker goes on where it was. `python -m jobs.worker --home PATH`; jobs.supervise starts it for the server.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path

from sqlalchemy import Engine

from jobs import process
from jobs.executors.base import Executor
from jobs.executors.local import LocalExecutor
from jobs.postmortem import cause_of_death, oom_kills
from jobs.process import Identity
from jobs.result import Result
from jobs.rundir import RunFiles, keep_startup_log, prepare, read_result, said
from jobs.supervise import only_worker, server_lives
from jobs.tailing import Tail
from storage import catalog, runs
from storage.db import connect, migrate, read, write
from storage.files import Home
from storage.states import ACTIVE, RunState
from storage.tables import Run

TICK_SECONDS = 0.05
IDLE_SECONDS = 10.0  # with no server and nothing to do, the worker goes
STOP_SILENCE_SECONDS = 300.0  # one step of a large model on a CPU can take a minute, and more while others compute
STOP_LIMIT_SECONDS = 900.0  # from the request, whatever the child says
EXIT_SECONDS = 15.0  # from result.json to the child's end
END_GRACE_SECONDS = 10.0

log = logging.getLogger("graft.worker")


@dataclass
class Follow:
    """A run at work."""

    run_id: int
    files: RunFiles
    identity: Identity
    tail: Tail
    since: float = field(default_factory=time.time)
    oom_kills: int = field(default_factory=oom_kills)
    stop_asked: float | None = None  # monotonic
    heard: float = field(default_factory=time.monotonic)
    ended_by_us: bool = False


class Worker:
    def __init__(self, home: Home, executor: Executor, idle_seconds: float = IDLE_SECONDS) -> None:
        self.home = home
        self.executor = executor
        self.idle_seconds = idle_seconds
        self.engine: Engine = connect(home.database)
        self._changes = runs.Changes(home.database)
        self._follows: dict[int, Follow] = {}
        self._leaving: list[tuple[Identity, float]] = []  # said their result, not gone yet; monotonic deadline
        self._queued = 0
        self.told_to_go = threading.Event()

    def run(self) -> None:
        """Until told to go, or nothing is left to do and no server lives."""
        for leftover in self.home.runs.glob(".deleted-*"):  # a deletion that was cut short
            shutil.rmtree(leftover, ignore_errors=True)
        busy, asked = time.monotonic(), 0.0
        while not self.told_to_go.is_set():
            try:
                self.tick()
            except Exception:
                log.exception("the worker goes on after an error")
                self._changes.forget()
                self.told_to_go.wait(1)
            if self._follows or self._queued:
                busy = time.monotonic()
            elif (now := time.monotonic()) - asked > 1:
                asked = now
                if not self.home.database.exists():
                    break
                if server_lives(self.home):
                    busy = now
                    if not self._leaving:  # never beside a run: the spare's imports compute for some seconds
                        self.executor.warm()
                elif now - busy > self.idle_seconds:
                    break
            self.told_to_go.wait(TICK_SECONDS)
        self.executor.close()
        self._changes.close()
        self.engine.dispose()

    def tick(self) -> None:
        """One round: whatever there is to do now, without waiting for anything."""
        for follow in list(self._follows.values()):
            self._advance(follow)
        self._see_off()
        if self._changes.any():
            self._look()
        while self._queued and len(self._follows) + len(self._leaving) < self.executor.slots and self._claim():
            pass

    # Runs that have not ended

    def _look(self) -> None:
        """What the catalog asks for: runs to start, runs to stop, runs that an earlier worker left."""
        with read(self.engine) as session:
            open_runs = runs.open_runs(session)
        for run_id, state, stop_requested in open_runs:
            if state in ACTIVE and run_id not in self._follows:
                self._take_up(run_id)
            follow = self._follows.get(run_id)
            if follow and stop_requested and follow.stop_asked is None:
                follow.stop_asked = time.monotonic()
                follow.files.stop.touch()
                with write(self.engine) as session:
                    runs.set_active(session, run_id, state=RunState.STOPPING)
                log.info("run %d: asked to stop", run_id)
        self._queued = sum(state == RunState.QUEUED for _, state, _ in open_runs)

    def _take_up(self, run_id: int) -> None:
        """Go on with an active run that nobody follows: its child at work, its result not yet read, or never begun."""
        with read(self.engine) as session:
            found = runs.get(session, run_id)
        if found is None:
            return
        run, files = found[0], RunFiles(self.home.run(run_id))
        # A child that has said anything is never silently begun again.
        spoke = run.state == RunState.RUNNING or said(files) > run.events_offset or files.result.exists()
        identity = process.read_identity(files.process)
        if identity and (spoke or self.executor.alive(identity)):
            log.info("run %d: following process %d", run_id, identity.pid)
            self._follow(run, identity)
        elif spoke:
            self._end(run_id, RunState.INTERRUPTED, "Its process could not be found again: process.json is missing.")
        elif run.stop_requested:
            self._end(run_id, RunState.STOPPED, "Stopped before it started.")
        else:
            log.info("run %d had not begun: queued again", run_id)
            with write(self.engine) as session:
                runs.requeue(session, run_id)

    def _claim(self) -> bool:
        """Start the run that waits longest. False where there was none to start."""
        problem = None
        with write(self.engine) as session:
            run = runs.claim(session, self.executor.slots)
            if run is None:
                self._queued = 0
                return False
            try:
                # Inside the transaction: after a crash no claimed run's directory holds an earlier attempt's result.
                prepare(RunFiles(self.home.run(run.id)), run.spec)
            except (OSError, ValueError) as error:
                problem = f"The run's folder could not be prepared: {error}"
        self._queued -= 1
        log.info("run %d: attempt %d starts", run.id, run.attempt)
        try:
            if not problem:
                self._follow(run, self.executor.start(self.home.run(run.id), run.attempt))
        except OSError as error:
            problem = f"The training process could not be started: {error}"
        if problem:
            self._end(run.id, RunState.FAILED, problem)
        return True

    # Children

    def _follow(self, run: Run, identity: Identity) -> None:
        files = RunFiles(self.home.run(run.id))
        tail = Tail(run.id, files.events, run.events_offset)
        self._follows[run.id] = Follow(run.id, files, identity, tail, since=run.attempt_at.timestamp())  # type: ignore[union-attr]

    def _advance(self, follow: Follow) -> None:
        # In this order: a child that is gone now, or whose result is there now, has said all that it will say.
        gone = not self.executor.alive(follow.identity)
        result = read_result(follow.files)
        if follow.tail.catch_up(self.engine, stopping=follow.stop_asked is not None):
            follow.heard = time.monotonic()
        if result is not None:
            self._complete(follow, result)
        elif gone:
            self._bury(follow)
        elif follow.stop_asked is not None:
            self._press(follow, follow.stop_asked)
            return
        else:
            return
        del self._follows[follow.run_id]
        if not gone:
            self._leaving.append((follow.identity, time.monotonic() + EXIT_SECONDS))

    def _complete(self, follow: Follow, result: Result) -> None:
        values = result.model_dump(include={"step", "best_step", "best_eval_loss", "peak_memory"})
        known = {name: value for name, value in values.items() if value}  # what it does not know stays as it was
        self._end(follow.run_id, RunState(result.state), result.reason, result, **known)

    def _bury(self, follow: Follow) -> None:
        keep_startup_log(follow.files, follow.since)
        if follow.ended_by_us:
            state, reason = (
                RunState.STOPPED,
                (
                    "It did not answer the request to stop and was ended: "
                    "what it learned after its last checkpoint is lost."
                ),
            )
        else:
            exit_code = self.executor.exit_code(follow.identity)
            state, reason = cause_of_death(follow.files, follow.identity, exit_code, follow.oom_kills)
        self._end(follow.run_id, state, reason)

    def _press(self, follow: Follow, asked: float) -> None:
        """End a child that was asked to stop and does not."""
        now = time.monotonic()
        silent = now - max(asked, follow.heard) > STOP_SILENCE_SECONDS
        if follow.ended_by_us or not (silent or now - asked > STOP_LIMIT_SECONDS):
            return
        log.warning("run %d: does not stop; ending process %d", follow.run_id, follow.identity.pid)
        follow.ended_by_us = True
        self._end_process(follow.identity)

    def _see_off(self) -> None:
        """A child that has said its result still holds memory until it is gone."""
        now, staying = time.monotonic(), []
        for identity, deadline in self._leaving:
            if not self.executor.alive(identity):
                continue
            if now > deadline:
                log.warning("process %d stays after its result; ending it", identity.pid)
                self._end_process(identity)
                deadline = now + 2 * END_GRACE_SECONDS
            staying.append((identity, deadline))
        self._leaving = staying

    def _end_process(self, identity: Identity) -> None:
        threading.Thread(target=self.executor.end, args=(identity, END_GRACE_SECONDS), daemon=True).start()

    def _end(
        self, run_id: int, state: RunState, reason: str | None, result: Result | None = None, **values: object
    ) -> None:
        with write(self.engine) as session:
            if not runs.end(session, run_id, state, reason, **values):
                return
            found = runs.get(session, run_id)
            adapter = RunFiles(self.home.run(run_id)).adapter
            if found and result and result.adapter_step is not None and adapter.is_dir():
                run, _ = found
                catalog.keep_adapter(
                    session,
                    run,
                    method=run.spec["method"],
                    task=run.spec["task"],
                    path=self.home.relative(adapter),
                    step=result.adapter_step,
                    trainable_parameters=result.trainable_parameters or run.trainable_parameters or 0,
                    size_bytes=sum(file.stat().st_size for file in adapter.rglob("*") if file.is_file()),
                )
        log.info("run %d: %s%s", run_id, state.value, f" ({reason})" if reason else "")


def main(arguments: list[str] | None = None, executor: Executor | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.worker", description="Graft's worker: trains queued runs.")
    parser.add_argument("--home", type=Path, default=None, help="the folder that holds Graft's state")
    parser.add_argument(
        "--idle", type=float, default=IDLE_SECONDS, help="seconds to stay with no server and nothing to do"
    )
    options = parser.parse_args(arguments)
    home = Home.at(options.home)
    with only_worker(home) as alone:
        if not alone:
            print(f"Another worker of {home.root} is running (pid {home.worker_lock.read_text()}).", file=sys.stderr)
            return 1
        handler = RotatingFileHandler(home.logs / "worker.log", maxBytes=4_000_000, backupCount=1)
        logging.basicConfig(handlers=[handler], level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        log.info("worker %d of %s", os.getpid(), home.root)
        migrate(home.database)
        worker = Worker(home, executor or LocalExecutor(home.logs), options.idle)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.told_to_go.set())
        worker.run()
        log.info("worker %d goes%s", os.getpid(), "" if worker.told_to_go.is_set() else ": nothing to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
