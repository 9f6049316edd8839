"""A real server process for tests, screenshots and benchmarks: `python app.py` on a free port with its own home."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
# How long a browser test waits for what has to come, in milliseconds: a machine may be slow and have neighbours.
PATIENCE = 60_000
# Chromium's arguments, for tests and measurements: no sandbox for root, nothing asked of the network.
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lend_starter(starter: Path, home: Path) -> None:
    """Put a converted starter model into a home, as hard links where the disk allows."""
    target = home / "models" / starter.name
    target.mkdir(parents=True)
    for file in starter.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy(file, target / file.name)


class Server:
    """One server at `url`; `stop` and `start` again serve the same home on the same port."""

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.console = home / "console.txt"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process, "not started"
        return self._process.pid

    def start(self, timeout: float = 240) -> None:
        """Returns once the first page is served. Raises RuntimeError with the console's text where it never is."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                [sys.executable, "app.py", "--home", str(self.home), "--port", str(self.port)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        until = time.monotonic() + timeout
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url, timeout=30) as answer:
                answer.read()
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"The server did not start:\n{self.console.read_text(errors='replace')}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server's process alone: the worker and what trains go on."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """End the server and every process that still works for its home."""
        self.stop()
        root = str(self.home)
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(root in part for part in process.cmdline()):
                    mine += [process, *process.children(recursive=True)]
        for process in mine:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(mine, 60)


@contextlib.contextmanager
def serving(home: Path, starter: Path | None = None) -> Iterator[Server]:
    """A started server for the length of a `with` block, with the starter model where one is given."""
    if starter:
        lend_starter(starter, home)
    server = Server(home)
    try:
        server.start()
        yield server
    finally:
        server.close()
