"""The engine's process: `python -m jobs.inference.child --model SOURCE [--revision R] --name NAME`.

One thread reads requests, one computes. Answers of several requests take turns, a step each. It ends when its parent
closes the pipe. The messages are those of jobs.inference.protocol. Never opens the catalog.
"""

from __future__ import annotations

import argparse
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.errors import UserError
from jobs.inference.protocol import More, Reply, Row
from jobs.rpc import Request, RpcServer

if TYPE_CHECKING:
    from jobs.inference.engine import Batch, Engine


class Job:
    """One request being answered."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.rows = [Row.model_validate(row) for row in request.params["rows"]]
        self.key = str(request.params["key"])
        self.stopped = threading.Event()
        self.batches: list[Batch] = []

    def send(self, more: list[More]) -> None:
        if more:
            self.request.send(Reply(more=tuple(more)).model_dump(mode="json", exclude_none=True))

    def say(self, status: str) -> None:
        self.request.send(Reply(status=status).model_dump(mode="json", exclude_none=True))

    def stop_unstarted(self) -> None:
        """It never began: every row ends empty."""
        self.send([More(row=index, text="", tokens=0, seconds=0, finish="stopped") for index in range(len(self.rows))])
        self.request.done()


class Child:
    def __init__(self, source: str, revision: str | None, name: str) -> None:
        self._source, self._revision, self._name = source, revision, name
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._loads: list[Request] = []
        self._jobs: list[Job] = []
        self._engine: Engine | None = None

    def accept(self, request: Request) -> None:
        """Called on the reading thread."""
        if request.method == "stop":
            self._stop(str(request.params["key"]))
            request.done()
            return
        with self._changed:
            if request.method == "load" and self._engine:
                request.done()
            elif request.method == "load":
                self._loads.append(request)
            else:
                job = Job(request)
                if self._engine is None:
                    job.say(f"Loading {self._name}")
                self._waiting.append(job)
                self._changed.notify()

    def _stop(self, key: str) -> None:
        with self._changed:
            for job in self._jobs:
                if job.key == key:
                    job.stopped.set()
            for job in [job for job in self._waiting if job.key == key]:
                self._waiting.remove(job)
                job.stop_unstarted()

    def compute(self) -> None:
        """The computing thread: load once, then step whatever is there until the process ends."""
        try:
            from jobs.inference.engine import Engine
            from jobs.inference.load import load, use_all_cores

            use_all_cores()
            engine = Engine(load(self._source, self._revision, self._name))
        except Exception as error:
            traceback.print_exc()
            words = f"{self._name} could not be loaded ({type(error).__name__}); the log says why."
            problems = error.problems if isinstance(error, UserError) else (words,)
            with self._changed:
                for request in [*self._loads, *(job.request for job in self._waiting)]:
                    request.fail(*problems)
                os._exit(1)  # what is in the way now may be gone when the next question starts us again
        with self._changed:
            self._engine = engine
            for request in self._loads:
                request.done()
        while True:
            with self._changed:
                while not self._jobs and not self._waiting:
                    self._changed.wait()
                arrived = list(self._waiting)
                self._waiting.clear()
                self._jobs += arrived
            for job in arrived:
                self._guarded(job, self._open)
            for job in list(self._jobs):
                self._guarded(job, self._step)

    def _guarded(self, job: Job, action: Callable[[Job], None]) -> None:
        """Whatever goes wrong with one request ends that request alone."""
        try:
            if job.request.cancelled:
                job.request.done()
                self._drop(job)
            else:
                action(job)
        except Exception as error:
            self._drop(job)
            if isinstance(error, UserError):
                job.request.fail(*error.problems)
                return
            traceback.print_exc()
            job.request.fail(_words(error))

    def _drop(self, job: Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def _open(self, job: Job) -> None:
        assert self._engine is not None
        if not all(self._engine.tokenizer_for(row).chat_template for row in job.rows):
            job.say(f"{self._name} has no chat template: it continues your text.")
        job.batches, about = self._engine.open(job.rows)
        job.request.send(Reply(engine=about).model_dump(mode="json", exclude_none=True))

    def _step(self, job: Job) -> None:
        for batch in job.batches:
            if job.stopped.is_set():
                job.send(batch.stop())
            elif not batch.done and self._may_run(batch):
                job.send(batch.step())
        if all(batch.done for batch in job.batches):
            self._drop(job)
            job.request.done()

    def _may_run(self, batch: Batch) -> bool:
        """PEFT holds one adapter at a time: the batches that need it go one after another, the oldest first."""
        if batch.peft is None:
            return True
        running = (other for job in self._jobs for other in job.batches if other.peft and not other.done)
        return next(running) is batch


def _words(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return "The GPU has too little free memory for this answer. Wait for a run to end, or ask for fewer tokens."
    return f"The engine failed ({type(error).__name__}); its log says why."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    server = RpcServer()
    child = Child(arguments.model, arguments.revision, arguments.name)
    threading.Thread(target=child.compute, daemon=True).start()
    server.serve(child.accept)
    os._exit(0)  # the computing thread may be in the middle of a step; nobody wants its answer


if __name__ == "__main__":
    main()
