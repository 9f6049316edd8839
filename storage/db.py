"""The engine and its sessions: SQLite in WAL mode, one writer at a time, readers never blocked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.orm import Session

BUSY_TIMEOUT_MS = 5_000


def connect(database: Path) -> Engine:
    """An engine on the catalog file. Transactions begin as `begin` says below; see `write` and `read`."""
    engine = create_engine(f"sqlite:///{database}", connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(engine, "connect")
    def _pragmas(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # SQLAlchemy's BEGIN below is the only one
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once with "database is locked",
        # whatever the timeout: writers take their lock when they begin.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def write(engine: Engine) -> Iterator[Session]:
    """A session that writes: commits at the end of the block, rolls back where it raises."""
    with Session(engine.execution_options(writes=True), expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def read(engine: Engine) -> Iterator[Session]:
    """A session that only reads; what it returns stays usable after the block."""
    with Session(engine, expire_on_commit=False) as session:
        yield session


def migrate(database: Path) -> None:
    """Bring the catalog to the newest schema, making the file where there is none."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["database"] = database
    command.upgrade(config, "head")
