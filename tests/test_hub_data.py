"""Datasets on the Hub: which files are fetched, over a real socket from a stand-in that answers as the Hub does."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow
import pytest
from pyarrow import parquet

from app.dataset.top import top_html
from jobs.errors import UserError
from jobs.rpc import RpcClient
from jobs.service.datasets import Datasets, DatasetView
from jobs.service.models import Models
from storage.db import connect, migrate
from storage.files import Home

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def table(*texts: str) -> bytes:
    target = io.BytesIO()
    rows = [{"instruction": text, "input": "", "output": f"re: {text}"} for text in texts]
    parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    return target.getvalue()


CONVERTED = {  # by repository: the branch refs/convert/parquet
    "owner/alpaca": {
        "default/train/0000.parquet": table("a", "b"),
        "default/train/0001.parquet": table("c"),
        "default/test/0000.parquet": table("d"),
    },
    "owner/math": {
        "main/train/0000.parquet": table("a"),
        "hard/partial-train/0000.parquet": table("b"),
        "hard/dev/0000.parquet": table("c"),
    },
}
OWN = {  # the repository's own files
    "owner/plain": {
        "README.md": b"# About",
        "data/train.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
        "data/test.jsonl": b'{"text": "three"}\n',
    },
    "owner/table": {"train.csv": b"Ann,Rome\nBob,Oslo\n"},
    "owner/broken": {"train.jsonl": b"{}"},
    "owner/stalled": {"train.jsonl": b"{}"},
    "owner/script": {"README.md": b"# About", "script.py": b"print('never run')"},
    "owner/pictures": {"a.png": b"\x89PNG"},
}


GOES_ON = threading.Event()  # what the Hub leaves unanswered ends with it


class StandIn(BaseHTTPRequestHandler):
    seen: list[str] = []  # noqa: RUF012 - one stand-in at a time

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.seen.append(path)
        repository = "/".join(path.removeprefix("/api").removeprefix("/datasets").split("/")[1:3])
        converted = path.endswith("refs/convert/parquet")
        files = CONVERTED.get(repository) if converted else OWN.get(repository)
        if status := re.search(r"/status-(\d+)", path):
            self._send(b"{}", int(status[1]))
        elif ("stalled" in repository and "/resolve/" in path) or "silent" in path:
            GOES_ON.wait(60)
        elif "gated" in path:
            self._send(b"{}", 403, "GatedRepo")
        elif "portal" in path:
            self._send(b"<html>Please log in</html>")
        elif path.startswith("/api/datasets/") and files:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self._send(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/datasets/"):
            known = repository in CONVERTED or repository in OWN
            self._send(b"{}", 404, "RevisionNotFound" if known else "RepoNotFound")
        else:
            name = path.split(f"/resolve/{COMMIT}/")[-1]
            content = (CONVERTED.get(repository, {}) | OWN.get(repository, {})).get(name)
            if "broken" in repository:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"{")
                self.close_connection = True
                return
            self._send(content or b"", 200 if content else 404, None if content else "EntryNotFound")

    def _send(self, body: bytes, status: int = 200, code: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        if status == 429:
            self.send_header("Retry-After", "120")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def datasets(home: Home) -> Iterator[Datasets]:
    migrate(home.database)
    engine = connect(home.database)
    service = Datasets(home, engine, Models(home, engine))
    yield service
    service.close()
    engine.dispose()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The stand-in's environment."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "HF_TOKEN": "",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
    }
    GOES_ON.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    StandIn.seen.clear()
    return StandIn


@pytest.fixture(scope="module")
def child(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RpcClient]:
    client = RpcClient("jobs.data.ingest", tmp_path_factory.mktemp("logs") / "ingest.txt", environment=server)
    yield client
    client.close()


@pytest.fixture(scope="module")
def known_child(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RpcClient]:
    """One that has a token, and little patience."""
    environment = {**server, "HF_TOKEN": "hf_of_somebody", "HF_HUB_ETAG_TIMEOUT": "1"}
    client = RpcClient("jobs.data.ingest", tmp_path_factory.mktemp("logs") / "ingest.txt", environment=environment)
    yield client
    client.close()


def fetched(datasets: Datasets, hub_id: str, config: str = "", split: str = "") -> DatasetView:
    *_, view = datasets.add_from_hub(hub_id, config, split)
    assert isinstance(view, DatasetView)
    return view


def first_column(datasets: Datasets, view: DatasetView) -> list[object]:
    return [next(iter(row.values())) for row in datasets.head(view.id)]


def test_the_parquet_files_of_a_split_become_a_dataset_once(datasets: Datasets, hub: type[StandIn], home: Home) -> None:
    view = fetched(datasets, " owner/alpaca ")
    assert (view.name, view.filename, view.format) == ("alpaca (train)", "owner/alpaca (train)", "hub")
    assert first_column(datasets, view) == ["a", "b", "c"]
    assert view.mapping and view.mapping.columns["output"] == "output" and view.sure
    assert "2 files are read one after another" in view.detected
    files = {item.name for item in home.dataset(view.fingerprint).iterdir()}
    assert files == {"rows.parquet", "dataset.json"}  # the Hub keeps the originals
    downloads = [path for path in hub.seen if "/resolve/" in path]
    assert fetched(datasets, "owner/alpaca", "default", "train").id == view.id
    assert [path for path in hub.seen if "/resolve/" in path] == downloads  # the same commit is not fetched again
    test = fetched(datasets, "owner/alpaca", split="test")
    assert first_column(datasets, test) == ["d"] and test.id != view.id
    with pytest.raises(UserError, match="came from the Hub, which keeps its files"):
        list(datasets.read_again(view.id, "data"))


def test_a_configuration_is_chosen_by_name_and_a_part_of_a_large_split_is_enough(
    datasets: Datasets, hub: type[StandIn]
) -> None:
    view = fetched(datasets, "owner/math", "hard", "train")
    assert first_column(datasets, view) == ["b"] and view.filename == "owner/math (hard, train)"


def test_without_converted_files_the_repository_s_own_are_read(datasets: Datasets, hub: type[StandIn]) -> None:
    assert first_column(datasets, fetched(datasets, "owner/plain")) == ["one", "two"]
    assert first_column(datasets, fetched(datasets, "owner/plain", split="test")) == ["three"]


def test_a_table_of_the_hub_is_not_offered_to_be_read_again(datasets: Datasets, hub: type[StandIn]) -> None:
    view = fetched(datasets, "owner/table")
    assert view.columns == ("Ann", "Rome") and view.first_row is None
    assert "The first row is" not in top_html(view)
    assert "The first row is data" in top_html(view.model_copy(update={"first_row": "header"}))


@pytest.mark.parametrize(
    ("hub_id", "config", "split", "said"),
    [
        ("owner/math", "", "", r"has several configurations: hard, main. Say which."),
        ("owner/math", "easy", "", r"has no configuration 'easy'. It has: hard, main."),
        ("owner/alpaca", "", "validation", r"has no split 'validation'. It has: test, train."),
        ("owner/plain", "", "validation", r"has no file for the split 'validation'"),
        ("owner/script", "", "", r"is made by a program, which Graft never runs"),
        ("owner/pictures", "", "", r"holds no file in a format that Graft reads"),
        ("owner/gated", "", "", r"accepted its terms: accept them on its page, then set HF_TOKEN to a token"),
        ("owner/missing", "", "", r"has no dataset 'owner/missing', or it is private. Check the name. If so, set HF_"),
        ("owner/status-401", "", "", r"has no dataset 'owner/status-401', or it is private"),
        ("owner/status-403", "", "", r"does not let you read owner/status-403 \(403\). Ask its owner"),
        ("owner/status-429", "", "", r"was asked too often .* Try again in 120 seconds. The Hub allows more"),
        ("owner/status-500", "", "", r"is in trouble and cannot give owner/status-500 now \(500\)"),
        ("owner/status-503", "", "", r"is in trouble and cannot give owner/status-503 now \(503\)"),
        ("owner/status-418", "", "", r"refuses to give owner/status-418 \(418\)"),
        ("owner/portal", "", "", r"does not speak as the Hub does, so owner/portal cannot be fetched. Check the proxy"),
        ("owner/broken", "", "", r"broke while owner/broken was fetched"),
        ("a b/c", "", "", r"'a b/c' is not a Hub id; it should read owner/name"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_sentence(
    child: RpcClient, tmp_path: Path, hub_id: str, config: str, split: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        child.call("fetch", hub_id=hub_id, config=config, split=split, datasets=str(tmp_path))
    assert len(raised.value.problems) == 1
    assert list(tmp_path.iterdir()) == []
    assert not any("script.py" in path for path in StandIn.seen)


@pytest.mark.parametrize(
    ("hub_id", "said"),
    [
        ("owner/gated", r"accept them on its page, with the account that your HF_TOKEN belongs to\."),
        ("owner/missing", r"For a private one the token in HF_TOKEN must be allowed to read it\."),
        ("owner/status-401", r"does not know the token in HF_TOKEN: it is mistyped, or was taken back or has expired"),
        ("owner/status-403", r"give the token in HF_TOKEN the right to read it"),
        ("owner/status-429", r"Try again in 120 seconds\.$"),
        ("owner/silent", r"was asked for owner/silent and said nothing for 1 s"),
        ("owner/stalled", r"was asked for owner/stalled and said nothing for 1 s"),
    ],
)
def test_with_a_token_it_is_said_what_the_token_lacks_and_silence_ends(
    known_child: RpcClient, tmp_path: Path, hub_id: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        known_child.call("fetch", hub_id=hub_id, config="", split="", datasets=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_hub_id_is_needed(datasets: Datasets) -> None:
    with pytest.raises(UserError, match="There is no Hub id to fetch"):
        list(datasets.add_from_hub(" "))


@pytest.mark.parametrize(
    ("offline", "said"),
    [
        ("1", "Graft was started with HF_HUB_OFFLINE set, so it does not ask the Hub for owner/name"),
        ("0", "The Hugging Face Hub does not answer, so owner/name cannot be fetched. Check this machine's connection"),
    ],
)
def test_a_hub_that_does_not_answer_is_said_soon(
    datasets: Datasets, monkeypatch: pytest.MonkeyPatch, offline: str, said: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    began = time.monotonic()
    with pytest.raises(UserError, match=said):
        fetched(datasets, "owner/name")
    assert time.monotonic() - began < 60  # a child that starts on a busy machine, and no retries
