"""Chats as the catalog keeps them: who answers, what was asked, and every pane's answers.

Ends where something is asked (jobs.service.playground) or kept for good (jobs.service.samples).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, or_, select

from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.inference.sampling import Sampling
from jobs.service.models import Models
from jobs.tasks import task as find_task
from storage.db import read, write
from storage.tables import Chat, ChatAnswer, Sample

MOST_PANES = 8


class Delta(Frozen):
    """More of one pane's answer. `text` is the whole answer so far."""

    pane: int
    text: str
    tokens: int
    seconds: float
    finish: str | None  # None while it goes on; "end", "length" or "stopped" at its end


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
    kept: bool = False  # a sample of it is there


class ChatView(Frozen):
    id: int
    title: str
    base_model_id: int
    panes: tuple[int | None, ...]  # adapter ids, 0 for one that was deleted; None is the bare base model
    sampling: Sampling
    answers: tuple[AnswerView, ...]  # by turn, then pane; none of an adapter that was deleted before the turn
    created_at: datetime


class Chats:
    def __init__(self, engine: Engine, models: Models) -> None:
        self._engine = engine
        self._models = models

    def new(self, base_model_id: int, panes: tuple[int | None, ...], sampling: Sampling) -> ChatView:
        """Raises UserError for panes that do not belong to the base model."""
        base = self._models.base(base_model_id)
        problems = [] if 1 <= len(panes) <= MOST_PANES else [f"Choose between 1 and {MOST_PANES} panes."]
        for adapter in (self._models.adapter(pane) for pane in panes if pane is not None):
            if adapter.base_model_id != base_model_id:
                problems.append(f"{adapter.title} was trained on {adapter.base_model}, not on {base.name}.")
            elif not (trained_for := find_task(adapter.task)).talks:
                problems.append(f"{adapter.title} was trained for {trained_for.label}, which does not chat. Use Try.")
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

    def get(self, chat_id: int) -> ChatView:
        """Raises UserError where there is none."""
        with read(self._engine) as session:
            chat = session.get(Chat, chat_id)
            if chat is None:
                raise UserError(f"There is no chat number {chat_id}; it may have been deleted.")
            query = select(ChatAnswer).where(ChatAnswer.chat_id == chat_id)
            answers = session.scalars(query.order_by(ChatAnswer.turn, ChatAnswer.pane)).all()
            kept = session.scalars(select(Sample.chat_answer_id).join(ChatAnswer).where(ChatAnswer.chat_id == chat_id))
            return _chat_view(chat, answers, frozenset(kept))

    def list(self, limit: int = 50, also: int | None = None) -> list[ChatView]:
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

    def delete(self, chat_id: int) -> None:
        """Kept samples stay."""
        with write(self._engine) as session:
            if chat := session.get(Chat, chat_id):
                session.delete(chat)

    def add_turn(
        self, chat: ChatView, prompt: str, sampling: Sampling, said: Mapping[int, Delta], engine: dict[str, Any]
    ) -> None:
        """What the panes said, by their numbers, after the turns that `chat` has; nothing where it was deleted."""
        number = max((answer.turn for answer in chat.answers), default=-1) + 1
        with write(self._engine) as session:
            row = session.get(Chat, chat.id)
            if row is None:
                return  # deleted while it answered
            row.sampling = sampling.model_dump(mode="json")
            if number == 0:
                row.title = " ".join(prompt.split())[:60]
            for pane, delta in sorted(said.items()):
                session.add(
                    ChatAnswer(
                        chat_id=chat.id,
                        turn=number,
                        pane=pane,
                        adapter_id=row.panes[pane] or None,  # as of now: it may have been deleted meanwhile
                        prompt=prompt,
                        answer=delta.text,
                        tokens=delta.tokens,
                        seconds=delta.seconds,
                        finish=delta.finish or "stopped",
                        sampling=row.sampling,
                        engine=engine,
                    )
                )


def messages_of(chat: ChatView, pane: int, prompt: str, system: str) -> tuple[dict[str, Any], ...]:
    """What a pane is asked: the system prompt, its own earlier turns, and the new prompt."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for answer in chat.answers:
        if answer.pane == pane:
            messages.append({"role": "user", "content": answer.prompt})
            messages.append({"role": "assistant", "content": answer.answer})
    messages.append({"role": "user", "content": prompt})
    return tuple(messages)


def _chat_view(chat: Chat, answers: Any, kept: Collection[int | None] = ()) -> ChatView:
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
                kept=answer.id in kept,
            )
            for answer in answers
        ),
        created_at=chat.created_at,
    )
