"""The parent's end of the children that answer: one process a base model. Imports no torch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import ClassVar

from jobs.inference.protocol import Predicted, Reply, Row
from jobs.rpc import RpcClient
from jobs.spec import BaseModelRef


class Client:
    """Starts its child with the first request, and anew where the child died. Safe from several threads."""

    module: ClassVar[str]

    def __init__(self, base: BaseModelRef, log: Path) -> None:
        arguments = ["--model", base.source, "--name", base.name]
        if base.revision:
            arguments += ["--revision", base.revision]
        self._rpc = RpcClient(self.module, log, *arguments)

    @property
    def alive(self) -> bool:
        return self._rpc.alive

    @property
    def pid(self) -> int | None:
        return self._rpc.pid

    def close(self) -> None:
        self._rpc.close()


class EngineClient(Client):
    """Of the engine, which writes."""

    module = "jobs.inference.child"

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


class PredictorClient(Client):
    """Of the child that answers with trained heads."""

    module = "jobs.inference.predict_child"

    def load(self, adapters: Sequence[Path]) -> None:
        """Wait until these adapters are in memory."""
        self._rpc.call("load", adapters=[str(adapter) for adapter in adapters])

    def predict(self, adapters: Sequence[Path], inputs: Sequence[dict[str, str]]) -> Generator[Predicted]:
        """What each adapter says of every input, in the adapters' order, and before that what is being loaded.

        Raises UserError in the child's words, and jobs.rpc.ChildDied where the child ended.
        """
        wanted = [str(adapter) for adapter in adapters]
        for value in self._rpc.stream("predict", adapters=wanted, inputs=list(inputs)):
            yield Predicted.model_validate(value)
