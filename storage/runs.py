"""Run rows and what hangs on them: claiming, recording what a child said, ending, reading curves.

Plain values in and out; what an event means is decided in jobs.tailing. Every function works inside the caller's
transaction (storage.db.write or read).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import and_, case, delete, func, insert, literal, null, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.orm import Session

from storage.states import ACTIVE, ENDED, RunState
from storage.tables import Adapter, CheckpointAnswer, EvaluationDetails, Metric, Run, Utc, now


class Changes:
    """Whether anyone has committed to the catalog since the last question: microseconds, so it may be asked often."""

    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database, isolation_level=None)
        self._version: int | None = None

    def any(self) -> bool:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        changed, self._version = version != self._version, version
        return changed

    def forget(self) -> None:
        """The next answer is yes: what the last one announced has not been dealt with."""
        self._version = None

    def close(self) -> None:
        self._connection.close()


# States


def claim(session: Session, slots: int) -> Run | None:
    """The run that waits longest, now starting; None where nothing is queued or `slots` runs are active already."""
    waiting = select(Run.id).where(Run.state == RunState.QUEUED).order_by(Run.queued_at, Run.id).limit(1)
    active = select(func.count()).select_from(Run).where(Run.state.in_(ACTIVE)).scalar_subquery()
    began = literal(now(), Utc())
    return session.scalars(
        update(Run)
        .where(Run.id == waiting.scalar_subquery(), Run.state == RunState.QUEUED, active < slots)
        .values(
            state=RunState.STARTING,
            phase="Starting",
            started_at=func.coalesce(Run.started_at, began),
            attempt_at=began,
            ended_at=None,
            reason=None,
        )
        .returning(Run),
        execution_options={"synchronize_session": False},
    ).one_or_none()


def open_runs(session: Session) -> list[tuple[int, RunState, bool]]:
    """(id, state, stop_requested) of every run that has not ended, oldest first."""
    rows = session.execute(
        select(Run.id, Run.state, Run.stop_requested).where(Run.state.not_in(ENDED)).order_by(Run.id)
    )
    return [(row.id, row.state, row.stop_requested) for row in rows]


def set_active(session: Session, run_id: int, **values: Any) -> bool:
    """Change an active run's row. False (and nothing changed) where it has ended or is gone."""
    return _update(session, Run.id == run_id, Run.state.in_(ACTIVE), **values)


def requeue(session: Session, run_id: int) -> bool:
    """An active run whose child never began goes back to the queue."""
    first = case((Run.attempt == 1, null()), else_=Run.started_at)
    return set_active(session, run_id, state=RunState.QUEUED, phase="", started_at=first, attempt_at=None)


def end(session: Session, run_id: int, state: RunState, reason: str | None, **values: Any) -> bool:
    """An active run ends. False where it had ended before: an ended run never changes state."""
    assert state.ended
    ended_at = literal(now(), Utc())
    values |= {"state": state, "reason": reason, "phase": "", "eta_seconds": None, "ended_at": ended_at}
    values = _peak_of_all(values)
    days = func.julianday(ended_at) - func.julianday(func.coalesce(Run.attempt_at, ended_at))
    return set_active(session, run_id, trained_seconds=Run.trained_seconds + days * 86_400, **values)


def request_stop(session: Session, run_id: int) -> bool:
    """A queued run ends here and now; an active one is asked to. False where it has ended or is gone."""
    return _update(
        session,
        Run.id == run_id,
        Run.state == RunState.QUEUED,
        state=RunState.STOPPED,
        reason="Stopped before it started.",
        ended_at=now(),
    ) or set_active(session, run_id, stop_requested=True)


def new_attempt(session: Session, run_id: int) -> bool:
    """The only way out of an ended state: the same run is queued again, to go on from its last checkpoint."""
    return _update(
        session,
        Run.id == run_id,
        Run.state.in_(ENDED),
        state=RunState.QUEUED,
        attempt=Run.attempt + 1,
        queued_at=now(),
        stop_requested=False,
        reason=None,
        ended_at=None,
    )


def rename(session: Session, run_id: int, name: str) -> None:
    _update(session, Run.id == run_id, name=name)


def _update(session: Session, *where: Any, **values: Any) -> bool:
    statement = update(Run).where(*where).values(**values)
    return session.execute(statement, execution_options={"synchronize_session": False}).rowcount == 1  # type: ignore[attr-defined]


# What a child said


def record(
    session: Session,
    run_id: int,
    offsets: tuple[int, int],
    fields: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    answers: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]] = (),
    rewind_to: int | None = None,
) -> bool:
    """Everything between two byte offsets of events.jsonl, in the caller's one transaction.

    `rewind_to` first forgets what an earlier attempt said about later steps. False, with nothing written, where the
    catalog does not stand at the first offset: those bytes are in it already.
    """
    before, after = offsets
    if not _update(session, Run.id == run_id, Run.events_offset == before, events_offset=after):
        return False
    if rewind_to is not None:
        session.execute(delete(Metric).where(Metric.run_id == run_id, Metric.step > rewind_to))
        for said in (CheckpointAnswer, EvaluationDetails):
            session.execute(delete(said).where(said.run_id == run_id, said.step > rewind_to))
        _update(session, Run.id == run_id, Run.best_step > rewind_to, best_step=None, best_eval_loss=None)
    if fields:
        _update(session, Run.id == run_id, **_peak_of_all(fields))
    if metrics:
        session.execute(insert(Metric), [{"run_id": run_id, **row} for row in metrics])
    if answers:
        statement = upsert(CheckpointAnswer)
        statement = statement.on_conflict_do_update(
            index_elements=["run_id", "step", "position"],
            set_={name: statement.excluded[name] for name in ("prompt", "base", "tuned")},
        )
        session.execute(statement, [{"run_id": run_id, **row} for row in answers])
    if evaluations:
        statement = upsert(EvaluationDetails)
        statement = statement.on_conflict_do_update(
            index_elements=["run_id", "step"], set_={"details": statement.excluded.details}
        )
        session.execute(statement, [{"run_id": run_id, **row} for row in evaluations])
    return True


def _peak_of_all(values: dict[str, Any]) -> dict[str, Any]:
    """A run's peak is the most that any of its attempts took: a later one that took less does not lower it."""
    if peak := values.get("peak_memory"):
        return {**values, "peak_memory": func.max(func.coalesce(Run.peak_memory, 0), peak)}
    return values


# Reading


def get(session: Session, run_id: int) -> tuple[Run, int | None] | None:
    """The run and its adapter's id."""
    row = session.execute(_with_adapter().where(Run.id == run_id)).one_or_none()
    return (row[0], row[1]) if row else None


def newest(session: Session, limit: int) -> list[tuple[Run, int | None]]:
    rows = session.execute(_with_adapter().order_by(Run.id.desc()).limit(limit))
    return [(run, adapter_id) for run, adapter_id in rows]


def _with_adapter() -> Any:
    return select(Run, Adapter.id).outerjoin(Adapter, Adapter.run_id == Run.id)


def ahead_of(session: Session, run_id: int) -> int | None:
    """How many runs are claimed before this one, those at work included; None where it is not queued."""
    since = session.scalar(select(Run.queued_at).where(Run.id == run_id, Run.state == RunState.QUEUED))
    if since is None:
        return None
    earlier = or_(Run.queued_at < since, and_(Run.queued_at == since, Run.id < run_id))
    before = or_(Run.state.in_(ACTIVE), and_(Run.state == RunState.QUEUED, earlier))
    return session.scalar(select(func.count()).where(before)) or 0


def last_metric_id(session: Session, run_id: int) -> int:
    return session.scalar(select(func.max(Metric.id)).where(Metric.run_id == run_id)) or 0


def metrics_after(session: Session, run_id: int, after_id: int, limit: int) -> Sequence[Any]:
    """Rows of (id, step, name, value, time) in the order they were written."""
    return session.execute(
        select(Metric.id, Metric.step, Metric.name, Metric.value, Metric.time)
        .where(Metric.run_id == run_id, Metric.id > after_id)
        .order_by(Metric.id)
        .limit(limit)
    ).all()


def ended_of(session: Session, base_model_id: int, limit: int = 50) -> Sequence[Run]:
    """The newest ended runs of one base model that took a step."""
    wanted = select(Run).where(Run.base_model_id == base_model_id, Run.state.in_(ENDED), Run.step > 0)
    return session.scalars(wanted.order_by(Run.id.desc()).limit(limit)).all()


def metric(session: Session, run_id: int, name: str, limit: int = 1_000) -> list[tuple[float, float]]:
    """(value, time) of a run's latest rows of one series, in the order they were written."""
    wanted = select(Metric.value, Metric.time).where(Metric.run_id == run_id, Metric.name == name)
    found = session.execute(wanted.order_by(Metric.id.desc()).limit(limit)).all()
    return [(value, time) for value, time in reversed(found)]


def loss_before(session: Session, run_id: int) -> float | None:
    """The validation loss that the last attempt from the beginning measured before its first step."""
    wanted = select(Metric.value).where(Metric.run_id == run_id, Metric.step == 0, Metric.name == "eval_loss")
    return session.scalar(wanted.order_by(Metric.id.desc()).limit(1))


def all_metrics(session: Session, run_id: int) -> tuple[list[str], Iterator[tuple[int, int, float]]]:
    """The names of a run's series, and every row as (place of its name, step, value) in the order of writing.

    Read it inside the session. Straight from the driver, by a range of row ids, names as numbers: 100,000 rows in some
    90 ms; SQLAlchemy's rows, or a look-up through the index for each, cost twice that.
    """
    first, last = session.execute(select(func.min(Metric.id), func.max(Metric.id)).where(Metric.run_id == run_id)).one()
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, sqlite3.Connection)
    source = "FROM metrics WHERE id BETWEEN ? AND ? AND +run_id = ?"
    span = (first, last, run_id)
    names = [name for (name,) in connection.execute(f"SELECT DISTINCT name {source}", span)]
    if not names:
        return [], iter(())
    place = "CASE name " + " ".join(f"WHEN ? THEN {number}" for number in range(len(names))) + " END"
    return names, connection.execute(f"SELECT {place}, step, value {source}", (*names, *span))


def answers(session: Session, run_id: int) -> Sequence[CheckpointAnswer]:
    return session.scalars(
        select(CheckpointAnswer)
        .where(CheckpointAnswer.run_id == run_id)
        .order_by(CheckpointAnswer.step, CheckpointAnswer.position)
    ).all()


def evaluation(session: Session, run_id: int, step: int | None = None) -> EvaluationDetails | None:
    """That of one step, or the newest."""
    wanted = select(EvaluationDetails).where(EvaluationDetails.run_id == run_id)
    if step is not None:
        wanted = wanted.where(EvaluationDetails.step == step)
    return session.scalars(wanted.order_by(EvaluationDetails.step.desc()).limit(1)).one_or_none()


def evaluation_steps(session: Session, run_id: int) -> list[int]:
    """The steps that have one, in order."""
    steps = select(EvaluationDetails.step).where(EvaluationDetails.run_id == run_id)
    return list(session.scalars(steps.order_by(EvaluationDetails.step)))
