"""The playground: base and adapters answer side by side from one engine; chats and samples are kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, or_, select

from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.inference.client import EngineClient
from jobs.inference.protocol import Row
from jobs.inference.sampling import Sampling
from jobs.inference.slot import Seat, Slot
from jobs.rpc import ChildDied
from jobs.service.models import Models
from jobs.tasks import task as find_task
from storage.db import read, write
from storage.tables import Adapter, BaseModel, Chat, ChatAnswer, Sample

MOST_PANES = 8


class Delta(Frozen):
    """More of one pane's answer. `text` is the whole answer so far."""

    pane: int
    text: str
    tokens: int
    seconds: float
    finish: str | None  # None while it goes on; "end", "length" or "stopped" at its end


class Status(Frozen):
    """What the engine is doing before the first token: "Loading SmolLM2-135M-Instruct"."""

    text: str


class AnswerView(Frozen):
    id: int
    turn: int
    pane: int
    adapter_id: int | None
    prompt: str
    answer: str
    tokens: int
    seconds: float
    finish: str


class ChatView(Frozen):
    id: int
    title: str
    base_model_id: int
    panes: tuple[int | None, ...]  # adapter ids; None is the bare base model
    sampling: Sampling
    answers: tuple[AnswerView, ...]  # by turn, then pane
    created_at: datetime


class SampleView(Frozen):
    id: int
    base_model: str
    base_model_id: int
    adapter: str | None  # its name; "deleted adapter" where it is gone
    adapter_id: int | None
    messages: tuple[dict[str, Any], ...]
    answer: str
    sampling: Sampling
    engine: dict[str, Any]
    note: str
    created_at: datetime


@dataclass
class _Turn:
    """One request to the engine: what it is asked, and what has been said."""

    key: str
    rows: list[Row]
    said: dict[int, Delta]  # by row
    engine: dict[str, Any]
    stopped: bool = False  # someone asked it to end; it may not have begun yet

    @classmethod
    def of(cls, rows: list[Row]) -> _Turn:
        return cls(uuid4().hex, rows, {}, {})


class Playground:
    def __init__(self, engine: Engine, models: Models, slot: Slot) -> None:
        self._engine = engine
        self._models = models
        self._slot = slot
        self._lock = threading.Lock()
        self._running: dict[int, tuple[_Turn, Seat[EngineClient] | None]] = {}  # by chat

    def new_chat(self, base_model_id: int, panes: tuple[int | None, ...], sampling: Sampling) -> ChatView:
        """Raises UserError for panes that do not belong to the base model."""
        base = self._models.base(base_model_id)
        problems = [] if 1 <= len(panes) <= MOST_PANES else [f"Choose between 1 and {MOST_PANES} panes."]
        for adapter in (self._models.adapter(pane) for pane in panes if pane is not None):
            if adapter.base_model_id != base_model_id:
                problems.append(f"{adapter.name} was trained on {adapter.base_model}, not on {base.name}.")
            elif not (trained_for := find_task(adapter.task)).talks:
                problems.append(f"{adapter.name} was trained for {trained_for.label}, which does not chat. Use Try.")
        if base.shape.family == "encoder":
            problems.append(f"{base.name} reads texts and writes none, so it cannot chat. Choose another base model.")
        UserError.raise_all(problems)
        with write(self._engine) as session:
            chat = Chat(
                title="New chat",
                base_model_id=base_model_id,
                panes=list(panes),
                sampling=sampling.model_dump(mode="json"),
            )
            session.add(chat)
            session.flush()
            return _chat_view(chat, [])

    def chat(self, chat_id: int) -> ChatView:
        """Raises UserError where there is none."""
        with read(self._engine) as session:
            chat = session.get(Chat, chat_id)
            if chat is None:
                raise UserError(f"There is no chat number {chat_id}; it may have been deleted.")
            query = select(ChatAnswer).where(ChatAnswer.chat_id == chat_id)
            answers = session.scalars(query.order_by(ChatAnswer.turn, ChatAnswer.pane)).all()
            return _chat_view(chat, answers)

    def chats(self, limit: int = 50, also: int | None = None) -> list[ChatView]:
        """Newest first. A chat without any answer is left out, unless it is the one named by `also`."""
        answered = select(ChatAnswer.id).where(ChatAnswer.chat_id == Chat.id).exists()
        listed = select(Chat).where(or_(answered, Chat.id == also))
        with read(self._engine) as session:
            chats = session.scalars(listed.order_by(Chat.created_at.desc(), Chat.id.desc()).limit(limit)).all()
            query = select(ChatAnswer).where(ChatAnswer.chat_id.in_([chat.id for chat in chats]))
            answers: dict[int, list[ChatAnswer]] = {}
            for answer in session.scalars(query.order_by(ChatAnswer.turn, ChatAnswer.pane)):
                answers.setdefault(answer.chat_id, []).append(answer)
        return [_chat_view(chat, answers.get(chat.id, [])) for chat in chats]

    def delete_chat(self, chat_id: int) -> None:
        """Kept samples stay. A running turn is stopped."""
        self.stop(chat_id)
        with write(self._engine) as session:
            if chat := session.get(Chat, chat_id):
                session.delete(chat)

    def ask(self, chat_id: int, prompt: str, sampling: Sampling) -> Iterator[Status | Delta]:
        """Every pane answers the prompt at once, each with its own history. Answers are kept in the catalog when the
        turn ends (also when it was stopped). Closing the iterator stops it."""
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
        chat = self.chat(chat_id)
        turn.rows = [
            Row(
                adapter=self._models.adapter_path(adapter_id) if adapter_id is not None else None,
                messages=_messages(chat, pane, prompt, sampling.system),
                sampling=sampling,
            )
            for pane, adapter_id in enumerate(chat.panes)
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
                self._store(chat, prompt, sampling, turn)

    def stop(self, chat_id: int) -> None:
        """End the chat's running turn; what was said so far stays."""
        with self._lock:
            turn, seat = self._running.get(chat_id, (None, None))
            if turn:
                turn.stopped = True
        if turn and seat:
            with contextlib.suppress(ChildDied):
                seat.client.stop(turn.key)

    def keep(self, answer_id: int, note: str = "") -> SampleView:
        """Keep one answer as a sample, with the whole batch it was made in: numbers rounded in another order could
        tip a draw, so the same tokens are certain only beside the same neighbours."""
        with read(self._engine) as session:
            answer = session.get(ChatAnswer, answer_id)
        if answer is None:
            raise UserError(f"There is no answer number {answer_id}; its chat may have been deleted.")
        chat = self.chat(answer.chat_id)
        sampling = Sampling.model_validate(answer.sampling)
        earlier = chat.model_copy(update={"answers": tuple(a for a in chat.answers if a.turn < answer.turn)})
        panes = [_messages(earlier, pane, answer.prompt, sampling.system) for pane in range(len(chat.panes))]
        batch = [{"adapter_id": who, "messages": said} for who, said in zip(chat.panes, panes, strict=True)]
        made = {"batch": batch, "row": answer.pane, "tokens": answer.tokens, "finish": answer.finish}
        with write(self._engine) as session:
            sample = Sample(
                base_model_id=chat.base_model_id,
                adapter_id=answer.adapter_id,
                chat_answer_id=answer.id,
                messages=panes[answer.pane],
                answer=answer.answer,
                sampling=answer.sampling,
                engine=answer.engine | made,
                note=note.strip(),
            )
            session.add(sample)
            session.flush()
            number = sample.id
        return self.sample(number)

    def samples(self, limit: int = 200) -> list[SampleView]:
        """Newest first."""
        with read(self._engine) as session:
            return [
                _sample_view(*row)
                for row in session.execute(_SAMPLES.order_by(Sample.created_at.desc(), Sample.id.desc()).limit(limit))
            ]

    def sample(self, sample_id: int) -> SampleView:
        """Raises UserError where there is none."""
        with read(self._engine) as session:
            row = session.execute(_SAMPLES.where(Sample.id == sample_id)).one_or_none()
            if row is None:
                raise UserError(f"There is no sample number {sample_id}; it may have been deleted.")
            return _sample_view(*row)

    def delete_sample(self, sample_id: int) -> None:
        with write(self._engine) as session:
            if sample := session.get(Sample, sample_id):
                session.delete(sample)

    def make_again(self, sample_id: int) -> Iterator[Status | Delta]:
        """Answer a sample's conversation again with its own settings: the same tokens on the same machine.

        The other panes of its turn are computed along where their adapters still exist (see `keep`); only the
        sample's own answer is shown, as pane 0. An answer that was stopped ends where it was stopped.
        """
        sample = self.sample(sample_id)
        made = sample.engine
        if sample.adapter == _DELETED:
            raise UserError("The adapter that gave this answer was deleted, so it cannot be made again.")
        rows, own = self._batch_of(sample)
        turn = _Turn.of(rows)
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
                        before = turn.said.get(more.row)
                        delta = Delta(
                            pane=more.row,
                            text=(before.text if before else "") + more.text,
                            tokens=more.tokens,
                            seconds=more.seconds,
                            finish=more.finish,
                        )
                        turn.said[more.row] = delta
                        yield delta
        except ChildDied as error:
            raise UserError(
                seat.ended_because
                or "The engine ended in the middle of its answer, perhaps because memory ran out. Ask again: it starts "
                "anew. Its log is engine.txt."
            ) from error
        finally:
            self._slot.leave(seat)

    def _store(self, chat: ChatView, prompt: str, sampling: Sampling, turn: _Turn) -> None:
        number = max((answer.turn for answer in chat.answers), default=-1) + 1
        with write(self._engine) as session:
            row = session.get(Chat, chat.id)
            if row is None:
                return  # deleted while it answered
            row.sampling = sampling.model_dump(mode="json")
            if number == 0:
                row.title = " ".join(prompt.split())[:60]
            for pane, adapter_id in enumerate(chat.panes):
                said = turn.said.get(pane) or Delta(pane=pane, text="", tokens=0, seconds=0, finish=None)
                session.add(
                    ChatAnswer(
                        chat_id=chat.id,
                        turn=number,
                        pane=pane,
                        adapter_id=adapter_id,
                        prompt=prompt,
                        answer=said.text,
                        tokens=said.tokens,
                        seconds=said.seconds,
                        finish=said.finish or "stopped",
                        sampling=row.sampling,
                        engine=turn.engine,
                    )
                )

    def _batch_of(self, sample: SampleView) -> tuple[list[Row], int]:
        """The rows of the batch that a sample was made in, and which one is its own."""
        own = Row(
            adapter=self._models.adapter_path(sample.adapter_id) if sample.adapter_id is not None else None,
            messages=sample.messages,
            sampling=sample.sampling,
        )
        rows, position = [], sample.engine.get("row", 0)
        for index, entry in enumerate(sample.engine.get("batch", ())):
            try:
                who = entry["adapter_id"]
                folder = self._models.adapter_path(who) if who is not None else None
            except UserError:
                return [own], 0  # a neighbour is gone; alone, it is the same but for rounding
            rows.append(
                own if index == position else Row(adapter=folder, messages=entry["messages"], sampling=sample.sampling)
            )
        return (rows, position) if rows else ([own], 0)


_DELETED = "deleted adapter"
_SAMPLES = (
    select(Sample, BaseModel.name, Adapter.name)
    .join(BaseModel, BaseModel.id == Sample.base_model_id)
    .outerjoin(Adapter, Adapter.id == Sample.adapter_id)
)


def _messages(chat: ChatView, pane: int, prompt: str, system: str) -> tuple[dict[str, Any], ...]:
    """What a pane is asked: the system prompt, its own earlier turns, and the new prompt."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for answer in chat.answers:
        if answer.pane == pane:
            messages.append({"role": "user", "content": answer.prompt})
            messages.append({"role": "assistant", "content": answer.answer})
    messages.append({"role": "user", "content": prompt})
    return tuple(messages)


def _chat_view(chat: Chat, answers: Any) -> ChatView:
    return ChatView(
        id=chat.id,
        title=chat.title,
        base_model_id=chat.base_model_id,
        panes=tuple(chat.panes),
        sampling=Sampling.model_validate(chat.sampling),
        answers=tuple(
            AnswerView(
                id=answer.id,
                turn=answer.turn,
                pane=answer.pane,
                adapter_id=answer.adapter_id,
                prompt=answer.prompt,
                answer=answer.answer,
                tokens=answer.tokens,
                seconds=answer.seconds,
                finish=answer.finish,
            )
            for answer in answers
        ),
        created_at=chat.created_at,
    )


def _sample_view(sample: Sample, base: str, adapter: str | None) -> SampleView:
    batch, row = sample.engine.get("batch", []), sample.engine.get("row", 0)
    by_adapter = bool(batch) and batch[row]["adapter_id"] is not None
    return SampleView(
        id=sample.id,
        base_model=base,
        base_model_id=sample.base_model_id,
        adapter=adapter or (_DELETED if by_adapter else None),
        adapter_id=sample.adapter_id,
        messages=tuple(sample.messages),
        answer=sample.answer,
        sampling=Sampling.model_validate(sample.sampling),
        engine=sample.engine,
        note=sample.note,
        created_at=sample.created_at,
    )
