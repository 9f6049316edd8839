"""The schema that migrations make is the schema that storage.tables declares, from empty and from every step."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import storage
from storage.db import connect, migrate
from storage.tables import Base


def config(database: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(storage.__file__).parent / "migrations"))
    config.attributes["database"] = database
    return config


SCRIPTS = ScriptDirectory.from_config(config(Path()))
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]


def differences(database: Path) -> list[object]:
    engine = connect(database)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)
    engine.dispose()
    return found


def autoincrement(database: Path) -> list[str]:
    engine = connect(database)
    with engine.connect() as connection:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%' ORDER BY name"
        found = [row.name for row in connection.execute(text(query))]
    engine.dispose()
    return found


def test_there_is_one_head_and_the_first_is_0001() -> None:
    assert len(SCRIPTS.get_heads()) == 1
    assert REVISIONS[0] == "0001"


def test_an_empty_file_becomes_the_declared_schema(tmp_path: Path) -> None:
    database = tmp_path / "graft.db"
    migrate(database)
    assert differences(database) == []
    assert autoincrement(database) == ["metrics", "runs"]
    migrate(database)  # nothing left to do
    assert differences(database) == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_catalog_of_any_age_is_brought_up_with_its_rows(tmp_path: Path, revision: str) -> None:
    database = tmp_path / "graft.db"
    command.upgrade(config(database), revision)
    engine = connect(database)
    with engine.execution_options(writes=True).begin() as connection:
        connection.execute(
            text(
                "INSERT INTO base_models (id, name, source, location, shape, created_at) "
                "VALUES (1, 'tiny', 'folder', '/models/tiny', '{}', '2026-01-01 00:00:00')"
            )
        )
    engine.dispose()
    migrate(database)
    assert differences(database) == []
    engine = connect(database)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT name FROM base_models")).scalar_one() == "tiny"
    engine.dispose()


def test_every_migration_goes_back(tmp_path: Path) -> None:
    database = tmp_path / "graft.db"
    migrate(database)
    command.downgrade(config(database), "base")
    migrate(database)
    assert differences(database) == []
