"""The server: one FastAPI parent with Gradio's pages at "/", the live side, downloads, and the worker's upkeep.

Training does not live here: a run goes on when this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import logging
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app import ui
from app.access import Access
from app.live import Hub
from app.live_routes import RowId, router
from app.missing import not_found
from app.theme import STATIC, head, theme
from jobs.errors import UserError
from jobs.service import Home, Service
from jobs.supervise import ensure_worker, keep_worker

MAX_UPLOAD = "2gb"
LOCK_PATIENCE = 1.0  # seconds; the worker takes the lock for an instant to see whether a server lives
WORKER_INTERVAL = 2.0  # seconds
UPLOADS_KEPT = 24 * 3600  # seconds; what was added to the catalog has been removed long before
UPLOADS_SWEPT = 3600  # seconds between two sweeps
# Gradio keeps what it knew of each page ever opened, half a megabyte, up to ten thousand of them. The one used longest
# ago goes first; a page that is forgotten while it is open loads itself anew (_KnownPages).
SESSIONS_KEPT = 1_000
PAGE = "x-graft-page"  # the header in which a page that was answered before says who it is

log = logging.getLogger("graft")


class _LeftPages:
    """Gradio raises in mid-stream where a page that has just left asks for its event stream: a line in the log, no
    traceback, as for an upload that is broken off. An ASGI middleware, since the answer has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http" or not scope["path"].endswith("/queue/data") or not _is_404(error):
                raise
            log.info("A request to %s was broken off: its page has left.", scope["path"])


def _is_404(error: BaseException | None) -> bool:
    """Whether it is, or was raised because of, an answer "not found"."""
    while error and not (isinstance(error, HTTPException) and error.status_code == 404):
        error = error.__cause__ or error.__context__
    return error is not None


class _KnownPages:
    """Refuses (409) an event of a page that Gradio no longer knows, after a restart or for too many pages: it would be
    answered as if nothing stood in the page's fields. static/queue.js then loads the page anew. An ASGI middleware."""

    def __init__(self, app: ASGIApp, blocks: gr.Blocks) -> None:
        self._app = app
        self._blocks = blocks  # which get what they know of their pages when they are mounted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/queue/join"):
            page = Headers(scope=scope).get(PAGE)
            if page and page not in self._blocks.state_holder:
                await PlainTextResponse("This page is no longer known. Load it anew.", 409)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Static(StaticFiles):
    """Our own files. Their address carries a version, so a browser may keep them."""

    def file_response(self, *args, **kwargs) -> Response:  # type: ignore[no-untyped-def]
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def create_app(service: Service, host: str = "127.0.0.1", port: int = 7860) -> FastAPI:
    """Everything the server answers. The caller closes the service."""
    os.environ["GRADIO_TEMP_DIR"] = str(service.home.uploads)

    hub = Hub(service, ui.fragments())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.preparation.start()
        service.datasets.warm()  # a second and a half of imports that the first preview need not wait for
        closing = threading.Event()
        threading.Thread(target=_upkeep, args=(service.home, closing), name="upkeep", daemon=True).start()
        looking = asyncio.create_task(hub.run())
        yield
        closing.set()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

    app = FastAPI(title="Graft", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    blocks = ui.build(service)
    app.add_middleware(_KnownPages, blocks=blocks)
    # With a CORS policy on the parent Gradio does not add its own, which reflects every Origin.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(Access, host=host)
    app.add_middleware(_LeftPages)
    app.mount("/graft", _Static(directory=STATIC))

    app.include_router(router(hub))

    @app.exception_handler(UserError)
    async def _user_error(request: Request, error: UserError) -> Response:
        return JSONResponse({"problems": error.problems}, 404 if request.method == "GET" else 409)

    @app.get("/download/adapters/{adapter_id}")
    def download_adapter(adapter_id: RowId) -> Response:
        try:
            name, chunks = service.models.adapter_zip(adapter_id)
        except UserError as error:  # a browser shows it as it is
            return PlainTextResponse("\n".join(error.problems), 404)
        return StreamingResponse(
            chunks, media_type="application/zip", headers={"Content-Disposition": _attachment(name)}
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SSR mode")  # off as it should be; Gradio warns all the same
        return _mount(app, blocks, host, port)


def _mount(app: FastAPI, blocks: gr.Blocks, host: str, port: int) -> FastAPI:
    blocks.state_session_capacity = SESSIONS_KEPT
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=MAX_UPLOAD,
        show_error=False,
        theme=theme(),
        head=head(),
        enable_monitoring=False,
        app_kwargs={"exception_handlers": {404: not_found, ClientDisconnect: _broken_off}},
    )


async def _broken_off(request: Request, error: Exception) -> Response:
    """An upload whose page was closed: nobody hears the answer, and it is no fault that needs a traceback."""
    log.info("A request to %s was broken off by its sender.", request.url.path)
    return Response(status_code=400)


def _upkeep(home: Home, closing: threading.Event) -> None:
    """A worker lives for as long as the server does, and forgotten uploads go. A thread of its own: nothing waits for
    it at the end."""
    try:
        ensure_worker(home)
    except OSError:
        log.exception("The worker could not be started.")
    swept = time.monotonic()
    while not closing.wait(WORKER_INTERVAL):
        if time.monotonic() - swept > UPLOADS_SWEPT:
            swept = time.monotonic()
            sweep(home.uploads)
        try:
            if keep_worker(home):
                log.warning("The worker had ended; a new one was started. Its log: logs/worker.log.")
        except OSError:
            log.exception("The worker could not be started.")


def _attachment(name: str) -> str:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)
    return f'attachment; filename="{safe}"'


def serve(root: str | Path | None, host: str, port: int) -> None:
    """Serve until Ctrl-C. Raises UserError where the home or the port is taken."""
    home = Home.at(root)
    with _only_server(home):
        listening = _listen(host, port)
        _log_to(home.logs / "server.log")
        sweep(home.uploads)
        service = Service(home)
        try:
            config = uvicorn.Config(
                create_app(service, host, port),
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
            )
            _Server(config, url(host, port)).run([listening])
        except KeyboardInterrupt:
            pass
        finally:
            service.close()
            print("Graft has stopped. A run that is training goes on; start Graft again to watch it.", flush=True)


def url(host: str, port: int) -> str:
    """Where a browser on this machine finds the server."""
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Says where it is once it answers."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What stands now stays. To search it for garbage again and again held every page up, 0.27 s each time.
            gc.collect()
            gc.freeze()
            print(f"Graft is at {self._address}   (Ctrl-C stops it)", flush=True)


@contextlib.contextmanager
def _only_server(home: Home) -> Iterator[IO[str]]:
    """Hold the home's server lock. Raises UserError where another server has it."""
    with home.server_lock.open("a+") as lock:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                lock.seek(0)
                process = lock.read().strip()
                raise UserError(
                    f"Graft already runs on the folder {home.root}{f' (process {process})' if process else ''}. "
                    "Use that one, stop it first, or name another folder with --home."
                ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UserError in words where the address cannot be had."""
    if not 0 < port < 65536:
        raise UserError(f"--port {port} is not a port. Choose a number from 1024 to 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        return listening
    except socket.gaierror:
        raise UserError(f"--host {host} is not a name or address of this machine. Try --host 127.0.0.1.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"Port {port} is in use by another program. Stop it, or choose another port: "
                f"python app.py --port {port + 1}"
            ) from None
        raise UserError(f"Graft cannot listen on {host}:{port}: {error.strerror or error}.") from None


def _log_to(path: Path) -> None:
    """Everything to the log file; the console gets warnings of ours only."""
    file = RotatingFileHandler(path, maxBytes=5_000_000, backupCount=2, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[file], force=True)
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING)
    console.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(console)
    for noisy in ("httpx", "httpcore", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def sweep(uploads: Path) -> None:
    """Remove uploads that nobody can need any more."""
    before = time.time() - UPLOADS_KEPT
    for path in sorted(uploads.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            if path.is_dir():
                path.rmdir()  # goes only when empty
            elif path.lstat().st_mtime < before:
                path.unlink()
