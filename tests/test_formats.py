"""The formats that are no plain text: Excel, Arrow, Markdown, and archives of anything."""

from __future__ import annotations

import datetime
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, ipc, parquet

from jobs.data import readers
from jobs.data.formats import sniff
from jobs.data.readers import Reading, Row, zipped
from jobs.data.readers.plain import LONG_PARAGRAPH
from jobs.errors import UserError
from tests.workbooks import write_workbook

QA = [["question", "answer"], ["a", "b"], ["c", "d"]]
ROWS = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]


def read(path: Path) -> tuple[Reading, list[Row], str]:
    sniffed = sniff(path, path.name)
    reading, blocks = readers.read(path, path.name, sniffed.format, sniffed.encoding)
    return reading, [row for block in blocks for row in block], sniffed.format


def values(rows: list[Row]) -> list[dict[str, Any] | None]:
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    return [row.values for row in rows]


def test_a_sheet_is_read_with_numbers_dates_and_holes(tmp_path: Path) -> None:
    sheet = [
        [None, None, None],
        ["question", "answer", "when", None],
        ["2 + 2?", 4, datetime.date(2024, 2, 29), None],
        [None, None, None],
        ["half?", 0.5, None],
        ["true? <&>", True, None],
    ]
    reading, rows, kind = read(write_workbook(tmp_path / "a.xlsx", {"Sheet1": sheet}))
    assert kind == "xlsx" and reading.notes == []
    assert values(rows) == [
        {"question": "2 + 2?", "answer": 4, "when": "2024-02-29"},
        {"question": "half?", "answer": 0.5, "when": ""},
        {"question": "true? <&>", "answer": True, "when": ""},
    ]
    assert json.loads(rows[0].text or "") == rows[0].values


def test_sheets_with_the_same_columns_are_one_dataset_and_the_others_are_named(tmp_path: Path) -> None:
    sheets = {
        "Empty": [],
        "May": QA,
        "June": [QA[0], ["e", "f"]],
        "Notes": [["by whom?", "when", "why"], ["x", "y", "z"]],
    }
    reading, rows, _ = read(write_workbook(tmp_path / "a.xlsx", sheets))
    assert values(rows) == [*ROWS, {"question": "e", "answer": "f"}]
    assert reading.notes == [
        'The sheets "May", "June" have the same columns and are read one after another.',
        'The sheet "Notes" has other columns and is not read; upload it alone to use it.',
    ]
    sheet = [["How are you?", "Fine."], ["And you?", "Well."]]
    reading, rows, _ = read(write_workbook(tmp_path / "b.xlsx", {"One": sheet}))
    assert len(rows) == 2 and "first row looks like data" in reading.notes[0]


def test_a_workbook_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.data.readers import excel

    path = write_workbook(tmp_path / "a.xlsx", {"One": QA})
    monkeypatch.setattr(excel, "MOST_UNPACKED", 100)
    with pytest.raises(UserError, match=r"unpacks to .* Save it as CSV UTF-8"):
        read(path)


@pytest.mark.parametrize("kind", ["file", "stream", "feather"])
def test_arrow_is_read_as_file_and_as_stream(tmp_path: Path, kind: str) -> None:
    many = [{"question": f"q{n}", "turns": [{"n": n}], "none": None} for n in range(600)]
    table = pyarrow.Table.from_pylist(many)
    path = tmp_path / "a.arrow"
    if kind == "feather":
        feather.write_feather(table, str(path), compression="lz4")
    else:
        new = ipc.new_file if kind == "file" else ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=400)
    reading, rows, found = read(path)
    assert found == "arrow" and list(reading.columns) == ["question", "turns", "none"]
    assert values(rows) == many
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a.arrow is an Arrow file that cannot be read"):
        read(path)


def test_a_dataset_that_datasets_has_saved_is_read(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    _, rows, _ = read(tmp_path / "saved" / "data-00000-of-00001.arrow")
    assert values(rows) == ROWS


def test_numbered_classes_get_the_names_that_the_file_has_for_them(tmp_path: Path) -> None:
    import datasets

    mood, tags = datasets.ClassLabel(names=["neg", "pos"]), datasets.ClassLabel(names=["O", "B-PER"])
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "label": mood,
            "ner_tags": datasets.List(tags),
            "about": {"mood": mood, "text": datasets.Value("string")},
            "spans": datasets.Sequence({"tag": tags, "start": datasets.Value("int32")}),
        }
    )
    rows = [
        {
            "id": 1,
            "label": number,
            "ner_tags": [1, 0],
            "about": {"mood": 0, "text": "a"},
            "spans": {"tag": [1], "start": [1]},
        }
        for number in (1, -1, None)
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    made.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved" / "data-00000-of-00001.arrow"):
        reading, found, _ = read(path)
        first, unlabelled, null = values(found)
        assert first == {
            "id": 1,
            "label": "pos",
            "ner_tags": ["B-PER", "O"],
            "about": {"mood": "neg", "text": "a"},
            "spans": {"tag": ["B-PER"], "start": [1]},
        }
        assert unlabelled and null and unlabelled["label"] is None and null["label"] is None
        assert 'The numbers in "label" are read as the names that the file has for them (neg, pos).' in reading.notes


@pytest.mark.parametrize(
    "features",
    [
        {"label": {"names": ["neg", "pos"], "num_classes": 2, "_type": "ClassLabel"}},
        {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "tags": [{"names": ["x"], "_type": "ClassLabel"}]},
        {"label": {"_type": "Value"}},
        {"label": 7},
        ["label"],
        None,
    ],
)
def test_older_and_broken_notes_on_classes_spoil_no_file(tmp_path: Path, features: Any) -> None:
    about = {"info": {"features": features}} if features else "nothing"
    table = pyarrow.table({"label": [1, 7], "tags": [[0], [0]]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "a.parquet")
    named = isinstance(features, dict) and "names" in str(features["label"])
    tags = ["x"] if named and len(features) > 1 else [0]
    assert values(read(tmp_path / "a.parquet")[1]) == [
        {"label": "pos" if named else 1, "tags": tags},
        {"label": 7, "tags": tags},
    ]


def test_markdown_is_cut_at_headings_and_nothing_is_lost(tmp_path: Path) -> None:
    text = (
        "Before.\n\n# One\n\n## Right below\nText,\nmore.\n\nStill One.\n\n```sh\n# no heading\n\n~~~\n```\n"
        "## Two #\n\n    ~~~ is no fence\n#hashtag\n\n# Three\r\nend"
    )
    path = tmp_path / "a.md"
    path.write_bytes(text.encode())
    reading, rows, kind = read(path)
    texts = [str((row.values or {})["text"]) for row in rows]
    assert kind == "markdown"
    assert texts == [
        "Before.",
        "# One\n\n## Right below\nText,\nmore.\n\nStill One.\n\n```sh\n# no heading\n\n~~~\n```",
        "## Two #\n\n    ~~~ is no fence\n#hashtag",
        "# Three\r\nend",
    ]
    assert reading.notes == ["Each heading with the text below it is one row."]
    assert "".join("".join(texts).split()) == "".join(text.split())


def test_markdown_without_headings_is_cut_at_blank_lines_outside_code(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("one\n\n~~~py\n# a comment\n\nx = 1\n~~~\nsaid so\n\n\ntwo\n")
    reading, rows, _ = read(path)
    assert values(rows) == [{"text": "one"}, {"text": "~~~py\n# a comment\n\nx = 1\n~~~\nsaid so"}, {"text": "two"}]
    assert reading.notes == ["Blank lines separate the rows."]


def test_a_long_section_is_cut_at_a_blank_line(tmp_path: Path) -> None:
    paragraph = "A sentence of some words. " * 100
    path = tmp_path / "a.md"
    path.write_text("# Long\n\n" + f"{paragraph}\n\n" * 7)
    _, rows, _ = read(path)
    texts = [str((row.values or {})["text"]) for row in rows]
    assert len(texts) == 3 and all(len(text) <= LONG_PARAGRAPH for text in texts)
    assert [text.count("\n\n") for text in texts] == [3, 2, 0]


def archive(path: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def csv(*rows: tuple[str, str]) -> str:
    return "question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in rows)


def test_files_of_an_archive_with_the_same_columns_are_read_one_after_another(tmp_path: Path) -> None:
    files = {
        "data/part-2.jsonl": '{"question": "e", "answer": "f"}\n{broken\n',
        "data/part-1.csv": csv(("a", "b"), ("ragged", "x,y"), ("c", "d")),
        "__MACOSX/data/._part-1.csv": b"\x00\x05\x16\x07",
        "data/.DS_Store": b"\x00\x00\x00\x01Bud1",
        "data/": "",
    }
    reading, rows, kind = read(archive(tmp_path / "a.zip", files))
    assert kind == "zip"
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert [row.values for row in rows if row.values] == [*ROWS, {"question": "e", "answer": "f"}]
    assert rows[1].problem == "it has too many fields (3 where the header has 2; line 3; data/part-1.csv)"
    assert "line 2 column 2; data/part-2.jsonl)" in str(rows[4].problem)
    assert reading.notes == ["2 files are read one after another: data/part-1.csv, data/part-2.jsonl."]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zip"]  # what was unpacked is gone


def test_of_files_that_differ_the_largest_group_is_read_and_the_rest_is_named(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as target:
        target.writestr("x.txt", "x")
    book = write_workbook(tmp_path / "book.xlsx", {"One": QA}).read_bytes()
    files: dict[str, bytes | str] = {
        "README.md": "# About",
        "notes.md": "# Notes",
        "a.csv": csv(*[("a", "b")] * 600),
        "b.xlsx": book,
        "../../evil.csv": csv(("e", "f")),
        "inner.zip": inner.getvalue(),
        "photo.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
    }
    reading, rows, _ = read(archive(tmp_path / "a.zip", files))
    assert len(rows) == 603
    said = " ".join(reading.notes)
    assert "3 files are read one after another: evil.csv, a.csv, b.xlsx." in said
    assert "notes.md has other columns and is not read; upload it alone." in said
    assert "README.md tells about the data and is not read." in said
    assert "inner.zip is an archive within the archive" in said
    assert "photo.png is a binary file" in said
    assert {item.name for item in tmp_path.iterdir()} == {"a.zip", "book.xlsx"}
    assert not (tmp_path.parent / "evil.csv").exists()


def test_an_old_encoding_in_an_archive_is_said_with_its_file(tmp_path: Path) -> None:
    reading, rows, _ = read(archive(tmp_path / "a.zip", {"a.csv": csv(("the café", "b")).encode("cp1252")}))
    assert rows[0].values == {"question": "the café", "answer": "b"}
    assert reading.notes[0].startswith("a.csv: It is not UTF-8 and is read as Windows-1252")


def lie_about_sizes(path: Path) -> None:
    """The archive says that its first file is one byte long."""
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = (1).to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("packed", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_refused_however_it_is_packed(tmp_path: Path, packed: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", packed) as file:
        file.writestr("a.txt", "the fox and the dog\n" * 500)
    data = bytearray(path.read_bytes())
    for place in range(44, 60):  # behind the header
        data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match="is a zip archive that cannot be unpacked"):
        read(path)


def test_an_archive_that_must_not_be_unpacked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.zip", {"a.txt": "x" * 5_000})
    monkeypatch.setattr(zipped, "MOST_UNPACKED", 1_000)
    with pytest.raises(UserError, match="unpacks to more than"):
        read(path)
    lie_about_sizes(path)
    with pytest.raises(UserError, match=r"unpacks to more than|cannot be unpacked"):
        read(path)
    monkeypatch.setattr(zipped, "MOST_UNPACKED", 1_000_000)
    monkeypatch.setattr(zipped, "MOST_FILES", 1)
    with pytest.raises(UserError, match="holds 2 files; up to 1 are read"):
        read(archive(path, {"a.txt": "x", "b.txt": "y"}))
    data = bytearray(archive(path, {"a.txt": "x" * 50}).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is locked with a password"):
        read(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({".DS_Store": "x"}, "is an empty zip archive"),
        ({"a.csv": "question,answer\n"}, "a.csv has no rows"),
        ({"a.json": '[{"a": 1}', "b.bin": b"\x00" * 100}, "b.bin is a binary file"),
    ],
)
def test_an_archive_without_anything_to_read_says_why(tmp_path: Path, files: dict[str, bytes | str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        read(archive(tmp_path / "a.zip", files))
    assert said in str(raised.value)
