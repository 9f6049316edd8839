"""Requests to a child process: streams, errors, cancellation, death, and the end with the parent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs.errors import UserError
from jobs.rpc import ChildDied, RpcClient


@pytest.fixture
def client(tmp_path: Path) -> Iterator[RpcClient]:
    client = RpcClient("tests.rpc_child", tmp_path / "child.log")
    yield client
    client.close()


def test_replies_stream_in_order_and_prints_go_to_the_log(client: RpcClient, tmp_path: Path) -> None:
    assert list(client.stream("count", to=5)) == [0, 1, 2, 3, 4]
    assert client.call("count", to=3) == 2
    assert "noise from a library" in (tmp_path / "child.log").read_text()


def test_two_requests_are_answered_at_the_same_time(client: RpcClient, tmp_path: Path) -> None:
    waiting = client.stream("until_cancelled", file=str(tmp_path / "a"))
    assert next(waiting) == "working"
    assert client.call("count", to=2) == 1
    waiting.close()


def test_closing_a_stream_cancels_its_request(client: RpcClient, tmp_path: Path) -> None:
    stream = client.stream("until_cancelled", file=str(tmp_path / "said"))
    next(stream)
    stream.close()
    deadline = time.monotonic() + 60
    while not (tmp_path / "said").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "said").read_text() == "cancelled"


def test_a_childs_problems_arrive_in_its_own_words(client: RpcClient) -> None:
    with pytest.raises(UserError) as caught:
        client.call("fail")
    assert caught.value.problems == ("You set x to 1.", "You set y to 2.")


def test_a_child_that_dies_is_said_and_the_next_request_starts_another(client: RpcClient, tmp_path: Path) -> None:
    waiting = client.stream("until_cancelled", file=str(tmp_path / "never"))
    next(waiting)
    with pytest.raises(ChildDied):
        client.call("die")
    with pytest.raises(ChildDied):
        next(waiting)
    assert client.call("count", to=1) == 0


def test_a_killed_child_is_noticed(client: RpcClient, tmp_path: Path) -> None:
    stream = client.stream("until_cancelled", file=str(tmp_path / "never"))
    next(stream)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(ChildDied):
        next(stream)


def test_the_child_ends_with_its_parents_pipe(client: RpcClient) -> None:
    client.call("count", to=1)
    process = psutil.Process(client.pid)
    client.close()
    assert not process.is_running()
