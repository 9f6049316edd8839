"""The shape of a dataset, found without asking."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.data.columns import Shape
from jobs.data.conversation import conversation
from jobs.data.detect import Detection, columns_for, detect
from jobs.errors import RowProblem

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


def seen(row: dict[str, Any], rows: int = 20) -> Detection:
    return detect([row] * rows, list(row), "jsonl")


@pytest.mark.parametrize(
    ("row", "shape", "columns"),
    [
        ({"messages": CHAT}, "messages", {"messages": "messages"}),
        ({"id": 1, "chat": json.dumps(CHAT)}, "messages", {"messages": "chat"}),
        ({"prompt": "hi", "prompt_id": "x", "messages": CHAT}, "messages", {"messages": "messages"}),
        (
            {"conversations": SHAREGPT, "system": "be"},
            "sharegpt",
            {"conversations": "conversations", "system": "system"},
        ),
        (
            {"instruction": "a", "input": "", "output": "b", "text": "all of it"},
            "instruction",
            {"instruction": "instruction", "input": "input", "output": "output"},
        ),
        (
            {"instruction": "a", "context": "c", "response": "b", "category": "qa"},
            "instruction",
            {"instruction": "instruction", "input": "context", "output": "response"},
        ),
        ({"Instruction": "a", "Response": "b"}, "instruction", {"instruction": "Instruction", "output": "Response"}),
        ({"prompt": "a", "completion": "b"}, "prompt", {"prompt": "prompt", "completion": "completion"}),
        ({"id": "7", "Question": "a", "Answer": "42"}, "prompt", {"prompt": "Question", "completion": "Answer"}),
        ({"query": "a", "reply": "b"}, "prompt", {"prompt": "query", "completion": "reply"}),
        ({"input": "a", "output": "b"}, "prompt", {"prompt": "input", "completion": "output"}),
        ({"user": "a", "assistant": "b"}, "prompt", {"prompt": "user", "completion": "assistant"}),
        ({"UserMessage": "a", "bot_response": "b"}, "prompt", {"prompt": "UserMessage", "completion": "bot_response"}),
        ({"Context": "a", "Response": "b"}, "prompt", {"prompt": "Context", "completion": "Response"}),
        ({"article": "a", "summary": "b"}, "prompt", {"prompt": "article", "completion": "summary"}),
        (
            {"system_prompt": "s", "question": "a", "response": "b"},
            "prompt",
            {"prompt": "question", "completion": "response", "system": "system_prompt"},
        ),
        (
            {"context": "c", "question": "a", "answer": "b"},
            "instruction",
            {"instruction": "question", "input": "context", "output": "answer"},
        ),
        ({"text": "a story"}, "text", {"text": "text"}),
        ({"id": "3", "content": "a story", "url": "http"}, "text", {"text": "content"}),
    ],
)
def test_usual_columns_are_known_without_asking(row: dict[str, Any], shape: str, columns: dict[str, str]) -> None:
    found = seen(row)
    assert found.mapping is not None
    assert (found.mapping.shape, found.mapping.columns) == (shape, columns)
    assert found.sure, found.text
    assert "20 of 20 sampled rows fit" in found.text


def test_what_was_seen_is_said_in_one_sentence() -> None:
    assert seen({"messages": CHAT}).text == (
        'Chat: the column "messages" holds conversations with roles; 20 of 20 sampled rows fit.'
    )


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"left": "some words", "right": "other words"}, "prompt"),
        ({"thing": "some words"}, "text"),
        ({"text": "a review", "label": "good"}, "text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt"),
    ],
)
def test_doubt_is_a_guess_filled_in_and_not_sure(row: dict[str, Any], shape: str) -> None:
    found = seen(row)
    assert found.mapping is not None and found.mapping.shape == shape
    assert not found.sure


def test_one_column_says_that_a_chat_needs_two() -> None:
    assert "only one column" in seen({"thing": "some words"}).text
    assert "a question and an answer" in seen({"thing": "some words"}).text


def test_without_any_text_there_is_no_guess() -> None:
    found = seen({"a": 1, "b": None})
    assert found.mapping is None and not found.sure


def test_bad_rows_do_not_shake_a_clear_shape_but_are_counted() -> None:
    found = detect([{"messages": CHAT}] * 7 + [{"messages": CHAT[:1]}] * 3, ["messages"], "jsonl")
    assert found.sure and "7 of 10 sampled rows fit" in found.text


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "words"} for role in roles]}


MESSAGES = seen({"messages": CHAT}).mapping


@pytest.mark.parametrize(
    "roles",
    [
        ("user", "assistant"),
        ("system", "user", "assistant"),
        ("developer", "human", "gpt", "user", "model"),
        ("user", "assistant", "tool", "tool", "assistant"),
    ],
)
def test_orderly_turns_are_a_conversation(roles: tuple[str, ...]) -> None:
    assert MESSAGES
    assert {turn["role"] for turn in conversation(turns(*roles), MESSAGES)} <= {"system", "user", "assistant", "tool"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (turns("user"), "it has no answer by the assistant"),
        (turns("user", "assistant", "user"), "its last turn is the user's: there is no answer to learn"),
        (turns("user", "user", "assistant"), "two user turns follow each other (turn 2)"),
        (turns("user", "assistant", "assistant"), "two assistant turns follow each other (turn 3)"),
        (turns("assistant", "user", "assistant"), "it begins with the assistant, so there is nothing to answer"),
        (turns("user", "system", "assistant"), "a system turn stands in mid-conversation (turn 2)"),
        (turns("user", "tool", "assistant"), "a tool turn cannot follow a user turn (turn 2)"),
        (turns("user", "narrator"), "a turn has an unknown role (turn 2: 'narrator')"),
        ({"messages": [{"role": "user", "content": " "}, *CHAT[1:]]}, "a turn is empty (turn 1)"),
        ({"messages": [{"role": "user", "content": None}, *CHAT[1:]]}, "a turn is null (turn 1)"),
        ({"messages": [{"role": "user", "content": {"a": 1}}, *CHAT[1:]]}, "a turn is not text (turn 1: an object)"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, *CHAT[1:]]},
            "a turn holds something other than text, such as an image (turn 1)",
        ),
        ({"messages": [{"content": "x"}]}, "a turn does not say whose it is (turn 1)"),
        ({"messages": ["x"]}, "a turn is not an object with a role and a content (turn 1: a number or text)"),
        ({"messages": []}, "its 'messages' has no turns"),
        ({"messages": None}, "its 'messages' is null"),
        ({"messages": "no list"}, "its 'messages' is text that does not hold a list of turns"),
        ({"messages": 7}, "its 'messages' is not a list of turns (a number or text)"),
        ({"other": 1}, "it has no 'messages'"),
        (
            {"messages": [CHAT[0], {"role": "assistant", "content": "\ud800"}]},
            "it holds half a character (a lone surrogate)",
        ),
    ],
)
def test_a_row_that_is_no_conversation_says_why(row: dict[str, Any], reason: str) -> None:
    assert MESSAGES
    with pytest.raises(RowProblem) as raised:
        conversation(row, MESSAGES)
    assert str(raised.value) == reason


def test_the_other_input_stands_below_the_instruction_where_there_is_one() -> None:
    mapping = seen({"instruction": "a", "input": "c", "output": "b"}).mapping
    assert mapping
    with_input = conversation({"instruction": "Add.", "input": "1 2", "output": 3}, mapping)
    assert [turn["content"] for turn in with_input] == ["Add.\n\n1 2", "3"]
    assert conversation({"instruction": "Add.", "input": None, "output": "3"}, mapping)[0]["content"] == "Add."
    with pytest.raises(RowProblem, match="its 'output' is null"):
        conversation({"instruction": "Add.", "output": None}, mapping)
    with pytest.raises(RowProblem, match="its 'output' is not text"):
        conversation({"instruction": "Add.", "output": ["x"]}, mapping)


@pytest.mark.parametrize(
    ("shape", "columns"),
    [
        (Shape.TEXT, {"text": "question"}),
        (Shape.PROMPT, {"prompt": "question", "completion": "answer"}),
        (Shape.INSTRUCTION, {"instruction": "question", "output": "answer"}),
        (Shape.MESSAGES, {}),
    ],
)
def test_another_shape_gets_its_own_guess(shape: Shape, columns: dict[str, str]) -> None:
    rows = [{"id": "a1", "question": "What is a buoy?", "answer": "A mark."}]
    assert columns_for(shape, ["id", "question", "answer"], rows) == columns
