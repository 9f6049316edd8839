"""Every page's picture for the README, from a real server: an example trained with one click, a chat, a kept sample.

    make screenshots                      a new home in .bench/, trained for real: a few minutes
    make screenshots ARGS="--home DIR"    a home that this script has filled before: seconds

Writes docs/screenshots/PAGE-LOOK.png, LOOK being light, dark (1440 pixels wide), phone and phone-dark (390).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.serving import CHROMIUM_FLAGS, Server  # noqa: E402 - the repository's root is on the path only now

TARGET = ROOT / "docs" / "screenshots"
LOOKS = {
    "light": (1440, 900, "light"),
    "dark": (1440, 900, "dark"),
    "phone": (390, 844, "light"),
    "phone-dark": (390, 844, "dark"),
}
PAGES = {
    "home": "",
    "datasets": "datasets",
    "dataset": "dataset?id=1",
    "train": "train?dataset=1",
    "methods": "train?dataset=1&method=dora",
    "runs": "runs",
    "run": "run?id=1",
    "models": "models",
    "playground": "playground?chat=1",
    "samples": "samples",
    "measures": "run?id=3",
    "predict": "predict?adapter=3",
}
QUESTIONS = ("What is the capital of Italy?", "How do I bake a cake?")
EXAMPLES = ("Pirate's cook", "Event facts as JSON", "Ticket topics")
MOST_BYTES = 300_000


def train(browser: Browser, server: Server) -> None:
    """The examples, by their buttons on the first page."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    for number, title in enumerate(EXAMPLES, 1):
        page.goto(server.url)
        page.locator(".example", has_text=title).get_by_role("button").first.click(timeout=180_000)
        page.wait_for_url(f"**/run?id={number}")
        print(f"Training {title}", flush=True)
        expect(page.locator("[data-run=badge]")).to_have_text("Completed", timeout=600_000)
    page.close()


def talk(browser: Browser, server: Server) -> None:
    """Chat with the first example's adapter beside the base model, and keep an answer."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{server.url}/playground?adapter=1")
    expect(page.locator(".panes.heads h3")).to_have_count(2)
    page.get_by_role("button", name="How answers are drawn").click()
    temperature = page.get_by_label("number input for Temperature")
    temperature.fill("0")
    temperature.press("Tab")
    for turn, question in enumerate(QUESTIONS, 1):
        page.get_by_placeholder("Ask something").fill(question)
        page.get_by_placeholder("Ask something").press("Enter")
        expect(page.get_by_role("button", name="Keep")).to_have_count(2 * turn, timeout=120_000)
    page.get_by_role("button", name="Keep").nth(1).click()
    page.locator("dialog[open] input").fill("In Meg's voice, and right")
    page.locator("dialog[open]").get_by_role("button", name="Keep").click()
    expect(page.get_by_text("Kept.")).to_be_visible()
    page.close()


def take(browser: Browser, server: Server) -> None:
    """One picture a page and look, with few colours: they are kept in the repository."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for look, (width, height, scheme) in LOOKS.items():
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        page.set_default_timeout(90_000)
        for name, address in PAGES.items():
            page.goto(f"{server.url}/{address}")
            settle(page)
            arrange(page, name)
            picture = Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(192, dither=Image.Dither.NONE)
            file = TARGET / f"{name}-{look}.png"
            picture.save(file, optimize=True)
            if (size := file.stat().st_size) > MOST_BYTES:
                sys.exit(f"{file.name} has {size:,} bytes; at most {MOST_BYTES:,} are kept in the repository.")
        context.close()
        print(f"docs/screenshots/*-{look}.png", flush=True)


def settle(page: Page) -> None:
    """Until nothing on the page is being loaded or drawn any more."""
    page.wait_for_load_state("load")
    page.locator("h1:visible").first.wait_for()
    page.wait_for_timeout(2_500)
    expect(page.locator("[role=progressbar]:visible")).to_have_count(0, timeout=60_000)
    if "/dataset?" in page.url:
        page.locator(".tokens").first.wait_for()


def arrange(page: Page, name: str) -> None:
    """What stands one click or one scroll away, for pictures of it."""
    if name == "methods":
        page.get_by_text("More methods").click()
        page.get_by_text("More methods").evaluate("element => element.scrollIntoView()")
    elif name == "measures":
        page.locator(".evaluation").evaluate("element => element.scrollIntoView()")
    elif name == "predict":
        page.locator(".try-examples button").first.click()
        page.locator(".said .label-bars").first.wait_for()
        page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(500)


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the README's pictures.")
    parser.add_argument("--home", type=Path, help="a home that an earlier call has filled")
    home = parser.parse_args().home
    fresh = home is None
    if home is None:
        home = ROOT / ".bench" / "screenshots"
        shutil.rmtree(home, ignore_errors=True)
    server = Server(home.resolve())
    try:
        server.start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(CHROMIUM_FLAGS))
            if fresh:
                train(browser, server)
                talk(browser, server)
            take(browser, server)
    finally:
        server.close()


if __name__ == "__main__":
    main()
