"""The playground: base and adapters answer side by side from one engine. What is said is kept by its parts: `chats`
(jobs.service.chats) and `samples` (jobs.service.samples)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine

from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.inference.client import EngineClient
from jobs.inference.protocol import Row
from jobs.inference.sampling import Sampling
from jobs.inference.slot import Seat, Slot
from jobs.rpc import ChildDied
from jobs.service.chats import Chats, Delta, messages_of
from jobs.service.models import Models
from jobs.service.samples import DELETED, Samples


class Status(Frozen):
    """What the engine is doing before the first token: "Loading SmolLM2-135M-Instruct"."""

    text: str


@dataclass
class _Turn:
    """One request to the engine: what it is asked, and what has been said."""

    key: str
    rows: list[Row]
    panes: list[int]  # of each row
    said: dict[int, Delta]  # by pane
    engine: dict[str, Any]
    stopped: bool = False  # someone asked it to end; it may not have begun yet

    @classmethod
    def of(cls, rows: list[Row]) -> _Turn:
        return cls(uuid4().hex, rows, list(range(len(rows))), {}, {})


class Playground:
    def __init__(self, engine: Engine, models: Models, slot: Slot) -> None:
        self.chats = Chats(engine, models)
        self.samples = Samples(engine, models, self.chats)
        self._models = models
        self._slot = slot
        self._lock = threading.Lock()
        self._running: dict[int, tuple[_Turn, Seat[EngineClient] | None]] = {}  # by chat

    def delete_chat(self, chat_id: int) -> None:
        """Kept samples stay. A running turn is stopped."""
        self.stop(chat_id)
        self.chats.delete(chat_id)

    def ask(self, chat_id: int, prompt: str, sampling: Sampling) -> Iterator[Status | Delta]:
        """Every pane answers the prompt at once, each with its own history. Answers are kept in the catalog when the
        turn ends (also when it was stopped). Closing the iterator stops it. A pane whose adapter was deleted says
        nothing. Raises UserError where nobody is left, the prompt is empty, or the chat is still answering."""
        if not prompt.strip():
            raise UserError("The prompt is empty. Write something for the model to answer.")
        turn = _Turn.of([])
        with self._lock:
            if chat_id in self._running:
                raise UserError("This chat is still answering. Wait for the end of its answer, or stop it.")
            self._running[chat_id] = (turn, None)
        try:
            yield from self._turn(chat_id, turn, prompt, sampling)
        finally:
            with self._lock:
                del self._running[chat_id]

    def _turn(self, chat_id: int, turn: _Turn, prompt: str, sampling: Sampling) -> Iterator[Status | Delta]:
        """From reading the chat to keeping its answers: nobody else may add a turn to it in between."""
        chat = self.chats.get(chat_id)
        there = {None, *(adapter.id for adapter in self._models.adapters(chat.base_model_id))}
        turn.panes = [pane for pane, adapter_id in enumerate(chat.panes) if adapter_id in there]
        if not turn.panes:
            raise UserError(
                "Nobody is left to answer in this chat: what answered in it was deleted. Press New chat, and choose "
                "who answers."
            )
        turn.rows = [
            Row(
                adapter=self._models.adapter_path(adapter_id) if (adapter_id := chat.panes[pane]) is not None else None,
                messages=messages_of(chat, pane, prompt, sampling.system),
                sampling=sampling,
            )
            for pane in turn.panes
        ]
        whole = False
        try:
            yield from self._answer(chat.base_model_id, turn, chat_id)
            whole = True
        except GeneratorExit:
            whole = True  # the listener went away: what was said until then is the answer
            raise
        finally:
            if whole and turn.said:
                silent = {pane: Delta(pane=pane, text="", tokens=0, seconds=0, finish=None) for pane in turn.panes}
                self.chats.add_turn(chat, prompt, sampling, silent | turn.said, turn.engine)

    def stop(self, chat_id: int) -> None:
        """End the chat's running turn; what was said so far stays."""
        with self._lock:
            turn, seat = self._running.get(chat_id, (None, None))
            if turn:
                turn.stopped = True
        if turn and seat:
            with contextlib.suppress(ChildDied):
                seat.client.stop(turn.key)

    def make_again(self, sample_id: int) -> Iterator[Status | Delta]:
        """Answer a sample's conversation again with its own settings: the same tokens on the same machine.

        The other panes of its turn are computed along where their adapters still exist (see `keep`); only the
        sample's own answer is shown, as pane 0. An answer that was stopped ends where it was stopped.
        """
        sample = self.samples.get(sample_id)
        made = sample.engine
        if sample.adapter == DELETED:
            raise UserError("The adapter that gave this answer was deleted, so it cannot be made again.")
        rows, own = self.samples.batch_of(sample)
        turn = _Turn.of(list(rows))
        limit = made["tokens"] if made.get("finish") == "stopped" else None
        for said in self._answer(sample.base_model_id, turn, None):
            if isinstance(said, Status):
                yield said
            elif said.pane == own:
                ended = limit is not None and said.tokens >= limit
                yield said.model_copy(update={"pane": 0, "finish": "stopped" if ended else said.finish})
                if ended or said.finish:
                    return

    def yield_memory(self) -> str | None:
        """Unload the engine because training needs the device; what was unloaded, in words, or None."""
        name = self._slot.clear("The engine made room for a training run. Ask again when the run has ended.")
        return f"{name} was unloaded from the playground to make room for training." if name else None

    def warm(self, base_model_id: int) -> None:
        """Load a base model in the background, so that the first answer is quick."""
        ref = self._models.ref(base_model_id)

        def load() -> None:
            seat, _ = self._slot.take(ref, EngineClient, wait=0)
            if seat:
                try:
                    with contextlib.suppress(UserError):  # the first question will say what is wrong
                        seat.client.load()
                finally:
                    self._slot.leave(seat)

        threading.Thread(target=load, daemon=True).start()

    def close(self) -> None:
        self._slot.clear("Graft is shutting down.")

    def _answer(self, base_model_id: int, turn: _Turn, chat_id: int | None) -> Iterator[Status | Delta]:
        """Stream a turn from the engine of its base model, filling `turn` as it goes."""
        ref = self._models.ref(base_model_id)
        while True:
            seat, other = self._slot.take(ref, EngineClient)
            if seat:
                break
            if turn.stopped:
                return
            yield Status(text=f"Waiting until {other} has finished its answer")
        try:
            if other:
                yield Status(text=f"Unloaded {other}")
            if chat_id is not None:
                with self._lock:
                    self._running[chat_id] = (turn, seat)
            replies = seat.client.answer(turn.key, turn.rows)
            with contextlib.closing(replies):
                told = False
                for reply in replies:
                    if turn.stopped and not told:
                        told = True
                        seat.client.stop(turn.key)  # it may have been asked for before the engine knew of this turn
                    if reply.status:
                        yield Status(text=reply.status)
                    if reply.engine:
                        turn.engine = reply.engine
                    for more in reply.more:
                        pane = turn.panes[more.row]
                        before = turn.said.get(pane)
                        delta = Delta(
                            pane=pane,
                            text=(before.text if before else "") + more.text,
                            tokens=more.tokens,
                            seconds=more.seconds,
                            finish=more.finish,
                        )
                        turn.said[pane] = delta
                        yield delta
        except ChildDied as error:
            raise UserError(
                seat.ended_because
                or "The engine ended in the middle of its answer, perhaps because memory ran out. Ask again: it starts "
                "anew. Its log is engine.txt."
            ) from error
        finally:
            self._slot.leave(seat)
