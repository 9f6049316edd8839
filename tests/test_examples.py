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
from jobs.service.planning import Draft
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
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def pairs(example: Example) -> list[tuple[str, str]]:
    """(prompt, answer) of every row, read with the standard library alone."""
    text = example.path.read_text(encoding="utf-8")
    if example.task == "orpo":
        return [(row["prompt"], row["chosen"]) for row in rows(example.name)]
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


def test_of_every_pair_the_better_answer_is_the_briefer_and_no_answer_comes_twice() -> None:
    found = rows("kind-and-brief")
    assert len(found) == 80
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in found)
    assert len({row["chosen"] for row in found} | {row["rejected"] for row in found}) == 160


def test_thumbs_are_up_for_two_steps_and_down_as_often() -> None:
    found = rows("repair-thumbs")
    assert Counter(row["thumb"] for row in found) == {"up": 40, "down": 40}
    for row in found:
        assert (row["answer"].startswith("First ") and ", then " in row["answer"]) == (row["thumb"] == "up")


def test_formal_english_has_no_contractions_and_says_something_else() -> None:
    found = rows("formal-english")
    assert len({row["source"] for row in found}) == len({row["target"] for row in found}) == len(found) == 100
    assert all("'" not in row["target"].replace("o'clock", "") for row in found)
    assert all(row["source"] != row["target"] for row in found)


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
            "kind-and-brief": Shape.PREFERENCE,
            "repair-thumbs": Shape.FEEDBACK,
            "formal-english": Shape.REWRITE,
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
            settings |= run.spec.task_params
            for name, value in (example.training | example.method_params | example.task_params).items():
                assert settings[name] == value

            draft = Draft(
                base_model_id=run.base_model_id,
                dataset_id=run.dataset_id,
                method=run.spec.method,
                method_params=run.spec.method_params,
                task=run.spec.task,
                task_params=run.spec.task_params,
                training=run.spec.training.model_dump(),
            )
            unseen = service.planning.plan(draft).estimate
            assert unseen is not None and run.predicted_memory is not None
            assert run.predicted_memory < unseen.total, "told from the rows' lengths, not from the most they may have"
    finally:
        service.close()
