"""Requests to a child process over its standard input and output: one JSON object a line, replies may stream.

The child lives exactly as long as its parent wants it: where the pipe closes, it ends. Used by the token child
(jobs/data) and the engine (jobs/inference); training does not use it, because training outlives its parent.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.errors import UserError

Reply = dict[str, Any]


class ChildDied(UserError):
    """The child ended before it had answered."""


class RpcClient:
    """The parent's end. Starts `python -m module` at the first request, and again where it died."""

    def __init__(self, module: str, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._log = log
        self._environment = child_environment() | (environment or {})
        self._lock = threading.RLock()  # the collector may end a forgotten stream in the midst of another's start
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._replies: dict[int, queue.SimpleQueue[Reply | None]] = {}

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self.alive else None

    def start(self) -> None:
        """Start the child now instead of at the first request."""
        with self._lock:
            self._ensure()

    def stream(self, method: str, **params: Any) -> Iterator[Reply]:
        """Every reply to one request, until the child says it is done.

        Raises UserError with the child's own words, and ChildDied where the child ended. Closing the iterator early
        asks the child to cancel the request.
        """
        replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        with self._lock:
            process = self._ensure()
            number = next(self._numbers)
            waiting = self._replies
            waiting[number] = replies
            self._send(process, {"id": number, "method": method, "params": params})
        done = False
        try:
            while True:
                reply = replies.get()
                if reply is None:
                    done = True
                    raise ChildDied(f"The {self._command[2]} process ended while it worked. Its log: {self._log.name}.")
                if "error" in reply:
                    done = True
                    raise UserError(*reply["error"])
                if reply.get("done"):
                    done = True
                    return
                yield reply["value"]
        finally:
            waiting.pop(number, None)
            if not done:
                with contextlib.suppress(OSError), self._lock:
                    self._send(process, {"cancel": number})

    def call(self, method: str, **params: Any) -> Any:
        """The last reply to one request."""
        value = None
        for value in self.stream(method, **params):  # noqa: B007 - the last one counts
            pass
        return value

    def close(self) -> None:
        """End the child: its input closes; if it does not go within 5 s it is ended."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _ensure(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._replies = {}  # the requests of a child that died are answered by its own reader
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment,
                    cwd=Path(__file__).parent.parent,
                )
            threading.Thread(target=self._read, args=(self._process, self._replies), daemon=True).start()
        return self._process

    def _send(self, process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        except (OSError, ValueError):
            if number := message.get("id"):
                self._replies[number].put(None)

    def _read(self, process: subprocess.Popen[bytes], replies: dict[int, queue.SimpleQueue[Reply | None]]) -> None:
        for line in process.stdout:  # type: ignore[union-attr]
            try:
                reply = json.loads(line)
            except ValueError:
                continue  # a library printed to standard output
            if waiting := replies.get(reply.get("id")):
                waiting.put(reply)
        # A dying process still looks alive for a moment: from here on no request may count on this reader.
        with self._lock:
            if self._process is process:
                self._process = None
            for waiting in list(replies.values()):
                waiting.put(None)
        process.wait()


def child_environment() -> dict[str, str]:
    """The environment of every child that computes.

    With OpenMP's default spinning a busy neighbour turned a 1.4 s step into 9-27 s; passive waiting costs little.
    Batches are of many sizes: in segments of fixed size a GPU's memory falls to pieces (on an H100 a run that used
    41 GB reserved 61), in growing ones it does not. On a CPU products are compiled for each size, half a megabyte a
    piece, and both oneDNN and what calls it keep 1,024 of them, of which a step uses some forty. GPUs are counted as
    nvidia-smi counts them, which the page asks.
    """
    return (
        {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        | dict.fromkeys(("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), "128")
        | os.environ
        | {
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "0",
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
    )


class Cancelled(Exception):
    """The parent no longer wants the answer."""


class Request:
    """The child's end of one request: `send` streams a reply, `cancelled` says whether anyone still listens."""

    def __init__(self, number: int, method: str, params: dict[str, Any], write: Callable[[Reply], None]) -> None:
        self.number, self.method, self.params = number, method, params
        self._write = write
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()

    def send(self, value: Any) -> None:
        self._write({"id": self.number, "value": value})

    def done(self) -> None:
        self._write({"id": self.number, "done": True})

    def fail(self, *problems: str) -> None:
        self._write({"id": self.number, "error": list(problems)})


class RpcServer:
    """The child's loop: reads requests on a thread and hands them to `accept`; ends with its input.

    Standard output belongs to the replies: what libraries print goes to standard error, which is the log.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._open: dict[int, Request] = {}

    def serve(self, accept: Callable[[Request], None]) -> None:
        """Blocks until the parent closes the pipe. `accept` must return quickly or run on its own thread."""
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "cancel" in message:
                if request := self._open.get(message["cancel"]):
                    request.cancel()
                continue
            request = Request(message["id"], message["method"], message["params"], self._write)
            self._open[request.number] = request
            accept(request)

    def _write(self, reply: Reply) -> None:
        if reply.get("done") or "error" in reply:
            self._open.pop(reply["id"], None)
        with self._lock:
            self._out.write(json.dumps(reply).encode() + b"\n")
