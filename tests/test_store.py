"""The canonical store, and the process that fills it: whole or not there, in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from jobs.data.ingest import SUMMARY, Ingested
from jobs.data.readers import Row
from jobs.data.store import GROUP_ROWS, ROWS, count_rows, read_raw, read_rows
from jobs.errors import UserError
from jobs.rpc import RpcClient
from tests.rundirs import write_rows


def stored(tmp_path: Path, count: int) -> Path:
    rows = (
        Row(number, None, None, "it is broken", "{broken")
        if number % 1_000 == 7
        else Row(number, {"n": number}, json.dumps({"n": number}))
        for number in range(1, count + 1)
    )
    return write_rows(tmp_path / ROWS, rows)


def test_any_row_is_found_by_its_number_and_all_in_order(tmp_path: Path) -> None:
    count = 2 * GROUP_ROWS + 3
    path = stored(tmp_path, count)
    assert count_rows(path) == count
    everything = list(read_rows(path))
    assert [number for number, _, _ in everything] == list(range(1, count + 1))
    for number in (1, 7, GROUP_ROWS, GROUP_ROWS + 1, count):
        assert read_raw(path, number)[0] == everything[number - 1]
    assert read_raw(path, 8)[0] == (8, {"n": 8}, None)
    assert read_raw(path, 7) == ((7, None, "it is broken"), "{broken")
    with pytest.raises(UserError, match="rows 1 to 4,003"):
        read_raw(path, count + 1)[0]


def test_large_rows_make_small_groups_so_that_one_row_is_read_alone(tmp_path: Path) -> None:
    text = json.dumps({"a": "x" * 1_500_000})
    write_rows(tmp_path / ROWS, (Row(number, {}, text) for number in range(1, 10)))
    assert parquet.ParquetFile(tmp_path / ROWS).num_row_groups == 3
    assert read_raw(tmp_path / ROWS, 9)[0][0] == 9


def ingest(path: Path, datasets: Path, log: Path) -> Ingested:
    datasets.mkdir(exist_ok=True)
    client = RpcClient("jobs.data.ingest", log)
    try:
        said = list(client.stream("ingest", path=str(path), filename=path.name, datasets=str(datasets)))
    finally:
        client.close()
    return Ingested.model_validate(said[-1]["summary"])


def test_a_file_is_stored_once_whole_beside_its_original(tmp_path: Path) -> None:
    path = tmp_path / "chat.csv"
    path.write_text("question,answer\na,b\nragged\n")
    first = ingest(path, tmp_path / "datasets", tmp_path / "log.txt")
    folder = tmp_path / "datasets" / first.fingerprint
    assert sorted(item.name for item in folder.iterdir()) == [SUMMARY, "original.csv", ROWS]
    assert (folder / "original.csv").read_bytes() == path.read_bytes()
    assert (first.rows, first.bad_rows, first.sure) == (2, 1, True)
    assert "1 row cannot be read." in first.text
    assert ingest(path, tmp_path / "datasets", tmp_path / "log.txt") == first
    assert [item.name for item in (tmp_path / "datasets").iterdir()] == [first.fingerprint]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "question,answer\n", "has no rows"),
        ("a.json", '{"question": {"0": "a", "1": "b"}, "answer": {"0": "c", "1": "d"}}', "stored column by column"),
        ("a.csv", "question,answer\nx\ny\n", "None of the 2 rows in a.csv can be read: row 1: it has too few fields"),
    ],
)
def test_a_file_without_usable_rows_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        ingest(tmp_path / name, tmp_path / "datasets", tmp_path / "log.txt")
    assert list((tmp_path / "datasets").iterdir()) == []


def _large(path: Path, megabytes: int) -> None:
    """A file of about this size with 1,000 kinds of rows."""
    words = "the quick brown fox jumps over the lazy dog and the captain sails on " * 6
    kinds: list[dict[str, Any]] = [{"question": f"{n} {words}", "answer": f"{words} {n}"} for n in range(1_000)]
    block = "".join(json.dumps(row) + "\n" for row in kinds)
    times = megabytes * 1_000_000 // len(block)
    if path.suffix == ".parquet":
        table = pyarrow.concat_tables([pyarrow.Table.from_pylist(kinds)] * times)
        parquet.write_table(table, path, row_group_size=len(table), compression="none", use_dictionary=False)
        return
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("question,answer\n")
            block = "".join(f'"{row["question"]}","{row["answer"]}\nmore"\n' for row in kinds)
        if path.suffix == ".json":
            file.write("[\n")
            block = block.replace("\n", ",\n")
        for _ in range(times):
            file.write(block)
        if path.suffix == ".json":
            file.write('{"question": "the last", "answer": "row"}]')


@pytest.mark.parametrize(("kind", "megabytes"), [("csv", 60), ("jsonl", 60), ("json", 30), ("parquet", 60)])
def test_a_large_file_is_taken_in_with_bounded_memory(tmp_path: Path, kind: str, megabytes: int) -> None:
    path = tmp_path / f"large.{kind}"
    _large(path, megabytes)
    found = ingest(path, tmp_path / "datasets", tmp_path / "log.txt")
    assert found.size_bytes > 0.9 * megabytes * 1e6
    assert found.bad_rows == 0 and found.rows > megabytes * 900
    assert found.peak_memory < 300e6, f"{found.peak_memory / 1e6:.0f} MB"


def test_a_reading_that_nobody_waits_for_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    _large(path, 20)
    (tmp_path / "datasets").mkdir()
    client = RpcClient("jobs.data.ingest", tmp_path / "log.txt")
    reading = client.stream("ingest", path=str(path), filename="x.jsonl", datasets=str(tmp_path / "datasets"))
    next(reading)
    reading.close()
    client.close()
    assert list((tmp_path / "datasets").iterdir()) == []
