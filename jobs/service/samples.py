"""Kept answers, with all that it takes to make them again: settings, versions, and the batch they were made in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select

from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.inference.protocol import Row
from jobs.inference.sampling import Sampling
from jobs.service.chats import Chats, messages_of
from jobs.service.models import SHARED, Models, adapter_title
from storage.db import read, write
from storage.tables import Adapter, BaseModel, ChatAnswer, Sample


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


class Samples:
    def __init__(self, engine: Engine, models: Models, chats: Chats) -> None:
        self._engine = engine
        self._models = models
        self._chats = chats

    def keep(self, answer_id: int, note: str = "") -> SampleView:
        """Keep one answer as a sample, with the whole batch it was made in: numbers rounded in another order could
        tip a draw, so the same tokens are certain only beside the same neighbours."""
        with read(self._engine) as session:
            answer = session.get(ChatAnswer, answer_id)
        if answer is None:
            raise UserError(f"There is no answer number {answer_id}; its chat may have been deleted.")
        chat = self._chats.get(answer.chat_id)
        sampling = Sampling.model_validate(answer.sampling)
        earlier = chat.model_copy(update={"answers": tuple(a for a in chat.answers if a.turn < answer.turn)})
        together = [each.pane for each in chat.answers if each.turn == answer.turn]  # not those deleted before it
        batch = [
            {
                "adapter_id": chat.panes[pane],
                "messages": messages_of(earlier, pane, answer.prompt, sampling.system),
            }
            for pane in together
        ]
        row = together.index(answer.pane)
        made = {"batch": batch, "row": row, "tokens": answer.tokens, "finish": answer.finish}
        with write(self._engine) as session:
            sample = Sample(
                base_model_id=chat.base_model_id,
                adapter_id=answer.adapter_id,
                chat_answer_id=answer.id,
                messages=batch[row]["messages"],
                answer=answer.answer,
                sampling=answer.sampling,
                engine=answer.engine | made,
                note=note.strip(),
            )
            session.add(sample)
            session.flush()
            number = sample.id
        return self.get(number)

    def list(self, limit: int = 200) -> list[SampleView]:
        """Newest first."""
        with read(self._engine) as session:
            return [
                _sample_view(*row)
                for row in session.execute(_SAMPLES.order_by(Sample.created_at.desc(), Sample.id.desc()).limit(limit))
            ]

    def get(self, sample_id: int) -> SampleView:
        """Raises UserError where there is none."""
        with read(self._engine) as session:
            row = session.execute(_SAMPLES.where(Sample.id == sample_id)).one_or_none()
            if row is None:
                raise UserError(f"There is no sample number {sample_id}; it may have been deleted.")
            return _sample_view(*row)

    def delete(self, sample_id: int) -> None:
        with write(self._engine) as session:
            if sample := session.get(Sample, sample_id):
                session.delete(sample)

    def batch_of(self, sample: SampleView) -> tuple[Sequence[Row], int]:
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


DELETED = "deleted adapter"
_SAMPLES = (
    select(Sample, BaseModel.name, Adapter, SHARED)
    .join(BaseModel, BaseModel.id == Sample.base_model_id)
    .outerjoin(Adapter, Adapter.id == Sample.adapter_id)
)


def _sample_view(sample: Sample, base: str, adapter: Adapter | None, shared: bool) -> SampleView:
    batch, row = sample.engine.get("batch", []), sample.engine.get("row", 0)
    by_adapter = bool(batch) and batch[row]["adapter_id"] is not None
    return SampleView(
        id=sample.id,
        base_model=base,
        base_model_id=sample.base_model_id,
        adapter=adapter_title(adapter, shared) if adapter else (DELETED if by_adapter else None),
        adapter_id=sample.adapter_id,
        messages=tuple(sample.messages),
        answer=sample.answer,
        sampling=Sampling.model_validate(sample.sampling),
        engine=sample.engine,
        note=sample.note,
        created_at=sample.created_at,
    )
