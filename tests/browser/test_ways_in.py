"""Ways into the datasets other than a file: pasted text and the Hub; and a first row taken for the wrong thing."""

from __future__ import annotations

import re

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


@pytest.mark.browser
def test_a_hub_that_does_not_answer_is_said_in_a_sentence(page: Page, watch: Watch, server: Server) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{server.url}/datasets")
    page.get_by_role("button", name="From the Hugging Face Hub").click()
    page.get_by_label("Dataset", exact=True).fill("owner/name")
    fits(page)
    page.get_by_role("button", name="Fetch").click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer, so owner/name cannot be fetched")
    watch.rest()
