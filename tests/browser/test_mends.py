"""A dataset with faults: what the check finds, a mend shown before it is done, applied, and taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Watch, fits
from tests.serving import Server


def chat(*said: str) -> dict[str, Any]:
    roles = {"u": "user", "a": "assistant"}
    return {"messages": [{"role": roles[one[0]], "content": one[2:]} for one in said]}


@pytest.mark.browser
@pytest.mark.timeout(600)
def test_a_mend_is_shown_applied_and_undone(page: Page, watch: Watch, server: Server, tmp_path: Path) -> None:
    rows = [chat(f"u:Where is ship {n}?", f"a:Ship {n} lies at the northern pier.") for n in range(20)]
    rows += [chat("u:Hello?", "u:Anybody there?", "a:Yes, at your service."), rows[3]]
    path = tmp_path / "harbour.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    page.goto(f"{server.url}/datasets")
    page.locator("input[type=file]").first.set_input_files(path)
    page.wait_for_url("**/dataset?id=*")
    good = page.locator(".figure", has_text="Good rows").locator("dd")
    expect(good).to_have_text("21")
    expect(page.locator(".findings > li.warn")).to_contain_text("1 row repeats an earlier row word for word.")

    page.get_by_role("button", name="Merge turns of one speaker …").click()
    trial = page.locator(".trial")
    expect(trial).to_contain_text("1 row is changed.")
    expect(trial.locator("ins")).to_have_count(1)
    expect(good).to_have_text("21")  # shown, not done
    trial.get_by_role("button", name="Apply").click()
    expect(good).to_have_text("22")
    expect(page.locator(".findings > li.bad")).to_have_count(0)

    page.get_by_role("button", name="Drop duplicates …").click()
    page.locator(".trial").get_by_role("button", name="Apply").click()
    expect(page.locator(".figure", has_text="Good rows")).to_contain_text("1 mended away")
    expect(page.locator(".applied > li")).to_have_count(2)
    page.get_by_label("Row", exact=True).fill("22")
    page.get_by_label("Row", exact=True).press("Enter")
    expect(page.locator(".check")).to_contain_text("your mend 'Drop duplicates' leaves it out")
    page.reload()
    expect(page.locator(".applied > li")).to_have_count(2)
    fits(page)
    page.locator(".applied > li", has_text="Merge turns").get_by_role("button", name="Undo").click()
    expect(good).to_have_text("20")
    expect(page.locator(".applied > li")).to_have_count(1)


@pytest.mark.browser
@pytest.mark.timeout(600)
def test_what_was_detected_is_overruled(page: Page, watch: Watch, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "opinions.csv"
    lines = [f"the pier number {n} is fine and wide,{('good', 'bad')[n % 2]}" for n in range(30)]
    path.write_text("review,sentiment\n" + "\n".join(lines), "utf-8")
    page.goto(f"{server.url}/datasets")
    page.locator("input[type=file]").first.set_input_files(path)
    page.wait_for_url("**/dataset?id=*")
    expect(page.locator(".top .note")).to_contain_text('"sentiment" names what "review" is; 30 of 30 sampled rows fit')
    expect(page.locator(".learns")).to_contain_text("good")
    expect(page.locator(".label-counts li")).to_have_count(2)
    page.get_by_role("button", name="Change columns").click()
    page.get_by_label("Each row is").click()
    page.get_by_role("option", name="Prompt and completion").click()
    expect(page.locator("input[aria-label=Completion]")).to_have_value("sentiment")
    page.get_by_role("button", name="Use these columns").click()
    expect(page.locator(".tokens")).to_contain_text("assistant")
    expect(page.locator(".legend .trained")).to_be_visible()
