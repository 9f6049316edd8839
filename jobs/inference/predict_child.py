"""The predicting process: `python -m jobs.inference.predict_child --model SOURCE [--revision R] --name NAME`.

Answers "predict" (adapters, inputs) with one reply an adapter, in their order; "load" (adapters) when they are in
memory. What is imported is imported at once, before anybody asks. It ends when its parent closes the pipe. Never opens
the catalog.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import UserError
from jobs.inference.protocol import Predicted
from jobs.rpc import Request, RpcServer
from jobs.spec import BaseModelRef

if TYPE_CHECKING:
    from jobs.inference.predictor import Predictor


class Child:
    def __init__(self, base: BaseModelRef) -> None:
        self._base = base
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._loading = True  # what is asked meanwhile is told so

    def accept(self, request: Request) -> None:
        """Called on the reading thread."""
        if self._loading and request.method == "predict":
            self._say_loading(request)
        self._requests.put(request)

    def compute(self) -> None:
        """The computing thread: one request after another, until the process ends."""
        predictor: Predictor | None = None
        with contextlib.suppress(Exception):  # whoever asks first is told what is wrong
            predictor = self._start()
        while True:
            self._loading = False
            request = self._requests.get()
            self._loading = predictor is None or request.method == "load"
            try:
                predictor = predictor or self._start()
                if request.method == "load":
                    for adapter in request.params["adapters"]:
                        predictor.get(Path(adapter))
                else:
                    self._answer(request, predictor)
                request.done()
            except UserError as error:
                request.fail(*error.problems)
            except Exception as error:
                traceback.print_exc()
                request.fail(_words(error))

    def _start(self) -> Predictor:
        import peft  # noqa: F401 - takes seconds, and nearly every adapter needs it

        from jobs.inference.predictor import Predictor

        return Predictor(self._base)

    def _answer(self, request: Request, predictor: Predictor) -> None:
        for adapter in request.params["adapters"]:
            if request.cancelled:
                return
            folder = Path(adapter)
            if not predictor.knows(folder):
                self._say_loading(request)
            began = time.monotonic()
            found, baseline = predictor.predict(folder, request.params["inputs"])
            seconds = time.monotonic() - began
            said = Predicted(predictions=tuple(found), baseline=baseline, seconds=seconds)
            request.send(said.model_dump(mode="json"))

    def _say_loading(self, request: Request) -> None:
        request.send(Predicted(loading=True).model_dump(mode="json"))


def _words(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return "The GPU has too little free memory for this. Wait for a run to end, or shorten the text."
    return f"Nothing could be predicted ({type(error).__name__}); the log engine.txt says why."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    folder = Path(arguments.model)
    if folder.is_dir():
        base = BaseModelRef(name=arguments.name, folder=folder)
    else:
        base = BaseModelRef(name=arguments.name, hub_id=arguments.model, revision=arguments.revision)
    server = RpcServer()
    child = Child(base)
    threading.Thread(target=child.compute, daemon=True).start()
    server.serve(child.accept)
    os._exit(0)  # the computing thread may be in the middle of a text; nobody wants its answer


if __name__ == "__main__":
    main()
