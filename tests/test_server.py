"""The server as a process: who may run it, who may talk to it, what it serves, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.access import Access
from app.server import SESSIONS_KEPT, create_app, sweep
from jobs.service import Service
from jobs.supervise import worker_lives
from storage import db
from storage.files import Home
from storage.states import RunState
from storage.tables import Adapter
from tests.feed import add_run, fill, no_starter
from tests.rundirs import wait_for
from tests.serving import ROOT, Server, free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home.at(tmp_path_factory.mktemp("server"))
    no_starter(home)
    db.migrate(home.database)
    engine = db.connect(home.database)
    fill(engine)
    run_id = add_run(engine, RunState.COMPLETED, 'Naïve "name"\r\nX-Bad: 1')
    adapter = home.run(run_id) / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    with db.write(engine) as session:
        session.add(
            Adapter(
                name="Naïve \"name\"\r\nX-Bad: 1", run_id=run_id, base_model_id=1, method="lora", task="chat",
                path=home.relative(adapter), step=1, trainable_parameters=1, size_bytes=2,
            )
        )  # fmt: skip
    engine.dispose()
    made = Server(home.root)
    made.start()
    yield made
    made.close()


def ask(server: Server, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request(method, path, headers=headers)
    return connection.getresponse()


def second(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "app.py", *options], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_second_server_on_the_same_home_says_who_has_it(server: Server) -> None:
    ended = second("--home", str(server.home), "--port", str(free_port()))
    assert ended.returncode == 1
    assert f"process {server.pid}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_said_with_what_to_do(server: Server, tmp_path: Path) -> None:
    ended = second("--home", str(tmp_path), "--port", str(server.port))
    assert ended.returncode == 1
    assert f"Port {server.port} is in use" in ended.stderr
    assert f"--port {server.port + 1}" in ended.stderr


@pytest.mark.parametrize(
    ("options", "words"), [(["--host", "no.such.invalid"], "--host"), (["--port", "99999"], "port")]
)
def test_an_address_that_is_none_is_said(options: list[str], words: str, tmp_path: Path) -> None:
    ended = second("--home", str(tmp_path), *options)
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_name_that_is_not_ours_gets_no_answer(server: Server) -> None:
    assert ask(server, "GET", "/", Host="evil.example").status == 400
    assert ask(server, "GET", "/", Host=f"localhost:{server.port}").status == 200


def test_another_site_may_not_change_anything(server: Server) -> None:
    paths = ("/live/runs/1/delete", "/gradio_api/queue/join", "/gradio_api/upload")
    for path in paths:
        assert ask(server, "POST", path, Origin="https://evil.example").status == 403
        assert ask(server, "POST", path, Origin="null").status == 403
    answer = ask(server, "GET", "/", Origin="https://evil.example")
    assert answer.getheader("Access-Control-Allow-Origin") is None


def call(access: Access, host: str, origin: str | None = None) -> int:
    """The status that the middleware gives a POST; 200 where it lets it through."""
    statuses: list[int] = []

    async def through(scope: Any, receive: Any, send: Any) -> None:
        statuses.append(200)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    access._app = through
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    asyncio.run(access(scope, None, send))  # type: ignore[arg-type]
    return statuses[0]


def test_on_every_address_numbers_are_known_and_names_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_HOSTS", "graft.example.org")
    monkeypatch.setenv("SPACE_HOST", "me-graft.hf.space")
    access = Access(None, "0.0.0.0")  # type: ignore[arg-type]
    for host in ("192.168.1.7:7860", "[fe80::1]:7860", "localhost", "graft.example.org", "me-graft.hf.space"):
        assert call(access, host) == 200, host
    for host in ("evil.example", "other.hf.space", "", "["):
        assert call(access, host) == 400, host
    assert call(access, "10.0.0.1:7860", "https://graft.example.org") == 200  # a proxy that rewrites the Host
    assert call(access, "localhost:7860", "http://localhost:3000") == 403  # another program on this machine


def test_a_page_asks_nobody_but_this_server(server: Server) -> None:
    text = ask(server, "GET", "/").read().decode()
    # What a browser fetches by itself; Gradio names its own site in <meta> tags, which nothing fetches.
    fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\\?\"(https?://[^\"\\]+)", text)
    assert fetched == []


def test_an_upload_that_is_broken_off_is_a_line_in_the_log_and_no_traceback(server: Server) -> None:
    log = server.home / "logs" / "server.log"
    before = len(log.read_text())
    with socket.create_connection(("127.0.0.1", server.port)) as sender:
        sender.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\nabc'
        )
    wait_for(lambda: "/gradio_api/upload was broken off" in log.read_text()[before:])
    assert "Traceback" not in log.read_text()[before:]


def test_an_event_stream_for_a_page_that_has_left_is_a_line_in_the_log_and_no_traceback(server: Server) -> None:
    log = server.home / "logs" / "server.log"
    before = len(log.read_text())
    with contextlib.suppress(http.client.IncompleteRead):
        ask(server, "GET", "/gradio_api/queue/data?session_hash=gone").read()
    wait_for(lambda: "/gradio_api/queue/data was broken off" in log.read_text()[before:])
    assert "Traceback" not in log.read_text()[before:]


def test_gradio_forgets_the_pages_used_longest_ago(home: Home) -> None:
    with contextlib.closing(Service(home)) as service:
        routes = create_app(service).routes
        holder = next(route.app.state_holder for route in routes if hasattr(getattr(route, "app", None), "blocks"))
        for number in range(SESSIONS_KEPT + 2):
            holder.session_data[str(number)] = object()
            holder.update(str(number))
        assert len(holder.session_data) == SESSIONS_KEPT and "0" not in holder.session_data


def test_our_own_files_are_kept_by_the_browser(server: Server) -> None:
    for name in ("app.css", "run.js", "uPlot.iife.min.js", "icon.svg"):
        answer = ask(server, "GET", f"/graft/{name}")
        assert answer.status == 200
        assert "immutable" in str(answer.getheader("Cache-Control"))
    assert ask(server, "GET", "/graft/../server.py").status == 404


def test_an_adapter_comes_as_an_attachment_under_a_plain_name(server: Server) -> None:
    answer = ask(server, "GET", "/download/adapters/1")
    assert answer.status == 200
    assert re.fullmatch(r'attachment; filename="[A-Za-z0-9._-]+\.zip"', str(answer.getheader("Content-Disposition")))
    assert answer.getheader("X-Bad") is None
    with zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
        assert any(name.endswith("adapter_config.json") for name in archive.namelist())
    missing = ask(server, "GET", "/download/adapters/99")
    assert missing.status == 404
    assert "99" in missing.read().decode()


def test_an_address_that_names_no_page_is_a_page_in_a_browser_and_json_elsewhere(server: Server) -> None:
    answer = ask(server, "GET", "/no%3Cb%3E", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    text = answer.read().decode()
    assert answer.status == 404 and 'href="/"' in text and "There is no such page" in text
    assert "/no&lt;b&gt;" in text and "<b>" not in text
    for method, path, accepts in (("GET", "/nope", "*/*"), ("POST", "/nope", "text/html")):
        answer = ask(server, method, path, Accept=accepts)
        assert answer.status in (404, 405) and answer.getheader("content-type") == "application/json"
    answer = ask(server, "GET", "/live/runs/99/snapshot", Accept="text/html")
    assert answer.status == 404 and answer.getheader("content-type") == "application/json"


@pytest.mark.parametrize("path", ["/download/adapters/{}", "/live/runs/{}/snapshot"])
def test_a_number_that_no_row_can_have_is_refused(server: Server, path: str) -> None:
    assert ask(server, "GET", path.format(10**30)).status == 422


def test_a_worker_that_dies_is_replaced(server: Server) -> None:
    home = Home.at(server.home)
    wait_for(lambda: worker_lives(home) and home.worker_lock.read_text().isdigit())
    first = int(home.worker_lock.read_text())
    psutil.Process(first).kill()
    wait_for(lambda: worker_lives(home) and home.worker_lock.read_text() not in ("", str(first)), 120)


def test_ctrl_c_ends_the_server_with_a_sentence_and_leaves_the_worker(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    no_starter(home)
    server = Server(home.root)
    try:
        server.start()
        wait_for(lambda: worker_lives(home), 120)
        with socket.create_connection(("127.0.0.1", server.port)):  # a browser that keeps its connection
            began = time.monotonic()
            server.stop(signal.SIGINT)
            assert time.monotonic() - began < 50  # it ended by itself: after 60 s it is killed
        said = server.console.read_text()
        assert f"Graft is at http://127.0.0.1:{server.port}" in said
        assert "Graft has stopped." in said
        assert "Traceback" not in said
        assert worker_lives(home)
    finally:
        server.close()


def test_old_uploads_go_and_new_ones_stay(home: Home) -> None:
    old, new = home.uploads / "a" / "old.csv", home.uploads / "b" / "new.csv"
    for file in (old, new):
        file.parent.mkdir()
        file.write_text("x")
    os.utime(old, (0, 0))
    sweep(home.uploads)
    assert not old.parent.exists()
    assert new.exists()
