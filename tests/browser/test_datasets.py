"""Ways into the datasets: pasted text, an archive and the Hub; and what was taken for the wrong thing overruled."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Watch, fits
from tests.serving import Server


@pytest.mark.browser
def test_pasted_text_becomes_a_dataset_whose_first_row_can_be_data(page: Page, watch: Watch, server: Server) -> None:
    page.goto(f"{server.url}/datasets")
    page.get_by_role("button", name="Paste text").click()
    page.get_by_role("button", name="Use this text").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no text to take in")
    page.get_by_label("Text").fill("Ann,Rome\nBob,Oslo\nEve,Bonn\n")
    page.get_by_role("button", name="Use this text").click()
    page.wait_for_url(re.compile(r"/dataset\?id="))
    table = page.locator("table.raw")
    expect(table.locator("tbody tr")).to_have_count(2)
    page.get_by_role("button", name="The first row is data").click()
    expect(table.locator("tbody tr")).to_have_count(3)
    expect(table.locator("th").nth(1)).to_have_text("column 1")
    expect(page.get_by_role("button", name="The first row is column names")).to_be_visible()
    watch.rest()


def paste(page: Page, server: Server, text: str) -> None:
    page.goto(f"{server.url}/datasets")
    page.get_by_role("button", name="Paste text").click()
    page.get_by_label("Text").fill(text)
    page.get_by_role("button", name="Use this text").click()
    page.wait_for_url(re.compile(r"/dataset\?id="))


@pytest.mark.browser
def test_pasted_questions_and_answers_are_known_and_may_be_plain_text(page: Page, watch: Watch, server: Server) -> None:
    paste(page, server, "Q: What is it?\nA: A fox.\n\nQ: Where?\nA: Here.\n\nQ: Who?\nA: Me.\n")
    seen = page.locator(".top .note")
    expect(seen).to_contain_text("3 of 3 sampled rows fit: certain. It could also be: plain text.")
    expect(page.locator(".tokens")).to_contain_text("assistant")
    page.get_by_role("button", name="Change columns").click()
    page.get_by_label("Each row is").click()
    page.get_by_role("option", name="Plain text").click()
    expect(page.get_by_label("Text", exact=True)).to_have_value("text")
    page.get_by_role("button", name="Use these columns").click()
    expect(seen).to_contain_text('Chosen by you: text is "text"')
    expect(page.locator(".tokens")).to_contain_text("Q: What is it?")
    watch.rest()


@pytest.mark.browser
def test_how_numbers_are_written_can_be_overruled(page: Page, watch: Watch, server: Server) -> None:
    paste(page, server, "text;score\nnear the sea;4,5\nloud;1,5\nfine;3\n")
    seen = page.locator(".top .note")
    expect(seen).to_contain_text('"score" is a number for "text" with a decimal comma ("4,5")')
    expect(page.locator(".learns")).to_contain_text("4.5")
    page.get_by_role("button", name="Change columns").click()
    written = page.get_by_label("Numbers are written")
    expect(written).to_have_value("1234,5 or 1.234,5")
    page.set_viewport_size({"width": 390, "height": 844})
    fits(page)
    written.click()
    page.get_by_role("option", name="1234.5 or 1,234.5").click()
    page.get_by_role("button", name="Use these columns").click()
    expect(seen).to_contain_text("with commas between thousands")
    expect(page.locator(".check")).to_contain_text("its 'score' is not a number")
    watch.rest()


@pytest.mark.browser
def test_an_archive_is_one_dataset_of_its_files(page: Page, watch: Watch, server: Server, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "talk.zip", "w") as archive:
        archive.writestr("a.csv", "question,answer\na b?,c\n")
        archive.writestr("more/b.csv", "question,answer\nd?,e\nf?,g\n")
        archive.writestr("README.md", "# About\n")
    page.goto(f"{server.url}/datasets")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "talk.zip")
    page.wait_for_url(re.compile(r"/dataset\?id="))
    expect(page.locator("table.raw tbody tr")).to_have_count(3)
    expect(page.locator(".top .note")).to_contain_text("2 files are read one after another: a.csv, more/b.csv.")
    watch.rest()


@pytest.mark.browser
def test_a_hub_that_is_not_asked_is_said_in_a_sentence(page: Page, watch: Watch, server: Server) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{server.url}/datasets")
    page.get_by_role("button", name="From the Hugging Face Hub").click()
    page.get_by_label("Dataset", exact=True).fill("owner/name")
    fits(page)
    page.get_by_role("button", name="Fetch").click()
    expect(page.get_by_role("alert")).to_contain_text("so it does not ask the Hub for owner/name. Start it without")
    watch.rest()
