"""Fixtures: a temporary home for every test, tiny models once a session, the converted starter once a machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from jobs.service.runs import Runs
from storage.db import connect, migrate
from storage.files import Home
from tests import standin, tiny
from tests.serving import CHROMIUM_FLAGS

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ["GRAFT_CPU_BF16"] = "0"  # the same arithmetic on every machine
# OpenMP's spinning makes a tiny model's step take seconds where another process computes (see jobs.rpc).
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: while Playwright is open an event loop runs in this thread, and asyncio.run fails."""
    unmarked = [item.name for item in items if _opens_browser(item) and not item.get_closest_marker("browser")]
    assert not unmarked, f"mark them with pytest.mark.browser: {unmarked}"
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def _opens_browser(item: pytest.Item) -> bool:
    return not {"browser", "page"}.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


@pytest.fixture
def engine(home: Home) -> Iterator[Engine]:
    """The home's catalog with one base model and one dataset, both with id 1, for runs to refer to."""
    migrate(home.database)
    engine = connect(home.database)
    standin.fill(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def runs(home: Home, engine: Engine) -> Runs:
    return Runs(home, engine)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real starter model, converted once a machine: GRAFT_TEST_CACHE, else ~/.cache/graft-tests. Read it only."""
    from jobs.service.models import Models
    from jobs.starter import NAME

    home = Home.at(os.environ.get("GRAFT_TEST_CACHE") or Path.home() / ".cache" / "graft-tests")
    migrate(home.database)
    engine = connect(home.database)
    for _ in Models(home, engine).prepare_starter():
        pass
    engine.dispose()
    return home.models / NAME


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.fail("The browser tests need Chromium: run `make browser`.")
    return {**browser_type_launch_args, "executable_path": path, "args": list(CHROMIUM_FLAGS)}
