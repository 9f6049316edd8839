"""Real Chromium against a real server with the starter model. Every test also fails on console errors and on any
request that leaves the server's own address."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, expect

from tests.serving import PATIENCE, Server, serving

# What a browser reports by itself while the server is away, which some tests mean it to be.
AWAY = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE_CHUNKED_ENCODING")
# What Gradio's own script says when a page is left while a callback streams.
LEFT = ("AbortError: signal is aborted", "Connection errored out")
# Gradio's display of an upload's progress gives up where the server begins to read the upload after 3 seconds, and
# its script logs the refusal, a Response; the upload goes on.
NO_PROGRESS = "/upload_progress?"

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict[str, Any]) -> dict[str, Any]:
    return {**browser_context_args, "viewport": {"width": 1440, "height": 900}}


@pytest.fixture
def page(page: Page) -> Page:
    page.set_default_timeout(PATIENCE)
    return page


@pytest.fixture(scope="session")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all browser tests."""
    with serving(tmp_path_factory.mktemp("browser") / "home", starter) as running:
        yield running
        log = (running.home / "logs" / "server.log").read_text(errors="replace")
        assert "Traceback" not in log, log[max(0, log.find("Traceback") - 300) :][:9000]


class Watch:
    """What a page complained about, where it asked for something else than the server, and whether it is at rest."""

    def __init__(self, page: Page, server: Server) -> None:
        self._own = (server.url, server.url.replace("http", "ws"), "data:", "blob:", "about:")
        self.complaints: list[str] = []
        self.server_away = False
        self.joined = 0  # events that the page has sent to the server
        self._page = page
        self._under_way: set[Request] = set()
        self._heard = True  # a stream has ended since the newest event
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", self._asked)
        page.on("requestfinished", self._ended)
        page.on("requestfailed", self._ended)

    def rest(self, joined: int = 0) -> None:
        """Wait until `joined` events in all have been sent, and the results of all have come."""
        until = time.monotonic() + PATIENCE / 1000
        while self.joined < joined or self._under_way or not self._heard:
            assert time.monotonic() < until, f"{self.joined} events of {joined}, under way: {self._under_way}"
            self._page.wait_for_timeout(20)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        url = str(message.location.get("url"))
        if any(word in message.text for word in LEFT) or NO_PROGRESS in url or message.text == "Response":
            return
        if self.server_away and (any(code in message.text for code in AWAY) or "WebSocket" in message.text):
            return
        if self.server_away and "409 (Conflict)" in message.text and "/queue/join" in url:
            return
        self.complaints.append(f"console: {message.text} ({url})")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(self._own):
            self.complaints.append(f"asked outside: {request.url}")
        if "/queue/" in request.url:
            self._under_way.add(request)
        if "/queue/join" in request.url:
            self.joined += 1
            self._heard = False

    def _ended(self, request: Request) -> None:
        self._under_way.discard(request)
        if "/queue/data" in request.url:
            self._heard = True


@pytest.fixture
def watch(page: Page, server: Server) -> Iterator[Watch]:
    """Use it in every browser test, beside `page`."""
    watch = Watch(page, server)
    yield watch
    assert not watch.complaints


def fits(page: Page) -> None:
    """No page may be wider than its window, once everything is on it."""
    page.wait_for_load_state("networkidle")
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def number(page: Page, label: str) -> Locator:
    """The number box with this label; a slider's is named "number input for ..."."""
    named = page.get_by_label(re.compile(rf"^(number input for )?{re.escape(label)}( \(0: .*\))?$"))
    return named.and_(page.locator("input[type=number]:visible")).first
