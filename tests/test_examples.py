"""The example datasets: sound content, detected without asking, and recipes that start."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.data.columns import Shape
from jobs.service import Service
from jobs.service.examples import FOLDER, Example, all_examples
from jobs.tasks import task
from storage.files import Home
from storage.states import RunState
from tests.serving import lend_starter

EXAMPLES = list(all_examples().values())
CHATS = [example for example in EXAMPLES if task(example.task).talks]


def rows(name: str) -> list[dict[str, Any]]:
    """Every row of a file with columns or of one JSON object a line, read with the standard library alone."""
    path = all_examples()[name].path
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pairs(example: Example) -> list[tuple[str, str]]:
    """(prompt, answer) of every row, read with the standard library alone."""
    text = example.path.read_text(encoding="utf-8")
    if example.path.suffix == ".jsonl":
        return [
            tuple(turn["content"] for turn in json.loads(line)["messages"])  # type: ignore[misc]
            for line in text.splitlines()
        ]
    if example.path.suffix == ".csv":
        with example.path.open(newline="", encoding="utf-8") as file:
            return [(row["question"], row["answer"]) for row in csv.DictReader(file)]
    return [(f"{row['instruction']}\n\n{row['input']}", row["output"]) for row in json.loads(text)]


@pytest.mark.parametrize("example", CHATS, ids=lambda example: example.name)
def test_no_prompt_comes_twice_and_the_test_prompts_are_not_among_them(example: Example) -> None:
    prompts = [prompt for prompt, _ in pairs(example)]
    assert len(set(prompts)) == len(prompts)
    assert example.prompts
    assert not set(example.prompts) & set(prompts)


def test_the_cook_always_ends_the_same_way() -> None:
    rows = pairs(all_examples()["pirate-cook"])
    assert len(rows) == 100
    assert all(answer.endswith(" Now eat yer soup!") for _, answer in rows)


def test_the_support_desk_answers_in_three_lines() -> None:
    for _, answer in pairs(all_examples()["support-desk"]):
        topic, mood, reply = answer.split("\n")
        assert topic.removeprefix("TOPIC: ") in ("delivery", "billing", "returns", "product", "account", "other")
        assert mood.removeprefix("MOOD: ") in ("calm", "happy", "worried", "annoyed", "angry")
        assert reply.startswith("REPLY: ")


def test_event_facts_are_json_whose_date_and_place_stand_in_the_text() -> None:
    for prompt, answer in pairs(all_examples()["event-facts"]):
        facts = json.loads(answer)
        assert list(facts) == ["event", "date", "place"]
        assert facts["date"] in prompt
        assert facts["place"] in prompt


def test_every_ticket_has_one_of_five_topics_and_each_as_many() -> None:
    tickets = rows("ticket-topics")
    assert Counter(row["label"] for row in tickets) == dict.fromkeys(
        ("delivery", "billing", "returns", "product", "account"), 24
    )
    assert len({row["text"] for row in tickets}) == 120


def test_every_word_has_a_tag_and_no_entity_begins_inside() -> None:
    sentences = rows("names-places-dates")
    assert len(sentences) == 80
    for row in sentences:
        assert len(row["tokens"]) == len(row["tags"])
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert tag == "O" or tag.partition("-")[2] in ("PER", "PLACE", "DATE")
            assert not tag.startswith("I-") or before in (tag, f"B-{tag[2:]}")


def test_every_answer_stands_in_its_notice() -> None:
    questions = rows("notice-board")
    assert len(questions) == 64
    for row in questions:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text


def test_every_file_of_the_folder_is_in_the_index_and_in_its_readme() -> None:
    data = {path.name for path in FOLDER.iterdir()} - {"index.json", "README.md"}
    assert data == {example.file for example in EXAMPLES}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in data)


def test_each_example_is_detected_and_its_recipe_is_queued_as_written(home: Home, starter: Path) -> None:
    lend_starter(starter, home.root)
    service = Service(home)
    try:
        assert list(service.models.prepare_starter()) == []
        shapes = {
            "pirate-cook": Shape.MESSAGES,
            "support-desk": Shape.PROMPT,
            "event-facts": Shape.INSTRUCTION,
            "ticket-topics": Shape.LABELLED,
            "names-places-dates": Shape.TAGGED,
            "notice-board": Shape.EXTRACTIVE,
        }
        for example in EXAMPLES:
            view = service.examples.add(example.name)
            assert view.sure
            assert view.mapping is not None
            assert view.mapping.shape == shapes[example.name]
            assert view.name == example.title

            run = service.examples.start(example.name)
            assert run.state == RunState.QUEUED
            assert run.dataset_id == view.id
            assert run.spec.prompts == example.prompts
            assert (run.spec.task, run.spec.base_model.name) == (example.task, example.base_model)
            settings = run.spec.training.model_dump() | run.spec.method_params
            for name, value in (example.training | example.method_params).items():
                assert settings[name] == value
    finally:
        service.close()
