"""Every task as a person goes it: upload, train with a method chosen on the page, see its measures, try the result.

On tiny random models, so that a walk takes seconds; what they learn is other tests' business. The first walk of each
kind of page runs always, the rest with the slow ones.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests import tiny
from tests.browser.conftest import Watch, fits, number
from tests.serving import Server

STEPS = 4
THINGS = ("film", "book", "meal", "hotel", "phone", "song")
PEOPLE = ("Ada", "Grace", "Alan")


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, head: tuple[str, str], rows: list[tuple[Any, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def reviews(folder: Path) -> Path:
    kinds = (("positive", "great"), ("negative", "awful"), ("neutral", "plain"))
    rows = [
        (f"The {thing} was {word}, day {day}.", label) for day in range(2) for thing in THINGS for label, word in kinds
    ]
    return table(folder / "reviews.csv", ("text", "label"), rows)


def stars(folder: Path) -> Path:
    rows = [(f"The {thing} number {n} is fine.", n + 0.5) for n in range(6) for thing in THINGS]
    return table(folder / "stars.csv", ("text", "score"), rows)


def names(folder: Path) -> Path:
    rows = [
        {"tokens": [who, "saw", "the", thing, "in", "Oslo"], "tags": ["B-PER", "O", "O", "O", "O", "B-LOC"]}
        for who in PEOPLE
        for thing in THINGS
    ]
    return lines(folder / "names.jsonl", rows)


def reading(folder: Path) -> Path:
    passages = [(who, f"Today {who} bought the {thing} in Lima.") for who in PEOPLE for thing in THINGS]
    rows = [
        {
            "question": f"Where was {who}?",
            "context": text,
            "answers": {"text": ["Lima"], "answer_start": [text.index("Lima")]},
        }
        for who, text in passages
    ]
    return lines(folder / "reading.jsonl", rows)


def translations(folder: Path) -> Path:
    rows = [{"en": f"The {thing} is number {n}.", "de": f"Nummer {n}: {thing}."} for n in range(4) for thing in THINGS]
    return lines(folder / "english-german.jsonl", rows)


def preferences(folder: Path) -> Path:
    rows = [
        {"prompt": f"How is the {thing}, {who}?", "chosen": f"Fine, {who}, thank you.", "rejected": "No idea."}
        for who in PEOPLE
        for thing in THINGS
    ]
    return lines(folder / "pairs.jsonl", rows)


def stories(folder: Path) -> Path:
    path = folder / "stories.txt"
    path.write_text("\n\n".join(f"{who} found a {thing} by the sea." for who in PEOPLE for thing in THINGS))
    return path


@dataclass(frozen=True)
class Walk:
    task: str  # as the page calls it
    data: Callable[[Path], Path]
    method: str  # as its card calls it
    chart: str  # the heading of the curve of its own measure
    seen: str = ""  # what the newest evaluation shows beside numbers
    given: tuple[tuple[str, str], ...] = ()  # what is typed to try it, by label; empty: it chats
    said: str = ""  # a selector of what comes
    base: str = "tiny-llama"
    slow: bool = True


CLASSES = {
    "task": "Text classification",
    "data": reviews,
    "chart": "How often it is right",
    "seen": "Which labels are confused",
    "given": (("Text", "The boat was great."),),
    "said": ".label-bars li",
}
TAGS = {
    "task": "Token classification",
    "data": names,
    "chart": "How often it is right",
    "seen": "Some of these rows",
    "given": (("Text", "Ada saw the sea in Oslo"),),
    "said": ".tagged",
}
ANSWERS = {
    "task": "Question answering",
    "data": reading,
    "chart": "How often it is right",
    "seen": "Some of these rows",
    "given": (("Question", "Where was Ada?"), ("Passage", "Today Ada bought the lamp in Lima.")),
    "said": ".verdict",
}
NUMBERS = {
    "task": "Text regression",
    "data": stars,
    "chart": "How far off",
    "seen": "Said against right",
    "given": (("Text", "The lamp number 3 is fine."),),
    "said": ".verdict",
}
TEXTS = {
    "task": "Translation and summarization",
    "data": translations,
    "chart": "Likeness to the right texts",
    "given": (("Text", "The lamp is number 2."),),
    "said": ".written",
}
PAIRS = {"data": preferences, "chart": "The better answer is likelier"}
WALKS = {
    "classification-lora": Walk(**CLASSES, method="LoRA", slow=False),
    "classification-full": Walk(**CLASSES, method="Full fine-tuning"),
    "tagging-dora": Walk(**TAGS, method="DoRA", slow=False),
    "tagging-ia3": Walk(**TAGS, method="IA3"),
    "answers-lora": Walk(**ANSWERS, method="LoRA"),
    "answers-adapters": Walk(**ANSWERS, method="Adapter modules"),
    "regression-lora": Walk(**NUMBERS, method="LoRA"),
    "regression-vera": Walk(**NUMBERS, method="VeRA"),
    "translation-lora": Walk(**TEXTS, method="LoRA"),
    "translation-t5": Walk(**{**TEXTS, "base": "tiny-t5"}, method="LoHa"),
    "dpo-lora": Walk(**PAIRS, task="Preference tuning (DPO)", method="LoRA", slow=False),
    "orpo-norms": Walk(**PAIRS, task="Preference tuning (ORPO)", method="LN tuning"),
    "kto-lora": Walk(**PAIRS, task="Thumbs up and down (KTO)", method="LoRA+"),
    "text-lora": Walk(task="Plain text", data=stories, method="LoRA", chart="Perplexity"),
    "text-prompt": Walk(task="Plain text", data=stories, method="Prompt tuning", chart="Perplexity"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny-llama": tiny.build_llama(folder / "tiny-llama"),
        "tiny-t5": tiny.build_t5(folder / "tiny-t5"),
    }


def add_model(page: Page, server: Server, folder: Path) -> str:
    """The address that trains it: added on the Models page, or there already."""
    page.goto(f"{server.url}/models")
    card = page.locator("article.card", has=page.get_by_role("heading", name=folder.name, exact=True))
    expect(page.get_by_role("heading", name="Base models")).to_be_visible()
    if not card.count():
        page.get_by_label("Folder").fill(str(folder))
        page.get_by_role("button", name="Add the folder").click()
    expect(card).to_be_visible()
    return str(card.get_by_role("link", name="Train").get_attribute("href"))


def choose_method(page: Page, name: str) -> None:
    card = page.locator("label.method", has=page.get_by_text(name, exact=True))
    expect(page.locator("label.method").first).to_be_visible()
    if not card.first.is_visible():
        page.get_by_text("More methods").click()
        page.get_by_label("Search methods").fill(name)
    card.first.click()
    expect(page.locator(".who-learns")).to_contain_text(f"with {name}")


@pytest.mark.browser
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "walk",
    [pytest.param(walk, id=name, marks=[pytest.mark.slow] if walk.slow else []) for name, walk in WALKS.items()],
)
def test_a_task_from_the_upload_to_the_try(
    walk: Walk, page: Page, watch: Watch, server: Server, models: dict[str, Path], tmp_path: Path
) -> None:
    base = re.search(r"base=(\d+)", add_model(page, server, models[walk.base]))
    page.goto(f"{server.url}/datasets")
    page.locator("input[type=file]").first.set_input_files(walk.data(tmp_path))
    page.wait_for_url("**/dataset?id=*")
    dataset = page.url.rsplit("=", 1)[1]

    # The task and the method are chosen on the page; what was typed survives a reload.
    assert base
    page.goto(f"{server.url}/train?dataset={dataset}&base={base[1]}&preset=quick")
    expect(page.locator(".train-summary")).to_contain_text("parameters")
    several = page.locator(".choices label", has_text=walk.task)
    if several.count():
        several.first.click()
    else:
        expect(page.locator(".task-line")).to_contain_text(walk.task)
    choose_method(page, walk.method)
    page.get_by_role("button", name="All settings").click()
    for label, value in (("Most steps", str(STEPS)), ("Maximum length", "128"), ("Evaluations and checkpoints", "1")):
        number(page, label).fill(value)
        number(page, label).press("Tab")
    if walk.given:
        expect(page.get_by_label("Prompt 1")).to_have_count(0)
    expect(page.locator(".train-summary")).to_contain_text(f"{STEPS} steps")
    page.reload()
    expect(page.locator(".train-summary")).to_contain_text(f"{STEPS} steps")
    expect(page.locator(".who-learns")).to_contain_text(f"with {walk.method}")
    expect(page.locator(".check-line.good")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Start training").click()

    # Its own measure is a curve; its details are there in words.
    page.wait_for_url("**/run?id=*", timeout=60_000)
    expect(page.locator("[data-run=badge]")).to_have_text("Completed", timeout=120_000)
    expect(page.locator(".chart h2", has_text=walk.chart)).to_be_visible()
    if walk.seen:
        expect(page.locator("[data-run=evaluation]")).to_contain_text(walk.seen)
    page.set_viewport_size({"width": 390, "height": 844})
    fits(page)
    page.set_viewport_size({"width": 1440, "height": 900})

    if not walk.given:
        expect(page.locator("[data-run=answers]")).not_to_be_empty()
        page.get_by_role("link", name="Chat with it").click()
        page.wait_for_url("**/playground?*")
        expect(page.locator(".panes.heads h3")).to_have_count(2)
        return
    page.get_by_role("link", name="Try it").click()
    page.wait_for_url("**/predict?*")
    for label, text in walk.given:
        page.get_by_label(label, exact=True).fill(text)
    page.get_by_role("button", name="Try it").click()
    said = page.locator(".panes.said .pane").first
    expect(said.locator(walk.said).first).to_be_visible(timeout=120_000)
    page.locator(".try-examples button").first.click()  # a row of the data, one click away
    label, text = walk.given[0]
    expect(page.get_by_label(label, exact=True)).not_to_have_value(text)
    expect(said.locator(walk.said).first).to_be_visible(timeout=120_000)
    page.set_viewport_size({"width": 390, "height": 844})
    fits(page)
