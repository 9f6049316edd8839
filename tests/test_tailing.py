"""From events to catalog rows: what each event changes, in batches of any cut, exactly once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from jobs.events import Answers, Checkpoint, Evaluation, EventLog, Metrics, Phase, PromptAnswer, Started
from jobs.service.runs import Runs
from jobs.tailing import Tail, digest
from storage import runs as rows
from storage.db import read, write
from storage.files import Home
from storage.states import RunState
from storage.tables import Metric
from tests import standin


@pytest.fixture
def run_id(home: Home, engine: Engine) -> int:
    run_id = Runs(home, engine).start(standin.spec(), 1, 1).id
    with write(engine) as session:
        rows.claim(session, 1)
    return run_id


def started(attempt: int, step: int) -> Started:
    return Started(
        attempt=attempt, step=step, total_steps=9, train_rows=1, validation_rows=0, left_out_rows=0,
        trainable_parameters=1, total_parameters=2, hardware={}, packages={},
    )  # fmt: skip


def loss(step: int, value: float = 1.0) -> Metrics:
    return Metrics(step=step, values={"loss": value})


def answered(step: int, words: str) -> Answers:
    return Answers(step=step, answers=(PromptAnswer(prompt="p", base="b", tuned=words),))


def measured(step: int, rows: int = 1) -> Evaluation:
    return Evaluation(step=step, details={"matrix": [[rows]]})


def steps(engine: Engine) -> list[int]:
    with read(engine) as session:
        return list(session.scalars(select(Metric.step).order_by(Metric.id)))


def test_a_starting_run_becomes_running_but_a_stopping_one_stays_so() -> None:
    assert digest([started(1, 0)]).fields["state"] == RunState.RUNNING
    assert "state" not in digest([started(1, 0)], stopping=True).fields


def test_values_that_are_no_numbers_are_left_out() -> None:
    found = digest([Metrics(step=1, values={"loss": math.nan, "grad_norm": math.inf, "memory": 5.0})])
    assert [row["name"] for row in found.metrics] == ["memory"]


def test_only_a_best_checkpoint_moves_the_best_step() -> None:
    found = digest([Checkpoint(step=2, best=True, eval_loss=0.5), Checkpoint(step=4, best=False, eval_loss=0.9)])
    assert found.fields == {"best_step": 2, "best_eval_loss": 0.5}


def test_several_attempts_may_be_read_at_once() -> None:
    found = digest([Checkpoint(step=4, best=True, eval_loss=0.5), started(2, 2), loss(3), started(3, 1)])
    assert found.rewind_to == 1 and found.metrics == []
    assert found.fields["best_step"] is None


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 7, 8, 9, 11, 12])
def test_a_later_attempt_voids_the_steps_after_its_own_wherever_the_batches_are_cut(
    home: Home, engine: Engine, run_id: int, tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "events.jsonl"
    log, tail = EventLog(path), Tail(run_id, path, 0)
    events = [
        started(1, 0), loss(1), loss(2), answered(2, "first"), measured(2), loss(3), answered(3, "first"), measured(3),
        Checkpoint(step=3, best=True, eval_loss=0.1), started(2, 2), loss(3), answered(3, "second"),
    ]  # fmt: skip
    for event in events[:cut]:
        log.append(event)
    tail.catch_up(engine, stopping=False)
    for event in events[cut:]:
        log.append(event)
    tail.catch_up(engine, stopping=False)
    assert steps(engine) == [1, 2, 3]
    service = Runs(home, engine)
    assert [(a.step, a.tuned) for a in service.answers(run_id)] == [(2, "first"), (3, "second")]
    assert service.evaluation_steps(run_id) == [2]
    run = service.get(run_id)
    assert (run.step, run.best_step, run.best_eval_loss) == (3, None, None)


def test_half_a_line_waits_for_its_other_half(engine: Engine, run_id: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = loss(1).model_dump_json()
    path.write_text(line + "\n" + line[:20])
    tail = Tail(run_id, path, 0)
    assert tail.catch_up(engine, stopping=False)
    assert not tail.catch_up(engine, stopping=False)
    assert steps(engine) == [1]
    with path.open("a") as file:
        file.write(line[20:].replace('"step":1', '"step":2') + "\n")
    assert tail.catch_up(engine, stopping=False)
    assert len(steps(engine)) == 2


def test_a_line_longer_than_a_chunk_is_read_whole(home: Home, engine: Engine, run_id: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append(answered(1, "x" * 3_000_000))
    log.append(loss(1))
    Tail(run_id, path, 0).catch_up(engine, stopping=False)
    assert len(Runs(home, engine).answers(run_id)[0].tuned) == 3_000_000
    assert steps(engine) == [1]


def test_the_newest_evaluation_is_read_and_one_that_is_told_again_counts_as_the_second(
    home: Home, engine: Engine, run_id: int, tmp_path: Path
) -> None:
    path, service = tmp_path / "events.jsonl", Runs(home, engine)
    log, tail = EventLog(path), Tail(run_id, path, 0)
    assert (service.evaluation(run_id), service.evaluation_steps(run_id)) == (None, [])
    for event in (measured(2), measured(4), measured(4, rows=3)):
        log.append(event)
    tail.catch_up(engine, stopping=False)
    log.append(measured(2, rows=5))
    tail.catch_up(engine, stopping=False)
    newest, earlier = service.evaluation(run_id), service.evaluation(run_id, 2)
    assert newest and earlier
    assert (newest.step, newest.details) == (4, {"matrix": [[3]]})
    assert earlier.details == {"matrix": [[5]]}
    assert service.evaluation_steps(run_id) == [2, 4]


def test_bytes_already_in_the_catalog_are_refused(engine: Engine, run_id: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).append(loss(1))
    Tail(run_id, path, 0).catch_up(engine, stopping=False)
    with pytest.raises(RuntimeError, match="does not stand at byte 0"):
        Tail(run_id, path, 0).catch_up(engine, stopping=False)
    assert steps(engine) == [1]


def test_the_peak_memory_never_falls(home: Home, engine: Engine, run_id: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log, tail = EventLog(path), Tail(run_id, path, 0)
    for memory in (5.0, 9.0, 3.0):
        log.append(Metrics(step=1, values={"memory": memory}))
        tail.catch_up(engine, stopping=False)
    assert Runs(home, engine).get(run_id).peak_memory == 9
    log.append(Phase(text="Training"))
    tail.catch_up(engine, stopping=False)
    assert Runs(home, engine).get(run_id).phase == "Training"


def test_an_attempt_that_begins_anew_forgets_what_was_measured_before_the_first_step() -> None:
    before = Metrics(step=0, values={"eval_loss": 2.0})
    found = digest([started(1, 0), before, started(2, 0), before])
    assert found.rewind_to == -1
    assert [(row["step"], row["name"]) for row in found.metrics] == [(0, "eval_loss")]
    assert digest([started(2, 3), before]).rewind_to == 3
