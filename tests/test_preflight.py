"""The check of every row and the preview of one: exact, and the same as what the trainer gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.data.columns import Mapping, Shape
from jobs.data.mends import Mended
from jobs.data.preflight import Preflight, Progress, check, histogram, preview
from jobs.data.readers import Row
from jobs.data.store import ROWS
from jobs.errors import UserError
from jobs.rpc import RpcClient
from jobs.tasks import task
from jobs.training import data as training
from tests import tiny
from tests.rundirs import write_rows
from tests.test_tasks import QWEN3, SMOLLM2, tokenizer

MAPPING = Mapping(shape=Shape.PROMPT, columns={"prompt": "question", "completion": "answer"})
CHAT = task("chat")


def stored(folder: Path, rows: list[dict[str, Any] | None]) -> Path:
    return write_rows(
        folder / ROWS,
        (
            Row(number, values, json.dumps(values))
            if values is not None
            else Row(number, None, None, f"it is broken (line {number})", "{oops")
            for number, values in enumerate(rows, 1)
        ),
    )


def examples(count: int) -> list[dict[str, Any] | None]:
    return [{"question": f"the fox {n}?", "answer": "the dog " * (n % 40 + 1)} for n in range(count)]


def test_the_check_counts_exactly_what_training_will_use(tmp_path: Path) -> None:
    rows = examples(600)
    rows[4] = None
    rows[9] = None
    rows[19] = {"question": "the fox", "answer": ""}
    rows[29] = {"question": "the fox " * 200, "answer": "far away"}
    length, tok, params = 100, tokenizer(SMOLLM2), CHAT.Params()
    seen: list[Progress] = []
    report = check(stored(tmp_path, rows), MAPPING, CHAT, params, tok, length, seen.append)

    good = [row for row in rows if row and row["answer"] and row["answer"] != "far away"]
    encoded = [CHAT.encode(row, MAPPING, tok, params) for row in good]
    used = [item.cut(length) for item in encoded]
    lengths = sorted(
        [len(item.input_ids) for item in encoded] + [len(CHAT.encode(rows[29], MAPPING, tok, params).input_ids)]
    )
    assert (report.rows, report.good_rows, report.bad_rows) == (600, 596, 4)
    assert [bad.row for bad in report.bad] == [5, 10, 20, 30]
    assert report.bad[0].reason == "it is broken (line 5)"
    assert report.reasons == {
        "it is broken": 2,
        "its 'answer' is empty": 1,
        "its answer begins beyond the maximum length": 1,
    }
    assert report.truncated_rows == sum(len(item.input_ids) > length for item in encoded) > 0
    assert report.tokens == sum(len(item.input_ids) for item in used)
    assert report.trained_tokens == sum(map(sum, (item.trained for item in used)))
    assert report.longest == lengths[-1]
    assert report.median == lengths[(len(lengths) + 1) // 2 - 1]
    assert sum(count for _, _, count in report.histogram) == len(lengths)
    assert report.example_prompts[:2] == ("the fox 0?", "the fox 1?")
    assert (seen[-1].done, seen[-1].total) == (600, 600)
    assert report.notes == ()


def test_a_preview_shows_the_very_labels_that_training_uses(tmp_path: Path) -> None:
    row = {"question": "the fox é 🦊?", "answer": "the dog 🐕 " * 5}
    tok, params = tokenizer(SMOLLM2), CHAT.Params()
    path = stored(tmp_path, [row, None])
    encoded = CHAT.encode(row, MAPPING, tok, params)
    length = len(encoded.input_ids) - 7
    seen = preview(Mended(path, MAPPING, ()), 1, MAPPING, CHAT, params, tok, length)
    used = encoded.cut(length)
    labels = training.collate([training.Row(1, np.array(used.input_ids), np.array(used.trained))], 0)["labels"][
        0
    ].tolist()
    assert [segment.kind == "trained" for segment in seen.segments[:length]] == [label != -100 for label in labels]
    assert [segment.kind for segment in seen.segments[length:]] == ["cut"] * 7
    assert "".join(segment.text for segment in seen.segments) == encoded.text
    assert (seen.tokens, seen.cut_tokens, seen.problem) == (len(encoded.input_ids), 7, None)
    assert seen.trained_tokens == sum(label != -100 for label in labels)
    bad = preview(Mended(path, MAPPING, ()), 2, MAPPING, CHAT, params, tok, length)
    assert (bad.problem, bad.raw, bad.segments) == ("it is broken (line 2)", "{oops", ())


def test_what_closes_a_cut_text_is_shown_as_read(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    sorts = task("classification")
    mapping = Mapping(shape=Shape.LABELLED, columns={"text": "text", "label": "label"})
    path = stored(tmp_path, [{"text": "the fox and the dog", "label": "a"}])
    tok = AutoTokenizer.from_pretrained(tiny.build_bert(tmp_path / "bert"))
    whole = len(tok("the fox and the dog")["input_ids"])
    seen = preview(Mended(path, mapping, ()), 1, mapping, sorts, sorts.Params(), tok, whole - 2)
    assert [segment.kind for segment in seen.segments] == [*["context"] * (whole - 3), "cut", "cut", "context"]


def test_answers_that_a_template_hides_are_counted_and_said(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "the fox"} for role in ("user", "assistant", "user", "assistant")]
    mapping = Mapping(shape=Shape.MESSAGES, columns={"messages": "messages"})
    path = stored(tmp_path, [{"messages": turns}] * 3)
    report = check(path, mapping, CHAT, CHAT.Params(), tokenizer(QWEN3), 512)
    assert report.good_rows == 3
    assert "in 3 rows 3 earlier answers are read but not trained" in report.notes[0]


def test_a_million_reasons_take_no_room(tmp_path: Path) -> None:
    rows = [{"question": "the fox", "answer": "x", f"c{n}": 1} for n in range(300)]
    mappings = Mapping(shape=Shape.PROMPT, columns={"prompt": "question", "completion": "absent"})
    report = check(stored(tmp_path, list(rows)), mappings, CHAT, CHAT.Params(), tokenizer(SMOLLM2), 64)
    assert report.reasons == {"it has no 'absent'": 300}
    assert (report.good_rows, report.longest, report.histogram) == (0, 0, ())


@pytest.mark.parametrize("lengths", [[7], [3, 4, 900], list(range(1, 5_000, 3)), [50] * 990 + [60] * 5 + [100_000]])
def test_the_histogram_holds_every_row_once_in_at_most_31_buckets(lengths: list[int]) -> None:
    buckets = list(histogram(sorted(lengths)))
    assert 1 <= len(buckets) <= 31
    assert sum(rows for _, _, rows in buckets) == len(lengths)
    for start, below, rows in buckets:
        assert rows == sum(start <= length < below for length in lengths)
    assert [one[1] for one in buckets[:-1]] == [other[0] for other in buckets[1:]]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RpcClient, Path]]:
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer(SMOLLM2).save_pretrained(folder / "tokenizer")
    stored(folder, examples(1_000))
    client = RpcClient("jobs.data.child", folder / "log.txt")
    yield client, folder
    client.close()


def question(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "rows": str(folder / ROWS),
        "mapping": MAPPING.model_dump(mode="json"),
        "task": "chat",
        "params": {},
        "max_length": 64,
        "model": "tiny",
        "source": str(folder / "tokenizer"),
        "revision": None,
        "stamp": "",
        **changes,
    }


def test_the_token_child_gives_the_same_answers(child: tuple[RpcClient, Path]) -> None:
    client, folder = child
    tok, params = tokenizer(SMOLLM2), CHAT.Params()
    seen = client.call("preview", row=3, **question(folder))
    here = preview(Mended(folder / ROWS, MAPPING, ()), 3, MAPPING, CHAT, params, tok, 64)
    assert seen == here.model_dump(mode="json")
    said = list(client.stream("preflight", **question(folder)))
    report = Preflight.model_validate(said[-1]["report"])
    here = check(folder / ROWS, MAPPING, CHAT, params, tok, 64)
    assert report.model_copy(update={"seconds": 0}) == here.model_copy(update={"seconds": 0})
    assert Progress.model_validate(said[0]["progress"]).text == "Reading the rows"


def test_a_check_that_nobody_waits_for_ends_and_the_child_goes_on(child: tuple[RpcClient, Path]) -> None:
    client, folder = child
    checking = client.stream("preflight", **question(folder))
    next(checking)
    checking.close()
    assert client.call("preview", row=1, **question(folder))["row"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "no-such-model-anywhere"}, "The tokenizer of tiny could not be loaded"),
        ({"task": "text"}, "the dataset is mapped as prompt"),
        ({"row": 9_999}, "There is no row 9999: the dataset has rows 1 to 1,000."),
    ],
)
def test_what_cannot_be_asked_is_answered_in_words(
    child: tuple[RpcClient, Path], changes: dict[str, Any], said: str
) -> None:
    client, folder = child
    with pytest.raises(UserError, match=said):
        client.call("preview", **{"row": 1, **question(folder, **changes)})
