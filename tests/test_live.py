"""The live side against a real server and worker; the trainer is a feed that says what a test tells it to."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from app import live
from app.messages import Viewer
from jobs.service import Service
from storage import db
from storage.files import Home
from storage.runs import Changes
from storage.states import RunState
from tests.feed import Feed, add_history, add_run, fill, no_starter
from tests.serving import PATIENCE, Server

WAIT = PATIENCE / 1000  # seconds
expect.set_options(timeout=PATIENCE)

ANSWER = {"prompt": "Where is the ship?", "base": "I cannot know.", "tuned": "Arr, at sea!"}


class Scene:
    """A server with one run at work, whose events the test writes."""

    def __init__(self, folder: Path) -> None:
        self.home = Home.at(folder)
        no_starter(self.home)
        db.migrate(self.home.database)
        self.engine = db.connect(self.home.database)
        fill(self.engine)
        self.server = Server(self.home.root)

    def run(self, name: str = "Pirate", steps: int = 5) -> tuple[int, Feed]:
        """A run at step `steps`, followed by the worker from the server's next start or the worker's next look."""
        run_id = add_run(self.engine, RunState.RUNNING, name, step=steps, total_steps=100, phase="Training")
        feed = Feed(self.home, run_id)
        add_history(
            self.engine, run_id, [{"step": step, "name": "loss", "value": 1 / step} for step in range(1, steps + 1)]
        )
        return run_id, feed

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.server.url + path, timeout=WAIT) as answer:
            return json.loads(answer.read())

    def socket(self, path: str, **options: Any) -> ClientConnection:
        return connect(self.server.url.replace("http", "ws") + path, **options)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("live"))
    made.run_id, made.feed = made.run()  # type: ignore[attr-defined]
    made.server.start()
    yield made
    made.feed.close()  # type: ignore[attr-defined]
    made.server.close()
    made.engine.dispose()


@pytest.fixture
def run_id(scene: Scene) -> int:
    return scene.run_id  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def feed(scene: Scene) -> Feed:
    return scene.feed  # type: ignore[attr-defined,no-any-return]


def hear(socket: ClientConnection, enough: Callable[[list[dict[str, Any]]], bool], seconds: float = WAIT) -> list[Any]:
    """The messages until there are enough of them."""
    messages: list[dict[str, Any]] = []
    deadline = time.monotonic() + seconds
    while not enough(messages):
        messages.append(json.loads(socket.recv(timeout=max(0.01, deadline - time.monotonic()))))
    return messages


def losses(messages: list[dict[str, Any]]) -> list[int]:
    return [step for message in messages for step, _ in message.get("points", {}).get("loss", [])]


def steps(messages: list[dict[str, Any]]) -> list[int]:
    """As the run's own step was told."""
    return [message["run"]["step"] for message in messages if "step" in message.get("run", {})]


def test_a_snapshot_has_the_whole_curve_and_the_id_to_go_on_from(scene: Scene, run_id: int) -> None:
    page = scene.get(f"/live/runs/{run_id}/snapshot")
    assert page["series"]["loss"]["steps"][:5] == [1, 2, 3, 4, 5]
    assert page["last_id"] >= 5
    assert page["run"]["state"] == "running"
    assert ("Dataset fingerprint", "f" * 64) in map(tuple, page["details"]["facts"])
    assert dict(dict(page["details"]["settings"])["Training"])["Seed"] == "0"


def test_a_run_that_does_not_exist_is_said_so_once(scene: Scene) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        scene.get("/live/runs/999/snapshot")
    assert refused.value.code == 404
    assert "no run 999" in json.loads(refused.value.read())["problems"][0]
    with scene.socket("/live/runs/999") as socket, pytest.raises(ConnectionClosed) as closed:
        assert "no run 999" in json.loads(socket.recv(timeout=WAIT))["gone"]
        socket.recv(timeout=WAIT)
    assert closed.value.rcvd and closed.value.rcvd.code == 4404


def test_two_viewers_get_what_comes_and_nothing_twice(scene: Scene, run_id: int, feed: Feed) -> None:
    last_id = scene.get(f"/live/runs/{run_id}/snapshot")["last_id"]
    with (
        scene.socket(f"/live/runs/{run_id}?after={last_id}") as first,
        scene.socket(f"/live/runs/{run_id}?after=0") as late,
    ):
        for step in range(6, 26):
            feed.metrics(step, loss=1 / step, learning_rate=1e-3)
        # What is told of the run may be a look older than the numbers that come with it.
        heard = hear(first, lambda messages: 25 in losses(messages) and 25 in steps(messages))
        assert losses(heard) == list(range(6, 26))
        # One who had nothing gets the rest of the history too, in order and once.
        assert losses(hear(late, lambda messages: 25 in losses(messages))) == list(range(1, 26))
    changed = [message["run"] for message in heard[1:] if "run" in message]
    assert changed[-1]["step"] == 25
    assert all("name" not in change for change in changed)  # only what differs


def test_answers_come_when_they_are_made_and_not_again(scene: Scene, run_id: int, feed: Feed) -> None:
    with scene.socket(f"/live/runs/{run_id}?answers=0") as socket:
        feed.say(answers={"step": 25, "answers": [ANSWER]})
        heard = hear(socket, lambda messages: any(message.get("answers") for message in messages))
    assert heard[-1]["answers"][0]["tuned"] == "Arr, at sea!"
    with scene.socket(f"/live/runs/{run_id}?answers=1") as socket:
        assert "answers" not in json.loads(socket.recv(timeout=WAIT))
    assert scene.get(f"/live/runs/{run_id}/snapshot")["run"]["id"] == run_id


def test_the_log_is_sent_only_where_it_is_open(scene: Scene, run_id: int, feed: Feed) -> None:
    feed.say(log="first line\n")
    with scene.socket(f"/live/runs/{run_id}") as socket:
        socket.send(json.dumps({"log": -1}))
        heard = hear(socket, lambda messages: any("log" in message for message in messages))
        assert heard[-1]["log"] == "first line\n"
        assert heard[-1]["log_anew"]
        feed.say(log="second line\n")
        heard = hear(socket, lambda messages: any("log" in message for message in messages))
        assert heard[-1]["log"] == "second line\n"
        socket.send(json.dumps({"log": None}))
        until, step = time.monotonic() + WAIT, 25
        while time.monotonic() < until:  # nothing says when the server has heard it
            step += 1
            feed.say(log=f"line at step {step}\n")
            feed.metrics(step, loss=0.2)
            heard = hear(socket, lambda messages: step in losses(messages))  # noqa: B023
            if not any("log" in message for message in heard):
                break
        else:
            pytest.fail("the log went on")


def test_a_page_of_another_site_may_not_listen(scene: Scene, run_id: int) -> None:
    with (
        pytest.raises(InvalidStatus) as refused,
        scene.socket(f"/live/runs/{run_id}", origin="https://elsewhere.example"),
    ):
        pass
    assert refused.value.response.status_code == 403
    with scene.socket(f"/live/runs/{run_id}", origin=scene.server.url) as socket:
        assert json.loads(socket.recv(timeout=WAIT))["run"]["id"] == run_id


def test_the_list_of_runs_is_sent_anew_when_it_changes(scene: Scene) -> None:
    with scene.socket("/live/fragments/runs") as socket:
        assert "Pirate" in json.loads(socket.recv(timeout=WAIT))["html"]
        add_run(scene.engine, RunState.FAILED, "<b>Poet</b> ${1+1} {{x}}", reason="It had no muse.")
        html = hear(socket, lambda messages: any("muse" in message["html"] for message in messages))[-1]["html"]
    assert "<b>Poet" not in html
    assert "${" not in html
    assert "{{" not in html


def test_stop_is_asked_for_over_http_and_reaches_the_run(scene: Scene) -> None:
    waiting = add_run(scene.engine, RunState.QUEUED, "Waiting")
    with scene.socket(f"/live/runs/{waiting}") as socket:
        assert json.loads(socket.recv(timeout=WAIT))["run"]["words"] == "Waiting: 1 run before this one"
        request = urllib.request.Request(f"{scene.server.url}/live/runs/{waiting}/stop", method="POST")
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            assert json.loads(answer.read())["run"]["state"] == "stopped"
        heard = hear(socket, lambda messages: any(m.get("run", {}).get("ended") for m in messages))
    assert heard[-1]["run"]["reason"] == "Stopped before it started."
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(
            urllib.request.Request(f"{scene.server.url}/live/runs/{waiting}/resume", method="POST"), timeout=WAIT
        )
    assert refused.value.code == 409


def test_a_catalog_that_cannot_be_asked_for_a_moment_does_not_stop_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(Home.at(tmp_path))
    monkeypatch.setattr(live, "AFTER_AN_ERROR", 0.05)
    ask, asked = Changes.any, []

    def fails_at_first(changes: Changes) -> bool:
        asked.append(changes)
        if len(asked) == 1:
            raise sqlite3.OperationalError("disk I/O error")
        return ask(changes)

    monkeypatch.setattr(Changes, "any", fails_at_first)

    async def first_news() -> object:
        numbers = itertools.count()
        hub = live.Hub(service, {"numbers": lambda _: str(next(numbers))})
        channel = await hub.fragment_channel("numbers")
        channel.viewers.add(viewer := Viewer())
        looking = asyncio.create_task(hub.run())
        try:
            return await asyncio.wait_for(viewer.queue.get(), 10)
        finally:
            looking.cancel()

    assert asyncio.run(first_news()) == '{"html":"1"}'
    service.close()


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    yield page
    page.close()


@pytest.mark.browser
def test_the_page_draws_what_comes_and_outlives_a_restart_of_the_server(
    scene: Scene, run_id: int, feed: Feed, window: Page
) -> None:
    errors: list[str] = []
    window.on("pageerror", lambda error: errors.append(str(error)))
    feed.say(answers={"step": 25, "answers": [ANSWER]})
    window.goto(f"{scene.server.url}/run?id={run_id}")
    expect(window.get_by_role("heading", name="Pirate")).to_be_visible()
    expect(window.locator(".chart-large canvas")).to_be_visible()
    expect(window.get_by_text("Arr, at sea!")).to_be_visible()
    feed.metrics(90, loss=0.5)
    window.wait_for_function("Graft.runPage.series.get('loss').steps.at(-1) === 90")
    shown = "(() => { const {min, max} = Graft.runPage.charts[0].uplot.scales.x; return [min, max]; })()"
    window.wait_for_function(f"{shown}[1] === 90")  # the chart grows with the curve
    window.evaluate("window.marked = true")
    scene.server.stop()
    expect(window.get_by_text("Reconnecting")).to_be_visible()
    feed.metrics(91, loss=0.4)  # while no server runs
    scene.server.start()
    expect(window.get_by_text("Reconnecting")).to_be_hidden()
    feed.metrics(92, loss=0.3)
    window.wait_for_function("Graft.runPage.series.get('loss').steps.at(-1) === 92")
    assert window.evaluate("window.marked") is True  # the page was not loaded anew
    steps = window.evaluate("Graft.runPage.series.get('loss').steps")
    assert steps == sorted(set(steps))
    assert {90, 91, 92} <= set(steps)
    window.reload()
    window.wait_for_function("window.Graft?.runPage?.series.get('loss')?.steps.at(-1) === 92")
    assert window.evaluate("Graft.runPage.series.get('loss').steps") == steps
    assert errors == []


@pytest.mark.browser
def test_the_time_left_goes_on_while_a_step_takes_long(scene: Scene, run_id: int, feed: Feed, window: Page) -> None:
    window.goto(f"{scene.server.url}/run?id={run_id}")
    feed.metrics(93, loss=0.3)  # 60 seconds left, it says, and is not heard of again
    left = window.locator("[data-run=figure-time] > :nth-child(2)")
    expect(left).to_have_text(re.compile(r"^5\d s$"))
    window.wait_for_timeout(11_000)
    window.reload()
    expect(left).to_have_text(re.compile(r"^[34]\d s$"))  # and does not begin anew


@pytest.mark.browser
def test_a_run_that_ends_says_so_without_a_reload(scene: Scene, run_id: int, feed: Feed, window: Page) -> None:
    window.goto(f"{scene.server.url}/run?id={run_id}")
    expect(window.get_by_role("button", name="Stop")).to_be_visible()
    feed.say(log="RuntimeError: the muse is silent\n")
    feed.say(result={"state": "failed", "reason": "The muse fell silent at step 92.", "step": 92})
    feed.close()
    expect(window.get_by_text("The muse fell silent at step 92.")).to_be_visible()
    expect(window.get_by_role("button", name="Stop")).to_be_hidden()
    window.get_by_role("button", name="Show the log").click()
    expect(window.get_by_label("Log")).to_contain_text("the muse is silent")


@pytest.mark.browser
def test_names_are_text_and_never_code(scene: Scene, window: Page) -> None:
    name = "<img src=x onerror=window.hit=1> ${window.hit=1} {{x}}"
    run_id = add_run(scene.engine, RunState.FAILED, name, reason="<b>why</b>")
    window.goto(f"{scene.server.url}/run?id={run_id}")
    expect(window.get_by_role("heading", name=name)).to_be_visible()
    expect(window.get_by_text("<b>why</b>")).to_be_visible()
    window.goto(f"{scene.server.url}/runs")
    expect(window.get_by_text(name)).to_be_visible()
    assert window.evaluate("window.hit") is None


@pytest.mark.browser
def test_an_address_without_a_run_is_explained(scene: Scene, window: Page) -> None:
    for query, words in (("?id=999", "There is no run 999"), ("?id=x", "names no run"), ("", "names no run")):
        window.goto(f"{scene.server.url}/run{query}")
        expect(window.get_by_text(words)).to_be_visible()
