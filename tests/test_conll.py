"""CoNLL files: recognised by what they hold, read into words and tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.data.columns import Shape
from jobs.data.detect import detect
from jobs.data.formats import sniff
from jobs.data.readers import Row, read

TWO = "EU\tB-ORG\nrejects\tO\n\nGerman\tB-MISC\ncall\tO\n.\tO\n"


def rows_of(tmp_path: Path, text: str, name: str = "ner.txt") -> tuple[str, list[Row]]:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    found = sniff(path, name)
    _, blocks = read(path, name, found.format, found.encoding)
    return found.format, [row for block in blocks for row in block]


def test_words_with_tags_are_known_by_their_look_and_are_one_row_a_sentence(tmp_path: Path) -> None:
    found, rows = rows_of(tmp_path, TWO)
    assert found == "conll"
    values: list[Any] = [row.values for row in rows]
    assert values == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["German", "call", "."], "tags": ["B-MISC", "O", "O"]},
    ]
    seen = detect(values, ["tokens", "tags"], found)
    assert seen.mapping and seen.mapping.shape is Shape.TAGGED and seen.certainty == "certain"


@pytest.mark.parametrize(
    "text",
    [
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nGerman JJ B-NP B-MISC\n",
        "# a comment\nEU B-ORG\r\nrejects O\r\n\r\n\r\nGerman B-MISC",
    ],
)
def test_the_last_column_is_the_tag_and_comments_are_passed_over(tmp_path: Path, text: str) -> None:
    rows = rows_of(tmp_path, text, "ner.conll")[1]
    assert [row.values for row in rows] == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["German"], "tags": ["B-MISC"]},
    ]


@pytest.mark.parametrize("text", ["#Paris\tB-LOC\nnow\tO\n", "# a comment\n#Paris NNP B-LOC\nnow RB O\n"])
def test_a_hashtag_at_the_beginning_is_a_word(tmp_path: Path, text: str) -> None:
    (row,) = rows_of(tmp_path, text, "posts.conll")[1]
    assert row.values == {"tokens": ["#Paris", "now"], "tags": ["B-LOC", "O"]}


def test_conll_u_gives_words_and_parts_of_speech(tmp_path: Path) -> None:
    lines = ["# text = Im Haus", "1-2\tIm\t_\t_\t_\t_\t_\t_\t_\t_", "1\tIn\tin\tADP\t_\t_\t3\tcase\t_\t_"]
    lines += ["2\tdem\tder\tDET\t_\t_\t3\tdet\t_\t_", "3\tHaus\tHaus\tNOUN\t_\t_\t0\troot\t_\t_", ""]
    rows = rows_of(tmp_path, "\n".join(lines), "tree.conllu")[1]
    assert [row.values for row in rows] == [{"tokens": ["In", "dem", "Haus"], "tags": ["ADP", "DET", "NOUN"]}]


def test_a_word_without_a_tag_spoils_its_sentence_alone(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, TWO + "\nlonely\n\nend\tO\n", "ner.conll")[1]
    assert [(row.number, row.problem) for row in rows] == [
        (1, None),
        (2, None),
        (3, "a word has no tag (line 8)"),
        (4, None),
    ]


@pytest.mark.parametrize("text", ["It was a dark night.\nO my.\n\nThe end.\n", "a\tb\n1\t2\n3\t4\n", "O O\nO O\nO O\n"])
def test_other_texts_are_not_taken_for_it(tmp_path: Path, text: str) -> None:
    assert rows_of(tmp_path, text)[0] == "text"
