"""Runs: queue, stop, resume, read. The server inserts and asks; the worker alone changes a run's state."""

from __future__ import annotations

import builtins
import codecs
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from jobs.curves import reduce, split
from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.rundir import RunFiles, newest_step
from jobs.spec import RunSpec
from storage import runs as rows
from storage.catalog import forget_run
from storage.db import read, write
from storage.files import Home
from storage.states import RunState
from storage.tables import Run


class RunView(Frozen):
    id: int
    name: str
    state: RunState
    phase: str  # what an active run is doing, in words
    reason: str | None
    stop_requested: bool
    attempt: int
    spec: RunSpec
    base_model_id: int
    dataset_id: int
    step: int
    total_steps: int | None
    eta_seconds: float | None
    best_step: int | None
    best_eval_loss: float | None
    trainable_parameters: int | None
    train_rows: int | None
    validation_rows: int | None
    predicted_memory: int | None
    peak_memory: int | None
    device: str | None
    hardware: dict[str, Any] | None = None  # as the child found it
    packages: dict[str, str] | None = None  # name -> version
    adapter_id: int | None
    can_resume: bool  # it ended early and has a checkpoint
    created_at: datetime
    started_at: datetime | None  # the first attempt's
    attempt_at: datetime | None  # the present or last attempt's
    trained_seconds: float  # by all the attempts that have ended
    ended_at: datetime | None


class MetricPoint(Frozen):
    id: int
    step: int
    name: str
    value: float
    time: float


class AnswerView(Frozen):
    step: int
    position: int
    prompt: str
    base: str
    tuned: str


class EvaluationView(Frozen):
    """What a task measured beside numbers at one step; which keys there are is the task's (jobs.tasks.measures)."""

    step: int
    details: dict[str, Any]


class Runs:
    def __init__(self, home: Home, engine: Engine, make_room: Callable[[RunSpec], None] = lambda spec: None) -> None:
        """`make_room` is called before a run is queued: what else holds memory may give it back."""
        self._home = home
        self._engine = engine
        self._make_room = make_room

    def start(self, spec: RunSpec, base_model_id: int, dataset_id: int) -> RunView:
        """Queue a run. The worker claims it within a tenth of a second when nothing else runs.

        Raises UserError where its dataset or base model is gone.
        """
        self._make_room(spec)
        run = Run(
            name=spec.name,
            base_model_id=base_model_id,
            dataset_id=dataset_id,
            spec=spec.model_dump(mode="json"),
            predicted_memory=spec.predicted_memory,
        )
        try:
            with write(self._engine) as session:
                session.add(run)
        except IntegrityError as error:  # in another tab, since this one planned the run
            raise UserError("The dataset or the base model has been deleted. Choose again.") from error
        return self.get(run.id)

    def stop(self, run_id: int) -> RunView:
        """Ask it to finish its step, save and end; a queued run ends at once."""
        with write(self._engine) as session:
            rows.request_stop(session, run_id)
        return self.get(run_id)

    def resume(self, run_id: int) -> RunView:
        """Queue a new attempt from the last checkpoint. Raises UserError where there is nothing to resume."""
        run = self.get(run_id)
        if not run.state.ended:
            raise UserError(f"{run.name} is {run.state.value}: there is nothing to resume yet.")
        if run.state == RunState.COMPLETED:
            raise UserError(f"{run.name} is complete. Start a new run to train further.")
        if not run.can_resume:
            raise UserError(f"{run.name} ended before its first checkpoint. Start it again as a new run.")
        self._make_room(run.spec)
        with write(self._engine) as session:
            rows.new_attempt(session, run_id)
        return self.get(run_id)

    def list(self, limit: int = 200) -> list[RunView]:
        """Newest first."""
        with read(self._engine) as session:
            return [self._view(run, adapter_id) for run, adapter_id in rows.newest(session, limit)]

    def get(self, run_id: int) -> RunView:
        """Raises UserError where there is none."""
        with read(self._engine) as session:
            found = rows.get(session, run_id)
        if found is None:
            raise _no_run(run_id)
        return self._view(*found)

    def delete(self, run_id: int) -> None:
        """An ended run's rows and folder, its adapter included. Raises UserError while it is active."""
        directory = self._home.run(run_id)
        deleted = directory.with_name(f".deleted-{run_id}")
        with write(self._engine) as session:
            found = rows.get(session, run_id)
            if found is None:
                raise _no_run(run_id)
            run, _ = found
            if not run.state.ended:
                raise UserError(f"{run.name} is {run.state.value}. Stop it first, then delete it.")
            forget_run(session, run_id)
            session.flush()
            if directory.exists():
                # Gone in one step, while no worker can claim a new attempt; a worker sweeps what a crash leaves here.
                directory.rename(deleted)
        shutil.rmtree(deleted, ignore_errors=True)

    def rename(self, run_id: int, name: str) -> RunView:
        if not (name := name.strip()):
            raise UserError("A run needs a name.")
        with write(self._engine) as session:
            rows.rename(session, run_id, name)
        return self.get(run_id)

    def queue_position(self, run_id: int) -> int | None:
        """How many runs are before it; None where it is not queued."""
        with read(self._engine) as session:
            return rows.ahead_of(session, run_id)

    def last_metric_id(self, run_id: int) -> int:
        """0 where there is none."""
        with read(self._engine) as session:
            return rows.last_metric_id(session, run_id)

    def last_step_time(self, run_id: int) -> float | None:
        """When its last step was told, in seconds since the epoch; None before the first."""
        with read(self._engine) as session:
            newest = rows.metric(session, run_id, "loss", limit=1)
        return newest[0][1] if newest else None

    def metrics_after(self, run_id: int, after_id: int, limit: int = 5_000) -> builtins.list[MetricPoint]:
        """In the order they were written."""
        with read(self._engine) as session:
            found = rows.metrics_after(session, run_id, after_id, limit)
        return [
            MetricPoint.model_construct(id=row.id, step=row.step, name=row.name, value=row.value, time=row.time)
            for row in found
        ]

    def loss_before(self, run_id: int) -> float | None:
        """The validation loss before training; None where it was not measured."""
        with read(self._engine) as session:
            return rows.loss_before(session, run_id)

    def snapshot(self, run_id: int, points: int = 4_000) -> tuple[dict[str, builtins.list[tuple[int, float]]], int]:
        """Every series as (step, value), each reduced to about `points` by keeping each bucket's lowest and highest,
        and the id after which increments follow."""
        with read(self._engine) as session:
            last = rows.last_metric_id(session, run_id)
            history = split(*rows.all_metrics(session, run_id))
        return {name: reduce(steps, values, points) for name, (steps, values) in history.items()}, last

    def answers(self, run_id: int) -> builtins.list[AnswerView]:
        """By step, then position."""
        with read(self._engine) as session:
            found = rows.answers(session, run_id)
        return [
            AnswerView(step=a.step, position=a.position, prompt=a.prompt, base=a.base, tuned=a.tuned) for a in found
        ]

    def evaluation(self, run_id: int, step: int | None = None) -> EvaluationView | None:
        """The details of one step's evaluation, or of the newest; None where there are none."""
        with read(self._engine) as session:
            found = rows.evaluation(session, run_id, step)
        return EvaluationView(step=found.step, details=found.details) if found else None

    def evaluation_steps(self, run_id: int) -> builtins.list[int]:
        """The steps whose evaluation has details, in order."""
        with read(self._engine) as session:
            return rows.evaluation_steps(session, run_id)

    def log(self, run_id: int, offset: int = -1, limit: int = 65_536) -> tuple[str, int]:
        """Log text from byte `offset` (negative: the last `limit` bytes) and the offset after it."""
        try:
            with RunFiles(self._home.run(run_id)).log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - limit) if offset < 0 else min(offset, size)
                file.seek(start)
                data = file.read(limit)
        except FileNotFoundError:
            return "", 0
        if offset < 0 and start > 0:  # begin with a whole line
            cut = data.find(b"\n") + 1
            start, data = start + cut, data[cut:]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data)
        unfinished, _ = decoder.getstate()  # half a character: the next read begins with it
        return text, start + len(data) - len(unfinished)

    def _view(self, run: Run, adapter_id: int | None) -> RunView:
        return RunView(
            id=run.id,
            name=run.name,
            state=run.state,
            phase=run.phase,
            reason=run.reason,
            stop_requested=run.stop_requested,
            attempt=run.attempt,
            spec=RunSpec.model_validate(run.spec),
            base_model_id=run.base_model_id,
            dataset_id=run.dataset_id,
            step=run.step,
            total_steps=run.total_steps,
            eta_seconds=run.eta_seconds,
            best_step=run.best_step,
            best_eval_loss=run.best_eval_loss,
            trainable_parameters=run.trainable_parameters,
            train_rows=run.train_rows,
            validation_rows=run.validation_rows,
            predicted_memory=run.predicted_memory,
            peak_memory=run.peak_memory,
            device=(run.hardware or {}).get("name"),
            hardware=run.hardware,
            packages=run.packages,
            adapter_id=adapter_id,
            can_resume=self._can_resume(run),
            created_at=run.created_at,
            started_at=run.started_at,
            attempt_at=run.attempt_at,
            trained_seconds=run.trained_seconds,
            ended_at=run.ended_at,
        )

    def _can_resume(self, run: Run) -> bool:
        if run.state not in (RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED):
            return False
        return newest_step(RunFiles(self._home.run(run.id))) is not None


def _no_run(run_id: int) -> UserError:
    return UserError(f"There is no run {run_id}. It may have been deleted.")
