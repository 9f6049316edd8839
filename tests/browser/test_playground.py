"""A long chat of the playground: what the page says is in view, and an answer is kept once."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Locator, Page, expect

from jobs.inference.sampling import Sampling
from jobs.service.chats import Chats, Delta
from jobs.service.models import Models
from storage.db import connect
from storage.files import Home
from tests.browser.conftest import Watch, number
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
