"""The catalog's tables. A change here needs a migration in storage/migrations/versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, TypeDecorator, UniqueConstraint
from sqlalchemy import DateTime as SqlDateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.states import RunState


def now() -> datetime:
    return datetime.now(UTC)


class Utc(TypeDecorator[datetime]):
    """SQLite forgets time zones: store UTC, and give aware datetimes back."""

    impl = SqlDateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.replace(tzinfo=UTC) if value else None


class State(TypeDecorator[RunState]):
    """A RunState, kept as its word."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: RunState | None, dialect: Any) -> str | None:
        return RunState(value).value if value else None

    def process_result_value(self, value: str | None, dialect: Any) -> RunState | None:
        return RunState(value) if value else None


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own convention
        dict[str, Any]: JSON,
        list[Any]: JSON,
        datetime: Utc,
        RunState: State,
    }


class BaseModel(Base):
    """A model that adapters are trained on: the starter, a local folder, or a Hub id."""

    __tablename__ = "base_models"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    source: Mapped[str]  # "starter", "folder" or "hub"
    location: Mapped[str]  # starter: relative to the home; folder: absolute; hub: the repository id
    revision: Mapped[str | None]  # hub: the commit
    shape: Mapped[dict[str, Any]]  # jobs.shape.ModelShape
    created_at: Mapped[datetime] = mapped_column(default=now)


class Dataset(Base):
    """An uploaded file, stored once under the fingerprint of its content."""

    __tablename__ = "datasets"

    id: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(unique=True)  # SHA-256 of the uploaded bytes, hexadecimal
    name: Mapped[str]
    filename: Mapped[str]  # as it was uploaded; never used as a path
    format: Mapped[str]  # "csv", "jsonl", ...
    size_bytes: Mapped[int]
    rows: Mapped[int]  # every row found, bad ones too
    columns: Mapped[list[Any]]  # names, in the file's order
    mapping: Mapped[dict[str, Any] | None]  # jobs.data.columns.Mapping: detected, or as the person mended it
    detection: Mapped[dict[str, Any]]  # what was detected and why
    mends: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")  # of jobs.data.mends.MendRef
    created_at: Mapped[datetime] = mapped_column(default=now)


class Run(Base):
    """One training run. Inserted by the server, from then on written by the worker alone."""

    __tablename__ = "runs"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - a run's folder is named by its id

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    state: Mapped[RunState] = mapped_column(default=RunState.QUEUED, index=True)
    phase: Mapped[str] = mapped_column(default="")  # what an active run is doing, in words
    reason: Mapped[str | None]  # why it ended, in one sentence
    stop_requested: Mapped[bool] = mapped_column(default=False)
    attempt: Mapped[int] = mapped_column(default=1)
    base_model_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"))
    spec: Mapped[dict[str, Any]]  # jobs.spec.RunSpec
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    eta_seconds: Mapped[float | None]
    best_step: Mapped[int | None]
    best_eval_loss: Mapped[float | None]
    trainable_parameters: Mapped[int | None]
    train_rows: Mapped[int | None]
    validation_rows: Mapped[int | None]
    predicted_memory: Mapped[int | None]  # bytes
    peak_memory: Mapped[int | None]  # bytes, measured
    hardware: Mapped[dict[str, Any] | None]
    packages: Mapped[dict[str, Any] | None]
    events_offset: Mapped[int] = mapped_column(default=0)  # bytes of events.jsonl already in the catalog
    created_at: Mapped[datetime] = mapped_column(default=now)
    queued_at: Mapped[datetime] = mapped_column(default=now)  # its place in the queue; a new attempt takes a new one
    started_at: Mapped[datetime | None]  # the first attempt's
    attempt_at: Mapped[datetime | None]  # when the present or last attempt began
    trained_seconds: Mapped[float] = mapped_column(
        default=0.0, server_default="0"
    )  # by all the attempts that have ended
    ended_at: Mapped[datetime | None]


class Metric(Base):
    """One value at one step. Rows are read by id: a live page asks for what came after the last it has."""

    __tablename__ = "metrics"
    # A deleted row's id never comes back: a page that tails by id would miss its successor.
    __table_args__ = (Index("ix_metrics_run", "run_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    step: Mapped[int]
    name: Mapped[str]
    value: Mapped[float]
    time: Mapped[float]  # seconds since the epoch, as the trainer measured it


class CheckpointAnswer(Base):
    """What base and tuned model answered to one of the run's fixed prompts at one checkpoint."""

    __tablename__ = "checkpoint_answers"
    __table_args__ = (UniqueConstraint("run_id", "step", "position"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    step: Mapped[int]
    position: Mapped[int]
    prompt: Mapped[str]
    base: Mapped[str]
    tuned: Mapped[str]


class EvaluationDetails(Base):
    """What a task measured beside numbers at one evaluation: a confusion matrix, predictions for a few rows."""

    __tablename__ = "evaluations"
    __table_args__ = (UniqueConstraint("run_id", "step"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    step: Mapped[int]
    details: Mapped[dict[str, Any]]


class Adapter(Base):
    """What a run brought forth: a PEFT folder, usable with the base model it was trained on."""

    __tablename__ = "adapters"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), unique=True)
    base_model_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    method: Mapped[str]
    task: Mapped[str]
    path: Mapped[str]  # relative to the home
    step: Mapped[int]
    trainable_parameters: Mapped[int]
    size_bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Chat(Base):
    """A playground conversation: every pane gets the same prompts."""

    __tablename__ = "chats"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    base_model_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    panes: Mapped[list[Any]]  # adapter ids, 0 for one that was deleted; null is the bare base model
    sampling: Mapped[dict[str, Any]]  # jobs.inference.sampling.Sampling
    created_at: Mapped[datetime] = mapped_column(default=now)


class ChatAnswer(Base):
    """One pane's answer to one turn of a chat."""

    __tablename__ = "chat_answers"
    __table_args__ = (UniqueConstraint("chat_id", "turn", "pane"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    chat_id: Mapped[int] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"), index=True)
    turn: Mapped[int]
    pane: Mapped[int]
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"))
    prompt: Mapped[str]
    answer: Mapped[str]
    tokens: Mapped[int]
    seconds: Mapped[float]
    finish: Mapped[str]  # "end", "length" or "stopped"
    sampling: Mapped[dict[str, Any]]
    engine: Mapped[dict[str, Any]]  # device, dtype, package versions
    created_at: Mapped[datetime] = mapped_column(default=now)


class Sample(Base):
    """A kept answer, with all that is needed to make it again."""

    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(primary_key=True)
    base_model_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"))
    chat_answer_id: Mapped[int | None] = mapped_column(ForeignKey("chat_answers.id", ondelete="SET NULL"))
    messages: Mapped[list[Any]]  # the whole conversation before the answer, system prompt included
    answer: Mapped[str]
    sampling: Mapped[dict[str, Any]]
    engine: Mapped[dict[str, Any]]
    note: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(default=now)
