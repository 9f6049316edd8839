"""Rows of a run's own data to try its adapter on."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from jobs.data.columns import Mapping, Shape
from jobs.data.mends import MendRef
from jobs.service.runs import Runs
from jobs.service.trials import rows_to_try
from jobs.spec import DatasetRef
from storage.db import write
from storage.tables import EvaluationDetails
from tests import standin
from tests.test_preflight import stored

MENDS = (MendRef(name="trim"), MendRef(name="drop_duplicates"))
MAPPING = Mapping(shape=Shape.LABELLED, columns={"text": "text", "label": "label"})


def run_on(runs: Runs, folder: Path) -> int:
    texts = ["  one ", "two", "one", " three"]
    rows = stored(folder, [{"text": text, "label": "a"} for text in texts])
    data = DatasetRef(name="d", fingerprint="0", rows=rows, mapping=MAPPING, mends=MENDS)
    return runs.start(standin.spec().model_copy(update={"dataset": data}), 1, 1).id


def test_rows_are_offered_as_the_runs_mends_leave_them(runs: Runs, engine: Engine, tmp_path: Path) -> None:
    run_id = run_on(runs, tmp_path)
    found, held_out = rows_to_try(runs, run_id, ["text"])
    assert [row["text"] for row in found] == ["one", "two", "three"] and not held_out
    with write(engine) as session:
        details = {"samples": [{"row": 4}, {"row": 3}, {"row": 1}]}
        session.add(EvaluationDetails(run_id=run_id, step=1, details=details))
    found, held_out = rows_to_try(runs, run_id, ["text"])
    assert [row["text"] for row in found] == ["three", "one"] and held_out  # row 3 repeats row 1


def test_without_the_run_or_its_rows_there_is_nothing_to_offer(runs: Runs, tmp_path: Path) -> None:
    assert rows_to_try(runs, 99, ["text"]) == ([], False)
    run_id = run_on(runs, tmp_path)
    runs.get(run_id).spec.dataset.rows.unlink()
    assert rows_to_try(runs, run_id, ["text"]) == ([], False)
