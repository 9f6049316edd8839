"""The runs service against a real catalog: states, views, curves, logs, deleting."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from sqlalchemy import Engine, event, insert, select

from jobs.errors import UserError
from jobs.rundir import RunFiles
from jobs.service.runs import Runs
from storage import runs as rows
from storage.catalog import keep_adapter
from storage.db import read, write
from storage.files import Home
from storage.states import ENDED, RunState
from storage.tables import Adapter, Chat, ChatAnswer, CheckpointAnswer, Metric, Run, Sample, now
from tests import standin


def start(runs: Runs, name: str = "run") -> int:
    return runs.start(standin.spec(name), 1, 1).id


def claim(engine: Engine) -> int | None:
    with write(engine) as session:
        run = rows.claim(session, 1)
        return run.id if run else None


def end(engine: Engine, run_id: int, state: RunState, reason: str | None = None) -> bool:
    with write(engine) as session:
        return rows.end(session, run_id, state, reason)


def ended_run(runs: Runs, engine: Engine, state: RunState) -> int:
    run_id = start(runs)
    assert claim(engine) == run_id
    assert end(engine, run_id, state, "why")
    return run_id


def checkpoint(home: Home, run_id: int, name: str = "checkpoint-5") -> None:
    (RunFiles(home.run(run_id)).checkpoints / name).mkdir(parents=True)


def add_metrics(engine: Engine, run_id: int, values: list[tuple[int, str, float]]) -> None:
    with write(engine) as session:
        session.execute(
            insert(Metric),
            [{"run_id": run_id, "step": s, "name": n, "value": v, "time": 0.0} for s, n, v in values],
        )


def test_a_new_run_waits_in_the_queue_with_its_whole_spec(runs: Runs) -> None:
    spec = standin.spec("My run", steps=3).model_copy(update={"predicted_memory": 7})
    run = runs.start(spec, 1, 1)
    assert (run.name, run.state, run.attempt, run.predicted_memory) == ("My run", RunState.QUEUED, 1, 7)
    assert run.spec == spec
    assert runs.get(run.id) == run and runs.list() == [run]


def test_a_dataset_that_was_deleted_meanwhile_is_said_in_words(runs: Runs) -> None:
    with pytest.raises(UserError, match="has been deleted"):
        runs.start(standin.spec(), 1, 99)
    assert runs.list() == []


def test_memory_is_made_free_before_a_run_is_queued(home: Home, engine: Engine) -> None:
    asked: list[int] = []
    runs = Runs(home, engine, make_room=lambda spec: asked.append(len(runs.list())))
    start(runs)
    assert asked == [0]


def test_runs_are_claimed_in_order_one_at_a_time(runs: Runs, engine: Engine) -> None:
    first, second = start(runs), start(runs)
    assert claim(engine) == first
    assert claim(engine) is None
    assert runs.get(first).state == RunState.STARTING and runs.queue_position(first) is None
    assert runs.queue_position(second) == 1
    end(engine, first, RunState.COMPLETED)
    assert runs.queue_position(second) == 0
    assert claim(engine) == second


def test_a_resumed_run_waits_behind_those_that_were_there(home: Home, runs: Runs, engine: Engine) -> None:
    first = ended_run(runs, engine, RunState.STOPPED)
    checkpoint(home, first)
    second = start(runs)
    runs.resume(first)
    assert [runs.queue_position(run_id) for run_id in (second, first)] == [0, 1]
    assert claim(engine) == second
    assert runs.queue_position(first) == 1  # the one at work
    with write(engine) as session:
        assert rows.requeue(session, second)  # its child never began: it keeps its place
    assert claim(engine) == second


@pytest.mark.parametrize("state", sorted(ENDED))
def test_an_ended_run_never_changes_state(runs: Runs, engine: Engine, state: RunState) -> None:
    run_id = ended_run(runs, engine, state)
    before = runs.get(run_id)
    assert before.reason == "why" and before.ended_at
    for other in RunState:
        if other.ended:
            assert not end(engine, run_id, other, "again")
    with write(engine) as session:
        assert not rows.set_active(session, run_id, state=RunState.RUNNING)
        assert not rows.requeue(session, run_id)
    assert runs.stop(run_id) == before
    assert claim(engine) is None


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED])
def test_a_run_that_ended_early_resumes_from_a_whole_checkpoint(
    home: Home, runs: Runs, engine: Engine, state: RunState
) -> None:
    run_id = ended_run(runs, engine, state)
    checkpoint(home, run_id, ".checkpoint-5.77.tmp")  # half written
    assert not runs.get(run_id).can_resume
    with pytest.raises(UserError, match="before its first checkpoint"):
        runs.resume(run_id)
    checkpoint(home, run_id)
    assert runs.get(run_id).can_resume
    run = runs.resume(run_id)
    assert (run.state, run.attempt, run.reason, run.ended_at) == (RunState.QUEUED, 2, None, None)
    assert not run.stop_requested and not run.can_resume


def test_a_run_s_time_is_that_of_all_its_attempts(home: Home, runs: Runs, engine: Engine) -> None:
    run_id = ended_run(runs, engine, RunState.INTERRUPTED)
    checkpoint(home, run_id)
    with write(engine) as session:  # as if it had trained for a minute, two hours ago
        run = session.get_one(Run, run_id)
        run.started_at = run.attempt_at = now() - timedelta(hours=2)
        run.ended_at, run.trained_seconds = now() - timedelta(minutes=119), 60.0
    began = runs.get(run_id).started_at
    runs.resume(run_id)
    assert claim(engine) == run_id
    with write(engine) as session:
        rows.requeue(session, run_id)  # its child never began
    assert (runs.get(run_id).started_at, runs.get(run_id).attempt_at) == (began, None)
    assert claim(engine) == run_id
    with write(engine) as session:
        session.get_one(Run, run_id).attempt_at = now() - timedelta(seconds=30)
    end(engine, run_id, RunState.COMPLETED)
    run = runs.get(run_id)
    assert run.started_at == began
    assert run.trained_seconds == pytest.approx(90, abs=2)


def test_a_run_s_peak_memory_is_the_most_of_all_its_attempts(home: Home, runs: Runs, engine: Engine) -> None:
    """An attempt that went on for a few steps made the run forget what the one before it had taken."""
    run_id = start(runs)
    peaks = {RunState.FAILED: 5_000, RunState.STOPPED: 9_000, RunState.COMPLETED: 3_000}
    for state, peak in peaks.items():
        assert claim(engine) == run_id
        with write(engine) as session:
            rows.end(session, run_id, state, None, peak_memory=peak)
        if state != RunState.COMPLETED:
            checkpoint(home, run_id, f"checkpoint-{peak}")
            runs.resume(run_id)
            assert runs.get(run_id).peak_memory == peak
    assert runs.get(run_id).peak_memory == 9_000


def test_a_complete_run_and_an_active_one_do_not_resume(home: Home, runs: Runs, engine: Engine) -> None:
    run_id = ended_run(runs, engine, RunState.COMPLETED)
    checkpoint(home, run_id)
    assert not runs.get(run_id).can_resume
    with pytest.raises(UserError, match="complete"):
        runs.resume(run_id)
    with pytest.raises(UserError, match="nothing to resume yet"):
        runs.resume(start(runs))


def test_stop_ends_a_queued_run_and_asks_an_active_one(runs: Runs, engine: Engine) -> None:
    first, second = start(runs), start(runs)
    claim(engine)
    asked, gone = runs.stop(first), runs.stop(second)
    assert (asked.state, asked.stop_requested) == (RunState.STARTING, True)
    assert (gone.state, gone.reason) == (RunState.STOPPED, "Stopped before it started.")
    assert gone.ended_at


def test_a_run_that_is_not_there_is_a_sentence(runs: Runs) -> None:
    for ask in (runs.get, runs.stop, runs.resume, runs.delete):
        with pytest.raises(UserError, match="There is no run 99"):
            ask(99)
    assert runs.queue_position(99) is None and runs.last_metric_id(99) == 0
    assert runs.snapshot(99) == ({}, 0) and runs.metrics_after(99, 0) == [] and runs.log(99) == ("", 0)


def test_a_run_is_renamed_but_not_to_nothing(runs: Runs) -> None:
    run_id = start(runs)
    assert runs.rename(run_id, "  Foxes ").name == "Foxes"
    with pytest.raises(UserError):
        runs.rename(run_id, "  ")


def test_the_list_costs_one_query_however_many_runs_there_are(runs: Runs, engine: Engine) -> None:
    ids = [start(runs, f"run {number}") for number in range(20)]
    statements: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def count(_connection, _cursor, statement, *_rest) -> None:  # type: ignore[no-untyped-def]
        statements.append(statement)

    listed = runs.list(limit=15)
    assert [run.id for run in listed] == ids[:-16:-1]
    assert sum(statement.startswith("SELECT") for statement in statements) == 1


def test_metrics_follow_by_id_in_pieces(runs: Runs, engine: Engine) -> None:
    run_id, other = start(runs), start(runs)
    add_metrics(engine, run_id, [(s, "loss", float(s)) for s in range(3)])
    add_metrics(engine, other, [(0, "loss", 9.0)])
    add_metrics(engine, run_id, [(3, "loss", 3.0)])
    first = runs.metrics_after(run_id, 0, limit=2)
    rest = runs.metrics_after(run_id, first[-1].id)
    assert [(p.step, p.value) for p in first + rest] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert runs.last_metric_id(run_id) == rest[-1].id
    assert runs.metrics_after(run_id, rest[-1].id) == []


def test_a_snapshot_of_100_000_points_is_small_true_and_quick(runs: Runs, engine: Engine) -> None:
    run_id, other = start(runs), start(runs)
    names = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "memory")
    values = [(step, name, 1e-4 * step) for step in range(20_000) for name in names]
    values[5 * 12_345] = (12_345, "loss", 99.0)
    add_metrics(engine, run_id, values[:50_000])
    add_metrics(engine, other, [(1, "loss", -1.0)])
    add_metrics(engine, run_id, values[50_000:])
    times = []
    for _ in range(3):
        began = time.process_time()
        series, last = runs.snapshot(run_id)
        times.append(time.process_time() - began)
    assert min(times) < 0.15 * 2  # processor time; 0.1 s on a quiet machine
    assert last == runs.last_metric_id(run_id)
    assert set(series) == set(names)
    for name in names:
        assert 3_900 < len(series[name]) <= 4_002
        assert series[name][0][0] == 0 and series[name][-1][0] == 19_999
    assert (12_345, 99.0) in series["loss"] and min(value for _, value in series["loss"]) == 0.0
    assert runs.metrics_after(run_id, last) == []


def test_the_log_is_read_from_an_offset_or_from_its_end(home: Home, runs: Runs) -> None:
    run_id = start(runs)
    assert runs.log(run_id) == ("", 0)
    home.run(run_id).mkdir()
    log = RunFiles(home.run(run_id)).log
    log.write_bytes("one\ntwo é\n".encode())
    assert runs.log(run_id) == ("one\ntwo é\n", 11)
    assert runs.log(run_id, limit=9) == ("two é\n", 11)
    text, offset = runs.log(run_id, 0, limit=9)  # cuts é in half
    assert (text, offset) == ("one\ntwo ", 8)
    assert runs.log(run_id, offset) == ("é\n", 11)
    assert runs.log(run_id, 11) == ("", 11)
    assert runs.log(run_id, 500) == ("", 11)


def test_a_deleted_run_takes_its_adapter_and_leaves_chats_and_samples(home: Home, runs: Runs, engine: Engine) -> None:
    run_id = ended_run(runs, engine, RunState.COMPLETED)
    add_metrics(engine, run_id, [(1, "loss", 1.0)])
    (home.run(run_id) / "adapter").mkdir(parents=True)
    with write(engine) as session:
        session.add(CheckpointAnswer(run_id=run_id, step=1, position=0, prompt="p", base="b", tuned="t"))
        found = rows.get(session, run_id)
        assert found
        keep_adapter(
            session, found[0], method="lora", task="text", path=f"runs/{run_id}/adapter", step=1,
            trainable_parameters=1, size_bytes=1,
        )  # fmt: skip
    adapter_id = runs.get(run_id).adapter_id
    assert adapter_id
    with write(engine) as session:
        session.add(Chat(id=1, title="t", base_model_id=1, panes=[None, adapter_id], sampling={}))
        session.flush()
        session.add(
            ChatAnswer(
                id=1, chat_id=1, turn=0, pane=1, adapter_id=adapter_id, prompt="p", answer="a", tokens=1, seconds=1,
                finish="end", sampling={}, engine={},
            )
        )  # fmt: skip
        session.flush()
        session.add(
            Sample(
                base_model_id=1, adapter_id=adapter_id, chat_answer_id=1, messages=[], answer="a", sampling={},
                engine={},
            )
        )  # fmt: skip
    runs.delete(run_id)
    assert not home.run(run_id).exists() and not list(home.runs.iterdir())
    with read(engine) as session:
        for table in (Adapter, Metric, CheckpointAnswer):
            assert session.scalars(select(table)).all() == []
        assert session.get_one(ChatAnswer, 1).adapter_id is None
        assert session.get_one(Sample, 1).adapter_id is None
    assert start(runs) > run_id, "a deleted run's number, and with it its folder, never comes back"


def test_an_active_run_is_not_deleted(runs: Runs, engine: Engine) -> None:
    run_id = start(runs)
    with pytest.raises(UserError, match="is queued"):
        runs.delete(run_id)
    claim(engine)
    with pytest.raises(UserError, match="Stop it first"):
        runs.delete(run_id)
    assert runs.get(run_id)
