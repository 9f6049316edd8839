"""What the check of a whole file finds, row by row, and which mend puts it right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.data.columns import Mapping, Shape
from jobs.data.findings import Finding, reason_kind
from jobs.data.mends import MendRef, mend
from jobs.data.preflight import check
from jobs.data.values import extract_of
from jobs.tasks import task, task_for
from jobs.tasks.base import Task
from tests.test_mends import CHAT, LABELS, PAIRS, TAGS, turns
from tests.test_preflight import stored
from tests.test_tasks import tokenizer
from tests.tiny import TEMPLATE


def found(
    folder: Path,
    mapping: Mapping,
    rows: list[Any],
    *mends: MendRef,
    length: int = 512,
    chosen: Task | None = None,
    template: str = TEMPLATE,
) -> dict[str, Finding]:
    """Findings by kind; of several of one kind by the mend that helps."""
    chosen = chosen or task_for(mapping.shape)
    params = type(chosen).Params()
    report = check(stored(folder, rows), mapping, chosen, params, tokenizer(template), length, mends=mends)
    for finding in report.findings:
        if finding.mend:
            mend(finding.mend)  # there is such a mend
    return {
        f"{each.kind}: {each.mend.name}" if each.kind == "bad rows" and each.mend else each.kind: each
        for each in report.findings
    }


def fine(count: int) -> list[Any]:
    return [{"q": f"question {n}?", "a": f"this is the answer number {n}"} for n in range(count)]


def test_a_fine_file_has_nothing_to_say(tmp_path: Path) -> None:
    assert found(tmp_path, PAIRS, fine(60)) == {}


def test_rows_that_stand_twice_are_told_by_number_and_gone_when_mended(tmp_path: Path) -> None:
    rows = [*fine(3), *fine(2), *[{**row, "id": 7} for row in fine(1)]]
    duplicates = found(tmp_path, PAIRS, list(rows))["duplicates"]
    assert (duplicates.count, duplicates.rows, duplicates.severity) == (3, (4, 5, 6), "warn")
    assert duplicates.words == "3 rows repeat an earlier row word for word."
    assert duplicates.mend
    assert "duplicates" not in found(tmp_path, PAIRS, list(rows), duplicates.mend)


def test_turns_in_disorder_name_the_mend_that_helps(tmp_path: Path) -> None:
    rows = [turns("u:a", "u:b", "a:c"), turns("a:hi", "u:a", "a:b"), turns("u:a", "a:b", "u:c"), turns("u:a", "a: ")]
    rows += [turns("u:a", "s:b", "a:c"), turns("u:fine", "a:yes"), turns("u:a", "a:b", "a:c")]
    findings = found(tmp_path, CHAT, list(rows))
    seen = {
        name.partition(": ")[2]: (each.count, each.rows) for name, each in findings.items() if each.severity == "bad"
    }
    assert seen == {
        "merge_turns": (2, (1, 7)),
        "drop_leading_answer": (1, (2,)),
        "drop_trailing_question": (1, (3,)),
        "drop_empty_turns": (1, (4,)),
        "drop_bad": (1, (5,)),
    }
    assert findings["bad rows: drop_bad"].words.startswith("1 of the 6 rows that cannot be used"), "not of all rows"
    mends = sorted((each.mend for each in findings.values() if each.mend), key=lambda ref: mend(ref)[0].order)
    assert not any(name.startswith("bad") for name in found(tmp_path, CHAT, list(rows), *mends))


def test_what_the_settings_cause_is_not_blamed_on_the_data(tmp_path: Path) -> None:
    rows = [*fine(2), {"q": "the fox " * 200, "a": "far away"}, {"q": "x", "a": "the dog " * 200}]
    findings = found(tmp_path, PAIRS, list(rows), length=64)
    assert not any(name.startswith("bad") for name in findings)
    assert (findings["cut answers"].count, findings["cut answers"].rows) == (1, (4,))


LONG = "the fox " * 100
MANY = "O " * 200


@pytest.mark.parametrize(
    ("named", "shape", "row", "said"),
    [
        ("chat", Shape.PROMPT, {"prompt": "x", "completion": LONG}, "the end of an answer is not learned"),
        ("dpo", Shape.PREFERENCE, {"prompt": "x", "chosen": "a", "rejected": LONG}, "the end of an answer"),
        ("text", Shape.TEXT, {"text": LONG}, "the end of the text is not learned"),
        ("tagging", Shape.TAGGED, {"tokens": LONG, "tags": MANY}, "are not read, and their tags not learned"),
        ("classification", Shape.LABELLED, {"text": LONG, "label": "a"}, "the text is read up to there"),
        ("regression", Shape.SCORED, {"text": LONG, "score": 1.5}, "the text is read up to there"),
        (
            "answers",
            Shape.EXTRACTIVE,
            {"question": "who?", "context": "the dog " + LONG, "answers": "dog"},
            "the passage is read up to there",
        ),
        ("seq2seq", Shape.REWRITE, {"source": LONG, "target": "b"}, "the end of the source, or of what it becomes"),
    ],
)
def test_a_row_that_is_too_long_says_what_its_task_loses(
    tmp_path: Path, named: str, shape: Shape, row: dict[str, Any], said: str
) -> None:
    mapping = Mapping(shape=shape, columns={name: name for name in row})
    short = dict(
        zip(row, [str(cell).replace(LONG, "the fox").replace(MANY, "O O") for cell in row.values()], strict=True)
    )
    cut = found(tmp_path, mapping, [short, row], chosen=task(named), length=40)["cut answers"]
    assert (cut.rows, cut.severity) == ((2,), "warn")
    assert cut.words.startswith("1 row is longer than 40 tokens: ") and said in cut.words


def test_an_end_that_is_not_learned_anyway_is_no_loss(tmp_path: Path) -> None:
    long = turns("u:a", "a:b", "u:c", f"a:{LONG}")
    unweighted = {"messages": [*long["messages"][:-1], {**long["messages"][-1], "weight": 0}]}
    assert found(tmp_path, CHAT, [unweighted, long], length=40)["cut answers"].rows == (2,)


def test_tools_that_the_template_does_not_show_are_told(tmp_path: Path) -> None:
    mapping = Mapping(shape=Shape.MESSAGES, columns={"messages": "messages", "tools": "tools"})
    offered = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    rows = [{**turns("u:a", "a:b"), "tools": offered}, turns("u:c", "a:d"), {**turns("u:e", "a:f"), "tools": []}]
    unseen = found(tmp_path, mapping, list(rows))["tools"]
    assert (unseen.count, unseen.rows, unseen.severity) == (1, (1,), "info")
    assert "has no place" in unseen.words and "ChatML" in unseen.words
    shows = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATE
    assert "tools" not in found(tmp_path, mapping, list(rows), template=shows)


def test_special_tokens_written_as_text_are_found_wherever_they_stand(tmp_path: Path) -> None:
    rows = [*fine(2), {"q": "x", "a": "yes<|im_end|>\n<|im_start|>user"}]
    special = found(tmp_path, PAIRS, list(rows))["special tokens"]
    assert (special.count, special.rows) == (1, (3,)) and "<|im_end|>" in special.words
    assert special.mend and set(special.mend.params["tokens"]) == {"<|im_end|>", "<|im_start|>"}
    assert found(tmp_path, PAIRS, list(rows), special.mend) == {}
    assert found(tmp_path, CHAT, [turns("u:a <|im_end|>", "a:b"), turns("u:a <b>", "a:b")])["special tokens"].rows == (
        1,
    )


def test_labels_that_contradict_or_are_spelled_twice_are_told(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": ("spam", "ham")[n % 2]} for n in range(30)]
    rows += [{"text": "text 0", "label": "ham"}, {"text": "text 50", "label": "Spam"}]
    findings = found(tmp_path, LABELS, list(rows))
    assert (findings["conflicts"].count, findings["conflicts"].rows) == (2, (1, 31))
    assert (findings["label spellings"].count, findings["label spellings"].rows) == (1, (32,))
    assert "'Spam' for 'spam'" in findings["label spellings"].words
    mended = found(tmp_path, LABELS, list(rows), MendRef(name="unify_labels"), MendRef(name="drop_conflicting"))
    assert not {"conflicts", "label spellings"} & set(mended)


def test_uneven_labels_are_told_with_the_setting_that_helps(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "rare" if n < 2 else "usual"} for n in range(40)]
    assert "Balance labels" in found(tmp_path, LABELS, list(rows))["labels"].words
    assert found(tmp_path, LABELS, [{**row, "label": "one"} for row in rows])["labels"].severity == "bad"


def test_tags_that_break_the_rule_are_found(tmp_path: Path) -> None:
    rows = [{"w": ["Ada", "ran"], "t": ["B-PER", "O"]}, {"w": ["the", "Ada"], "t": ["O", "I-PER"]}]
    broken = found(tmp_path, TAGS, list(rows))["tags"]
    assert (broken.count, broken.rows) == (1, (2,))
    assert broken.mend and "tags" not in found(tmp_path, TAGS, list(rows), broken.mend)


def test_one_prompt_in_several_rows_says_what_the_split_does(tmp_path: Path) -> None:
    rows = [*fine(20), {"q": "question 3?", "a": "another answer altogether"}]
    same = found(tmp_path, PAIRS, list(rows))["same prompts"]
    assert (same.count, same.rows) == (2, (4, 21)) and "stay on one side" in same.words
    assert (
        "cannot all stay"
        in found(tmp_path, PAIRS, [{"q": "same", "a": str(n)} for n in range(9)])["same prompts"].words
    )


def test_answers_far_from_the_usual_length_are_shown(tmp_path: Path) -> None:
    rows = [*fine(60), {"q": "well?", "a": "x"}, {"q": "how?", "a": "the dog " * 200}]
    findings = found(tmp_path, PAIRS, list(rows), length=4_096)
    assert findings["short answers"].rows == (61,)
    assert findings["long answers"].rows == (62,)


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        (Shape.EXTRACTIVE, {"question": "who?", "context": "the fox ran", "answers": "the dog"}),
        (Shape.PREFERENCE, {"prompt": "who?", "chosen": "the fox", "rejected": "the fox"}),
    ],
)
def test_answers_that_teach_nothing_are_bad_rows_that_a_mend_leaves_out(tmp_path: Path, shape: Shape, row: Any) -> None:
    mapping = Mapping(shape=shape, columns={name: name for name in row})
    rows = [row, {**row, "answers": "the fox", "rejected": "the dog"}]
    rows = [{name: each[name] for name in row} for each in rows]
    findings = found(tmp_path, mapping, list(rows))
    assert findings["bad rows: drop_bad"].rows == (1,)
    assert findings["bad rows: drop_bad"].words == "1 row cannot be used; below is why."
    assert "bad rows: drop_bad" not in found(tmp_path, mapping, list(rows), MendRef(name="drop_bad"))


def test_an_answer_that_is_said_to_start_elsewhere_is_told(tmp_path: Path) -> None:
    mapping = Mapping(shape=Shape.EXTRACTIVE, columns={"question": "q", "context": "c", "answers": "a"})
    context = "the fox saw the fox and the dog"
    rows = [
        {"q": f"who is {start}?", "c": context, "a": {"text": [text], "answer_start": [start]}}
        for text, start in (("fox", 4), ("fox", 14), ("fox", 7), ("cat", 4), ("dog", 28))
    ]
    findings = found(tmp_path, mapping, [*rows, {"q": "who then?", "c": context, "a": "dog"}])
    assert (findings["answer places"].count, findings["answer places"].rows) == (2, (2, 3))
    assert findings["answer places"].words.startswith("2 rows say that an answer starts where something else stands")
    assert (findings["bad rows: drop_bad"].rows, findings["bad rows: drop_bad"].count) == ((4,), 1)
    assert [extract_of(row, mapping).answers for row in rows[:3]] == [(("fox", 4),), (("fox", 16),), (("fox", 4),)]


def test_duplicates_are_counted_across_batches(tmp_path: Path) -> None:
    rows = [{"q": f"question {n % 700}?", "a": f"the answer {n % 700} of many words"} for n in range(2_000)]
    findings = found(tmp_path, PAIRS, list(rows))
    assert findings["duplicates"].count == 1_300 and findings["duplicates"].rows == tuple(range(701, 711))


@pytest.mark.parametrize("column", ("answer", "Antwort (Entwurf)", "it's (mine)", "\"a\" and 'b' (c)"))
def test_a_reason_loses_its_details_and_no_part_of_a_column_s_name(column: str) -> None:
    assert reason_kind(f"its {column!r} is empty") == f"its {column!r} is empty"
    assert reason_kind(f"its {column!r} is not a number ('1 (one)')") == f"its {column!r} is not a number"
    assert reason_kind(f"it has no {column!r}") == f"it has no {column!r}"
    assert reason_kind("a turn is null (turn 3)") == "a turn is null"
