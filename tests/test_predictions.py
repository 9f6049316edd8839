"""Trained heads asked through the service: a real child in the engine's place, one base after the other."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from jobs.errors import UserError
from jobs.hardware import processor
from jobs.inference.client import EngineClient
from jobs.inference.predictor import Predictor
from jobs.inference.slot import Slot
from jobs.service.models import Models
from jobs.service.playground import Status
from jobs.service.predictions import Answered, Doing, Predictions
from jobs.tasks.predictions import Labels, Number
from storage.db import connect, migrate, write
from storage.files import Home
from storage.tables import Adapter
from tests import tiny
from tests.rundirs import train_here, wait_for
from tests.test_models import insert_adapter
from tests.test_tasks_classifying import KINDS, labelled_rows, train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
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
def slot(home: Home) -> Iterator[Slot]:
    slot = Slot(home.logs / "engine.txt")
    yield slot
    slot.clear("The test is over.")


@pytest.fixture(scope="module")
def predictions(models: Models, slot: Slot) -> Predictions:
    return Predictions(models, slot)


@pytest.fixture(scope="module")
def bases(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "bert": models.add_folder(tiny.build_bert(folder / "bert")).id,
        "llama": models.add_folder(tiny.build_llama(folder / "llama")).id,
    }


@pytest.fixture(scope="module")
def adapters(home: Home, engine: Engine, models: Models, bases: dict[str, int]) -> dict[str, int]:
    """Trained for real: a LoRA and adapter modules on one base, a LoRA on another, one that gives numbers."""
    made = {
        "lora": ("bert", "one label", "lora", {"r": 8}),
        "bottleneck": ("bert", "one label", "bottleneck", {"size": 8}),
        "decoder": ("llama", "one label", "lora", {"r": 8}),
        "numbers": ("bert", "numbers", "lora", {"r": 8}),
    }
    found = {}
    for number, (name, (base, kind, how, settings)) in enumerate(made.items(), start=1):
        folder = models.ref(bases[base]).folder
        assert folder
        files = train(home.run(number), folder, KINDS[kind], how, settings, epochs=10)
        assert train_here(files).state == "completed"
        found[name] = insert_adapter(engine, home, bases[base], files.adapter, name)
        with write(engine) as session:
            session.get_one(Adapter, found[name]).task = KINDS[kind].name
    return found


def test_one_adapter_says_what_it_was_taught_and_how_often_each_label_came(
    predictions: Predictions, adapters: dict[str, int]
) -> None:
    rows = labelled_rows(random.Random(5))[:12]
    *_, answered = predictions.ask([adapters["lora"]], [{"text": row["text"]} for row in rows])
    assert isinstance(answered, Answered)
    assert (answered.name, answered.task) == ("lora", "classification")
    right = [said.chosen == (row["label"],) for said, row in zip(answered.predictions, rows, strict=True)]  # type: ignore[union-attr]
    assert sum(right) >= 10
    for said in answered.predictions:
        assert isinstance(said, Labels)
        assert sum(label.probability for label in said.labels) == pytest.approx(1, abs=1e-3)
        assert [label.probability for label in said.labels] == sorted(
            (label.probability for label in said.labels), reverse=True
        )
    assert isinstance(answered.baseline, Labels)
    assert answered.baseline.labels[0].probability < 0.5
    alone = predictions.predict(adapters["lora"], [{"text": rows[0]["text"]}])[0]
    first = answered.predictions[0]
    assert isinstance(alone, Labels) and isinstance(first, Labels)
    assert alone.labels[0].probability == pytest.approx(first.labels[0].probability, abs=1e-4)


def test_several_adapters_answer_side_by_side_also_on_other_bases(
    predictions: Predictions, adapters: dict[str, int], slot: Slot
) -> None:
    asked = [adapters[name] for name in ("lora", "decoder", "bottleneck")]
    text = {"text": "said the captain"}
    told = list(predictions.ask(asked, [text, text]))
    answered = [said for said in told if isinstance(said, Answered)]
    assert [one.name for one in answered] == ["lora", "bottleneck", "decoder"]  # those of one base together
    assert all(len(one.predictions) == 2 for one in answered)
    assert len({one.predictions[0].labels[0].probability for one in answered}) == 3  # type: ignore[union-attr]
    said = [status.text for status in told if isinstance(status, Status)]
    assert "Loading llama in place of bert" in said
    # What is in memory answers at once; another base makes it leave.
    assert all(isinstance(one, Answered) for one in predictions.ask([adapters["decoder"]], [text]))


def test_the_engine_and_the_predicting_child_share_one_place(
    predictions: Predictions, models: Models, adapters: dict[str, int], bases: dict[str, int], slot: Slot
) -> None:
    assert isinstance(predictions.predict(adapters["numbers"], [{"text": "fox fox fox over"}])[0], Number)
    predicting = slot._seat.client  # type: ignore[union-attr]
    assert predicting.alive
    seat, gone = slot.take(models.ref(bases["bert"]), EngineClient)
    assert seat and gone == "bert"
    slot.leave(seat)
    wait_for(lambda: not predicting.alive)


def test_an_adapter_that_was_trained_again_is_read_again(
    home: Home, predictions: Predictions, models: Models, adapters: dict[str, int]
) -> None:
    text = {"text": "said the captain"}
    before = predictions.predict(adapters["lora"], [text])
    folder = models.adapter_path(adapters["lora"])
    kept = (folder / "adapter_model.safetensors").read_bytes()
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: 0 * tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    flat = predictions.predict(adapters["lora"], [text])[0]
    assert isinstance(flat, Labels)
    assert [label.probability for label in flat.labels] == pytest.approx([0.25] * 4)
    (folder / "adapter_model.safetensors").write_bytes(kept)
    assert predictions.predict(adapters["lora"], [text]) == before


def test_every_problem_is_told_before_anything_is_loaded(
    home: Home, engine: Engine, predictions: Predictions, bases: dict[str, int], adapters: dict[str, int]
) -> None:
    chat = insert_adapter(engine, home, bases["llama"], home.run(90) / "adapter", "chatty")
    with pytest.raises(UserError) as error:
        list(predictions.ask([chat, adapters["lora"], 999], [{"text": " "}, {"words": "fox"}]))
    assert error.value.problems == (
        "chatty was trained for the task Chat: ask it in the playground's chat.",
        "There is no adapter number 999; it may have been deleted.",
        "Input 1: Write something into Text.",
        "Input 2: Write something into Text.",
        "Input 2: Text classification takes text, text_pair, not words.",
    )
    with pytest.raises(UserError, match="Choose between 1 and 8 adapters"):
        list(predictions.ask([], [{"text": "fox"}]))
    assert {view.adapter.name for view in predictions.adapters()} == {"lora", "bottleneck", "decoder", "numbers"}
    assert [view.adapter.name for view in predictions.adapters("regression")] == ["numbers"]
    head = predictions.head(adapters["lora"])
    assert (head.inputs, head.labels) == ({"text": True, "text_pair": False}, ("captain", "dog", "fox", "ship"))


def test_adapters_of_one_base_compute_with_one_copy_of_its_weights(
    models: Models, adapters: dict[str, int], bases: dict[str, int]
) -> None:
    base = models.ref(bases["bert"])
    folders = [models.adapter_path(adapters[name]) for name in ("lora", "bottleneck", "numbers")]
    text = [{"text": "said the captain"}]
    alone = [Predictor(base).predict(folder, text) for folder in folders]
    predictor = Predictor(base)
    for _ in range(2):  # each beside the others, and once more after them
        assert [predictor.predict(folder, text) for folder in folders] == alone
    held = [dict(predictor.get(folder).model.named_parameters()) for folder in folders]
    embeddings = [next(p for name, p in each.items() if "word_embeddings" in name) for each in held]
    assert len({embedding.data_ptr() for embedding in embeddings}) == 1


def test_a_warmed_adapter_is_in_memory_before_it_is_asked(
    predictions: Predictions, adapters: dict[str, int], slot: Slot
) -> None:
    slot.clear("A fresh start.")
    predictions.warm(adapters["lora"])
    wait_for(lambda: slot._seat is not None and not slot._seat.users, seconds=120)
    told = list(predictions.ask([adapters["lora"]], [{"text": "said the captain"}]))
    assert [type(said) for said in told] == [Answered]  # nothing had to be loaded
    with pytest.raises(UserError, match="no adapter number"):
        predictions.warm(999)


def test_a_run_that_has_the_memory_is_named_and_the_answer_comes_when_it_has_ended(
    models: Models, slot: Slot, adapters: dict[str, int]
) -> None:
    slot.clear("Something else came.")
    running: list[str] = ["the big one"]
    patient = Predictions(models, slot, training=lambda: next(iter(running), None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "jobs.service.predictions.this_machine", lambda: processor().model_copy(update={"memory_free": 1_000})
        )
        told = patient.ask([adapters["lora"], adapters["decoder"]], [{"text": "said the captain"}])
        for _ in range(2):
            said = next(told)
            assert isinstance(said, Doing) and said.adapter_ids == (adapters["lora"],)
            assert "Waiting for memory, which the run the big one has: bert needs" in said.text
        running.clear()
        rest = list(told)
    assert [one.name for one in rest if isinstance(one, Answered)] == ["lora", "decoder"]
    assert isinstance(rest[0], Doing) and rest[0].text == "Loading bert"  # before anything else is done


def test_an_engine_that_was_cleared_under_its_user_leaves_no_child_behind(models: Models, slot: Slot) -> None:
    ref = models.ref(models.bases()[0].id)
    seat, _ = slot.take(ref, EngineClient)
    assert seat
    slot.clear("A run came.")
    seat.client.load()  # had been on its way: starts a child anew
    assert seat.client.alive
    slot.leave(seat)
    assert not seat.client.alive
