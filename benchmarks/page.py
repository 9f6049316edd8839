"""How fast the page stays while a model trains on the same cores: the first example, clicked in a real browser.

    python -m benchmarks.page FOLDER_OF_THE_STARTER

A server, its worker and the training child are real, and so is Chromium, which takes its share of the processor. Until
the run has ended, in turns: a field of the train page is changed, and the time to the changed summary taken in the
page; each page is opened, until its content stands; the server is asked for a page's HTML. First the same with nothing
else running. Prints figures and writes benchmarks/results/page.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from jobs.hardware import this_machine
from jobs.service.examples import all_examples
from tests.serving import CHROMIUM_FLAGS, Server, serving

RESULTS = Path(__file__).parent / "results"
CHROMIUM = "/usr/bin/chromium"
PAGES = {"/": "main", "/datasets": "main", "/models": "main", "/runs": "main"}
# In the page: when a field was changed, and the frame after which the summary says something else.
LISTEN = """
const summary = document.querySelector(".train-summary");
const figures = () => summary.querySelector(".sums").textContent;
let before = null;
addEventListener("input", () => {
  window.changed = performance.now(), window.answered = null, before = figures();
}, true);
new MutationObserver(() => {
  if (before === null || figures() === before) return;
  before = null;
  requestAnimationFrame(() => { window.answered = performance.now(); });
}).observe(summary, {childList: true, subtree: true, characterData: true});
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the starter model's folder")
    parser.add_argument("--idle", type=int, default=5, help="rounds before training")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "home", options.base) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        form, pages, run = (browser.new_page(viewport={"width": 1440, "height": 900}) for _ in range(3))
        for page in (form, pages, run):
            page.set_default_timeout(60_000)
        upload(form, server)
        idle = [*rounds(form, pages, server, range(options.idle))]
        run.goto(server.url)
        run.get_by_role("button", name=re.compile("Train", re.I)).first.click()
        run.wait_for_url("**/run?id=*")
        pressed = time.time()
        run.wait_for_function(
            "parseInt(document.querySelector('[data-run=figure-step] dd')?.textContent) >= 1", timeout=300_000
        )
        first_step = time.time() - pressed
        busy = [*rounds(form, pages, server, while_training(run))]
        browser.close()
    found = {
        "hardware": this_machine().model_dump(include={"name", "cores"}),
        "first_step_on_the_page_s": round(first_step, 1),
        "idle": summary(idle),
        "training": summary(busy),
    }
    print(json.dumps(found, indent=2))
    (RESULTS / "page.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def while_training(run: Page) -> Iterator[int]:
    number = 0
    while run.locator("[data-run=badge]").inner_text() not in ("Completed", "Failed", "Stopped", "Interrupted"):
        yield number
        number += 1


def rounds(form: Page, pages: Page, server: Server, numbers: Any) -> Iterator[dict[str, float]]:
    """Each time once, in milliseconds."""
    for number in numbers:
        if number % 5 == 0:
            open_form(form, server)
        found = {"summary": changed(form, 17 + number % 40)}
        for path, landmark in PAGES.items():
            began = time.perf_counter()
            pages.goto(f"{server.url}{path}", wait_until="domcontentloaded")
            pages.locator(landmark).first.wait_for()
            found["page " + path] = 1000 * (time.perf_counter() - began)
            began = time.perf_counter()
            urllib.request.urlopen(f"{server.url}{path}", timeout=60).read()
            found["html " + path] = 1000 * (time.perf_counter() - began)
        yield found
        time.sleep(0.5)


def upload(form: Page, server: Server) -> None:
    """The first example's rows, as a file of one's own."""
    recipe = next(iter(all_examples().values()))
    form.goto(f"{server.url}/datasets")
    form.locator("input[type=file]").first.set_input_files(recipe.path)
    form.wait_for_url("**/dataset?id=*")


def open_form(form: Page, server: Server) -> None:
    form.goto(f"{server.url}/train?dataset=1")
    form.get_by_role("button", name="All settings").click()
    form.locator(".train-summary", has_text="steps").wait_for()
    form.wait_for_load_state("networkidle")
    form.evaluate(f"() => {{{LISTEN}}}")


def changed(form: Page, rank: int) -> float:
    """From a changed rank to the summary that says what follows from it: another number of parameters every time."""
    form.get_by_label(re.compile("^(number input for )?Rank \\(r\\)$")).and_(
        form.locator("input[type=number]:visible")
    ).first.fill(str(rank))
    form.wait_for_function("window.answered")
    return float(form.evaluate("window.answered - window.changed"))


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    """Median and worst of each kind, in milliseconds."""
    kinds: dict[str, list[float]] = {}
    for each in found:
        for name, value in each.items():
            kinds.setdefault(name.split()[0], []).append(value)
    return {
        name: {"count": len(values), "p50": round(statistics.median(values)), "max": round(max(values))}
        for name, values in kinds.items()
    }


if __name__ == "__main__":
    main()
