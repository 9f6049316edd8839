"""The shape of a dataset, found without asking."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from jobs.data.columns import ABSENT, ROLES, Mapping, Shape, column_paths, value_at, with_value
from jobs.data.conversation import conversation
from jobs.data.detect import Detection, columns_for, detect
from jobs.data.numbers import decimal_of, number, unit_of
from jobs.data.values import check_row, extract_of, labels_of, score_of, tagged
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
        ({"article": "a", "summary": "b"}, "rewrite", {"source": "article", "target": "summary"}),
        ({"document": "a", "highlights": "b", "id": "1"}, "rewrite", {"source": "document", "target": "highlights"}),
        ({"src": "a", "tgt": "b"}, "rewrite", {"source": "src", "target": "tgt"}),
        ({"English": "a", "German": "b"}, "rewrite", {"source": "English", "target": "German"}),
        (
            {"translation": {"en": "a", "de": "b"}},
            "rewrite",
            {"source": "translation.en", "target": "translation.de"},
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "preference",
            {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "no"}]},
            "preference",
            {"chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "no"}]},
            "preference",
            {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
            "preference",
            {"chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"prompt": "a", "completion": "b", "label": True},
            "feedback",
            {"prompt": "prompt", "completion": "completion", "label": "label"},
        ),
        (
            {"question": "a", "answer": "b", "feedback": "thumbs_down"},
            "feedback",
            {"prompt": "question", "completion": "answer", "label": "feedback"},
        ),
        ({"text": "a review", "label": "good"}, "labelled", {"text": "text", "label": "label"}),
        ({"tweet": "a review", "labels": ["joy", "love"]}, "labelled", {"text": "tweet", "label": "labels"}),
        ({"text": "a review", "label": 1, "label_text": "good"}, "labelled", {"text": "text", "label": "label_text"}),
        (
            {"premise": "a", "hypothesis": "b", "label": 2, "idx": 4},
            "labelled",
            {"text": "premise", "text_pair": "hypothesis", "label": "label"},
        ),
        ({"text": "a review", "label": 0.25}, "scored", {"text": "text", "score": "label"}),
        (
            {"sentence1": "a", "sentence2": "b", "score": "4.5"},
            "scored",
            {"text": "sentence1", "text_pair": "sentence2", "score": "score"},
        ),
        ({"text": "a", "score": 4}, "scored", {"text": "text", "score": "score"}),
        ({"review": "a", "rating": 4}, "scored", {"text": "review", "score": "rating"}),
        (
            {"id": "0", "tokens": ["EU", "rejects"], "pos_tags": [1, 2], "ner_tags": [3, 0]},
            "tagged",
            {"tokens": "tokens", "tags": "ner_tags"},
        ),
        ({"words": "EU rejects", "tags": "B-ORG O"}, "tagged", {"tokens": "words", "tags": "tags"}),
        ({"tokens": "['EU', 'rejects']", "tags": "['B-ORG', 'O']"}, "tagged", {"tokens": "tokens", "tags": "tags"}),
        (
            {"id": "5", "context": "the fox ran", "question": "who", "answers": {"text": ["fox"], "answer_start": [4]}},
            "extractive",
            {"question": "question", "context": "context", "answers": "answers"},
        ),
        (
            {"context": "the fox ran", "question": "who", "answer": "the fox"},
            "extractive",
            {"question": "question", "context": "context", "answers": "answer"},
        ),
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
        'Chat: the column "messages" holds conversations with roles; 20 of 20 sampled rows fit: certain.'
    )


def test_how_sure_it_is_and_the_runner_up_are_said() -> None:
    chat = [{"messages": CHAT}] * 18 + [{"messages": None}] * 2
    assert "18 of 20 sampled rows fit: likely." in detect(chat, ["messages"], "jsonl").text
    stars = seen({"review": "a fine book", "stars": 4, "label": "good"})
    assert stars.certainty == "certain" and stars.mapping and stars.mapping.shape is Shape.LABELLED
    both = seen({"context": "the fox ran", "question": "who", "answer": "the fox"})
    assert both.runner_up and both.runner_up.shape is Shape.INSTRUCTION
    assert both.text.endswith("It could also be: instruction and answer.")


def test_labels_in_one_cell_are_told_apart_by_what_stands_between_them() -> None:
    cells = ["joy|love", "love", "fear|joy", "fear"]
    found = detect([{"text": "some words", "emotions": cell} for cell in cells], ["text", "emotions"], "csv").mapping
    assert found and found.separator == "|"
    assert labels_of({"emotions": " joy | love"}, found) == ("joy", "love")
    alone = detect(
        [{"text": "words", "label": cell} for cell in ("Paris, France", "Rome, Italy")], ["text", "label"], "csv"
    )
    assert alone.mapping and alone.mapping.separator == ""


@pytest.mark.parametrize(
    ("cells", "decimal", "numbers"),
    [
        (["4,5", "3", "2,75"], ",", [4.5, 3.0, 2.75]),
        (["1.234,5", "12,0", "1.000"], ",", [1234.5, 12.0, 1000.0]),
        (["-1\u202f234,5", "0,125"], ",", [-1234.5, 0.125]),
        (["1,234.5", "12,000"], ".", [1234.5, 12000.0]),
        (["1,234", "12,500"], ".", [1234.0, 12500.0]),
        (["0,875", "0,500"], ",", [0.875, 0.5]),
        (["0,875", "1,234"], ",", [0.875, 1.234]),
        (["4.5", "3"], "", [4.5, 3.0]),
    ],
)
def test_numbers_are_read_as_their_column_writes_them(cells: list[str], decimal: str, numbers: list[float]) -> None:
    found = detect([{"text": "a long day", "score": cell} for cell in cells], ["text", "score"], "csv")
    assert found.mapping and found.mapping.shape is Shape.SCORED and found.sure
    assert found.mapping.decimal == decimal
    assert [score_of({"score": cell}, found.mapping) for cell in cells] == numbers
    said = {",": "with a decimal comma (", ".": "with commas between thousands (", "": ""}[decimal]
    assert said in found.text and ("comma" in found.text) == bool(decimal)


@pytest.mark.parametrize(
    ("cell", "decimal", "reason"),
    [
        ("4.5", ",", r"is not a number with a decimal comma \('4.5'\)"),
        ("4,5", ".", r"is not a number \('4,5'\)"),
        ("4,5", "", r"is not a number \('4,5'\)"),
        ("1,2,3", ",", r"is not a number with a decimal comma"),
        ("0.875", ",", r"is not a number with a decimal comma"),
        ("0,875", ".", "is not a number"),
        ("nan", "", "is not a number"),
        ("1e999", ".", "is not a number"),
    ],
)
def test_a_number_written_otherwise_is_a_bad_row(cell: str, decimal: Any, reason: str) -> None:
    mapping = Mapping(shape=Shape.SCORED, columns={"text": "t", "score": "s"}, decimal=decimal)
    with pytest.raises(RowProblem, match=reason):
        score_of({"s": cell}, mapping)


@pytest.mark.parametrize("name", ["preis", "vb_2024"])
def test_a_dirty_column_of_numbers_is_one_of_numbers_whatever_its_name(name: str) -> None:
    cells = ["VB", "45,00 €", "", "1.250,00", *(f"{40 + n % 60},{n % 100:02}" for n in range(116))]
    rows = [{"anzeige": f"ein Fahrrad, kaum gefahren, Nummer {n}", name: cell} for n, cell in enumerate(cells)]
    found = detect(rows, ["anzeige", name], "csv")
    assert found.sure and found.mapping and found.mapping.shape is Shape.SCORED
    assert found.mapping.columns == {"text": "anzeige", "score": name}
    assert found.fits == 118, "the other two are bad rows"
    assert 'without the "€" that stands around it ("45,00 €")' in found.text and "a decimal comma" in found.text
    assert [score_of(rows[place], found.mapping) for place in (1, 3)] == [45, 1250]
    with pytest.raises(RowProblem, match="is not a number"):
        score_of(rows[0], found.mapping)


@pytest.mark.parametrize(
    ("cells", "unit", "numbers"),
    [
        (["2 kg", "0.5kg", "12"], "kg", [2, 0.5, 12]),
        (["45%", "7.5 %", "100 %"], "%", [45, 7.5, 100]),
        (["$1,200.50", "$3", "USD 20", "20 usd"], "$", [1200.5, 3, 20, 20]),
        (["€ 45,50", "3 EUR", "1.250,00 Euro"], "€", [45.5, 3, 1250]),
        (["2 kg", "3 kg", "500 g"], "kg", [2, 3, None]),
        (["one", "4.5", "4 of 5"], "", [None, 4.5, None]),
    ],
)
def test_one_unit_is_read_away_around_numbers_and_another_is_not(
    cells: list[str], unit: str, numbers: list[float | None]
) -> None:
    assert unit_of(cells) == unit
    assert [number(cell, decimal_of(cells, unit), unit) for cell in cells] == numbers


def test_numbers_that_count_the_rows_or_are_few_are_no_scores() -> None:
    rows: list[dict[str, Any]] = [{"words": f"a text of some words {n}", "nr": str(n), "page": ""} for n in range(30)]
    found = detect(rows, ["words", "nr", "page"], "csv")
    assert found.mapping and found.mapping.shape is Shape.TEXT
    rows = [{"words": f"a text of some words {n}", "mix": "3.5" if n % 2 else "so so, not bad"} for n in range(30)]
    found = detect(rows, ["words", "mix"], "csv")
    assert found.mapping and found.mapping.shape is not Shape.SCORED


def test_several_numbered_labels_in_a_cell_are_no_decimals() -> None:
    cells = ["1,2", "3", "2,3", "1,3"]
    found = detect([{"text": "a long day", "labels": cell} for cell in cells], ["text", "labels"], "csv").mapping
    assert found and (found.shape, found.separator) == (Shape.LABELLED, ",")


def test_a_column_of_few_short_words_is_a_label_whatever_its_name() -> None:
    rows = [{"what": f"a long text about number {n}", "how": ("loud", "quiet")[n % 2]} for n in range(40)]
    found = detect(rows, ["what", "how"], "csv")
    assert found.mapping == Mapping(shape=Shape.LABELLED, columns={"text": "what", "label": "how"})
    assert found.certainty == "likely"


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"left": "some words", "right": "other words"}, "prompt"),
        ({"thing": "some words"}, "text"),
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


def mapped(shape: Shape, **columns: str) -> Mapping:
    return Mapping(shape=shape, columns=columns)


@pytest.mark.parametrize(
    ("cell", "labels"),
    [("spam ", ("spam",)), (3, ("3",)), (3.0, ("3",)), (True, ("true",)), (["a", " b", "a"], ("a", "b")), ([], ())],
)
def test_labels_are_taken_as_people_write_them(cell: Any, labels: tuple[str, ...]) -> None:
    assert labels_of({"label": cell}, mapped(Shape.LABELLED, text="text", label="label")) == labels


def test_an_answer_is_found_in_its_passage_also_where_its_place_was_miscounted() -> None:
    mapping = mapped(Shape.EXTRACTIVE, question="q", context="c", answers="a")
    row = {"q": "who?", "c": "a fox and a fox", "a": {"text": ["fox", "a fox"], "answer_start": [11, 10]}}
    assert extract_of(row, mapping).answers == (("fox", 12), ("a fox", 10))
    assert extract_of({**row, "a": "fox"}, mapping).answers == (("fox", 2),)
    assert extract_of({**row, "a": "{'text': ['fox'], 'answer_start': [12]}"}, mapping).answers == (("fox", 12),)
    assert extract_of({**row, "a": {"text": [], "answer_start": []}}, mapping).answers == ()
    with pytest.raises(RowProblem, match=r"its answer does not stand in its passage \('dog'\)"):
        extract_of({**row, "a": "dog"}, mapping)


@pytest.mark.parametrize(
    ("shape", "row", "reason"),
    [
        (Shape.SCORED, {"text": "a", "score": "high"}, "its 'score' is not a number ('high')"),
        (Shape.SCORED, {"text": "a", "score": float("nan")}, "its 'score' is not a number ('nan')"),
        (Shape.LABELLED, {"text": "a", "label": {"a": 1}}, "its 'label' is not a label (an object)"),
        (Shape.LABELLED, {"text": "a", "label": " "}, "its 'label' is empty"),
        (Shape.LABELLED, {"text": "a"}, "it has no 'label'"),
        (
            Shape.TAGGED,
            {"tokens": ["a", "b"], "tags": ["O"]},
            "it has not one tag for each word (2 words, 1 tags)",
        ),
        (Shape.TAGGED, {"tokens": [["a"]], "tags": ["O"]}, "its 'tokens' is not a list of words (a list)"),
        (
            Shape.PREFERENCE,
            {"chosen": "a", "rejected": "b"},
            "it has no prompt, and its two answers do not begin alike",
        ),
    ],
)
def test_a_row_that_is_not_what_its_columns_say_tells_why(shape: Shape, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowProblem) as raised:
        check_row(
            row,
            Mapping(shape=shape, columns={role: role for role in ROLES[shape] if role in row or ROLES[shape][role]}),
        )
    assert str(raised.value) == reason


def test_scores_and_tags_come_as_numbers_and_words() -> None:
    assert score_of({"s": "4.5"}, mapped(Shape.SCORED, text="t", score="s")) == 4.5
    mapping = mapped(Shape.TAGGED, tokens="w", tags="t")
    assert tagged({"w": ["EU", "and"], "t": [3, 0]}, mapping) == (["EU", "and"], ["3", "0"])
    assert tagged({"w": "EU and", "t": "['B-ORG', 'O']"}, mapping) == (["EU", "and"], ["B-ORG", "O"])


@pytest.mark.parametrize(
    ("words", "tags"),
    [(["EU", "it's", 'a "b"'], ["B-ORG", "O", "O"]), (["EU", "and", "so"], [3, 0, 0]), (["EU"], ["B-ORG"])],
)
def test_a_list_is_the_same_however_pandas_wrote_it_into_a_csv(words: list[str], tags: list[Any]) -> None:
    mapping = mapped(Shape.TAGGED, tokens="w", tags="t")
    as_list = {"w": str(words), "t": str(tags)}
    as_array = {"w": str(np.array(words)), "t": str(np.array(tags))}
    assert tagged(as_list, mapping) == tagged(as_array, mapping) == (words, [str(tag) for tag in tags])


def test_several_labels_may_be_an_array_that_pandas_wrote() -> None:
    mapping = mapped(Shape.LABELLED, text="text", label="label")
    assert labels_of({"label": "['joy' 'love']"}, mapping) == ("joy", "love")
    assert labels_of({"label": "[1 2]"}, mapping) == ("1", "2")


@pytest.mark.parametrize(
    "cell", [str(np.arange(2_000)), str(np.array(["EU"] * 2_000)), "[1, 2, ..., 8]", "['EU'\n 'and' ...]"]
)
def test_a_list_whose_middle_numpy_left_out_is_a_bad_row_with_its_reason(cell: str) -> None:
    with pytest.raises(RowProblem, match=r"its 't' is a list that was shortened to \"...\" when the file was written"):
        tagged({"w": ["EU"] * 7, "t": cell}, mapped(Shape.TAGGED, tokens="w", tags="t"))
    with pytest.raises(RowProblem, match="shortened"):
        labels_of({"label": cell}, mapped(Shape.LABELLED, text="text", label="label"))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("['EU', '...', 'and']", ["EU", "...", "and"]),
        ("['EU ... and' '...']", ["EU ... and", "..."]),
        ("[ ... ]", ["[", "...", "]"]),
        ("[EU ... and]", ["[EU", "...", "and]"]),
    ],
)
def test_dots_that_a_text_has_itself_are_words(cell: str, words: list[str]) -> None:
    mapping = mapped(Shape.TAGGED, tokens="w", tags="t")
    assert tagged({"w": cell, "t": ["O"] * len(words)}, mapping)[0] == words


def test_an_object_that_pandas_wrote_with_its_arrays_is_an_answer() -> None:
    mapping = mapped(Shape.EXTRACTIVE, question="q", context="c", answers="a")
    cell = str({"text": np.array(["fox"], dtype=object), "answer_start": np.array([4], dtype=np.int32)})
    assert extract_of({"q": "who?", "c": "the fox ran", "a": cell}, mapping).answers == (("fox", 4),)


def test_a_column_may_be_a_path_into_one_that_holds_objects() -> None:
    row = {"translation": {"en": "a fox", "de": "ein Fuchs"}, "x.y": 1}
    assert value_at(row, "translation.de") == "ein Fuchs" and value_at(row, "x.y") == 1
    assert value_at(row, "translation.fr") is ABSENT
    assert with_value(row, "translation.de", "?")["translation"] == {"en": "a fox", "de": "?"}
    assert row["translation"]["de"] == "ein Fuchs"
    assert column_paths([row], ["translation", "x.y"]) == ["translation", "translation.en", "translation.de", "x.y"]
    assert columns_for(Shape.REWRITE, ["translation"], [row]) == {
        "source": "translation.en",
        "target": "translation.de",
    }


CALL = {"name": "weather", "arguments": '{"city": "Rome"}'}
CALLED = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        {"role": "assistant", "content": "", "function_call": CALL},
        {"from": "function_call", "value": json.dumps(CALL)},
    ],
)
def test_tool_calls_of_every_kind_are_one(turn: dict[str, Any]) -> None:
    assert MESSAGES
    found = conversation({"messages": [CHAT[0], turn, {"from": "observation", "value": "fine"}, CHAT[1]]}, MESSAGES)
    calls = [{key: value for key, value in call.items() if key != "id"} for call in found[1]["tool_calls"]]
    assert calls == CALLED and [turn["role"] for turn in found] == ["user", "assistant", "tool", "assistant"]


def test_an_answer_may_say_that_it_is_not_trained() -> None:
    assert MESSAGES
    found = conversation({"messages": [*CHAT, CHAT[0], {**CHAT[1], "weight": 0}]}, MESSAGES)
    assert [turn.get("weight") for turn in found] == [None, None, None, 0]
