"""Write to pixel: how long from a metric's event to the moment a browser has drawn it, and what that costs the server.

    python -m benchmarks.live            # 100,000 points on the page, 20 viewers, 10 events a second for 30 s

Everything is real: a server process, its worker, a catalog file with the whole history, Chromium pages that draw with
uPlot, and sockets for the rest of the viewers. Only the trainer is replaced: a process appends to the run's
events.jsonl at a steady rate, and the worker carries the events into the catalog as it does for any run. The clock
starts when the event is written and stops in the page at the first frame after the chart was drawn. A drawn step
counts once; a step that was drawn together with a later one counts from its own writing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Page, sync_playwright
from websockets.asyncio.client import connect as connect_socket

from jobs.hardware import this_machine
from storage.db import connect, migrate
from storage.files import Home
from storage.states import RunState
from tests.feed import Feed, add_history, add_run, fill, no_starter
from tests.serving import CHROMIUM_FLAGS, Server

RESULTS = Path(__file__).parent / "results"
CHROMIUM = "/usr/bin/chromium"
SERIES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory")
# In the page: the step that was drawn, and the time of the first frame after it.
LISTEN = """
window.drawn = [];
document.addEventListener("graft:drawn", (event) => {
  const step = event.detail.step;
  requestAnimationFrame(() => { window.drawn.push([step, performance.timeOrigin + performance.now()]); });
});
"""


class Sockets:
    """Viewers without a window: they take the snapshot's last id and then every message, and note when a step came."""

    def __init__(self, url: str, run_id: int, last_id: int, count: int) -> None:
        self._address = f"{url.replace('http', 'ws')}/live/runs/{run_id}?after={last_id}"
        self._count = count
        self.seen: list[tuple[int, float]] = []
        self.bytes = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._all(),), daemon=True)

    def open(self) -> None:
        self._thread.start()
        assert self._ready.wait(30), "the sockets did not open"

    def close(self) -> None:
        for task in self._tasks:
            self._loop.call_soon_threadsafe(task.cancel)
        self._thread.join(10)

    async def _all(self) -> None:
        opened = 0

        async def one() -> None:
            nonlocal opened
            async with connect_socket(self._address, max_size=None) as socket:
                opened += 1
                if opened == self._count:
                    self._ready.set()
                async for message in socket:
                    now = time.time()
                    self.bytes += len(message)
                    if points := json.loads(message).get("points", {}).get("loss"):
                        self.seen += [(step, now) for step, _ in points]

        self._tasks = [asyncio.create_task(one()) for _ in range(self._count)]
        await asyncio.wait(self._tasks)


def history(steps: int) -> list[dict[str, Any]]:
    """`steps` points of the loss, and the other curves at every tenth step."""
    rows = [
        {"step": step, "name": "loss", "value": 0.5 + 3 / (1 + step / 2000) + (step * 7919 % 1000) / 5000}
        for step in range(1, steps + 1)
    ]
    for step in range(10, steps + 1, 10):
        rows += [{"step": step, "name": name, "value": 1.0 + step % 7} for name in SERIES[1:]]
    return rows


def measure(steps: int, viewers: int, pages: int, rate: float, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="graft-live-") as folder:
        home = Home.at(folder)
        no_starter(home)
        migrate(home.database)
        engine = connect(home.database)
        fill(engine)
        run_id = add_run(
            engine, RunState.RUNNING, step=steps, total_steps=2 * steps, phase="Training", peak_memory=10**9
        )
        add_history(engine, run_id, history(steps))
        feed = Feed(home, run_id)
        server = Server(home.root)
        try:
            server.start()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
                opened = [open_page(browser, f"{server.url}/run?id={run_id}") for _ in range(pages)]
                last_id = int(opened[0][0].evaluate("Graft.runPage.lastId"))
                sockets = Sockets(server.url, run_id, last_id, viewers - pages)
                sockets.open()
                written = run_feed(feed, server, steps, rate, seconds, opened[0][0])
                drawn = [page.evaluate("window.drawn") for page, _ in opened]
                points = opened[0][0].evaluate("Graft.runPage.series.get('loss').steps.length")
                sockets.close()
                browser.close()
        finally:
            feed.close()
            server.close()
            engine.dispose()
    result = written | {
        "to_pixel_ms": summary([ms for page in drawn for ms in latencies(written["times"], page)]),
        "to_socket_ms": summary(
            [(at - written["times"][step]) * 1000 for step, at in sockets.seen if step in written["times"]]
        ),
        "kilobytes_a_viewer_a_second": round(sockets.bytes / max(1, viewers - pages) / seconds / 1000, 2),
        "snapshot_to_first_drawing_s": [round(took, 2) for _, took in opened],
        "loss_points_on_the_page": points,
    }
    del result["times"]
    result["load_average"] = [round(load, 1) for load in psutil.getloadavg()]  # other work on the machine shows here
    return result


def open_page(browser: Any, address: str) -> tuple[Page, float]:
    """A page that has drawn its snapshot, and the seconds from navigation to there."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.add_init_script(LISTEN)
    began = time.monotonic()
    page.goto(address)
    page.wait_for_function("window.drawn.length > 0", timeout=60_000)
    return page, time.monotonic() - began


def run_feed(feed: Feed, server: Server, steps: int, rate: float, seconds: float, page: Page) -> dict[str, Any]:
    """Write events at `rate` for `seconds`; when each was written, and what server and worker used meanwhile."""
    processes = {"server": psutil.Process(server.pid), "worker": worker_of(server)}
    for warm in range(1, 21):
        feed.metrics(steps + warm, **dict.fromkeys(SERIES, 1.0))
        page.wait_for_timeout(50)
    first = steps + 21
    before = {name: cpu(process) for name, process in processes.items()}
    began = time.monotonic()
    times: dict[int, float] = {}
    for number in range(int(rate * seconds)):
        due = began + number / rate
        # The page's own clock runs on while we wait: Playwright's wait lets its messages through.
        page.wait_for_timeout(max(0.0, (due - time.monotonic()) * 1000))
        values = {"loss": 0.5 + number % 10 / 50, "learning_rate": 1e-4, "grad_norm": 1.0}
        times[first + number] = feed.metrics(first + number, **values, tokens_per_second=240.0, memory=1e9)
    elapsed = time.monotonic() - began
    used = {f"{name}_cpu_percent": round((cpu(p) - before[name]) / elapsed * 100, 1) for name, p in processes.items()}
    page.wait_for_timeout(1500)
    return {"times": times, "events": len(times), **used}


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def worker_of(server: Server) -> psutil.Process:
    pid = int((server.home / "worker.lock").read_text())
    return psutil.Process(pid)


def latencies(times: dict[int, float], drawn: list[tuple[int, float]]) -> list[float]:
    """Milliseconds from writing to drawing; a step is drawn with the first drawing that shows it or a later one."""
    found: list[float] = []
    drawings = iter(sorted(drawn, key=lambda one: one[1]))
    step, at = next(drawings, (-1, 0.0))
    for wanted in sorted(times):
        while step is None or step < wanted:
            try:
                step, at = next(drawings)
            except StopIteration:
                return found
        found.append(at - times[wanted] * 1000)
    return found


def summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    return {
        "count": len(values),
        "p50": round(statistics.median(ordered), 1),
        "p95": round(ordered[int(len(ordered) * 0.95)], 1),
        "max": round(ordered[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000, help="points of the loss curve before the measurement")
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--pages", type=int, default=2, help="how many of the viewers are Chromium pages")
    parser.add_argument("--rate", type=float, default=10.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    result = measure(options.points, options.viewers, options.pages, options.rate, options.seconds)
    machine = this_machine()
    report = {"settings": vars(options), "machine": {"name": machine.name, "cores": machine.cores}, **result}
    pixel, socket = result["to_pixel_ms"], result["to_socket_ms"]
    print(f"{options.points:,} points, {options.viewers} viewers ({options.pages} of them Chromium pages)")
    print(f"{result['events']} events at {options.rate:g} a second, written to events.jsonl, carried by the worker")
    print(f"  write to pixel    p50 {pixel['p50']:7.1f} ms   p95 {pixel['p95']:7.1f} ms   max {pixel['max']:7.1f} ms")
    print(
        f"  write to socket   p50 {socket['p50']:7.1f} ms   p95 {socket['p95']:7.1f} ms   max {socket['max']:7.1f} ms"
    )
    print(f"  server            {result['server_cpu_percent']:5.1f} % of a core")
    print(f"  worker            {result['worker_cpu_percent']:5.1f} % of a core")
    print(f"  a viewer receives {result['kilobytes_a_viewer_a_second']:5.2f} kB a second")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "live.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written to {(RESULTS / 'live.json').relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
