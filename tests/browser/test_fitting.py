"""Fit it for me: a run that no machine holds becomes one that fits, says what was changed, and can be taken back."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jobs.service import Service
from jobs.service.datasets import DatasetView
from storage.files import Home
from tests.browser.conftest import Watch, fits, number
from tests.serving import Server


@pytest.fixture
def long_rows(server: Server, tmp_path: Path) -> int:
    """The id of a dataset whose 300 rows all have more than the usual maximum length."""
    file = tmp_path / "long.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["question", "answer"])
        rows.writerows([f"Tell me story {number}.", f"Once upon a time {number} " * 300] for number in range(300))
    service = Service(Home(server.home))
    try:
        return next(item.id for item in service.datasets.add(file) if isinstance(item, DatasetView))
    finally:
        service.close()


@pytest.mark.browser
def test_a_run_that_does_not_fit_is_fitted_and_taken_back(
    page: Page, server: Server, watch: Watch, long_rows: int
) -> None:
    page.goto(f"{server.url}/train?dataset={long_rows}&method=full")
    expect(page.locator(".sums")).to_contain_text("steps")
    expect(page.locator(".check-line")).to_contain_text("rows can be used")
    fit = page.get_by_role("button", name="Fit it for me")
    expect(fit).to_be_hidden()
    expect(page.locator(".loop")).to_contain_text("the plain one")
    page.get_by_role("button", name="All settings").click()
    for label, value in (("Micro-batch", "256"), ("Gradient accumulation", "1"), ("Maximum length", "2048")):
        number(page, label).fill(value)
        number(page, label).press("Tab")
    expect(page.locator(".state .badge")).to_have_text("Does not fit")
    expect(page.locator(".check-line")).to_contain_text("2,048 tokens")
    expect(fit).to_be_visible()
    look(page, "before")
    decided_in_sight(page)
    fit.click()
    expect(page.locator(".fitted")).to_contain_text("still 256 rows a step")
    expect(page.locator(".state .badge")).to_have_text("Fits")
    expect(fit).to_be_hidden()
    size, times = (int(number(page, label).input_value()) for label in ("Micro-batch", "Gradient accumulation"))
    assert (size * times, size < 256) == (256, True)
    fits(page)
    look(page, "after")
    page.get_by_role("button", name="Undo").click()
    expect(number(page, "Micro-batch")).to_have_value("256")
    expect(number(page, "Maximum length")).to_have_value("2048")
    expect(page.locator(".fitted")).to_have_count(0)
    expect(fit).to_be_visible()
    fit.click()
    expect(page.locator(".fitted")).to_be_visible()
    number(page, "Epochs").fill("7")
    number(page, "Epochs").press("Tab")
    expect(page.locator(".fitted")).to_have_count(0)  # those are the person's own settings now
    assert not re.search("nan|undefined|None", page.locator(".train-summary").inner_text())


def decided_in_sight(page: Page) -> None:
    """Whether it fits, and Start, are in sight wherever one stands in the form, and nothing is painted over them."""
    decide = page.locator(".decide")
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        for share in (0, 0.3, 0.6, 1):
            page.evaluate("share => scrollTo(0, share * (document.body.scrollHeight - innerHeight))", share)
            page.wait_for_timeout(100)
            expect(decide).to_be_in_viewport(ratio=1)
            covered = decide.evaluate("""bar => {
              const {left, top, width, height} = bar.getBoundingClientRect();
              return [0.1, 0.3, 0.5, 0.7, 0.9].flatMap(x => [0.1, 0.3, 0.5, 0.7, 0.9].map(y => [x, y])).filter(
                ([x, y]) => !bar.contains(document.elementFromPoint(left + x * width, top + y * height))).length;
            }""")
            assert covered == 0, (width, share)


def look(page: Page, name: str) -> None:
    if not (folder := os.environ.get("SHOTS")):
        return
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (1440, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(500)
            page.locator(".train-summary").scroll_into_view_if_needed()
            page.locator(".train-summary").screenshot(path=f"{folder}/{name}-{scheme}-{width}.png")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1440, "height": 900})
