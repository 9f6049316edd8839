"""Pairs of answers and thumbs, in every form that datasets have them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.data.columns import Mapping, Shape
from jobs.data.preferences import feedback_of, pair_of, thumb
from jobs.errors import RowProblem

PAIRS = Mapping(shape=Shape.PREFERENCE, columns={"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"})
THUMBS = Mapping(
    shape=Shape.FEEDBACK, columns={"prompt": "prompt", "completion": "completion", "label": "label", "system": "system"}
)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SKY, BLUE, GREEN = said("user", "What colour is the sky?"), said("assistant", "Blue."), said("assistant", "Green.")
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": SKY["content"], "chosen": "Blue.", "rejected": "Green."},
    "turns": {"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]},
    "turns without their prompt": {"chosen": [SKY, BLUE], "rejected": [SKY, GREEN]},
    "turns with their prompt twice": {"prompt": SKY["content"], "chosen": [SKY, BLUE], "rejected": [SKY, GREEN]},
    "a turn each": {"prompt": SKY["content"], "chosen": BLUE, "rejected": GREEN},
    "turns as JSON": {"prompt": SKY["content"], "chosen": json.dumps([BLUE]), "rejected": json.dumps([GREEN])},
    "ShareGPT's turns": {
        "prompt": SKY["content"],
        "chosen": {"from": "gpt", "value": "Blue."},
        "rejected": {"from": "gpt", "value": "Green."},
    },
    "transcripts": {
        "chosen": "\n\nHuman: What colour is the sky?\n\nAssistant: Blue.",
        "rejected": "\n\nHuman: What colour is the sky?\n\nAssistant: Green.",
    },
    "a transcript as prompt": {
        "prompt": "Human: What colour is the sky?\n\nAssistant:",
        "chosen": "Blue.",
        "rejected": "Green.",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_is_one_question_and_two_answers(form: str) -> None:
    pair = pair_of(FORMS[form], PAIRS)
    assert (pair.chosen, pair.rejected, pair.shared) == ([SKY, BLUE], [SKY, GREEN], 1)


def test_texts_that_begin_alike_are_parted_between_words() -> None:
    pair = pair_of({"chosen": "The sky is blue.", "rejected": "The sky is bleak."}, PAIRS)
    assert pair.chosen == [said("user", "The sky is"), said("assistant", "blue.")]
    assert pair.rejected == [said("user", "The sky is"), said("assistant", "bleak.")]


def test_conversations_part_at_the_first_answer_that_differs() -> None:
    more = said("user", "Why?")
    pair = pair_of(
        {"chosen": [SKY, BLUE, more, BLUE, more, BLUE], "rejected": [SKY, BLUE, more, GREEN, more, GREEN]}, PAIRS
    )
    assert pair.shared == 3


def test_a_system_prompt_stands_first_in_both() -> None:
    mapping = Mapping(shape=Shape.PREFERENCE, columns=PAIRS.columns | {"system": "system"})
    pair = pair_of(FORMS["turns"] | {"system": "Be brief."}, mapping)
    assert pair.chosen[0] == pair.rejected[0] == said("system", "Be brief.")
    assert pair.shared == 2


def test_an_answer_that_is_json_stays_a_text() -> None:
    pair = pair_of({"prompt": "As JSON?", "chosen": '{"sky": "blue"}', "rejected": '[{"sky": 1}]'}, PAIRS)
    assert (pair.chosen[1]["content"], pair.rejected[1]["content"]) == ('{"sky": "blue"}', '[{"sky": 1}]')


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "?", "chosen": "Blue.", "rejected": "Blue."}, "better and its worse answer are the same"),
        ({"prompt": "?", "chosen": "Blue."}, "it has no 'rejected'"),
        ({"prompt": "?", "chosen": "Blue.", "rejected": None}, "'rejected' is null"),
        ({"prompt": "?", "chosen": "Blue.", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "?", "chosen": [], "rejected": [GREEN]}, "'chosen' has no turns"),
        ({"chosen": [BLUE], "rejected": [GREEN]}, "begins with the assistant"),
        ({"chosen": "Blue.", "rejected": "Green."}, "no prompt, and its two answers do not begin alike"),
        ({"chosen": "The sky is ", "rejected": "The sky is blue"}, "only the beginning of the other"),
        ({"chosen": [SKY, BLUE], "rejected": [said("user", "The sea?"), GREEN]}, "do not answer the same question"),
        ({"chosen": [SKY, BLUE], "rejected": [SKY, BLUE, SKY, GREEN]}, "only the beginning of the other"),
        ({"chosen": [SKY, BLUE, SKY], "rejected": [SKY, GREEN]}, "its last turn is the user's"),
    ],
)
def test_what_is_no_pair_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowProblem, match=reason):
        pair_of(row, PAIRS)


@pytest.mark.parametrize("up", [True, 1, 1.0, "1", "good", "UP", "thumbs_up", "Thumbs up", "yes", "👍", "true", "1.0"])
def test_every_thumb_up_is_one(up: Any) -> None:
    assert thumb({"label": up}, "label") is True


@pytest.mark.parametrize("down", [False, 0, 0.0, -1, "0", "bad", "down", "thumbs-down", "no", "👎", "FALSE", "-1"])
def test_every_thumb_down_is_one(down: Any) -> None:
    assert thumb({"label": down}, "label") is False


@pytest.mark.parametrize("neither", ["maybe", 2, 0.5, "", [1], None])
def test_what_is_no_thumb_is_told(neither: Any) -> None:
    with pytest.raises(RowProblem, match=r"neither good nor bad|is null"):
        thumb({"label": neither}, "label")


def test_feedback_is_a_conversation_whose_last_answer_was_found_good_or_bad() -> None:
    row = {"prompt": SKY["content"], "completion": "Blue.", "label": "up", "system": "Be brief."}
    feedback = feedback_of(row, THUMBS)
    assert feedback.turns == [said("system", "Be brief."), SKY, BLUE]
    assert (feedback.shared, feedback.good) == (2, True)
    turns = feedback_of({"prompt": [SKY, GREEN, SKY], "completion": [BLUE], "label": 0}, THUMBS)
    assert (turns.turns, turns.shared, turns.good) == ([SKY, GREEN, SKY, BLUE], 3, False)
    whole = feedback_of({"prompt": SKY["content"], "completion": [SKY, BLUE], "label": 0}, THUMBS)
    assert (whole.turns, whole.shared) == ([SKY, BLUE], 1)
