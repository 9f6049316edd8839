"""The datasets part of the service: from a path to a view, a preview and a report; what the catalog keeps."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dataset.top import top_html
from app.pages.datasets import datasets_html
from jobs.data.columns import Mapping, Shape
from jobs.data.ingest import SUMMARY, Ingested, ingest
from jobs.data.store import ROWS
from jobs.data.values import score_of
from jobs.errors import UserError
from jobs.service.datasets import Datasets, DatasetView, Preflight, Progress
from jobs.service.models import Models
from storage.db import connect, migrate, write
from storage.files import Home
from storage.tables import Run
from tests.workbooks import write_workbook


@pytest.fixture
def datasets(home: Home) -> Iterator[Datasets]:
    migrate(home.database)
    engine = connect(home.database)
    service = Datasets(home, engine, Models(home, engine))
    yield service
    service.close()
    engine.dispose()


def added(datasets: Datasets, path: Path, filename: str | None = None) -> DatasetView:
    *progress, view = datasets.add(path, filename)
    assert all(isinstance(item, Progress) for item in progress)
    assert isinstance(view, DatasetView)
    return view


def a_csv(tmp_path: Path, name: str = "pirate talk.csv", rows: int = 30) -> Path:
    path = tmp_path / name
    path.write_text("question,answer\n" + "".join(f"the fox {n}?,the dog {n}\n" for n in range(rows)) + "ragged\n")
    return path


def test_an_upload_goes_when_it_has_been_copied_or_refused(datasets: Datasets, home: Home, tmp_path: Path) -> None:
    good, empty, elsewhere = a_csv(home.uploads), home.uploads / "empty.csv", a_csv(tmp_path)
    empty.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        added(datasets, empty)
    view = added(datasets, good)
    assert not good.exists() and not empty.exists()
    assert len(datasets.head(view.id)) == 20
    assert added(datasets, elsewhere).id == view.id
    assert elsewhere.exists()


def test_a_file_becomes_a_dataset_and_the_same_content_twice_is_one(datasets: Datasets, tmp_path: Path) -> None:
    view = added(datasets, a_csv(tmp_path))
    assert (view.name, view.filename, view.format, view.rows) == ("pirate talk", "pirate talk.csv", "csv", 31)
    assert view.columns == ("question", "answer")
    assert view.mapping == Mapping(shape=Shape.PROMPT, columns={"prompt": "question", "completion": "answer"})
    assert view.sure and "1 row cannot be read" in view.detected
    assert added(datasets, a_csv(tmp_path, "copy.csv"), "../../other\nname.csv") == view
    assert datasets.list() == [view]
    assert datasets.get(view.id) == view


def test_of_two_uploads_of_one_file_at_once_the_first_stays_as_it_is(tmp_path: Path) -> None:
    file, home = a_csv(tmp_path), tmp_path / "datasets"
    home.mkdir()
    first: list[Ingested] = []
    inode = 0

    def report(share: float, text: str) -> None:
        nonlocal inode
        if text.startswith("Read") and not first:
            first.append(ingest(file, file.name, home, lambda share, text: None))
            inode = (home / first[0].fingerprint / ROWS).stat().st_ino

    second = ingest(file, file.name, home, report)
    assert second == first[0]
    assert (home / second.fingerprint / ROWS).stat().st_ino == inode
    assert [folder.name for folder in home.iterdir()] == [second.fingerprint]


@pytest.mark.parametrize("broken", [ROWS, SUMMARY])
def test_what_a_removal_has_left_of_a_dataset_gives_way(tmp_path: Path, broken: str) -> None:
    file, home = a_csv(tmp_path), tmp_path / "datasets"
    home.mkdir()
    folder = home / ingest(file, file.name, home, lambda share, text: None).fingerprint
    (folder / broken).unlink()
    assert ingest(file, file.name, home, lambda share, text: None).rows == 31
    assert (folder / ROWS).is_file() and (folder / SUMMARY).is_file()


def test_the_list_says_in_short_what_the_page_says_whole(datasets: Datasets, tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pairs.csv", "question,answer\n" + "".join(f"the fox {n}?,a dog {n}\n" for n in range(30)))
        for number in range(9):
            archive.writestr(f"a folder/other {number}.csv", f"column {number},price\nx,1\ny,2\n")
    view = added(datasets, path)
    assert "a folder/other 0.csv" in top_html(view)
    shown = datasets_html([view])
    assert "9 files with other columns are not read." in shown and "a folder" not in shown
    chosen = datasets.set_mapping(view.id, Mapping(shape=Shape.TEXT, columns={"text": "answer"}))
    assert chosen.brief == chosen.detected and chosen.brief.startswith("Chosen by you")


def test_pasted_text_is_taken_in_as_what_it_looks_like(datasets: Datasets, home: Home) -> None:
    *_, view = datasets.add_text("question\tanswer\nthe fox?\tthe dog\r\n")
    assert isinstance(view, DatasetView)
    assert (view.name, view.format, view.rows, view.columns) == ("Pasted text", "tsv", 1, ("question", "answer"))
    *_, prose = datasets.add_text("One, two.\n\nThree \ud800 four.", "notes")
    assert isinstance(prose, DatasetView)
    assert (prose.name, prose.format, prose.rows) == ("notes", "text", 2)
    with pytest.raises(UserError, match="There is no text to take in"):
        list(datasets.add_text(" \n"))
    with pytest.raises(UserError, match="is not valid JSON"):
        list(datasets.add_text('[{"a": "b"'))
    assert list(home.uploads.iterdir()) == []


def test_a_first_row_that_was_taken_for_a_header_can_be_read_as_data(
    datasets: Datasets, tmp_path: Path, home: Home, tiny_llama: Path
) -> None:
    path = tmp_path / "cities.csv"
    path.write_text("Ann,Rome\nBob,Oslo\nEve,Bonn\n")
    view = added(datasets, path)
    assert (view.first_row, view.rows, view.columns) == ("header", 2, ("Ann", "Rome"))
    datasets.set_mapping(view.id, Mapping(shape=Shape.PROMPT, columns={"prompt": "Ann", "completion": "Rome"}))
    assert list(datasets.read_again(view.id, "header"))[-1].id == view.id  # type: ignore[union-attr]
    *progress, again = datasets.read_again(view.id, "data")
    assert isinstance(again, DatasetView) and progress
    assert (again.id, again.first_row, again.rows, again.columns) == (view.id, "data", 3, ("column 1", "column 2"))
    assert "You said that the first row is data" in again.detected
    assert {item.name for item in home.datasets.iterdir()} == {again.fingerprint}
    base = datasets._models.add_folder(tiny_llama)
    with write(datasets._engine) as session:
        session.add(Run(name="first", base_model_id=base.id, dataset_id=again.id, spec={}))
    *_, beside = datasets.read_again(again.id, "header")
    assert isinstance(beside, DatasetView)
    assert beside.name == "cities, first row as names"
    assert beside.id != again.id and datasets.get(again.id).rows == 3 and beside.columns == ("Ann", "Rome")
    assert added(datasets, path).id not in (again.id, beside.id)  # as it is read without a word
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="is no table"):
        list(datasets.read_again(added(datasets, lines).id, "data"))


def test_a_file_name_is_never_a_path(datasets: Datasets, tmp_path: Path, home: Home) -> None:
    view = added(datasets, a_csv(tmp_path), "..\\..\\C:\\evil\x00\n.csv")
    assert view.filename == "evil.csv"
    assert {item.name for item in home.datasets.iterdir()} == {view.fingerprint}


def test_a_bad_file_is_told_and_leaves_no_trace(datasets: Datasets, tmp_path: Path, home: Home) -> None:
    path = tmp_path / "notes.csv"
    path.write_bytes("question,answer\nпривет,x\n".encode("cp1251"))
    with pytest.raises(UserError, match=r"notes.csv is not UTF-8: line 2 has the byte 0xEF"):
        added(datasets, path)
    assert datasets.list() == [] and list(home.datasets.iterdir()) == []


def test_a_mapping_can_be_mended_and_its_mistakes_are_told_together(datasets: Datasets, tmp_path: Path) -> None:
    view = added(datasets, a_csv(tmp_path))
    with pytest.raises(UserError) as raised:
        datasets.set_mapping(
            view.id, Mapping(shape=Shape.INSTRUCTION, columns={"instruction": "nope", "prompt": "answer"})
        )
    assert raised.value.problems == (
        'Choose the column for "Output".',
        'There is no column "nope" in pirate talk; it has question, answer.',
        '"prompt" is no part of instruction.',
    )
    chosen = Mapping(shape=Shape.PROMPT, columns={"prompt": "answer", "completion": "question", "system": ""})
    view = datasets.set_mapping(view.id, chosen)
    assert view.mapping and view.mapping.columns == {"prompt": "answer", "completion": "question"}
    assert view.sure and view.detected.startswith("Chosen by you")


@pytest.mark.parametrize("kind", ["csv", "tsv", "xlsx"])
def test_decimal_commas_are_numbers_and_can_be_overruled(datasets: Datasets, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"kritik.{kind}"
    rows = [("text", "bewertung"), ("Gut, nah am Meer", "4,5"), ("Laut", "1.234,25"), ("Schlecht", "2")]
    if kind == "xlsx":
        write_workbook(path, {"Blatt": [list(row) for row in rows]})
    else:
        path.write_text("".join(("\t" if kind == "tsv" else ";").join(row) + "\n" for row in rows), "utf-8")
    view = added(datasets, path)
    columns = {"text": "text", "score": "bewertung"}
    assert view.mapping == Mapping(shape=Shape.SCORED, columns=columns, decimal=",")
    assert 'with a decimal comma ("1.234,25"); 3 of 3 sampled rows fit' in view.detected and view.sure
    found = [score_of(row, view.mapping) for row in datasets.sample(view.id)]
    assert found == [4.5, 1234.25, 2.0]
    plain = datasets.set_mapping(view.id, Mapping(shape=Shape.SCORED, columns=columns, decimal="."))
    assert plain.mapping and plain.mapping.decimal == "." and "with commas between thousands" in plain.detected
    again = datasets.set_mapping(view.id, Mapping(shape=Shape.SCORED, columns=columns))
    assert again.mapping == view.mapping and again.detected.endswith("with a decimal comma.")


def test_a_dataset_is_renamed_and_deleted_with_its_files(datasets: Datasets, tmp_path: Path, home: Home) -> None:
    view = added(datasets, a_csv(tmp_path))
    assert datasets.rename(view.id, "  Better \n name ").name == "Better name"
    with pytest.raises(UserError, match="needs a name"):
        datasets.rename(view.id, " ")
    datasets.delete(view.id)
    assert list(home.datasets.iterdir()) == []
    with pytest.raises(UserError, match=f"There is no dataset {view.id}"):
        datasets.get(view.id)


def test_a_dataset_that_a_run_uses_stays(datasets: Datasets, tmp_path: Path, tiny_llama: Path) -> None:
    view = added(datasets, a_csv(tmp_path))
    base = datasets._models.add_folder(tiny_llama)
    with write(datasets._engine) as session:
        session.add(Run(name="first", base_model_id=base.id, dataset_id=view.id, spec={}))
    assert datasets.get(view.id).runs == 1
    for refused in (datasets.check_unused, datasets.delete):
        with pytest.raises(UserError, match=r"used by 1 run \(first\). Delete that run first"):
            refused(view.id)
    assert "trained on it" not in top_html(datasets.get(view.id)), "the run only waits"
    assert "data-question" not in top_html(datasets.get(view.id)).partition('data-action="used"')[2]
    with write(datasets._engine) as session:
        session.add(Run(name="second", base_model_id=base.id, dataset_id=view.id, spec={}))
    with pytest.raises(UserError, match=r"used by 2 runs \(first, second\). Delete those runs first"):
        datasets.delete(view.id)


def test_the_head_shows_short_values_and_says_what_is_bad(datasets: Datasets, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"messages": [{"role": "user", "content": "x" * 500}], "n": 1}) + "\n{broken\n", encoding="utf-8"
    )
    head = datasets.head(added(datasets, path).id)
    assert len(head[0]["messages"]) == 200 and head[0]["n"] == 1
    assert head[1]["messages"].startswith("(row 2 cannot be read: it is not valid JSON")
    assert datasets.head(1, rows=1) == head[:1]


def test_preview_and_check_go_through_the_token_child_and_reports_are_kept(
    datasets: Datasets, tmp_path: Path, tiny_llama: Path, home: Home
) -> None:
    view = added(datasets, a_csv(tmp_path))
    base = datasets._models.add_folder(tiny_llama)
    seen = datasets.preview(view.id, 2, base.id, "chat", {}, 512)
    trained = "".join(segment.text for segment in seen.segments if segment.kind == "trained")
    assert trained == "the dog 1<|im_end|>"
    *progress, report = datasets.preflight(view.id, base.id, "chat", {}, 512)
    assert isinstance(report, Preflight) and progress
    assert (report.good_rows, report.bad_rows) == (30, 1)
    assert list(datasets.preflight(view.id, base.id, "chat", {"train_on": "assistant answers"}, 512)) == [report]
    assert len(list(home.dataset(view.fingerprint).glob("preflight-*.json"))) == 1
    with pytest.raises(UserError, match="You set Train on to"):
        list(datasets.preflight(view.id, base.id, "chat", {"train_on": "nothing"}, 512))


def test_without_a_mapping_the_columns_are_asked_for(datasets: Datasets, tmp_path: Path, tiny_llama: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    view = added(datasets, path)
    assert view.mapping is None and not view.sure
    base = datasets._models.add_folder(tiny_llama)
    with pytest.raises(UserError, match="could not tell what the columns of numbers mean"):
        datasets.preview(view.id, 1, base.id, "chat", {}, 512)


def test_the_server_side_never_imports_torch_or_transformers() -> None:
    code = (
        "import sys, jobs.service.datasets, jobs.data.preflight, jobs.tasks; jobs.tasks.all_tasks();"
        "print([name for name in ('torch', 'transformers', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_children_know_nothing_of_the_catalog() -> None:
    for module in ("jobs.data.ingest", "jobs.data.child"):
        found = "[name for name in sys.modules if name.split('.')[0] in ('storage', 'sqlalchemy')]"
        code = f"import sys, {module}; print({found})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
