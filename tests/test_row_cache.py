"""Rows kept for later runs: the same bit for bit, found only by what decides them, whole or not at all, bounded."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.data.columns import Mapping, Shape
from jobs.data.mends import MendRef
from jobs.errors import RowProblem
from jobs.events import Phase
from jobs.rundir import RunFiles
from jobs.service import Service
from jobs.service.datasets import DatasetView
from jobs.spec import BaseModelRef, DatasetRef, RunSpec, TrainingParams
from jobs.tasks import all_tasks, task
from jobs.training import cache
from jobs.training.cache import RowCache
from jobs.training.data import LeftOut, encode_rows
from jobs.training.rows import Rows
from storage.files import Home
from tests.rundirs import ROOT, events, make_run, series, train_here
from tests.test_packed_loop import MAPPINGS, PAIRS
from tests.test_preflight import stored
from tests.test_rows import ROWS, a_row, same
from tests.test_tasks_classifying import KINDS
from tests.tiny import TEMPLATE, build_tokenizer

FROM_CACHE = "Rows were prepared earlier: taken from the cache"


def phases(files: RunFiles) -> list[str]:
    return [event.text for event in events(files) if isinstance(event, Phase)]


def beside(files: RunFiles) -> list[Path]:
    """The entries of a run's rows."""
    return sorted((files.directory / cache.FOLDER).iterdir())


def with_rows_of(first: RunFiles, directory: Path, model: Path, **over: Any) -> RunFiles:
    """Another run on the first one's rows."""
    files = make_run(directory, model, **over)
    spec = RunSpec.model_validate_json(files.spec.read_bytes())
    dataset = spec.dataset.model_copy(update={"rows": first.directory / "rows.parquet"})
    files.spec.write_text(spec.model_copy(update={"dataset": dataset}).model_dump_json())
    return files


def test_a_second_run_takes_the_rows_of_the_first_and_trains_the_same(
    tmp_path: Path, tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any] | str] = [*PAIRS, "its line is no JSON", {"prompt": "x", "completion": " "}]
    settings = {"leave_out_bad_rows": True, "max_steps": 3}
    first = make_run(tmp_path / "first", tiny_llama, rows, training=settings)
    assert train_here(first).state == "completed"
    assert "Preparing 26 rows" in phases(first) and FROM_CACHE not in phases(first)
    second = with_rows_of(first, tmp_path / "second", tiny_llama, rows=rows, training={**settings, "batch_size": 4})
    caplog.clear()
    assert train_here(second).state == "completed"
    assert FROM_CACHE in phases(second) and not any(text.startswith("Preparing") for text in phases(second))
    assert series(second, "loss") == series(first, "loss")
    for number in (25, 26):
        assert f"Row {number} is left out: " in caplog.text
    said = [next(event for event in events(files) if event.type == "started") for files in (first, second)]
    assert [each.left_out_rows for each in said] == [2, 2]  # type: ignore[union-attr]


def spec_of(folder: Path, rows: list[Any], mapping: Mapping, name: str = "chat", **over: Any) -> RunSpec:
    folder.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "name": "test",
        "base_model": BaseModelRef(name="Tiny", folder=folder),
        "dataset": DatasetRef(name="d", fingerprint="f", rows=stored(folder, rows), mapping=mapping),
        "task": name,
        "method": "lora",
        "training": TrainingParams(max_length=64),
    }
    return RunSpec(**fields | over)


def encoded(spec: RunSpec, tokenizer: Any) -> tuple[Rows, LeftOut]:
    from jobs.data.mends import mended

    dataset = spec.dataset
    return encode_rows(spec, task(spec.task), tokenizer, mended(dataset.rows, dataset.mapping, dataset.mends))


def cache_of(spec: RunSpec, tokenizer: Any) -> RowCache:
    return RowCache.of(spec, task(spec.task), tokenizer)


def kept(spec: RunSpec, tokenizer: Any) -> tuple[Rows, LeftOut]:
    made = encoded(spec, tokenizer)
    cache_of(spec, tokenizer).keep(*made)
    return made


def every_task() -> list[tuple[str, Mapping, list[Any]]]:
    talking = [(name, mapping, PAIRS) for name, mapping in MAPPINGS.items()]
    reading = [(kind.name, kind.mapping, kind.rows(random.Random(5))) for kind in KINDS.values()]
    kto = Mapping(shape=Shape.FEEDBACK, columns={"prompt": "prompt", "completion": "completion", "label": "good"})
    liked = [{**row, "good": n % 2 == 0} for n, row in enumerate(PAIRS)]
    return [*talking, *reading, ("kto", kto, liked), ("seq2seq", MAPPINGS["rewrite"], PAIRS)]


TASKS = every_task()


@pytest.mark.parametrize(("name", "mapping", "rows"), TASKS, ids=[each[0] for each in TASKS])
def test_what_comes_from_the_cache_is_what_was_put_there(
    name: str, mapping: Mapping, rows: list[Any], tmp_path: Path
) -> None:
    spec, tokenizer = spec_of(tmp_path / "data", rows, mapping, name), build_tokenizer()
    assert cache_of(spec, tokenizer).read() is None
    made, _ = kept(spec, tokenizer)
    found = cache_of(spec, tokenizer).read()
    assert found and len(found[0]) == len(made) > 0
    assert all(map(same, found[0], made))


class _Watched:
    """A task's settings that tell which of them are asked for."""

    def __init__(self, params: Any) -> None:
        self._params, self.asked = params, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._params, name)


@pytest.mark.parametrize(("name", "mapping", "rows"), TASKS, ids=[each[0] for each in TASKS])
def test_what_a_task_says_to_weigh_alone_is_not_asked_for_when_rows_are_encoded(
    name: str, mapping: Mapping, rows: list[Any]
) -> None:
    chosen = task(name)
    assert chosen.weighing <= set(chosen.Params.model_fields)
    watched = _Watched(chosen.Params())
    made = chosen.encode_batch(rows, mapping, build_tokenizer(), watched)
    assert not any(isinstance(each, RowProblem) for each in made)
    assert not watched.asked & chosen.weighing


def test_every_task_is_among_them() -> None:
    assert {name for name, _, _ in TASKS} == set(all_tasks())


PREFERENCES = MAPPINGS["dpo"]
DECIDE: dict[str, Callable[[RunSpec], RunSpec]] = {
    "mapping": lambda spec: with_data(spec, mapping=PREFERENCES.model_copy(update={"separator": ";"})),
    "mend": lambda spec: with_data(spec, mends=(MendRef(name="drop_duplicates"),)),
    "fingerprint": lambda spec: with_data(spec, fingerprint="g"),
    "task": lambda spec: spec.model_copy(update={"task": "orpo"}),
    "template": lambda spec: spec.model_copy(update={"task_params": {"template": "Alpaca"}}),
    "maximum length": lambda spec: with_training(spec, max_length=32),
    "leave out bad rows": lambda spec: with_training(spec, leave_out_bad_rows=True),
}
DECIDE_NOT: dict[str, Callable[[RunSpec], RunSpec]] = {
    "loss": lambda spec: spec.model_copy(update={"task_params": {"beta": 0.5, "loss": "ipo", "sft_weight": 1.0}}),
    "training": lambda spec: with_training(spec, learning_rate=0.1, epochs=9, seed=3, batch_size=2, optimizer="adamw"),
    "method": lambda spec: spec.model_copy(update={"method": "full", "name": "other", "prompts": ("Hi",)}),
    "default given": lambda spec: spec.model_copy(update={"task_params": {"template": "the model's own"}}),
}


def with_data(spec: RunSpec, **values: Any) -> RunSpec:
    return spec.model_copy(update={"dataset": spec.dataset.model_copy(update=values)})


def with_training(spec: RunSpec, **values: Any) -> RunSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=values)})


@pytest.mark.parametrize("what", [*DECIDE, *DECIDE_NOT])
def test_rows_are_found_by_what_decides_them_and_by_nothing_else(what: str, tmp_path: Path) -> None:
    spec, tokenizer = spec_of(tmp_path / "data", PAIRS, PREFERENCES, "dpo"), build_tokenizer()
    kept(spec, tokenizer)
    changed = (DECIDE | DECIDE_NOT)[what](spec)
    assert (cache_of(changed, tokenizer).read() is None) == (what in DECIDE)


def test_other_rows_and_another_tokenizer_are_not_taken_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, tokenizer = spec_of(tmp_path / "data", PAIRS, MAPPINGS["chat"]), build_tokenizer()
    kept(spec, tokenizer)
    assert cache_of(spec, build_tokenizer()).read(), "the same, loaded again"
    wider, ending = build_tokenizer(), build_tokenizer()
    wider.add_tokens(["matey"])
    ending.eos_token = "<|endoftext|>"
    for other in (wider, ending, build_tokenizer(TEMPLATE.replace("\\n", " "))):
        assert cache_of(spec, other).read() is None
    entry = next((spec.dataset.rows.parent / cache.FOLDER).iterdir())
    stored(tmp_path / "data", PAIRS[:-1])
    assert cache_of(spec, tokenizer).read() is None
    stored(tmp_path / "data", PAIRS)
    assert cache_of(spec, tokenizer).read()
    monkeypatch.setattr(cache, "_code", lambda: "another version of the encoding")
    assert cache_of(spec, tokenizer).read() is None and entry.exists()


def test_a_template_that_writes_the_date_is_encoded_anew_each_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow:
        @staticmethod
        def today() -> Any:
            import datetime

            return datetime.date.today() + datetime.timedelta(days=1)

    spec = spec_of(tmp_path / "data", PAIRS, MAPPINGS["chat"])
    dated = build_tokenizer("{{ strftime_now('%d') }}" + TEMPLATE)
    for tokenizer in (dated, build_tokenizer()):
        kept(spec, tokenizer)
    monkeypatch.setattr(cache, "date", Tomorrow)
    assert cache_of(spec, dated).read() is None
    assert cache_of(spec, build_tokenizer()).read()


@pytest.mark.parametrize("harm", ["cut short", "one byte changed", "emptied", "longer"])
def test_a_damaged_entry_is_made_anew(harm: str, tmp_path: Path, tiny_llama: Path) -> None:
    first = make_run(tmp_path / "run", tiny_llama, training={"max_steps": 1, "validation_percent": 0})
    assert train_here(first).state == "completed"
    (entry,) = beside(first)
    whole = entry.read_bytes()
    damaged = {
        "cut short": whole[:-7],
        "one byte changed": whole[:99] + bytes([whole[99] ^ 1]) + whole[100:],
        "emptied": b"",
        "longer": whole + b"x",
    }
    entry.write_bytes(damaged[harm])
    second = with_rows_of(first, tmp_path / "second", tiny_llama, training={"max_steps": 1, "validation_percent": 0})
    assert train_here(second).state == "completed"
    assert FROM_CACHE not in phases(second)
    assert series(second, "loss") == series(first, "loss")
    assert beside(first) == [entry] and entry.read_bytes() == whole


def entry_of(folder: Path, rows: list[Any] = ROWS) -> RowCache:
    """An entry as a dataset's folder has it, with these rows."""
    made = Rows()
    for row in rows:
        made.add(row)
    (folder / cache.FOLDER).parent.mkdir(exist_ok=True)
    found = RowCache(folder / cache.FOLDER / "entry.rows")
    found.keep(made, LeftOut())
    return found


def test_the_longest_unused_go_when_they_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [a_row(number, 1_000) for number in range(20)]
    entries = [entry_of(tmp_path / str(number), rows) for number in range(3)]
    size = (tmp_path / "0" / cache.FOLDER / "entry.rows").stat().st_size
    for number in range(3):
        os.utime(tmp_path / str(number) / cache.FOLDER / "entry.rows", ns=(number, number))
    assert entries[0].read()  # used: now the newest
    monkeypatch.setattr(cache, "MOST", 3 * size + 10)
    young, old = (tmp_path / "2" / cache.FOLDER / f".{name}.rows.1.tmp" for name in ("young", "old"))
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    last = entry_of(tmp_path / "3", rows)
    assert [entry.read() is not None for entry in (*entries, last)] == [True, False, True, True]
    assert young.exists() and not old.exists(), "a killed child's goes, one that is being written stays"
    entry_of(tmp_path / "4", [a_row(1, 100_000)])  # larger than all together may be
    assert not list((tmp_path / "4" / cache.FOLDER).iterdir())
    assert all(entry.read() for entry in (entries[0], entries[2], last))


def test_a_reader_keeps_what_is_deleted_under_it(tmp_path: Path) -> None:
    found = entry_of(tmp_path / "data").read()
    shutil.rmtree(tmp_path / "data")
    assert found and all(map(same, found[0], ROWS))


def test_where_nothing_can_be_written_the_run_goes_on(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(tmp_path / "run", tiny_llama, training={"max_steps": 1})
    (files.directory / cache.FOLDER).write_text("a file stands where the folder would be")
    assert train_here(files).state == "completed"


_WRITER = """
import sys
from pathlib import Path
from jobs.training.cache import RowCache
from jobs.training.data import LeftOut
from tests.test_rows import a_row
from jobs.training.rows import Rows
rows = Rows()
for number in range(2_000):
    rows.add(a_row(number, 200))
while True:
    RowCache(Path(sys.argv[1])).keep(rows, LeftOut())
    print(flush=True)
"""


def test_who_reads_while_others_write_and_are_killed_meets_whole_entries_only(tmp_path: Path) -> None:
    entry = tmp_path / "data" / cache.FOLDER / "entry.rows"
    entry.parent.mkdir(parents=True)
    command = [sys.executable, "-c", _WRITER, str(entry)]
    writers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout and writer.stdout.readline() == b"\n"
        for _ in range(50):
            found = RowCache(entry).read()
            assert found and len(found[0]) == 2_000
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            assert writer.stdout
            writer.stdout.close()
    found = RowCache(entry).read()
    assert found and same(found[0][1_999], a_row(1_999, 200))


def test_what_was_kept_of_a_dataset_goes_with_it(home: Home, tmp_path: Path) -> None:
    service = Service(home)
    try:
        views = []
        for name in ("one", "two"):
            file = tmp_path / f"{name}.csv"
            file.write_text("question,answer\n" + "".join(f"how many is {n}?,{name} {n}\n" for n in range(20)))
            views.append(next(item for item in service.datasets.add(file) if isinstance(item, DatasetView)))
        for view in views:
            assert view.mapping
            reference = DatasetRef(
                name=view.name,
                fingerprint=view.fingerprint,
                rows=service.datasets.rows_path(view),
                mapping=view.mapping,
            )
            kept(spec_of(tmp_path / "model", [], view.mapping, dataset=reference), build_tokenizer())
        assert len(list(home.root.rglob("*.rows"))) == 2
        service.datasets.delete(views[0].id)
        (left,) = home.root.rglob("*.rows")
        assert views[1].fingerprint in left.parts
    finally:
        service.close()
