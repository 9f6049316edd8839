"""The playground: panes with their own histories, kept in the catalog, stopped, and made again to the token."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from jobs.errors import UserError
from jobs.inference.client import EngineClient
from jobs.inference.sampling import Sampling
from jobs.inference.slot import Slot
from jobs.service.chats import Delta
from jobs.service.models import Models
from jobs.service.playground import Playground, Status
from jobs.spec import BaseModelRef
from storage.db import connect, migrate, write
from storage.files import Home
from storage.tables import Adapter
from tests import tiny
from tests.test_models import insert_adapter

WARM = Sampling(temperature=0.8, max_tokens=12, seed=5)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:  # one engine for the whole file
    return Home.at(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def engine(home: Home) -> Iterator[Engine]:
    migrate(home.database)
    engine = connect(home.database)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def models(home: Home, engine: Engine) -> Models:
    return Models(home, engine)


@pytest.fixture(scope="module")
def playground(home: Home, engine: Engine, models: Models) -> Iterator[Playground]:
    playground = Playground(engine, models, Slot(home.logs / "engine.txt"))
    yield playground
    playground.close()


@pytest.fixture(scope="module")
def base_id(models: Models, tiny_llama: Path) -> int:
    return models.add_folder(tiny_llama).id


@pytest.fixture(scope="module")
def adapter_ids(home: Home, engine: Engine, base_id: int, tiny_llama: Path) -> list[int]:
    folders = [tiny.build_adapter(tiny_llama, home.run(seed) / "adapter", seed=seed) for seed in (1, 2)]
    return [insert_adapter(engine, home, base_id, folder, f"adapter {folder.parent.name}") for folder in folders]


def last(said: list[Status | Delta]) -> dict[int, Delta]:
    return {delta.pane: delta for delta in said if isinstance(delta, Delta)}


def test_base_and_adapters_answer_side_by_side_and_are_kept(
    playground: Playground, base_id: int, adapter_ids: list[int]
) -> None:
    chat = playground.chats.new(base_id, (None, *adapter_ids), WARM)
    assert playground.chats.list() == []  # nothing was said in it
    assert [each.id for each in playground.chats.list(also=chat.id)] == [chat.id]
    said = list(playground.ask(chat.id, "the quick\nfox", WARM))
    assert said[0] == Status(text="Loading tiny-llama")
    panes = [delta.pane for delta in said if isinstance(delta, Delta)]
    assert sorted(panes[:3]) == [0, 1, 2]  # all of them have said something before one says more
    kept = playground.chats.get(chat.id)
    assert kept.title == "the quick fox"
    assert [(a.turn, a.pane, a.adapter_id) for a in kept.answers] == [
        (0, 0, None),
        (0, 1, adapter_ids[0]),
        (0, 2, adapter_ids[1]),
    ]
    assert {a.pane: (a.answer, a.tokens, a.finish) for a in kept.answers} == {
        pane: (delta.text, delta.tokens, delta.finish) for pane, delta in last(said).items()
    }
    assert len({a.answer for a in kept.answers}) == 3
    assert playground.chats.list()[0].id == chat.id


def test_every_pane_goes_on_from_its_own_answers(playground: Playground, base_id: int, adapter_ids: list[int]) -> None:
    chat = playground.chats.new(base_id, (None, adapter_ids[0]), WARM)
    told = WARM.model_copy(update={"system": "Be brief."})
    for prompt in ("one", "two"):
        list(playground.ask(chat.id, prompt, told))
    answers = playground.chats.get(chat.id).answers
    sample = playground.samples.keep(next(a.id for a in answers if (a.turn, a.pane) == (1, 1)), "  good ")
    first = next(a for a in answers if (a.turn, a.pane) == (0, 1))
    assert sample.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": "two"},
    )
    assert sample.note == "good" and sample.adapter == "adapter 1"
    assert sample.engine["packages"]["torch"] and sample.engine["dtype"] == "float32"
    assert sample.engine["adapters"][0] is None and len(sample.engine["adapters"][1]) == 64


def test_a_sample_is_made_again_to_the_token(playground: Playground, base_id: int, adapter_ids: list[int]) -> None:
    chat = playground.chats.new(base_id, (None, adapter_ids[0]), WARM)
    list(playground.ask(chat.id, "the ship", WARM))
    for answer in playground.chats.get(chat.id).answers:
        sample = playground.samples.keep(answer.id)
        for _ in range(2):
            again = last(list(playground.make_again(sample.id)))
            assert again[0].text == answer.answer and again[0].tokens == answer.tokens
    assert playground.samples.list()[0].id == sample.id
    playground.delete_chat(chat.id)
    assert playground.samples.get(sample.id).answer == sample.answer  # the sample outlives its chat
    assert last(list(playground.make_again(sample.id)))[0].text == sample.answer
    playground.samples.delete(sample.id)
    with pytest.raises(UserError, match="no sample"):
        playground.samples.get(sample.id)


def test_stop_ends_the_turn_and_keeps_what_was_said(
    playground: Playground, base_id: int, adapter_ids: list[int]
) -> None:
    long = Sampling(temperature=1.5, top_p=1, max_tokens=400, seed=1)
    chat = playground.chats.new(base_id, (None, adapter_ids[0]), long)
    said: list[Status | Delta] = []
    for delta in playground.ask(chat.id, "the captain", long):
        said.append(delta)
        if len(last(said)) == 2 and len(said) == 8:
            playground.stop(chat.id)
    answers = playground.chats.get(chat.id).answers
    assert {a.finish for a in answers} <= {"stopped", "end"} and answers[0].tokens < 400
    stopped = next(a for a in answers if a.finish == "stopped")
    sample = playground.samples.keep(stopped.id)
    again = last(list(playground.make_again(sample.id)))[0]
    assert (again.tokens, again.finish) == (stopped.tokens, "stopped")
    assert again.text.startswith(stopped.answer) and not stopped.answer.endswith("\ufffd")


def test_a_turn_that_waits_for_another_model_can_be_stopped(
    playground: Playground, models: Models, base_id: int, tmp_path: Path
) -> None:
    long = Sampling(temperature=1.5, top_p=1, max_tokens=400, seed=1)
    busy = playground.ask(playground.chats.new(base_id, (None,), long).id, "the captain", long)
    next(busy)
    other = models.add_folder(tiny.build_llama(tmp_path / "waiting"))
    chat = playground.chats.new(other.id, (None,), WARM)
    waiting = playground.ask(chat.id, "hello", WARM)
    assert next(waiting) == Status(text="Waiting until tiny-llama has finished its answer")
    playground.stop(chat.id)
    assert list(waiting) == [] and playground.chats.get(chat.id).answers == ()
    busy.close()  # type: ignore[attr-defined]


def test_a_listener_who_leaves_stops_the_answer_and_it_is_kept(playground: Playground, base_id: int) -> None:
    long = Sampling(temperature=1.5, top_p=1, max_tokens=400, seed=1)
    chat = playground.chats.new(base_id, (None,), long)
    answer = playground.ask(chat.id, "the captain", long)
    while not (isinstance(delta := next(answer), Delta) and delta.tokens >= 3):
        pass
    answer.close()  # type: ignore[attr-defined]
    (kept,) = playground.chats.get(chat.id).answers
    assert kept.finish == "stopped" and kept.tokens >= 3
    list(playground.ask(chat.id, "and then?", WARM))  # the chat is free again


def test_a_second_tab_cannot_ask_before_the_first_ones_answer_is_kept(
    playground: Playground, base_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = playground.chats.new(base_id, (None,), WARM)
    store = playground.chats.add_turn

    def meanwhile(*values: object) -> None:
        with pytest.raises(UserError, match="still answering"):
            next(iter(playground.ask(chat.id, "from the other tab", WARM)))
        store(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(playground.chats, "add_turn", meanwhile)
    list(playground.ask(chat.id, "one", WARM))
    monkeypatch.undo()
    list(playground.ask(chat.id, "two", WARM))
    assert [answer.prompt for answer in playground.chats.get(chat.id).answers] == ["one", "two"]


def test_a_chat_answers_one_prompt_at_a_time_and_two_chats_at_once(
    playground: Playground, base_id: int, adapter_ids: list[int]
) -> None:
    long = Sampling(temperature=1.5, top_p=1, max_tokens=300, seed=1)
    slow, quick = (playground.chats.new(base_id, (pane,), long) for pane in (None, adapter_ids[0]))
    answer = playground.ask(slow.id, "the captain", long)
    next(answer)
    with pytest.raises(UserError, match="still answering"):
        next(playground.ask(slow.id, "again", long))
    ended: list[int] = []

    def finish() -> None:
        list(answer)
        ended.append(slow.id)

    thread = threading.Thread(target=finish)
    thread.start()
    list(playground.ask(quick.id, "short", WARM))
    ended.append(quick.id)
    thread.join()
    assert ended == [quick.id, slow.id]


def test_a_killed_engine_says_so_and_the_next_question_works(playground: Playground, base_id: int) -> None:
    long = Sampling(temperature=1.5, top_p=1, max_tokens=400, seed=1)
    chat = playground.chats.new(base_id, (None,), long)
    with pytest.raises(UserError, match="ended in the middle of its answer"):
        for said in playground.ask(chat.id, "the captain", long):
            if isinstance(said, Delta):
                os.kill(playground._slot._seat.client.pid, signal.SIGKILL)  # type: ignore[union-attr, arg-type]
    assert playground.chats.get(chat.id).answers == ()
    assert last(list(playground.ask(chat.id, "the captain", WARM)))[0].finish


def test_another_base_model_takes_the_place_and_says_so(
    playground: Playground, models: Models, base_id: int, tmp_path: Path
) -> None:
    first = playground.chats.new(base_id, (None,), WARM)
    list(playground.ask(first.id, "hello", WARM))
    plain = models.add_folder(tiny.build_llama(tmp_path / "no-template", template=None))
    other = playground.chats.new(plain.id, (None,), WARM)
    texts = [said.text for said in playground.ask(other.id, "Once upon", WARM) if isinstance(said, Status)]
    assert texts == [
        "Unloaded tiny-llama",
        "Loading no-template",
        "no-template has no chat template: it continues your text.",
    ]
    assert playground.yield_memory() == "no-template was unloaded from the playground to make room for training."
    assert playground.yield_memory() is None


def test_memory_given_up_in_mid_answer_says_why(playground: Playground, base_id: int) -> None:
    long = Sampling(temperature=1.5, top_p=1, max_tokens=400, seed=1)
    chat = playground.chats.new(base_id, (None,), long)
    with pytest.raises(UserError, match="made room for a training run"):
        for said in playground.ask(chat.id, "the captain", long):
            if isinstance(said, Delta):
                playground.yield_memory()


def test_a_deleted_adapter_is_named_and_its_samples_stay(
    playground: Playground, models: Models, home: Home, engine: Engine, base_id: int, tiny_llama: Path
) -> None:
    folder = tiny.build_adapter(tiny_llama, home.run(9) / "adapter", seed=9)
    adapter_id = insert_adapter(engine, home, base_id, folder, "short-lived")
    chat = playground.chats.new(base_id, (adapter_id,), WARM)
    list(playground.ask(chat.id, "hello", WARM))
    sample = playground.samples.keep(playground.chats.get(chat.id).answers[0].id)
    models.delete_adapter(adapter_id)
    assert playground.samples.get(sample.id).adapter == "deleted adapter"
    with pytest.raises(UserError, match="was deleted"):
        next(playground.make_again(sample.id))
    with pytest.raises(UserError, match="Nobody is left to answer in this chat"):
        next(playground.ask(chat.id, "hello", WARM))


def test_a_pane_of_another_base_model_is_refused(
    playground: Playground, models: Models, adapter_ids: list[int], tmp_path: Path
) -> None:
    other = models.add_folder(tiny.build_llama(tmp_path / "other"))
    with pytest.raises(UserError, match=r"adapter 1 was trained on tiny-llama, not on other"):
        playground.chats.new(other.id, (adapter_ids[0],), WARM)


def test_what_does_not_chat_is_refused(
    home: Home, engine: Engine, playground: Playground, models: Models, base_id: int, tmp_path: Path
) -> None:
    sorts = insert_adapter(engine, home, base_id, home.run(80) / "adapter", "sorts")
    with write(engine) as session:
        session.get_one(Adapter, sorts).task = "classification"
    with pytest.raises(UserError, match="sorts was trained for Text classification, which does not chat"):
        playground.chats.new(base_id, (None, sorts), WARM)
    encoder = models.add_folder(tiny.build_bert(tmp_path / "encoder"))
    with pytest.raises(UserError, match="encoder reads texts and writes none, so it cannot chat"):
        playground.chats.new(encoder.id, (None,), WARM)


def test_an_engine_nobody_asks_leaves_memory(tiny_llama: Path, tmp_path: Path) -> None:
    slot = Slot(tmp_path / "engine.txt", idle_seconds=0.2)
    seat, _ = slot.take(BaseModelRef(name="tiny", folder=tiny_llama), EngineClient)
    assert seat is not None
    seat.client.load()
    pid = seat.client.pid
    slot.leave(seat)
    for _ in range(100):
        if not seat.client.alive:
            break
        threading.Event().wait(0.1)
    assert pid and not seat.client.alive


def test_those_that_are_left_answer_on_where_an_adapter_of_the_chat_was_deleted(
    playground: Playground,
    models: Models,
    home: Home,
    engine: Engine,
    base_id: int,
    adapter_ids: list[int],
    tiny_llama: Path,
) -> None:
    folder = tiny.build_adapter(tiny_llama, home.run(10) / "adapter", seed=10)
    gone = insert_adapter(engine, home, base_id, folder, "short-lived")
    chat = playground.chats.new(base_id, (None, gone, adapter_ids[0]), WARM)
    list(playground.ask(chat.id, "one", WARM))
    models.delete_adapter(gone)
    folder = tiny.build_adapter(tiny_llama, home.run(12) / "adapter", seed=12)
    newest = insert_adapter(engine, home, base_id, folder, "the next one")
    assert newest == gone, "SQLite gives its number again"
    said = last(list(playground.ask(chat.id, "two", WARM)))
    assert sorted(said) == [0, 2]
    answers = playground.chats.get(chat.id).answers
    assert [(a.turn, a.pane) for a in answers] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]
    assert answers[4].answer == said[2].text and answers[4].adapter_id == adapter_ids[0]

    # An answer from after it goes by the batch that it was made in.
    sample = playground.samples.keep(answers[4].id)
    assert sample.messages[1]["content"] == answers[2].answer, "its own first answer"
    assert [entry["adapter_id"] for entry in sample.engine["batch"]] == [None, adapter_ids[0]]
    models.delete_adapter(newest)
    assert last(list(playground.make_again(sample.id)))[0].text == sample.answer


def test_an_adapter_that_is_deleted_while_it_answers_leaves_what_it_said(
    playground: Playground, models: Models, home: Home, engine: Engine, base_id: int, tiny_llama: Path
) -> None:
    folder = tiny.build_adapter(tiny_llama, home.run(11) / "adapter", seed=11)
    gone = insert_adapter(engine, home, base_id, folder, "short-lived")
    chat = playground.chats.new(base_id, (None, gone), WARM)
    for said in playground.ask(chat.id, "one", WARM):
        if isinstance(said, Delta) and gone in {adapter.id for adapter in models.adapters(base_id)}:
            models.delete_adapter(gone)
    answers = playground.chats.get(chat.id).answers
    assert [(answer.pane, answer.adapter_id) for answer in answers] == [(0, None), (1, None)]
    assert answers[1].answer and playground.samples.keep(answers[1].id).adapter == "deleted adapter"
