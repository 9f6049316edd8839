"""Files as people really upload them: read row by row, or refused in words that say what to do."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from jobs.data import codec, encodings, readers
from jobs.data.encodings import EncodingCheck, NotUtf8, check_encoding
from jobs.data.formats import sniff
from jobs.data.readers import FirstRow, Reading, Row, base
from jobs.data.readers.plain import LONG_PARAGRAPH
from jobs.errors import UserError


@pytest.fixture(autouse=True)
def _csv_limit() -> Iterator[None]:
    """Reading sets Python's own limit on a CSV field, which other libraries' tables would meet in this process."""
    before = csv.field_size_limit()
    yield
    csv.field_size_limit(before)


def read(tmp_path: Path, name: str, content: str | bytes, header: FirstRow = "auto") -> tuple[Reading, list[Row], str]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    sniffed = sniff(path, name)
    encoding, notes = sniffed.encoding, []
    if encoding:
        encoding, notes = check_encoding(path, name, encoding)
    reading, blocks = readers.read(path, name, sniffed.format, encoding, header)
    rows = [row for block in blocks for row in block]
    reading.notes += notes
    return reading, rows, sniffed.format


def values(rows: list[Row]) -> list[dict | None]:
    for row in rows:
        assert row.text is None or json.loads(row.text) == row.values
    return [row.values for row in rows]


def problems(rows: list[Row]) -> dict[int, str]:
    return {row.number: row.problem for row in rows if row.problem}


QA = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", "question,answer\na,b\nc,d\n", "csv"),
        ("a.csv", "question;answer\na;b\nc;d\n", "csv"),
        ("a.csv", "question|answer\r\na|b\r\nc|d\r\n", "csv"),
        ("a.csv", "question\tanswer\na\tb\nc\td", "csv"),
        ("a.tsv", "question\tanswer\n\na\tb\n\nc\td\n", "tsv"),
        ("a.dat", "question\tanswer\na\tb\nc\td\n", "tsv"),
        ("a.csv", "\ufeffquestion,answer\na,b\nc,d\n", "csv"),
        ("a.csv", "question,answer\na,b\nc,d\n".encode("utf-16"), "csv"),
        ("a.jsonl", "\n".join(map(json.dumps, QA)), "jsonl"),
        ("a.json", "\n\n".join(map(json.dumps, QA)), "jsonl"),
        ("a.txt", "\n".join(map(json.dumps, QA)), "jsonl"),
        ("a.json", json.dumps(QA), "json"),
        ("a.jsonl", json.dumps(QA, indent=2), "json"),
        ("a.json", json.dumps({"version": 1, "data": QA}), "json"),
        ("a.json", json.dumps({"about": {"data": [1]}, "Rows": QA}, indent=1), "json"),
        ("a.json", "\n".join(json.dumps(row, indent=2) for row in QA), "json"),
    ],
)
def test_the_same_rows_are_read_from_every_text_form(
    tmp_path: Path, name: str, content: str | bytes, kind: str
) -> None:
    reading, rows, found = read(tmp_path, name, content)
    assert values(rows) == QA
    assert [row.number for row in rows] == [1, 2]
    assert list(reading.columns) == ["question", "answer"]
    assert found == kind


def test_parquet_is_read_with_lists_nulls_and_dates(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "messages": [[{"role": "user", "content": "hi"}], None],
            "when": pyarrow.array([0, None], pyarrow.date32()),
            "blob": [b"\x00\x01", None],
        }
    )
    target = io.BytesIO()
    parquet.write_table(table, target)
    reading, rows, found = read(tmp_path, "a.whatever", target.getvalue())
    assert found == "parquet"
    assert list(reading.columns) == ["messages", "when", "blob"]
    assert json.loads(rows[0].text or "") == {
        "messages": [{"role": "user", "content": "hi"}],
        "when": "1970-01-01",
        "blob": "<2 bytes>",
    }
    assert rows[1].values == {"messages": None, "when": None, "blob": None}


def _zip(member: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(member, "x")
    return target.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty (0 bytes)"),
        ("a.txt", b" \n\n ", "only blank lines"),
        ("a.csv", _zip("xl/workbook.xml"), "is an Excel workbook that cannot be read"),
        ("a.zip", _zip("ppt/slides.xml"), "is an office document"),
        ("a.zip", b"PK\x03\x04 and then nothing of the kind", "is a damaged zip archive"),
        ("a.xls", b"\xd0\xcf\x11\xe0 an old one", "is an old or locked Excel or Word file"),
        ("a.txt", _zip("word/document.xml"), "is a Word document"),
        ("a.csv", gzip.compress(b"a,b"), "is compressed (gzip). Unpack it"),
        ("a.txt", b"%PDF-1.7 ...", "is a PDF"),
        ("a.csv", bytes(range(256)) * 20, "is a binary file"),
        ("a.csv", "question,answer\nx,y\n".encode("utf-16-le"), "looks like UTF-16 without its byte-order mark"),
        ("a.csv", "a,b".encode("utf-32"), "is encoded as UTF-32"),
        ("a.json", "question,answer\na,b", "begins with 'question,answer"),
        ("a.json", '[{"a": 1}, {"a": 2}', "the list is not closed after row 2 (line 1, column 20)"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "a comma is missing after row 1 (line 2, column 1)"),
        ("a.json", '[{"a": "unclosed}, {"a": 2}]', "is not valid JSON"),
        ("a.parquet", b"PAR1 and then nothing of the kind", "is a Parquet file that cannot be read"),
    ],
)
def test_a_file_that_is_no_dataset_is_refused_in_words(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, name, content)
    assert said in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "where is the café,here",
        "„Größe“ – für 5 €,schön",
        "l’été à la plage…,ça va «bien»",
        "¿mañana?,El Niño",
    ],
)
def test_what_is_plainly_windows_1252_is_read_as_that_and_said_so(tmp_path: Path, line: str) -> None:
    line = line.replace("„", "“")
    text = "question,answer\n" + "plain,row\n" * 50 + line + "\n"
    reading, rows, _ = read(tmp_path, "a.csv", text.encode("cp1252"))
    assert list((rows[-1].values or {}).values()) == line.split(",")
    assert "read as Windows-1252" in reading.notes[0] and "line 52 then says" in reading.notes[0]


@pytest.mark.parametrize(
    ("text", "encoding", "line"),
    [
        ("это простой текст\n" * 20, "cp1251", 1),
        ("plain\n" * 40 + "Привет means hello\n", "cp1251", 41),  # another alphabet among English
        ("Zażółć gęślą jaźń, ciągle\n" * 20, "cp1250", 1),
        ("ağaç ışık şimdi\n" * 20, "cp1254", 1),
        ("déjà vu\n" * 20, "mac_roman", 1),
    ],
)
def test_other_old_encodings_are_refused_with_the_line(tmp_path: Path, text: str, encoding: str, line: int) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, "a.txt", text.encode(encoding))
    said = str(raised.value)
    assert f"line {line} has the byte 0x" in said and 'Save the file as UTF-8 (in Excel: "CSV UTF-8")' in said


def test_a_broken_byte_in_utf8_does_not_turn_the_file_into_windows_1252(tmp_path: Path) -> None:
    with pytest.raises(NotUtf8):
        read(tmp_path, "a.txt", ("déjà vu\n" * 20).encode() + b"\xe9\n")


def test_the_encoding_does_not_depend_on_where_the_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_CHUNK", 3)
    _, rows, _ = read(tmp_path, "a.txt", "one\n\nthe café\n".encode("cp1252"))
    assert [row.values for row in rows] == [{"text": "one"}, {"text": "the café"}]
    check = EncodingCheck("a.txt", "utf-8")
    for byte in "né\nà".encode()[:-1]:
        check.feed(bytes([byte]))
    with pytest.raises(UserError, match=r"ends in the middle of a character \(line 2\)"):
        check.feed(b"", final=True)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("question,answer\na,b\nc,d", "csv"),
        ("name;city\na;b\nc;d\n", "csv"),
        ("a\tb\n1\t2\n", "tsv"),
        ('{"a": 1}\n{"a": 2}\n', "jsonl"),
        ('[{"a": 1}]', "json"),
        ("Hello, world.\nHow are you, then?", "text"),
        ("Hello, you\nBye, you", "text"),
        ("One line, with a comma", "text"),
        ("Dear Sir,\n\nI write, as I said,\nto you.\n", "text"),
        ("Q: a, b?\nA: c, d\n", "dialogue"),
        ("Q: only asked\nQ: and asked\n", "text"),
        ("Note: this\nWarning: that\nQuestion: who reads it?\n", "text"),
        ("Anna: hello\nTom: hi\n\nAnna: bye\nTom: bye\n", "text"),
        ("A story.\n" * 5 + "Q: what?\nA: that\n", "text"),
        ("Q: what?\nA: that\n" + "And a long story follows, without an end. " * 300, "text"),
    ],
)
def test_text_without_a_name_is_what_it_looks_like(tmp_path: Path, text: str, kind: str) -> None:
    assert read(tmp_path, "Pasted text", text)[2] == kind


def test_ragged_and_badly_quoted_csv_rows_are_bad_by_number_and_the_others_stay(tmp_path: Path) -> None:
    content = (
        "question,answer\n"
        "a,b\n"
        '"two\nlines, one cell",ok\n'
        "too,many,fields\n"
        "few\n"
        "\n"
        '"he said "hi" loudly",x\n'
        'open,"never closed\n'
        "c,d\n"
    )
    _, rows, _ = read(tmp_path, "a.csv", content)
    assert problems(rows) == {
        3: "it has too many fields (3 where the header has 2; line 5)",
        4: "it has too few fields (1 where the header has 2; line 6)",
        5: "text follows a closing quote (line 8)",
        6: "a quote is opened and not closed (line 9)",
    }
    assert rows[1].values == {"question": "two\nlines, one cell", "answer": "ok"}
    assert rows[6].values == {"question": "c", "answer": "d"}
    assert rows[2].raw == "too,many,fields\n"


def test_broken_json_lines_are_bad_by_number_and_line(tmp_path: Path) -> None:
    content = '{"a": "x"}\n\n{"a": \n42\n[{"role": "user", "content": "hi"}]\n{"a": "\\ud800"}\n'
    _, rows, _ = read(tmp_path, "a.jsonl", content)
    assert problems(rows) == {
        2: "it is not valid JSON (Expecting value, line 3 column 6)",
        3: "it is neither an object nor a list",
    }
    assert rows[3].values == {"messages": [{"role": "user", "content": "hi"}]}
    assert len(rows) == 5


def test_a_jsonl_file_whose_first_line_is_broken_is_still_jsonl(tmp_path: Path) -> None:
    _, rows, found = read(tmp_path, "a.jsonl", '{"a": "x"\n{"a": "y"}\n')
    assert found == "jsonl"
    assert list(problems(rows)) == [1]


def test_a_broken_element_of_a_json_list_is_one_bad_row(tmp_path: Path) -> None:
    _, rows, _ = read(tmp_path, "a.json", '[{"a": 1},\n {"a": , "b": ["]", "\\""]},\n {"a": 3}, 7]')
    assert problems(rows) == {
        2: "it is not valid JSON (Expecting value, line 2 column 8)",
        4: "it is neither an object nor a list",
    }
    assert rows[2].values == {"a": 3}


def test_json_elements_survive_every_chunk_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.data.readers import jsons

    wanted = [{"a": "x" * (i % 7), "n": i, "deep": [{"k": '\\"]}'}]} for i in range(60)]
    for chunk in (1, 3, 17):
        monkeypatch.setattr(jsons, "_CHUNK", chunk)
        _, rows, _ = read(tmp_path, "a.json", json.dumps(wanted))
        assert values(rows) == wanted


def test_one_huge_line_is_one_bad_row_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_ROW_CHARS", 1_000)
    huge = "x" * 5_000
    for name, content in (
        ("a.csv", f"question,answer\na,b\n{huge},y\nc,d\n"),
        ("a.csv", f'question,answer\na,b\n"{huge}\n{huge}",y\nc,d\n'),
        ("a.jsonl", f'{{"a": 1}}\n{{"a": "{huge}"}}\n{{"a": 3}}\n'),
        ("a.json", f'[{{"a": 1}}, {{"a": "{huge}"}}, {{"a": 3}}]'),
        ("a.txt", f"short\n\n{huge}\n\nshort\n"),
    ):
        _, rows, _ = read(tmp_path, name, content)
        assert [bool(row.problem) for row in rows if row.values or row.number == 2][:2] == [False, True], name
        assert rows[-1].values, name
        assert "1,000 characters" in str(rows[1].problem) or "quote" in str(rows[1].problem)


def test_column_names_that_are_missing_double_or_blank_are_mended_and_said(tmp_path: Path) -> None:
    reading, rows, _ = read(tmp_path, "a.csv", "text,text,\na,b,c\n")
    assert rows[0].values == {"text": "a", "text (2)": "b", "column 3": "c"}
    assert len(reading.notes) == 2
    reading, rows, _ = read(tmp_path, "b.csv", "How are you?,Fine.\nAnd you?,Well.\n")
    assert rows[0].values == {"column 1": "How are you?", "column 2": "Fine."}
    assert "first row looks like data" in reading.notes[0]


def test_a_tsv_with_stray_quotes_is_read_as_it_stands(tmp_path: Path) -> None:
    _, rows, _ = read(tmp_path, "a.tsv", 'question\tanswer\n"quoted" word\ty\nz\t"w\n')
    assert values(rows) == [{"question": '"quoted" word', "answer": "y"}, {"question": "z", "answer": '"w'}]


@pytest.mark.parametrize(("header", "count"), [("auto", 1), ("header", 1), ("data", 2)])
def test_the_first_row_is_what_the_person_says(tmp_path: Path, header: FirstRow, count: int) -> None:
    reading, rows, _ = read(tmp_path, "a.csv", "name,city\nAnn,Rome\n", header)
    assert len(rows) == count and reading.first_row == ("data" if header == "data" else "header")
    assert list(reading.columns) == (["column 1", "column 2"] if header == "data" else ["name", "city"])
    reading, rows, _ = read(tmp_path, "b.csv", "How are you?,Fine.\nAnd you?,Well.\n", header)
    assert len(rows) == (1 if header == "header" else 2)


def test_text_is_split_at_blank_lines_or_else_at_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    reading, rows, _ = read(tmp_path, "a.txt", "# One\nstill one\n\n\ntwo\r\n\r\nthree")
    assert [row.values for row in rows] == [{"text": "# One\nstill one"}, {"text": "two"}, {"text": "three"}]
    assert reading.notes == ["Blank lines separate the rows."]
    reading, rows, _ = read(tmp_path, "b.txt", "one\ntwo\n")
    assert [row.values for row in rows] == [{"text": "one"}, {"text": "two"}]
    assert reading.notes == ["Each line is one row."]
    long = "A sentence of some words. " * 1_000
    reading, rows, _ = read(tmp_path, "c.txt", f"short\n\n{long}\n")
    assert "".join(str((row.values or {})["text"]) for row in rows[1:]).replace(" ", "") == long.replace(" ", "")
    assert all(len(str((row.values or {})["text"])) <= LONG_PARAGRAPH for row in rows)
    assert "split at a line or sentence end" in reading.notes[1]


def test_a_file_of_one_column_may_hold_commas(tmp_path: Path) -> None:
    reading, rows, _ = read(tmp_path, "a.csv", 'text\nHello, world\n"quoted, too"\nplain\n')
    assert [row.values for row in rows] == [{"text": "Hello, world"}, {"text": "quoted, too"}, {"text": "plain"}]
    assert list(reading.columns) == ["text"]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_read_does_not_depend_on_where_the_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    from jobs.data.readers import lines

    chosen = random.Random(seed)
    monkeypatch.setattr(base, "MAX_ROW_CHARS", 60)
    pieces = [
        "a",
        "é",
        '"',
        '""',
        ",",
        "\n",
        "\n",
        "\n\n",
        '"x\ny"',
        " ",
        "b,c",
        '{"a": 1}',
        "x" * 90,
        "[1, ",
        "\u2028",
    ]
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.txt"):
        content = "question,answer\n" if name == "a.csv" else "question\tanswer\n" if name == "a.tsv" else ""
        content += "".join(chosen.choices(pieces, k=400))
        seen = []
        for block in (1 << 18, 1, 3, 50):
            monkeypatch.setattr(lines, "BLOCK", block)
            _, rows, _ = read(tmp_path, name, content)
            seen.append([(row.number, row.values, row.problem) for row in rows])
        assert seen[0] == seen[1] == seen[2] == seen[3], name
        assert len(seen[0]) > 20
        if name == "a.jsonl":  # Macintosh line ends of old
            _, rows, _ = read(tmp_path, name, content.replace("\n", "\r"))
            assert [(row.number, row.values, row.problem) for row in rows] == seen[0]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 123456789012345678901234567890}',
        '{"a": -18446744073709551616, "b": [1]}',
        '{"a": NaN, "b": -Infinity}',
        '{"a": "\\ud800"}',
        '{"a": 1, "a": 2}',
        '{"a": 1e400}',
        '{"a": 0.1, "b": -0, "c": 1E5, "d": 18446744073709551615}',
        "[" * 2_000 + "]" * 2_000,
        "[1,]",
        '{"a": "\t"}',
        '"\u2028 is a letter"',
        "nul",
        "",
    ],
)
def test_json_is_read_as_the_standard_library_reads_it(text: str) -> None:
    def outcome(read: Any) -> str:
        try:
            return repr(read(text))
        except (ValueError, RecursionError) as error:
            return f"{type(error).__name__}: {error}"[:60]

    assert outcome(codec.loads) == outcome(json.loads)


def test_what_json_has_no_form_for_is_written_in_words() -> None:
    value = {"when": datetime.date(1970, 1, 1), "blob": b"ab", "large": 2**70, "plain": ["é", None, 1.5]}
    assert codec.loads(codec.dumps(value)) == {**value, "when": "1970-01-01", "blob": "<2 bytes>"}


def test_squads_nested_articles_become_one_row_a_question(tmp_path: Path) -> None:
    asked = [
        {"id": "1", "question": "Where?", "answers": [{"text": "Lima", "answer_start": 14}], "is_impossible": False},
        {"id": "2", "question": "Who?", "answers": [], "is_impossible": True},
    ]
    passages = [{"context": "It happened in Lima.", "qas": asked}, {"context": "Nothing more.", "qas": asked[1:]}]
    file = {"version": "v2.0", "data": [{"title": "A", "paragraphs": passages}, {"title": "B", "paragraphs": passages}]}
    reading, rows, _ = read(tmp_path, "train-v2.0.json", json.dumps(file))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0].values == {
        "question": "Where?",
        "context": "It happened in Lima.",
        "answers": {"text": ["Lima"], "answer_start": [14]},
    }
    assert rows[1].values and rows[1].values["answers"] == {"text": [], "answer_start": []}
    assert reading.notes == [
        'The rows are the list under "data".',
        "Articles with paragraphs and questions, as SQuAD's files have them: each question is one row.",
    ]
    assert list(reading.columns) == ["question", "context", "answers"]
