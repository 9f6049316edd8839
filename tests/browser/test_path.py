"""From an uploaded file to a kept sample, as a person goes it: on the starter model, with reloads and a restart."""

from __future__ import annotations

import csv
import os
import re
import signal
import urllib.request
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from jobs.events import Metrics
from jobs.rundir import RunFiles
from storage.files import Home
from tests.browser.conftest import Watch, fits, number
from tests.rundirs import pause
from tests.serving import PATIENCE, Server

STEPS = 16
TRAINING = 300_000  # milliseconds for what a model computes, on a slow machine with neighbours
# Says whether both panes have had a part of an answer while they were written, however short the moment.
STREAMED = """
window.streamed = false;
new MutationObserver(() => {
  const panes = [...document.querySelectorAll('.turn .pane.writing .answer')];
  window.streamed ||= panes.length === 2 && panes.every(pane => pane.textContent.trim().length > 3);
}).observe(document.querySelector('.conversation'), {childList: true, subtree: true, characterData: true});
"""
ENTER_AND_MORE = """(box, more) => {
  box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true}));
  box.dispatchEvent(new KeyboardEvent('keypress', {key: 'Enter', bubbles: true, cancelable: true}));
  document.execCommand('insertText', false, more);
}"""
ENDING = "Over and out."


def write_dataset(path: Path) -> Path:
    """30 questions and answers in a CSV, and one row without an answer."""
    things = ["tide", "moon", "harbour", "lamp", "anchor", "rope", "gull", "storm", "chart", "bell"]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        for start in ("What is the", "Where do I find the", "Why do we need the"):
            rows.writerows(
                [f"{start} {thing}?", f"Roger. Ask the keeper about the {thing}. {ENDING}"] for thing in things
            )
        rows.writerow(["What is missing?", ""])
    return path


def step_on_page(page: Page) -> int:
    """The step that the run page shows; 0 before the first."""
    text = page.locator("[data-run=figure-step] dd").inner_text()
    found = re.match(r"([\d,]+)", text)
    return int(found[1].replace(",", "")) if found else 0


def wait_for_step(page: Page, step: int) -> None:
    page.wait_for_function(
        "step => parseInt(document.querySelector('[data-run=figure-step] dd')?.textContent) >= step",
        arg=step,
        timeout=TRAINING,
    )


def wait_for_curve(page: Page, first: int, last: int) -> None:
    """Until the page holds the training loss of every step from `first` to `last`, each once and in order, alone."""
    page.wait_for_function(
        "steps => JSON.stringify(window.Graft?.runPage?.series.get('loss')?.steps) === JSON.stringify(steps)",
        arg=list(range(first, last + 1)),
    )


@pytest.mark.browser
@pytest.mark.timeout(1800)
def test_from_an_uploaded_file_to_a_kept_sample(page: Page, watch: Watch, server: Server, tmp_path: Path) -> None:
    # Upload.
    page.goto(f"{server.url}/datasets")
    page.locator("input[type=file]").first.set_input_files(write_dataset(tmp_path / "lighthouse.csv"))
    page.wait_for_url("**/dataset?id=*")
    expect(page.get_by_role("heading", name="lighthouse")).to_be_visible()

    # The preview, from the real tokenizer: the answer is trained, the question is not.
    trained = page.locator(".tokens .trained")
    expect(trained.first).to_be_visible()
    assert ENDING in "".join(trained.all_inner_texts())
    assert "What is the tide?" in "".join(page.locator(".tokens .context").all_inner_texts())
    bad = page.locator(".bad-rows")
    expect(bad).to_contain_text("31")  # the row without an answer, by its number
    expect(page.locator("figure.histogram")).to_have_count(1)

    # Settings, and Start.
    page.get_by_role("link", name="Train on this").click()
    page.wait_for_url("**/train?dataset=*")
    start = page.get_by_role("button", name="Start training")
    expect(page.locator(".train-summary")).to_contain_text("parameters")
    leave_out = page.get_by_label("Leave out bad rows")
    expect(leave_out).to_be_visible()  # the data are checked, and the prompts have got their suggestions
    page.get_by_role("button", name="All settings").click()
    expect(number(page, "Most steps")).to_have_value("0")
    page.locator(".choices label", has_text="Quick").click()
    expect(number(page, "Most steps")).to_have_value("80")  # the preset has set what it sets
    for label, value in (("Epochs", "3"), ("Most steps", str(STEPS)), ("Maximum length", "96")):
        number(page, label).fill(value)
        number(page, label).press("Tab")
    leave_out.check()
    page.get_by_label("Prompt 1", exact=True).fill("What is a buoy?")
    for box in ("Prompt 2", "Prompt 3"):
        page.get_by_label(box, exact=True).fill("")
    expect(page.locator(".train-summary")).to_contain_text(f"{STEPS} steps")
    start.click()
    page.wait_for_url("**/run?id=*")
    address = page.url

    # The loss moves; a reload in mid-run shows the whole curve.
    files = RunFiles(Home.at(server.home).run(int(address.split("=")[-1])))
    trainer = pause(files, lambda event: isinstance(event, Metrics) and event.step >= 2)
    wait_for_step(page, 2)
    page.reload()
    wait_for_step(page, 2)
    before = step_on_page(page)
    assert before < STEPS, "the run was over before the server was stopped"
    wait_for_curve(page, 1, before)

    # The server ends in mid-run and comes back: training went on without it, and the open page goes on by itself.
    watch.server_away = True
    server.stop(signal.SIGKILL)
    os.kill(trainer, signal.SIGCONT)
    server.start()
    wait_for_step(page, before + 1)
    expect(page.locator("[data-run=badge]")).to_have_text("Completed", timeout=TRAINING)
    watch.server_away = False
    wait_for_curve(page, 1, STEPS)
    page.reload()
    expect(page.locator("[data-run=badge]")).to_have_text("Completed")
    wait_for_curve(page, 1, STEPS)
    losses = page.evaluate("Graft.runPage.series.get('loss').values")
    assert sum(losses[-3:]) < sum(losses[:3])
    assert page.evaluate("Graft.runPage.series.get('eval_loss').steps.length") >= 1
    expect(page.locator("[data-run=answers]")).to_contain_text("What is a buoy?")
    expect(page.locator("[data-run=loop]")).to_be_visible()
    expect(page.locator("[data-run=loop]")).to_contain_text("the packed one")

    # A second browser sees the same, and the adapter comes as a PEFT folder.
    other = page.context.browser.new_context()  # type: ignore[union-attr]
    try:
        second = other.new_page()
        second.set_default_timeout(PATIENCE)
        second.goto(address)
        expect(second.locator("[data-run=badge]")).to_have_text("Completed")
        wait_for_curve(second, 1, STEPS)
    finally:
        other.close()
    link = page.get_by_role("link", name="Download adapter").get_attribute("href")
    archive = tmp_path / "adapter.zip"
    urllib.request.urlretrieve(f"{server.url}{link}", archive)
    names = {Path(name).name for name in zipfile.ZipFile(archive).namelist()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names

    # Chat with base and adapter at once; both stream.
    page.get_by_role("link", name="Chat with it").click()
    page.wait_for_url("**/playground?*")
    expect(page.locator(".panes.heads h3")).to_have_count(2)
    page.get_by_role("button", name="How answers are drawn").click()
    for label, value in (("Temperature", "0"), ("Maximum tokens", "40")):
        number(page, label).fill(value)
        number(page, label).press("Tab")
    box = page.get_by_placeholder("Ask something")
    box.fill("What is a compass?")
    page.evaluate(STREAMED)
    held: list[Route] = []

    def hold(route: Route) -> None:  # the server does not hear of it yet
        held.append(route)

    page.route("**/queue/join*", hold)
    box.evaluate(ENTER_AND_MORE, " And")  # no key could be quicker
    box.press_sequentially(" a sextant?")
    for route in held:
        route.continue_()
    page.unroute("**/queue/join*", hold)
    expect(box).to_have_value("And a sextant?")  # what was typed after Enter
    keep = page.get_by_role("button", name="Keep")
    expect(keep).to_have_count(2, timeout=TRAINING)
    assert page.evaluate("window.streamed")
    answers = page.locator(".turn .pane .answer").all_inner_texts()
    assert answers[0] != answers[1]

    # Keep the adapter's answer, and find it again after a reload.
    keep.nth(1).click()
    dialog = page.locator("dialog[open]")
    dialog.locator("input").fill("the keeper's tone")
    dialog.get_by_role("button", name="Keep").click()
    page.get_by_role("link", name="samples", exact=True).click()
    page.wait_for_url("**/samples")
    sample = page.locator("article.sample", has_text="the keeper's tone")
    expect(sample).to_contain_text("What is a compass?")
    assert " ".join(sample.locator(".answer").inner_text().split()) == " ".join(answers[1].split())

    # None of this made the server import torch.
    assert "libtorch" not in Path(f"/proc/{server.pid}/maps").read_text()


@pytest.mark.browser
@pytest.mark.timeout(1200)
def test_the_example_trains_with_one_click_and_stop_leaves_a_usable_adapter(
    page: Page, watch: Watch, server: Server
) -> None:
    page.goto(server.url)
    page.get_by_role("button", name=re.compile("Train", re.I)).first.click()
    page.wait_for_url("**/run?id=*")
    expect(page.locator("[data-run=name]")).to_contain_text("Pirate")
    wait_for_step(page, 2)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("[data-run=badge]")).to_have_text("Stopped", timeout=TRAINING)
    expect(page.get_by_role("link", name="Download adapter")).to_be_visible()
    page.goto(f"{server.url}/models")
    expect(page.get_by_text("Pirate's cook").first).to_be_visible()
    page.goto(f"{server.url}/runs")
    expect(page.get_by_text("Pirate's cook").first).to_be_visible()


@pytest.mark.browser
def test_pages_fit_a_phone_with_something_on_them(page: Page, watch: Watch, server: Server) -> None:
    """After the tests above: a run, its curve, a chat and a sample are there."""
    page.set_viewport_size({"width": 390, "height": 844})
    for address in (
        "",
        "datasets",
        "dataset?id=1",
        "train?dataset=1",
        "runs",
        "run?id=1",
        "models",
        "playground?chat=1",
        "samples",
    ):
        page.goto(f"{server.url}/{address}")
        expect(page.locator("h1:visible, h2:visible").first).to_be_visible()
        fits(page)
