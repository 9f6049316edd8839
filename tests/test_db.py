"""The catalog under several hands: one writer at a time, readers never blocked, no lock errors."""

from __future__ import annotations

import multiprocessing
import threading
import time
from datetime import UTC, datetime
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from storage.db import connect, read, write
from storage.files import Home
from storage.runs import Changes
from storage.tables import BaseModel, Metric, Run


@pytest.fixture(autouse=True)
def _one_run(engine: Engine) -> None:
    with write(engine) as session:
        session.add(Run(name="run", base_model_id=1, dataset_id=1, spec={}))


def test_the_catalog_is_in_wal_mode_with_foreign_keys(engine: Engine) -> None:
    with engine.connect() as connection:
        values = {p: connection.execute(text(f"PRAGMA {p}")).scalar() for p in ("journal_mode", "foreign_keys")}
    assert values == {"journal_mode": "wal", "foreign_keys": 1}
    with pytest.raises(IntegrityError), write(engine) as session:
        session.add(Metric(run_id=99, step=1, name="loss", value=1.0, time=0.0))


def test_a_block_that_raises_writes_nothing(engine: Engine) -> None:
    with pytest.raises(RuntimeError), write(engine) as session:
        session.add(BaseModel(name="other", source="folder", location="x", shape={}))
        session.flush()
        raise RuntimeError
    with read(engine) as session:
        assert session.scalars(select(BaseModel.name)).all() == ["tiny"]


def test_datetimes_come_back_with_their_zone(engine: Engine) -> None:
    moment = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    with write(engine) as session:
        session.get_one(Run, 1).started_at = moment
    with read(engine) as session:
        assert session.get_one(Run, 1).started_at == moment


def test_a_reader_sees_one_moment_and_never_waits(engine: Engine) -> None:
    with read(engine) as reader:
        before = reader.scalar(select(func.count()).select_from(Metric))
        with write(engine) as session:
            session.add(Metric(run_id=1, step=1, name="loss", value=1.0, time=0.0))
        began = time.monotonic()
        assert reader.scalar(select(func.count()).select_from(Metric)) == before
        assert time.monotonic() - began < 4  # a lock is waited for 5 s
    with read(engine) as reader:
        assert reader.scalar(select(func.count()).select_from(Metric)) == 1


def test_a_second_writer_waits_for_the_first(engine: Engine) -> None:
    order: list[str] = []
    began = threading.Event()

    def first() -> None:
        with write(engine) as session:
            session.get_one(Run, 1).name = "first"
            began.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    began.wait(5)
    with write(engine) as session:
        run = session.get_one(Run, 1)
        order.append("second")
        assert run.name == "first"
        run.name = "second"
    thread.join()
    assert order == ["first", "second"]


def test_a_commit_by_anyone_shows_as_a_change(home: Home, engine: Engine) -> None:
    changes = Changes(home.database)
    assert changes.any() and not changes.any()
    with read(engine) as session:
        session.scalars(select(Run)).all()
    assert not changes.any()
    with write(engine) as session:
        session.get_one(Run, 1).name = "new"
    assert changes.any() and not changes.any()
    changes.close()


def _read_until(database: Path, stop: Event, errors: SimpleQueue[str]) -> None:
    engine, after = connect(database), 0
    try:
        while not stop.is_set():
            with read(engine) as session:
                found = session.scalars(select(Metric.id).where(Metric.run_id == 1, Metric.id > after)).all()
            after = max([after, *found])
            time.sleep(0.01)
    except OperationalError as error:
        errors.put(str(error))
    engine.dispose()


def test_one_writer_beside_eight_readers_gets_no_lock_error(home: Home, engine: Engine) -> None:
    engine.dispose()  # no connection may cross a fork
    context = multiprocessing.get_context("fork")  # at once: eight fresh interpreters would only measure imports
    errors, stop = context.SimpleQueue(), context.Event()
    readers = [context.Process(target=_read_until, args=(home.database, stop, errors)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for step in range(100):
        with write(engine) as session:
            session.add_all(Metric(run_id=1, step=step, name=n, value=1.0, time=0.0) for n in ("loss", "memory"))
        time.sleep(0.01)
    stop.set()
    for reader in readers:
        reader.join(30)
        assert reader.exitcode == 0
    assert errors.empty()
    with read(engine) as session:
        assert session.scalar(select(func.count()).select_from(Metric)) == 200
