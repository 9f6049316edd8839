"""Adapters in the catalog: what a run brings forth, and how it is forgotten without losing what was made with it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from storage.tables import Adapter, Chat, ChatAnswer, Run, Sample

NO_ADAPTER = 0  # in a chat's panes: one that was deleted; SQLite's numbers begin with 1


def keep_adapter(session: Session, run: Run, **values: Any) -> None:
    """The run's one adapter: a new row, or on a later attempt the same row with new values (its name stays)."""
    adapter = session.scalars(select(Adapter).where(Adapter.run_id == run.id)).one_or_none()
    if adapter is None:
        session.add(Adapter(name=run.name, run_id=run.id, base_model_id=run.base_model_id, **values))
        return
    for name, value in values.items():
        setattr(adapter, name, value)


def forget_adapter(session: Session, adapter_id: int) -> None:
    """Delete an adapter's row. Chat answers and kept samples stay: their `engine` says that an adapter gave them.

    Chats keep its pane, under a number that no adapter has: SQLite may give its own to the next one.
    """
    for chat in session.scalars(select(Chat)):
        if adapter_id in chat.panes:
            chat.panes = [NO_ADAPTER if pane == adapter_id else pane for pane in chat.panes]
    for made in (ChatAnswer, Sample):
        session.execute(update(made).where(made.adapter_id == adapter_id).values(adapter_id=None))
    session.execute(delete(Adapter).where(Adapter.id == adapter_id))


def forget_run(session: Session, run_id: int) -> None:
    """Delete a run's row, its adapter and, by cascade, its metrics and answers."""
    for adapter_id in session.scalars(select(Adapter.id).where(Adapter.run_id == run_id)).all():
        forget_adapter(session, adapter_id)
    session.execute(delete(Run).where(Run.id == run_id))
