"""Mends: what each does to rows, that preview, check and training see the same, and that they come off again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.data.columns import Mapping, Shape
from jobs.data.mends import Mended, MendRef, all_mends, fitting, mended, try_mend
from jobs.data.preflight import check, preview
from jobs.errors import UserError
from jobs.service.datasets import Datasets
from jobs.service.mending import Mending, MendPreview
from jobs.tasks import task
from jobs.training.data import encode_rows
from tests import rundirs
from tests.test_datasets import added, datasets  # noqa: F401  # a fixture
from tests.test_preflight import stored
from tests.test_tasks import SMOLLM2, tokenizer

PAIRS = Mapping(shape=Shape.PROMPT, columns={"prompt": "q", "completion": "a"})
CHAT = Mapping(shape=Shape.MESSAGES, columns={"messages": "messages"})
LABELS = Mapping(shape=Shape.LABELLED, columns={"text": "text", "label": "label"})
TAGS = Mapping(shape=Shape.TAGGED, columns={"tokens": "w", "tags": "t"})


def after(folder: Path, mapping: Mapping, rows: list[Any], *mends: MendRef | str) -> dict[int, Any]:
    """The rows that are left, by number."""
    refs = [MendRef(name=ref) if isinstance(ref, str) else ref for ref in mends]
    return {number: values for number, values, _ in mended(stored(folder, rows), mapping, refs)}


def turns(*said: str) -> dict[str, Any]:
    """ "u:hi" is a user's turn."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": roles[one[0]], "content": one[2:]} for one in said]}


def test_every_mend_has_its_words_and_a_shape() -> None:
    for mend in all_mends().values():
        assert mend.label and mend.help.endswith(".") and mend.shapes
    assert [mend.name for mend in fitting(Shape.TAGGED)] == ["repair_tags", "drop_duplicates", "drop_bad"]
    with pytest.raises(UserError, match="There is no mend 'nothing'"):
        list(mended(Path("nowhere"), PAIRS, [MendRef(name="nothing")]))


def test_duplicates_go_by_the_columns_that_are_used(tmp_path: Path) -> None:
    rows = [{"q": "x", "a": "y", "id": 1}, {"q": "x", "a": "z", "id": 2}, {"q": "x", "a": "y", "id": 3}, None]
    assert list(after(tmp_path, PAIRS, rows, "drop_duplicates")) == [1, 2, 4]
    same = [turns("u:hi", "a:ho"), turns("u:hi", "a:he"), turns("u:hi", "a:ho")]
    assert list(after(tmp_path, CHAT, list(same), "drop_duplicates")) == [1, 2]


def test_rows_that_cannot_be_used_go(tmp_path: Path) -> None:
    rows = [{"q": "x", "a": "y"}, None, {"q": " ", "a": "y"}, {"q": "x"}]
    assert list(after(tmp_path, PAIRS, rows, "drop_bad")) == [1]


def test_a_text_with_two_labels_goes_and_one_that_stands_twice_stays(tmp_path: Path) -> None:
    rows = [{"text": t, "label": label} for t, label in (("a", "x"), ("b", "x"), ("a", "y"), ("b", "x"))]
    assert list(after(tmp_path, LABELS, rows, "drop_conflicting")) == [2, 4]


@pytest.mark.parametrize(
    ("mend", "before", "left"),
    [
        ("merge_turns", ("u:a", "u:b", "a:c", "a:d"), ("u:a\n\nb", "a:c\n\nd")),
        ("drop_leading_answer", ("s:be", "a:hello", "u:a", "a:b"), ("s:be", "u:a", "a:b")),
        ("drop_trailing_question", ("u:a", "a:b", "u:c"), ("u:a", "a:b")),
        ("drop_empty_turns", ("u:a", "a: ", "a:b"), ("u:a", "a:b")),
        ("trim", ("u: a\n", "a:b"), ("u:a", "a:b")),
    ],
)
def test_turns_are_put_in_order(tmp_path: Path, mend: str, before: tuple[str, ...], left: tuple[str, ...]) -> None:
    good = turns("u:fine", "a:as it is")
    assert after(tmp_path, CHAT, [turns(*before), good], mend) == {1: turns(*left), 2: good}
    written = {"messages": json.dumps(turns(*before)["messages"])}
    assert after(tmp_path, CHAT, [written], mend) == {1: turns(*left)}


def test_a_conversation_is_never_emptied(tmp_path: Path) -> None:
    assert after(tmp_path, CHAT, [turns("u:a")], "drop_trailing_question") == {1: turns("u:a")}


def test_special_tokens_are_cut_where_they_stand(tmp_path: Path) -> None:
    cut = MendRef(name="cut_special", params={"tokens": ["<|im_end|>", "<s>"]})
    assert after(tmp_path, PAIRS, [{"q": "x<|im_end|>", "a": "<s>y <b>"}], cut) == {1: {"q": "x", "a": "y <b>"}}
    with pytest.raises(UserError, match="Tokens"):
        list(mended(tmp_path, PAIRS, [MendRef(name="cut_special", params={"tokens": 7})]))


def test_labels_take_their_most_frequent_spelling(tmp_path: Path) -> None:
    rows = [
        {"text": str(n), "label": label}
        for n, label in enumerate(("Spam", "spam ", "Spam", "not_spam", "not spam", "not spam"))
    ]
    found = after(tmp_path, LABELS, rows, "unify_labels")
    assert [row["label"] for row in found.values()] == ["Spam", "Spam", "Spam", "not spam", "not spam", "not spam"]
    several = [{"text": "x", "label": ["Joy", "joy"]}, {"text": "y", "label": ["joy", "fear"]}]
    found = after(tmp_path, LABELS, list(several), "unify_labels")
    assert [row["label"] for row in found.values()] == [["joy"], ["joy", "fear"]]


def test_tags_that_continue_nothing_begin_an_entity(tmp_path: Path) -> None:
    rows = [{"w": ["a", "b", "c"], "t": ["I-PER", "I-PER", "I-ORG"]}, {"w": ["a"], "t": ["O"]}]
    found = after(tmp_path, TAGS, list(rows), "repair_tags")
    assert found == {1: {"w": ["a", "b", "c"], "t": ["B-PER", "I-PER", "B-ORG"]}, 2: rows[1]}


def test_mends_see_what_those_before_them_left(tmp_path: Path) -> None:
    rows = [{"q": "x", "a": "y"}, {"q": "x ", "a": "y"}]
    assert list(after(tmp_path, PAIRS, list(rows), "drop_duplicates")) == [1, 2]
    assert list(after(tmp_path, PAIRS, list(rows), "trim", "drop_duplicates")) == [1]


def test_a_mend_is_tried_without_being_done(tmp_path: Path) -> None:
    rows: list[Any] = [{"q": f"x{n % 8}", "a": "y"} for n in range(20)]
    path = stored(tmp_path, rows)
    tried = try_mend(path, PAIRS, (), MendRef(name="drop_duplicates"))
    assert (tried.changed, tried.dropped) == (0, 12)
    assert [(one.row, one.after) for one in tried.samples] == [(number, None) for number in range(9, 14)]
    tried = try_mend(path, PAIRS, (), MendRef(name="trim"))
    assert (tried.changed, tried.dropped, tried.samples) == (0, 0, ())


def test_preview_check_and_training_read_the_same_mended_rows(tmp_path: Path, tiny_llama: Path) -> None:
    rows = [
        {"prompt": " Where? ", "completion": "here"},
        {"prompt": "Where?", "completion": "here"},
        {"prompt": "", "completion": "x"},
    ]
    rows += [{"prompt": f"Ship {n}?", "completion": "Arr<|im_end|>matey"} for n in range(4)]
    mends = [MendRef(name="trim"), MendRef(name="cut_special", params={"tokens": ["<|im_end|>"]})]
    mends += [MendRef(name="drop_duplicates"), MendRef(name="drop_bad")]
    files = rundirs.make_run(tmp_path / "run", tiny_llama, rows, training={"max_length": 256})
    spec = rundirs.RunSpec.model_validate_json(files.spec.read_bytes())
    spec = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"mends": tuple(mends)})})
    spec = rundirs.RunSpec.model_validate_json(spec.model_dump_json())  # they travel with the spec
    chat, tok, mapping = task("chat"), tokenizer(SMOLLM2), spec.dataset.mapping
    report = check(spec.dataset.rows, mapping, chat, chat.Params(), tok, 256, mends=spec.dataset.mends)
    assert (report.rows, report.good_rows, report.bad_rows, report.left_out_rows) == (7, 5, 0, 2)
    trained, left_out = encode_rows(spec, chat, tok, mended(spec.dataset.rows, mapping, spec.dataset.mends))
    assert ([row.number for row in trained], left_out.count) == ([1, 4, 5, 6, 7], 0)
    source = Mended(spec.dataset.rows, mapping, spec.dataset.mends)
    shown = {number: preview(source, number, mapping, chat, chat.Params(), tok, 256) for number in (7, 2, 1, 3)}
    assert "".join(segment.text for segment in shown[7].segments).count("Arrmatey") == 1
    assert "user\nWhere?<" in "".join(segment.text for segment in shown[1].segments)
    assert shown[2].problem == "your mend 'Drop duplicates' leaves it out"
    assert shown[3].problem == "your mend 'Drop rows that cannot be used' leaves it out"
    assert '" Where? "' in shown[1].raw  # the file is as it was


def test_a_mend_is_applied_kept_and_undone(datasets: Datasets, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "pairs.csv"
    path.write_text("question,answer\n" + "the fox?,the dog\n" * 3 + "the dog?,the fox\n")
    view = added(datasets, path)
    mending = Mending(datasets._engine, datasets)
    assert [mend.name for mend in mending.offered(view.id)] == ["trim", "drop_duplicates", "drop_bad"]
    ref = MendRef(name="drop_duplicates")
    *_, tried = mending.preview(view.id, ref)
    assert isinstance(tried, MendPreview) and tried.dropped == 2
    assert datasets.get(view.id).mends == ()
    assert mending.apply(view.id, ref).mends == (ref,)
    assert mending.apply(view.id, MendRef(name="trim")).mends == (MendRef(name="trim"), ref)  # texts before rows
    assert [mend.name for mend in mending.offered(view.id)] == ["drop_bad"]
    with pytest.raises(UserError, match="means nothing for rows that are prompt"):
        mending.apply(view.id, MendRef(name="merge_turns"))
    assert mending.undo(view.id, "trim").mends == (ref,)
    assert mending.undo(view.id, "drop_duplicates").mends == ()
