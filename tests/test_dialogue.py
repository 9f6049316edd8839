"""Questions and answers that stand in a text: what is read out of it, how surely, and that it can stay a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.data import readers
from jobs.data.columns import Shape
from jobs.data.detect import detect
from jobs.data.formats import sniff
from jobs.data.readers import Reading, base, lines

QA = "Q: What is it?\nA: A fox.\n\nQ: Where?\nA: Here,\n\n- and there\n\nQ: Who?\nA: Me\n"


def read(path: Path, text: str, name: str = "Pasted text") -> tuple[Reading, list[dict[str, Any]], str]:
    path.write_bytes(text.encode())
    sniffed = sniff(path, name)
    reading, blocks = readers.read(path, name, sniffed.format, sniffed.encoding)
    rows = [row for block in blocks for row in block]
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    return reading, [row.values or {"problem": row.problem} for row in rows], sniffed.format


def chat(*said: str) -> list[dict[str, str]]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[one[0]], "content": one[2:]} for one in said]


@pytest.mark.parametrize("name", ["Pasted text", "faq.txt", "faq.md"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_each_question_with_its_answer_is_a_row_that_keeps_its_text(tmp_path: Path, name: str, end: str) -> None:
    reading, rows, kind = read(tmp_path / "a", QA.replace("\n", end), name)
    assert kind == "dialogue"
    assert [(row["question"], row["answer"].replace("\r", "")) for row in rows] == [
        ("What is it?", "A fox."),
        ("Where?", "Here,\n\n- and there"),
        ("Who?", "Me"),
    ]
    assert rows[0]["text"].replace("\r", "") == "Q: What is it?\nA: A fox."
    assert reading.notes == ['"Q:" and "A:" are read as speakers; each question with its answer is one row.']


@pytest.mark.parametrize(
    "text",
    [
        "**Q1:** a b?\n\n**A1:** c\n\n**Q2:** d\n\n**A2:** e\n",
        "# Questions\n\nQuestion 1: a b?\nAnswer 1: c\nQuestion 2: d\nAnswer 2: e",
        "## Question\na b?\n## Answer\nc\n## Question\nd\n## Answer\ne\n",
        "User: a b?\n\nAssistant: c\n\nUser: d\n\nAssistant: e\n",
        "frage: a b?\nantwort: c\n---\nfrage: d\nantwort: e\n",
    ],
)
def test_however_speakers_are_marked_they_are_known(tmp_path: Path, text: str) -> None:
    _, rows, kind = read(tmp_path / "a", text)
    assert kind == "dialogue"
    assert [(row["question"], row["answer"]) for row in rows] == [("a b?", "c"), ("d", "e")]


def test_instructions_may_have_an_input(tmp_path: Path) -> None:
    text = "### Instruction:\nTranslate\n\n### Input:\ncat\n\n### Response:\nchat\n\n"
    text += "### Instruction:\nHi\n### Response:\nHo"
    _, rows, _ = read(tmp_path / "a", text)
    found = [(row["instruction"], row["input"], row["output"]) for row in rows]
    assert found == [("Translate", "cat", "chat"), ("Hi", "", "Ho")]
    mapping = detect(rows, list(rows[0]), "dialogue").mapping
    assert mapping and mapping.shape is Shape.INSTRUCTION and mapping.columns["input"] == "input"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("User: a\nAssistant: b\nUser: c\nAI: d\n\nUser: e\nAssistant: f\n", "a blank line ends"),
        ("Human: a\n\nAI: b\n\nHuman: c\n\nAI: d\n\n---\n\nHuman: e\n\nAI: f\n---\n", "a line of dashes ends"),
    ],
)
def test_conversations_end_where_the_text_shows_it(tmp_path: Path, text: str, said: str) -> None:
    reading, rows, _ = read(tmp_path / "a", text)
    assert [row["messages"] for row in rows] == [chat("u:a", "a:b", "u:c", "a:d"), chat("u:e", "a:f")]
    assert said in reading.notes[0]


def test_system_turns_that_come_too_late_to_be_seen_are_counted(tmp_path: Path) -> None:
    pair = "User: a question?\nAssistant: an answer\n"
    reading, rows, _ = read(tmp_path / "a", pair * 3_000 + f"System: Be brief.\n{pair}" * 2)
    assert len(rows) == 3_002 and rows[-1]["question"] == "a question?"
    assert reading.notes[-1] == "2 system turns are not read: a question with its answer has no place for one."
    reading, _, _ = read(tmp_path / "a", pair * 20)
    assert not any("system" in note for note in reading.notes)


def test_a_system_turn_begins_a_conversation(tmp_path: Path) -> None:
    _, rows, _ = read(
        tmp_path / "a", "System: s\nUser: a\nAssistant: b\nUser: c\nAssistant: d\nSystem: t\nUser: e\nAI: f"
    )
    assert [row["messages"] for row in rows] == [chat("s:s", "u:a", "a:b", "u:c", "a:d"), chat("s:t", "u:e", "a:f")]


def test_a_line_of_dashes_within_an_answer_belongs_to_it(tmp_path: Path) -> None:
    _, rows, _ = read(tmp_path / "a", "Q: x\nA: one\n---\ntwo\n---\nQ: y\nA: z\n")
    assert [row["answer"] for row in rows] == ["one\n---\ntwo", "z"]


def test_what_was_read_is_said_with_how_sure_it_is_and_may_be_text_after_all(tmp_path: Path) -> None:
    _, rows, _ = read(tmp_path / "a", QA)
    found = detect(rows, list(rows[0]), "dialogue")
    assert found.mapping and found.mapping.shape is Shape.PROMPT and found.certainty == "certain"
    assert found.runner_up and found.runner_up.columns == {"text": "text"}
    assert found.text.endswith("certain. It could also be: plain text.")
    _, one, _ = read(tmp_path / "a", "User: hi\nAssistant: hello")
    assert detect(one, list(one[0]), "dialogue").certainty == "likely"
    _, holes, _ = read(tmp_path / "a", QA * 2 + "Q: and?\n")
    unanswered = detect(holes, list(holes[0]), "dialogue")
    assert unanswered.certainty == "likely" and unanswered.fits == 6


def test_what_is_read_does_not_depend_on_where_the_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(tmp_path / "a", QA)[1]
    monkeypatch.setattr(lines, "BLOCK", 7)
    assert read(tmp_path / "a", QA)[1] == whole


def test_an_answer_without_an_end_is_a_bad_row_and_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_ROW_CHARS", 100_000)
    text = "Q: a\nA: b\n" * 8_000 + "Q: long\nA: c\n" + "a line of it\n" * 20_000 + "Q: d\nA: e\n"
    rows = read(tmp_path / "a", text)[1]
    assert len(rows) == 8_002 and rows[-1]["question"] == "d"
    assert "larger than a row may be" in rows[-2]["problem"]
