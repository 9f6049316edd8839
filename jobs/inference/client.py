"""The parent's end of the engine: one child process a base model. Imports no torch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from jobs.inference.protocol import Reply, Row
from jobs.rpc import RpcClient
from jobs.spec import BaseModelRef


class EngineClient:
    """Starts its child with the first request, and anew where the child died. Safe from several threads."""

    def __init__(self, base: BaseModelRef, log: Path) -> None:
        arguments = ["--model", base.source, "--name", base.name]
        if base.revision:
            arguments += ["--revision", base.revision]
        self._rpc = RpcClient("jobs.inference.child", log, *arguments)

    @property
    def alive(self) -> bool:
        return self._rpc.alive

    @property
    def pid(self) -> int | None:
        return self._rpc.pid

    def load(self) -> None:
        """Wait until the base model is in memory."""
        self._rpc.call("load")

    def answer(self, key: str, rows: Sequence[Row]) -> Generator[Reply]:
        """Every row's answer as it grows. `key` names it for `stop`. Closing the iterator cancels it.

        Raises UserError in the engine's words, and jobs.rpc.ChildDied where the child ended.
        """
        wanted = [row.model_dump(mode="json") for row in rows]
        for value in self._rpc.stream("answer", key=key, rows=wanted):
            yield Reply.model_validate(value)

    def stop(self, key: str) -> None:
        """End the answer of that key; what was said so far arrives as its end."""
        if self.alive:
            self._rpc.call("stop", key=key)

    def close(self) -> None:
        self._rpc.close()
