"""Every page by itself: it opens without a complaint, fits a phone, and a file that is no dataset is told so."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.ui import pages
from tests.browser.conftest import Watch, fits, number
from tests.serving import Server

SLUGS = sorted(page.SLUG for page in pages())


@pytest.mark.browser
@pytest.mark.parametrize("slug", SLUGS)
def test_a_page_opens_without_a_complaint_and_fits_a_phone(slug: str, page: Page, watch: Watch, server: Server) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{server.url}/{slug}")
    expect(page.locator("h1:visible, h2:visible").first).to_be_visible()
    page.wait_for_timeout(500)  # what comes after the first drawing
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        fits(page)


@pytest.mark.browser
def test_every_navigation_link_leads_to_its_page(page: Page, watch: Watch, server: Server) -> None:
    page.goto(server.url)
    links = page.get_by_role("navigation", name="Pages").get_by_role("link")
    expect(links.first).to_be_visible()
    found = [(link.inner_text().strip(), link.get_attribute("href")) for link in links.all()]
    assert [name for name, _ in found][:2] == ["Home", "Datasets"]
    for name, href in found:
        page.goto(f"{server.url}{href}")
        current = page.get_by_role("navigation", name="Pages").locator("[aria-current=page]")
        expect(current).to_have_text(name)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """name: (a file that cannot be a dataset, what the page must say)."""
    made = {
        "empty": ("empty.csv", b"", "empty"),
        "encoding": (
            "latin.csv",
            "question,answer\nWer?,Jürgen\n".encode("utf-16-le"),
            "UTF-8",
        ),
        "one column": ("names.csv", b"name\nAda\nGrace\nEdsger\n", "column"),
        "not JSON": ("broken.json", b'[{"prompt": "a", "completion": ', "JSON"),
        "not a table": ("picture.csv", bytes(range(256)) * 40, "binary"),
        "unknown kind": ("movie.mp4", b"\x00\x00\x00\x18ftypmp42" * 20, "CSV"),
    }
    for name, content, _ in made.values():
        (folder / name).write_bytes(content)
    return {kind: (folder / name, said) for kind, (name, _, said) in made.items()}


@pytest.mark.browser
def test_a_file_that_is_no_dataset_is_refused_in_words(
    page: Page, watch: Watch, server: Server, tmp_path: Path
) -> None:
    for kind, (path, said) in bad_files(tmp_path).items():
        page.goto(f"{server.url}/datasets")
        page.locator("input[type=file]").first.set_input_files(path)
        if kind == "one column":  # readable: the person may say that it is plain text
            page.wait_for_url("**/dataset?id=*")
            expect(page.get_by_text("What the columns mean")).to_be_visible()
            continue
        alert = page.get_by_role("alert").first
        expect(alert, f"nothing was said about {kind}").to_contain_text(said)
        assert "Traceback" not in alert.inner_text()
        assert len(alert.inner_text()) > 20


@pytest.mark.browser
def test_a_question_that_cannot_be_asked_leaves_the_playground_whole(page: Page, watch: Watch, server: Server) -> None:
    page.goto(f"{server.url}/playground")
    heads, prompt = page.locator(".panes.heads h3"), page.get_by_placeholder("Ask something")
    send, alert = page.get_by_role("button", name="Send", exact=True), page.get_by_role("alert")
    expect(heads.first).to_be_visible()
    page.get_by_role("button", name="How answers are drawn").click()

    def whole() -> None:
        page.wait_for_timeout(700)  # what would come after the refusal, and empty the page
        expect(send).to_be_visible()
        expect(page.get_by_text("Earlier chats")).to_be_visible()
        expect(page.locator(".conversation")).to_contain_text("Nothing said yet")

    for key in ("Enter", None):
        prompt.press(key) if key else send.click()
        whole()
        expect(heads.first).to_be_visible()
        expect(alert).to_have_count(0)

    tokens = number(page, "Maximum tokens")
    for typed, said in (("-5", "Maximum tokens to -5"), ("", "Maximum tokens is empty")):
        tokens.fill(typed)
        tokens.press("Tab")
        page.wait_for_timeout(300)  # an emptied number reaches Gradio's state a little later
        prompt.fill("What is a buoy?")
        prompt.press("Enter")
        expect(alert).to_contain_text(said)
        whole()
        expect(heads.first).to_be_visible()
        expect(alert).to_contain_text(said)
        expect(prompt).to_have_value("What is a buoy?")
    tokens.fill("8")
    tokens.press("Tab")

    for box in page.locator(".who").get_by_role("checkbox").all():
        box.uncheck()
    prompt.press("Enter")
    expect(alert).to_contain_text("Choose who answers")
    whole()
    expect(alert).to_contain_text("Choose who answers")
    expect(prompt).to_have_value("What is a buoy?")
