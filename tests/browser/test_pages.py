"""Every page by itself: it opens without a complaint, fits a phone, and a file that is no dataset is told so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

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


# Holds the end of the page's first event stream back until it is let go; counts the events that the page knows of.
HOLD_THE_END = """
const network = window.fetch;
window.joined = 0;
window.fetch = async (resource, options) => {
  const response = await network(resource, options);
  const address = resource.url ?? String(resource);
  if (address.includes('/queue/join')) {
    response.json = async () => {
      const told = JSON.parse(await response.text());
      setTimeout(() => { window.joined += 1; });
      return told;
    };
  }
  if (!address.includes('/queue/data')) return response;
  const words = new TextDecoder();
  const held = new TransformStream({async transform(chunk, out) {
    if (!window.letGo && words.decode(chunk).includes('close_stream')) await new Promise(go => { window.letGo = go; });
    out.enqueue(chunk);
  }});
  return new Response(response.body.pipeThrough(held), {status: response.status, headers: response.headers});
};
"""


@pytest.mark.browser
def test_an_upload_is_heard_of_though_the_page_reads_late_that_its_stream_has_ended(
    page: Page, watch: Watch, server: Server, tmp_path: Path
) -> None:
    page.add_init_script(HOLD_THE_END)
    page.goto(f"{server.url}/datasets")
    page.wait_for_function("Boolean(window.letGo)")
    path, said = bad_files(tmp_path)["encoding"]
    page.locator("input[type=file]").first.set_input_files(path)
    page.wait_for_function("window.joined === 2")
    page.evaluate("window.letGo()")
    expect(page.get_by_role("alert")).to_contain_text(said)


def hold(page: Page, watch: Watch) -> list[Route]:
    """Keep the page's next event from the server: it is in the list once it is sent, and goes on by `continue_`."""
    watch.rest(1)
    held: list[Route] = []
    page.route("**/queue/join*", lambda route: route.continue_() if held else held.append(route))
    return held


@pytest.mark.browser
def test_a_file_that_is_taken_away_is_not_opened_and_another_can_follow(
    page: Page, watch: Watch, server: Server, tmp_path: Path
) -> None:
    page.goto(f"{server.url}/datasets")
    expect(page.get_by_role("button", name="Open Support desk")).to_be_visible()
    held = hold(page, watch)
    files = bad_files(tmp_path)
    page.locator("input[type=file]").first.set_input_files(files["one column"][0])
    page.get_by_role("button", name="Clear").click()
    page.locator("input[type=file]").first.set_input_files(files["encoding"][0])
    expect(page.get_by_role("alert")).to_contain_text("UTF-8")
    held[0].continue_()
    watch.rest(4)
    expect(page.get_by_role("alert")).to_contain_text("UTF-8")
    assert page.url == f"{server.url}/datasets"


class Playground:
    """The page by its parts, at rest, with the settings of an answer in sight."""

    def __init__(self, page: Page, watch: Watch, server: Server) -> None:
        page.goto(f"{server.url}/playground")
        self.page, self.watch = page, watch
        self.heads, self.prompt = page.locator(".panes.heads h3"), page.get_by_placeholder("Ask something")
        self.send, self.alert = page.get_by_role("button", name="Send", exact=True), page.get_by_role("alert")
        expect(self.heads.first).to_be_visible()
        watch.rest(1)
        page.get_by_role("button", name="How answers are drawn").click()
        self.tokens = number(page, "Maximum tokens")
        # Gradio writes a field in a section that has just been opened once more, after it was drawn: what was typed
        # before that is gone. No hand is so fast; Playwright is, where the machine has other work.
        while self.tokens.input_value() != "7":
            self.tokens.fill("7")
            self.tokens.press("Tab")
            page.wait_for_timeout(400)

    def ask(self, press: Callable[[], object], joins: int = 2) -> None:
        """Press, and wait until everything that follows has come: the question is taken, and what answers it ends."""
        joined = self.watch.joined
        press()
        self.watch.rest(joined + joins)

    def enter(self) -> None:
        self.prompt.press("Enter")

    def is_whole(self) -> None:
        expect(self.send).to_be_visible()
        expect(self.page.get_by_text("Earlier chats")).to_be_visible()
        expect(self.page.locator(".conversation")).to_contain_text("Nothing said yet")


@pytest.mark.browser
def test_a_question_that_cannot_be_asked_leaves_the_playground_whole(page: Page, watch: Watch, server: Server) -> None:
    shown = Playground(page, watch, server)
    for press in (shown.enter, shown.send.click):
        shown.ask(press)
        shown.is_whole()
        expect(shown.heads.first).to_be_visible()
        expect(shown.alert).to_have_count(0)

    for typed, said in (("-5", "Maximum tokens to -5"), ("", "Maximum tokens is empty")):
        shown.tokens.fill(typed)
        shown.tokens.press("Tab")
        shown.prompt.fill("What is a buoy?")
        shown.ask(shown.enter)
        shown.is_whole()
        expect(shown.heads.first).to_be_visible()
        expect(shown.alert).to_contain_text(said)
        expect(shown.prompt).to_have_value("What is a buoy?")
    shown.tokens.fill("8")
    shown.tokens.press("Tab")

    boxes = page.locator(".who").get_by_role("checkbox").all()
    for box in boxes:
        box.uncheck()
    shown.ask(shown.enter)
    shown.is_whole()
    expect(shown.alert).to_contain_text("Choose who answers")
    expect(shown.prompt).to_have_value("What is a buoy?")


@pytest.mark.browser
def test_what_was_done_before_a_refusal_does_not_take_its_words_away(page: Page, watch: Watch, server: Server) -> None:
    shown = Playground(page, watch, server)
    held = hold(page, watch)
    for box in page.locator(".who").get_by_role("checkbox").all():
        box.uncheck()
    shown.prompt.fill("What is a buoy?")
    shown.enter()
    expect(shown.alert).to_contain_text("Choose who answers")
    joined = watch.joined
    held[0].continue_()  # the server hears of the choice after the question
    watch.rest(joined)
    expect(shown.heads).to_have_count(0)
    expect(shown.alert).to_contain_text("Choose who answers")


@pytest.mark.browser
def test_enter_counts_while_the_question_before_is_on_its_way(page: Page, watch: Watch, server: Server) -> None:
    shown = Playground(page, watch, server)
    shown.tokens.fill("-5")
    held = hold(page, watch)
    shown.prompt.fill("What is a buoy?")
    shown.enter()
    shown.tokens.fill("")
    shown.enter()
    joined = watch.joined
    held[0].continue_()
    watch.rest(joined + 3)  # the first one's answer, the second question, and its answer
    expect(shown.alert).to_contain_text("Maximum tokens is empty")


# A press, and what is typed on before the page draws its next frame.
PRESS_AND_GO_ON = """(box, press) => {
  if (press === 'Enter') box.dispatchEvent(new KeyboardEvent('keypress', {key: 'Enter', bubbles: true}));
  else document.querySelector('.send').click();
  box.value += ' And a';
  box.dispatchEvent(new Event('input', {bubbles: true}));
}"""


@pytest.mark.browser
@pytest.mark.parametrize("press", ("Enter", "Send"))
def test_what_is_asked_is_what_stood_in_the_box_at_the_press(
    page: Page, watch: Watch, server: Server, press: str
) -> None:
    shown = Playground(page, watch, server)
    shown.tokens.fill("-5")  # refused: no model answers
    shown.prompt.fill("What is a buoy?")
    joined = watch.joined
    with page.expect_request("**/queue/join*") as sent:
        shown.prompt.evaluate(PRESS_AND_GO_ON, press)
    assert sent.value.post_data_json["data"][0] == "What is a buoy?"
    watch.rest(joined + 2)
    expect(shown.prompt).to_have_value("What is a buoy? And a")


@pytest.mark.browser
def test_the_train_page_keeps_typed_prompts_and_marks_what_cannot_be(
    page: Page, watch: Watch, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "tides.csv"
    file.write_text("question,answer\n" + "".join(f"When is tide {n}?,At {n % 12} o'clock.\n" for n in range(20)))
    page.goto(f"{server.url}/datasets")
    page.locator("input[type=file]").first.set_input_files(file)
    page.wait_for_url("**/dataset?id=*")
    held: list[Route] = []
    opened: list[Route] = []

    def after_the_first(route: Route) -> None:  # the check has begun with empty prompts, and the server not heard of it
        if opened:
            held.append(route)
        else:
            opened.append(route)
            route.continue_()

    page.route("**/queue/join*", after_the_first)
    page.goto(f"{server.url}/train?dataset={page.url.split('=')[-1]}")
    first = page.get_by_label("Prompt 1", exact=True)
    expect(page.locator(".methods")).to_be_visible()
    first.fill("My own")
    while not held:
        page.wait_for_timeout(20)
    for route in held:
        route.continue_()
    page.unroute("**/queue/join*", after_the_first)
    expect(page.locator(".check-line.good")).to_be_visible()
    watch.rest()
    expect(first).to_have_value("My own")
    expect(page.get_by_label("Prompt 2", exact=True)).to_have_value("")

    page.get_by_role("button", name="All settings").click()
    epochs = page.locator(".field-epochs")
    number(page, "Epochs").fill("")
    expect(epochs).to_have_attribute("data-problem", re.compile("Epochs is empty"))
    expect(number(page, "Epochs")).to_have_attribute("aria-invalid", "true")
    number(page, "Epochs").blur()
    page.locator("h1").first.scroll_into_view_if_needed()
    page.get_by_role("button", name="1 thing to mend first").click()
    expect(number(page, "Epochs")).to_be_focused()
    expect(epochs).to_be_in_viewport()
    number(page, "Epochs").fill("2")
    expect(page.locator("[data-problem]")).to_have_count(0)

    # A setting of the method redraws the layers, too; the reason beside Start stays.
    watch.rest()
    number(page, "Rank (r)").fill("512")
    expect(page.locator(".field-r")).to_have_attribute("data-problem", "The most is 256.")
    watch.rest()
    page.wait_for_timeout(300)
    expect(page.get_by_text("You set Rank (r) to 512: the most is 256.")).to_be_visible()


@pytest.mark.browser
def test_a_page_from_before_a_restart_is_loaded_anew_with_what_was_typed(
    page: Page, watch: Watch, server: Server
) -> None:
    anew = page.get_by_text("This page was loaded anew")

    shown = Playground(page, watch, server)
    shown.prompt.fill("What is a buoy?")
    watch.server_away = True
    server.stop()
    server.start()
    shown.enter()
    expect(anew).to_be_visible()
    watch.server_away = False
    expect(shown.heads.first).to_be_visible()
    expect(shown.prompt).to_have_value("What is a buoy?")
    watch.rest()
    page.reload()
    expect(shown.prompt).to_have_value("What is a buoy?")
    expect(anew).to_have_count(0)

    name = page.get_by_label("Name of the run")
    page.goto(f"{server.url}/train")
    expect(page.locator(".methods")).to_be_visible()
    name.fill("Before the restart")
    watch.rest()
    watch.server_away = True
    server.stop()
    server.start()
    page.get_by_label("Quick").check()
    expect(anew).to_be_visible()
    watch.server_away = False
    expect(name).to_have_value("Before the restart")
    watch.rest()
    page.get_by_label("Quick").check()
    expect(page.get_by_label("Quick")).to_be_checked()
    watch.rest()
    assert "Traceback" not in server.console.read_text(errors="replace")
