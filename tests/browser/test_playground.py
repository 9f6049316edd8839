"""A long chat of the playground: what the page says is in view, and an answer is kept once."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Locator, Page, expect

from jobs.inference.sampling import Sampling
from jobs.service.chats import Chats, Delta
from jobs.service.models import Models
from storage.db import connect, write
from storage.files import Home
from storage.states import RunState
from storage.tables import BaseModel, Chat, Dataset, Run
from tests import feed
from tests.browser.conftest import Watch, fits, number
from tests.serving import PATIENCE, Server

SIZES = ((1440, 900), (390, 844))
# Whether nothing lies over the middle of an element.
UNCOVERED = """element => {
  const box = element.getBoundingClientRect();
  return element.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2));
}"""
# The second click of a double click falls on a button of the question.
PRESS_TWICE = """keep => {
  keep.click();
  document.querySelector('dialog[open] button').dispatchEvent(new MouseEvent('click', {detail: 2, bubbles: true}));
}"""


def long_chat(server: Server, turns: int = 6) -> int:
    """A chat whose base model has answered so often that it is much higher than a window; its number."""
    home = Home.at(server.home)
    engine = connect(home.database)
    try:
        models = Models(home, engine)
        until = time.monotonic() + PATIENCE / 1000
        while not (bases := [each for each in models.bases() if each.shape.family == "decoder"]):
            assert time.monotonic() < until, "the server has not made the starter model ready"
            time.sleep(0.1)
        chats = Chats(engine, models)
        number = chats.new(bases[0].id, (None,), Sampling()).id
        for turn in range(turns):
            text = f"Answer {turn}.\n\n" + "A buoy floats where it is moored.\n\n" * 8
            said = {0: Delta(pane=0, text=text, tokens=80, seconds=4, finish="end")}
            chats.add_turn(chats.get(number), f"Question {turn}?", Sampling(), said, {})
        return number
    finally:
        engine.dispose()


def open_chat(page: Page, watch: Watch, server: Server, number: int) -> None:
    page.goto(f"{server.url}/playground?chat={number}")
    expect(page.locator(".turn .pane").last).to_be_in_viewport()
    watch.rest(1)
    assert page.evaluate("scrollY") > 600


def in_view(said: Locator) -> None:
    expect(said).to_be_in_viewport(ratio=1)
    assert said.evaluate(UNCOVERED)


@pytest.mark.browser
@pytest.mark.parametrize("size", SIZES, ids=("desk", "phone"))
def test_what_a_long_chat_says_is_in_view_and_an_answer_says_that_it_is_kept(
    page: Page, watch: Watch, server: Server, size: tuple[int, int]
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    chat = long_chat(server)
    open_chat(page, watch, server, chat)
    page.get_by_role("button", name="Keep").last.click()
    page.locator("dialog[open]").get_by_role("button", name="Keep").click()
    said = page.locator(".note.good")
    expect(said).to_contain_text("Kept. It is among your samples.")
    in_view(said)
    kept = page.get_by_role("button", name="Kept")
    expect(kept).to_be_disabled()
    expect(page.get_by_role("button", name="Keep", exact=True)).to_have_count(5)

    page.reload()
    expect(kept).to_be_disabled()
    watch.rest()

    page.get_by_role("button", name="How answers are drawn").click()
    tokens = number(page, "Maximum tokens")
    while tokens.input_value() != "-5":  # Gradio writes a field in a section once more after it was opened
        tokens.fill("-5")
        tokens.press("Tab")
        page.wait_for_timeout(400)
    page.locator(".turn .panes").last.evaluate("last => last.scrollIntoView({block: 'end'})")
    page.get_by_placeholder("Ask something").fill("What is a buoy?")
    page.get_by_placeholder("Ask something").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Maximum tokens to -5")
    in_view(page.get_by_role("alert"))


@pytest.mark.browser
def test_a_double_click_opens_the_question_and_leaves_it_open(page: Page, watch: Watch, server: Server) -> None:
    open_chat(page, watch, server, long_chat(server))
    dialog = page.locator("dialog[open]")
    page.get_by_role("button", name="Keep").last.dblclick()
    expect(dialog).to_be_visible()
    page.wait_for_timeout(700)
    page.mouse.click(5, 5)
    expect(dialog).to_have_count(0)

    page.get_by_role("button", name="Keep").last.evaluate(PRESS_TWICE)
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Keep").click()
    expect(page.get_by_role("button", name="Kept")).to_be_visible()


@pytest.mark.browser
def test_a_deleted_adapters_column_stays_beside_those_that_answer(page: Page, watch: Watch, server: Server) -> None:
    chat = long_chat(server)
    engine = connect(Home.at(server.home).database)
    with write(engine) as session:
        session.get_one(Chat, chat).panes = [None, 999]  # what the catalog holds once the adapter is deleted
    engine.dispose()
    open_chat(page, watch, server, chat)
    expect(page.locator(".panes.heads h3").last).to_have_text("Deleted adapter")
    column = page.locator(".turn").last.locator(".pane")
    expect(column.last).to_contain_text("It was deleted, so it no longer answers.")
    expect(column.first.get_by_role("button", name="Keep")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    fits(page)


@pytest.mark.browser
def test_the_page_of_a_run_that_made_it_worse_says_so(page: Page, watch: Watch, server: Server) -> None:
    home = Home.at(server.home)
    engine = connect(home.database)
    with write(engine) as session:
        base = BaseModel(name="Tiny", source="folder", location="tiny", shape=feed.SHAPE.model_dump(mode="json"))
        dataset = Dataset(
            fingerprint="worse", name="Ships", filename="ships.csv", format="csv", size_bytes=1, rows=1,
            columns=["prompt", "completion"], mapping=None, detection={},
        )  # fmt: skip
        session.add_all((base, dataset))
        session.flush()
        made = {"base_model_id": base.id, "dataset_id": dataset.id}
    run = feed.add_run(engine, RunState.COMPLETED, best_step=30, best_eval_loss=6.54, **made)
    feed.add_history(
        engine, run, [{"step": step, "name": "eval_loss", "value": loss} for step, loss in ((0, 2.967), (30, 6.54))]
    )
    page.goto(f"{server.url}/run?id={run}")
    said = page.locator("[data-run=worse]")
    expect(said).to_contain_text("2.967 before training, and 6.540 at its lowest since, at step 30")
    expect(said).to_be_visible()
    fits(page)
    with write(engine) as session:  # other tests count what is there
        for table, number in ((Run, run), (Dataset, made["dataset_id"]), (BaseModel, made["base_model_id"])):
            session.delete(session.get_one(table, number))
    engine.dispose()
