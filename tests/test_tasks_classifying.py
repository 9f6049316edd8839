"""Tasks with a new head: what is learned of each token and row, the measures, training to prediction, resuming."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.card import read_card
from jobs.data.columns import Mapping, Shape
from jobs.errors import RowProblem, UserError
from jobs.events import Evaluation
from jobs.hardware import this_machine
from jobs.inference.predictor import Predictor
from jobs.methods import method
from jobs.methods.base import Context
from jobs.rundir import RunFiles
from jobs.shape import ModelShape, read_shape
from jobs.spec import BaseModelRef, DatasetRef
from jobs.tasks import measures, task
from jobs.tasks.base import READERS, Encoded
from jobs.tasks.predictions import FoundAnswer, Labels, Number, Spans
from jobs.training import heads
from tests import tiny
from tests.rundirs import events, make_run, series, train_here

LABELLED = Mapping(shape=Shape.LABELLED, columns={"text": "text", "label": "label"})
PAIRED = Mapping(shape=Shape.LABELLED, columns={"text": "text", "text_pair": "other", "label": "label"})
SCORED = Mapping(shape=Shape.SCORED, columns={"text": "text", "score": "score"})
TAGGED = Mapping(shape=Shape.TAGGED, columns={"tokens": "tokens", "tags": "tags"})
EXTRACTIVE = Mapping(
    shape=Shape.EXTRACTIVE, columns={"question": "question", "context": "context", "answers": "answers"}
)
ANIMALS = ("fox", "dog", "captain", "ship")
FILLERS = "the quick brown lazy over said of jumps".split()  # noqa: SIM905 - easier to read


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_bert(tmp_path_factory.mktemp("tiny") / "tiny-bert")


@pytest.fixture(scope="session")
def word_pieces(tiny_bert: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


@cache
def bytes_pieces() -> Any:
    return tiny.build_tokenizer(None)


def encode(name: str, row: dict[str, Any], mapping: Mapping, tokenizer: Any, **params: Any) -> Encoded:
    chosen = task(name)
    return chosen.encode(row, mapping, tokenizer, chosen.Params(**params))


# What is learned


def test_a_words_first_token_carries_its_tag_and_no_other_does(word_pieces: Any) -> None:
    row = {"tokens": ["The", "captain", "Zyxwv", "!", "of", "é"], "tags": ["O", "B-PER", "I-PER", "O", "O", "B-X"]}
    found = encode("tagging", row, TAGGED, word_pieces)
    same = word_pieces(row["tokens"], is_split_into_words=True)
    assert found.input_ids == same["input_ids"]
    wanted, before = [], None
    for word in same.word_ids():
        wanted.append(row["tags"][word] if word is not None and word != before else "")
        before = word
    assert found.target == wanted
    assert found.trained == [bool(tag) for tag in wanted]
    assert len(found.input_ids) > len(row["tokens"]) + 2  # some word has several tokens


def test_tokens_that_begin_with_a_space_carry_the_tag_of_the_word_behind_it() -> None:
    row = {"tokens": ["the", "quick", "fox", "😀x", "dog"], "tags": ["A", "B", "C", "D", "E"]}
    found = encode("tagging", row, TAGGED, bytes_pieces())
    said = [
        (tag, found.text[start:].lstrip().split()[0])
        for tag, (start, _) in zip(found.target, found.offsets, strict=True)
        if tag
    ]
    assert said == list(zip(row["tags"], row["tokens"], strict=True))


def test_numbered_tags_get_the_names_that_were_given(word_pieces: Any) -> None:
    row = {"tokens": ["the", "fox"], "tags": [0, 1]}
    assert encode("tagging", row, TAGGED, word_pieces).target == ["", "0", "1", ""]
    assert encode("tagging", row, TAGGED, word_pieces, tag_names="O, B-ANIMAL").target == ["", "O", "B-ANIMAL", ""]
    with pytest.raises(RowProblem, match=r"no name among those you set \(number 1\)"):
        encode("tagging", row, TAGGED, word_pieces, tag_names="O")


def test_an_answer_is_the_tokens_of_its_characters(word_pieces: Any) -> None:
    context = "the quick fox, said the captain of the ship"
    for tokenizer in (word_pieces, bytes_pieces()):
        row = {"question": "who?", "context": context, "answers": {"text": ["captain of"], "answer_start": [24]}}
        found = encode("answers", row, EXTRACTIVE, tokenizer)
        start, end = found.target["start"], found.target["end"]
        assert found.text[found.offsets[start][0] : found.offsets[end][1]].strip() == "captain of"
        assert found.trained.index(True) == start and sum(found.trained) == end - start + 1
        assert found.text == f"who?\n{context}"
        first, after = found.target["from"], found.target["to"]
        assert found.text[found.offsets[first][0] : found.offsets[after - 1][1]] == context


def test_no_answer_is_said_where_the_model_has_read_everything(word_pieces: Any) -> None:
    row = {"question": "who?", "context": "the fox", "answers": {"text": [], "answer_start": []}}
    encoder = encode("answers", row, EXTRACTIVE, word_pieces)
    assert (encoder.target["nothing"], encoder.target["start"], any(encoder.trained)) == (0, None, False)
    decoder = encode("answers", row, EXTRACTIVE, bytes_pieces())
    assert decoder.target["nothing"] == -1
    assert decoder.input_ids[-1] == bytes_pieces().eos_token_id


def test_an_answer_beyond_the_maximum_length_is_a_problem_and_a_shortened_passage_is_none(word_pieces: Any) -> None:
    answers = task("answers")
    row = {"question": "who?", "context": "the fox " * 20 + "ship", "answers": "fox"}
    found = encode("answers", row, EXTRACTIVE, word_pieces)
    used = answers.cut(found, 12)
    assert len(used.input_ids) == 12
    assert used.input_ids[-1] == word_pieces.sep_token_id
    assert used.target["to"] == 11
    late = encode("answers", {**row, "answers": "ship"}, EXTRACTIVE, word_pieces)
    with pytest.raises(RowProblem, match=r"its answer lies beyond the maximum length \(it ends at token \d+; 12"):
        answers.cut(late, 12)
    with pytest.raises(RowProblem, match="its question leaves no room for the passage"):
        answers.cut(found, 4)


def test_two_texts_are_told_apart_and_shown_as_one(word_pieces: Any) -> None:
    found = encode("classification", {"text": "the fox", "other": "a dog", "label": True}, PAIRED, word_pieces)
    same = word_pieces("the fox", "a dog")
    assert (found.input_ids, found.types) == (same["input_ids"], same["token_type_ids"])
    assert found.text == "the fox\na dog"
    assert found.target == ["true"]
    alone = encode("classification", {"text": "the fox", "label": 2.0}, LABELLED, word_pieces)
    assert (alone.types, alone.target) == (None, ["2"])


def test_a_text_that_is_cut_keeps_its_closing_token_and_its_tags_their_tokens(word_pieces: Any) -> None:
    labelled = encode("classification", {"text": "the fox " * 20, "label": "a"}, LABELLED, word_pieces)
    used = task("classification").cut(labelled, 10)
    assert used.input_ids == [*labelled.input_ids[:9], word_pieces.sep_token_id]
    words = {"tokens": ["the", "fox"] * 20, "tags": ["O", "B-X"] * 20}
    tagged = task("tagging").cut(encode("tagging", words, TAGGED, word_pieces), 10)
    assert len(tagged.target) == len(tagged.input_ids) == 10
    assert (tagged.target[0], tagged.target[-1], tagged.target[1:3]) == ("", "", ["O", "B-X"])
    with pytest.raises(RowProblem, match="leaves nothing of its text"):
        task("classification").cut(labelled, 2)


def test_how_many_labels_a_text_has_is_taken_from_the_data_or_demanded(word_pieces: Any) -> None:
    several = {"text": "the fox", "label": ["a", "b"]}
    assert encode("classification", several, LABELLED, word_pieces).target == ["a", "b"]
    with pytest.raises(RowProblem, match=r"not one label, which you set \(2 labels\)"):
        encode("classification", several, LABELLED, word_pieces, labels="one label")


def test_the_preview_shows_tags_and_targets_and_the_check_counts_labels(tmp_path: Path, word_pieces: Any) -> None:
    from jobs.data.mends import Mended
    from jobs.data.preflight import check, preview

    tagging, classification = task("tagging"), task("classification")
    files = make_run(tmp_path / "tags", tmp_path, [{"tokens": ["the", "fox"], "tags": ["O", "B-X"]}])
    rows = files.directory / "rows.parquet"
    shown = preview(Mended(rows, TAGGED, ()), 1, TAGGED, tagging, tagging.Params(), word_pieces, 64)
    assert [(part.text.strip(), part.tag, part.kind) for part in shown.segments if part.text] == [
        ("the", "O", "trained"),
        ("fox", "B-X", "trained"),
    ]
    files = make_run(tmp_path / "labels", tmp_path, [{"text": "the", "label": label} for label in "aab"])
    rows = files.directory / "rows.parquet"
    shown = preview(Mended(rows, LABELLED, ()), 3, LABELLED, classification, classification.Params(), word_pieces, 64)
    assert shown.target == "b"
    report = check(rows, LABELLED, classification, classification.Params(), word_pieces, 64)
    assert list(report.labels.items()) == [("a", 2), ("b", 1)]


def test_labels_that_teach_nothing_or_little_are_told() -> None:
    classification, tagging = task("classification"), task("tagging")
    check = classification.check_labels
    plain = classification.Params()
    assert "Every row has the label 'a'" in check(plain, {"a": 9}, 9)[0][0]
    assert "Is it a text or a number?" in check(plain, {str(n): 1 for n in range(40)}, 40)[0][0]
    problems, notes = check(plain, {"a": 90, "b": 9, "c": 1}, 100)
    assert problems == []
    assert notes[0].startswith("1 label has a single row ('c')")
    assert "90 rows of 'a', 1 of 'c'" in notes[1]
    assert len(check(classification.Params(balance=True), {"a": 90, "b": 9}, 99)[1]) == 0
    assert "Every word has the tag 'O'" in tagging.check_labels(tagging.Params(), {"O": 5}, 2)[0][0]
    assert "The tags are numbers" in tagging.check_labels(tagging.Params(), {"0": 5, "1": 2}, 2)[1][0]
    answers = task("answers")
    assert "No row has an answer" in answers.check_labels(answers.Params(), {"no answer": 5}, 5)[0][0]


# Measures


def test_measures_of_one_label_are_scikit_learns_and_name_what_is_confused() -> None:
    from sklearn.metrics import f1_score

    given, chosen = list("aaabbc"), list("aabbba")
    values, details = measures.one_label(given, chosen, ("a", "b", "c", "never"))
    assert values == {"accuracy": pytest.approx(4 / 6), "macro_f1": f1_score(given, chosen, average="macro")}
    assert details["matrix"] == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert details["per_label"][1] == {
        "label": "b",
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "f1": 0.8,
        "rows": 2,
    }
    assert details["confused"][0] == {"given": "a", "chosen": "b", "rows": 1}


def test_measures_of_several_labels_leave_those_out_that_never_occur() -> None:
    given, chosen = [["a"], ["a", "b"], []], [["a"], ["a"], ["b"]]
    values, details = measures.several_labels(given, chosen, ("a", "b", "never"))
    assert values == {
        "exact_match": pytest.approx(1 / 3),
        "micro_f1": pytest.approx(4 / 6),
        "macro_f1": pytest.approx(0.5),
    }
    assert [each["rows"] for each in details["per_label"]] == [2, 1, 0]


def test_entities_count_only_when_whole_and_other_tags_one_by_one() -> None:
    from seqeval.metrics import f1_score

    given = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]
    chosen = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC"]]
    labels = ("O", "B-PER", "I-PER", "B-LOC")
    values, details = measures.tags(given, chosen, labels)
    assert values["entity_f1"] == pytest.approx(f1_score(given, chosen)) == pytest.approx(0.4)
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert {each["label"]: each["rows"] for each in details["per_label"]} == {"PER": 1, "LOC": 1}
    assert measures.tags([["O", "O"]], [["O", "O"]], labels)[0] == {"accuracy": 1.0}
    assert set(measures.tags([["NOUN", "VERB"]], [["NOUN", "NOUN"]], ("NOUN", "VERB"))[0]) == {"accuracy", "macro_f1"}


def test_answers_are_compared_as_squad_does() -> None:
    given = [["the Blue Café"], ["4 May", "May 4"], [], ["a dog"]]
    found = ["blue café!", "on May 4", "", ""]
    values, _ = measures.answers(given, found)
    assert values == {"exact_match": pytest.approx(2 / 4), "f1": pytest.approx((1 + 0.8 + 1 + 0) / 4)}


def test_measures_of_numbers_are_in_their_units_and_correlate_only_what_varies() -> None:
    values, details = measures.numbers([1.0, 2.0, 4.0], [1.0, 3.0, 4.0])
    assert (values["mse"], values["mae"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert values["spearman"] == pytest.approx(1.0)
    assert details["points"] == [[1.0, 1.0], [2.0, 3.0], [4.0, 4.0]]
    assert set(measures.numbers([1.0, 2.0], [5.0, 5.0])[0]) == {"mse", "mae"}


# Training, and what it leaves behind


def words(random_: random.Random, count: int) -> list[str]:
    return [random_.choice(FILLERS) for _ in range(count)]


def labelled_rows(random_: random.Random) -> list[dict[str, Any]]:
    chosen = (random_.choice(ANIMALS) for _ in range(48))
    return [{"text": " ".join([*words(random_, 3), one, *words(random_, 3)]), "label": one} for one in chosen]


def several_rows(random_: random.Random) -> list[dict[str, Any]]:
    chosen = (random_.sample(ANIMALS, random_.randint(0, 2)) for _ in range(48))
    return [{"text": " ".join([*words(random_, 3), *some, *words(random_, 2)]), "label": some} for some in chosen]


def tagged_rows(random_: random.Random) -> list[dict[str, Any]]:
    rows = []
    for _ in range(48):
        tokens, tags, place = words(random_, 8), ["O"] * 8, random_.randrange(7)
        tokens[place : place + 2], tags[place : place + 2] = ["captain", "fox"], ["B-PER", "I-PER"]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def answered_rows(random_: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(48):
        tokens, answer = words(random_, 6), random_.choice(ANIMALS)
        if number % 6:
            tokens[random_.randrange(6)] = answer
        context = " ".join(tokens)
        found = {"text": [answer], "answer_start": [context.index(answer)]} if number % 6 else {"text": []}
        rows.append({"question": "which animal?", "context": context, "answers": found})
    return rows


def scored_rows(random_: random.Random) -> list[dict[str, Any]]:
    counts = (random_.randrange(6) for _ in range(48))
    return [{"text": " ".join([*["fox"] * n, *words(random_, 7 - n)]), "score": 100 + 10 * n} for n in counts]


@dataclass(frozen=True)
class Kind:
    name: str
    mapping: Mapping
    rows: Callable[[random.Random], list[dict[str, Any]]]
    measure: str
    labels: int


KINDS = {
    "one label": Kind("classification", LABELLED, labelled_rows, "accuracy", 4),
    "several labels": Kind("classification", LABELLED, several_rows, "micro_f1", 4),
    "tags": Kind("tagging", TAGGED, tagged_rows, "entity_f1", 3),
    "answers": Kind("answers", EXTRACTIVE, answered_rows, "f1", 0),
    "numbers": Kind("regression", SCORED, scored_rows, "pearson", 0),
}


def train(
    directory: Path, model: Path, kind: Kind, how: str = "lora", settings: dict[str, Any] | None = None, **training: Any
) -> RunFiles:
    defaults = {"epochs": 4, "learning_rate": 1e-2, "batch_size": 8, "validation_percent": 25, "evaluations": 1}
    return make_run(
        directory,
        model,
        kind.rows(random.Random(5)),
        task=kind.name,
        method=how,
        method_params={"r": 8} if settings is None else settings,
        training={**defaults, "early_stop": 0, **training},
        dataset=DatasetRef(name="d", fingerprint="f", rows=directory / "rows.parquet", mapping=kind.mapping),
    )


def details(files: RunFiles) -> dict[str, Any]:
    return [event for event in events(files) if isinstance(event, Evaluation)][-1].details


def said(files: RunFiles, model: Path, kind: Kind) -> list[tuple[str, float | None]]:
    """(what, how surely) the saved adapter says of the rows that the last evaluation showed, as it shows them."""
    rows = kind.rows(random.Random(5))
    shown = [rows[sample["row"] - 1] for sample in details(files)["samples"]]
    if kind.name == "tagging":
        inputs = [{"text": " ".join(row["tokens"])} for row in shown]
    elif kind.name == "answers":
        inputs = [{"question": row["question"], "context": row["context"]} for row in shown]
    else:
        inputs = [{"text": row["text"]} for row in shown]
    found: list[tuple[str, float | None]] = []
    predictor = Predictor(BaseModelRef(name="Tiny", folder=model))
    for prediction in predictor.predict(files.adapter, inputs)[0]:
        match prediction:
            case Labels():
                found.append((", ".join(sorted(prediction.chosen)), prediction.labels[0].probability))
            case Spans():
                spans = prediction.spans
                found.append(
                    (
                        "; ".join(f"{span.tag}: {span.text}" for span in spans) or "nothing",
                        min((span.confidence for span in spans), default=None),
                    )
                )
            case FoundAnswer():
                found.append((prediction.text or "no answer", prediction.confidence))
            case Number():
                found.append((f"{prediction.value:.4g}", None))
    return found


CELLS = [
    *(pytest.param(name, "bert", "lora", {"r": 8}, id=f"{name}-bert-lora") for name in KINDS),
    *(pytest.param(name, "llama", "lora", {"r": 8}, id=f"{name}-llama-lora") for name in KINDS),
    pytest.param("one label", "bert", "bottleneck", {"size": 8}, id="one-bert-bottleneck"),
    pytest.param("one label", "llama", "prompt-tuning", {"tokens": 4}, id="one-llama-prompt-tuning"),
    pytest.param("several labels", "llama", "ia3", {}, id="several-llama-ia3"),
    pytest.param("tags", "bert", "bitfit", {}, id="tags-bert-bitfit"),
    pytest.param("tags", "llama", "full", {}, id="tags-llama-full"),
    pytest.param("answers", "bert", "full", {}, id="answers-bert-full"),
    pytest.param("numbers", "bert", "ia3", {}, id="numbers-bert-ia3"),
]


@pytest.mark.parametrize(("name", "family", "how", "settings"), CELLS)
def test_a_head_learns_with_every_kind_of_method_and_the_saved_adapter_says_the_same(
    tmp_path: Path, tiny_bert: Path, tiny_llama: Path, name: str, family: str, how: str, settings: dict[str, Any]
) -> None:
    kind, model = KINDS[name], tiny_bert if family == "bert" else tiny_llama
    files = train(tmp_path / "run", model, kind, how, settings)
    end = train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    loss = series(files, "loss")
    assert min(list(loss.values())[-4:]) < loss[1]
    told = {name for event in events(files) for name in getattr(event, "values", {})}
    assert kind.measure in told & set(task(kind.name).measures)
    always = {"loss", "eval_loss", "learning_rate", "tokens_per_second", "memory", "grad_norm"}
    assert told - always <= set(task(kind.name).measures)

    shape, how_ = read_shape(model), method(how)
    alone = how_.trainable(how_.Params(**settings), task(kind.name).body(shape))
    head = task(kind.name).head_parameters(task(kind.name).Params(), shape, kind.labels)
    assert end.trainable_parameters == alone + head

    card = read_card(files.adapter)
    assert (card.task, len(card.labels), card.max_length) == (kind.name, kind.labels, 64)
    shown = details(files)["samples"]
    assert len(shown) == 12
    for sample, (text, confidence) in zip(shown, said(files, model, kind), strict=True):
        assert text == sample["predicted"]
        if confidence is not None:
            assert confidence == pytest.approx(sample["confidence"], abs=2e-3)


def test_a_decoders_head_reads_the_last_token_whatever_is_padded(tmp_path: Path, tiny_llama: Path) -> None:
    for how, settings in (("lora", {"r": 4}), ("prompt-tuning", {"tokens": 4})):
        files = train(tmp_path / how, tiny_llama, KINDS["one label"], how, settings, epochs=1)
        train_here(files)
        predictor = Predictor(BaseModelRef(name="Tiny", folder=tiny_llama))
        texts = [{"text": "the fox"}, {"text": "the fox jumps over the lazy dog, said the captain"}]
        together, _ = predictor.predict(files.adapter, texts)
        alone = [predictor.predict(files.adapter, [text])[0][0] for text in texts]
        for one, other in zip(together, alone, strict=True):
            assert isinstance(one, Labels) and isinstance(other, Labels)
            assert one.chosen == other.chosen
            assert [each.probability for each in one.labels] == pytest.approx(
                [each.probability for each in other.labels], abs=1e-4
            )


def test_what_a_method_leaves_at_random_is_trained_saved_and_put_back(tmp_path: Path) -> None:
    model = tiny.build_bert(tmp_path / "no-pooler", pooler=False)
    files = train(tmp_path / "run", model, KINDS["one label"], epochs=1)
    end = train_here(files)
    shape = read_shape(model)
    head = task("classification").head_parameters(None, shape, 4)
    assert head == 64 * 4 + 4 + 64 * 64 + 64
    assert end.trainable_parameters == method("lora").trainable(method("lora").Params(r=8), shape) + head
    from safetensors.torch import load_file

    saved = load_file(files.adapter / heads.FILE)
    assert set(saved) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    shown = details(files)["samples"]
    assert [text for text, _ in said(files, model, KINDS["one label"])] == [sample["predicted"] for sample in shown]


@pytest.mark.parametrize(("how", "settings"), [("lora", {"r": 4, "dropout": 0.1}), ("prompt-tuning", {"tokens": 4})])
def test_a_stopped_run_goes_on_to_the_same_losses(
    tmp_path: Path, tiny_llama: Path, how: str, settings: dict[str, Any]
) -> None:
    from jobs.training.monitor import StopRequest
    from jobs.training.run import Attempt

    class AfterSixSteps(StopRequest):
        def __bool__(self) -> bool:
            return max(series(stopped, "loss"), default=0) >= 6

    whole = train(tmp_path / "whole", tiny_llama, KINDS["one label"], how, settings, epochs=2)
    stopped = train(tmp_path / "stopped", tiny_llama, KINDS["one label"], how, settings, epochs=2)
    assert train_here(whole).step == 10
    assert Attempt(stopped, 1, AfterSixSteps(stopped.stop)).run().step == 6
    assert train_here(stopped, attempt=2).step == 10
    assert series(stopped, "loss") == pytest.approx(series(whole, "loss"), rel=1e-5)
    assert series(stopped, "eval_loss") == pytest.approx(series(whole, "eval_loss"), rel=1e-5)
    assert details(stopped)["samples"] == details(whole)["samples"]


def test_rare_labels_count_more_where_labels_are_balanced(tmp_path: Path, tiny_bert: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    from jobs.tasks.classification import weights

    rows = [{"text": "the fox", "label": "a"}] * 22 + [{"text": "the dog", "label": "b"}] * 2
    given = [row["label"] for row in rows]
    facts = {"several": False, "rows": 24, "counts": {"a": 22, "b": 2}}
    balanced = compute_class_weight("balanced", classes=np.array(["a", "b"]), y=given)
    assert weights(("a", "b"), facts) == pytest.approx(balanced.tolist())
    assert weights(("a", "b"), {**facts, "several": True}) == pytest.approx([2 / 22, 22 / 2])
    losses = {}
    for balance in (False, True):
        files = make_run(
            tmp_path / str(balance),
            tiny_bert,
            rows,
            task="classification",
            task_params={"balance": balance},
            training={"max_steps": 8, "epochs": 8, "batch_size": 24, "validation_percent": 0},
            dataset=DatasetRef(
                name="d", fingerprint="f", rows=tmp_path / str(balance) / "rows.parquet", mapping=LABELLED
            ),
        )
        assert train_here(files).state == "completed"
        losses[balance] = series(files, "loss")[8]
    assert losses[True] > 1.1 * losses[False]  # saying "a" to everything no longer pays


def test_a_passage_longer_than_the_model_was_trained_with_is_read_in_pieces(tmp_path: Path, tiny_bert: Path) -> None:
    files = train(tmp_path / "run", tiny_bert, KINDS["answers"], epochs=12, max_length=24)
    assert train_here(files).state == "completed"
    predictor = Predictor(BaseModelRef(name="Tiny", folder=tiny_bert))
    long = " ".join([*FILLERS * 6, "captain", *FILLERS * 3])
    (found,), _ = predictor.predict(files.adapter, [{"question": "which animal?", "context": long}])
    assert isinstance(found, FoundAnswer)
    assert found.start is not None and long[found.start : found.end] == found.text
    with pytest.raises(UserError, match="The question is too long"):
        predictor.predict(files.adapter, [{"question": "which " * 60, "context": long}])


def test_a_text_longer_than_the_model_was_trained_with_is_tagged_to_its_end(tmp_path: Path, tiny_bert: Path) -> None:
    files = train(tmp_path / "run", tiny_bert, KINDS["tags"], max_length=16)
    assert train_here(files).state == "completed"
    text = " ".join([*FILLERS * 5, "captain fox", *FILLERS * 2, "captain fox", "the quick"])
    (found,), _ = Predictor(BaseModelRef(name="Tiny", folder=tiny_bert)).predict(files.adapter, [{"text": text}])
    assert isinstance(found, Spans)
    assert [span.text for span in found.spans] == ["captain fox"] * 2
    assert all(text[span.start : span.end] == span.text for span in found.spans)


def test_data_with_nothing_to_tell_apart_ends_in_words(tmp_path: Path, tiny_bert: Path) -> None:
    rows = {
        "classification": [{"text": "the fox", "label": "a"}] * 8,
        "tagging": [{"tokens": ["the"], "tags": ["O"]}] * 8,
        "regression": [{"text": "the fox", "score": 3}] * 8,
    }
    mappings = {"classification": LABELLED, "tagging": TAGGED, "regression": SCORED}
    for name, same in rows.items():
        directory = tmp_path / name
        dataset = DatasetRef(name="d", fingerprint="f", rows=directory / "rows.parquet", mapping=mappings[name])
        end = train_here(make_run(directory, tiny_bert, same, task=name, dataset=dataset))
        assert end.state == "failed"
        assert end.reason and "nothing to" in end.reason


# Which models


def test_a_model_that_writes_nothing_or_has_no_such_head_is_refused_before_anything_is_loaded(
    tiny_bert: Path, tiny_llama: Path
) -> None:
    bert, llama = read_shape(tiny_bert), read_shape(tiny_llama)
    chat, answers = task("chat"), task("answers")
    assert "it reads texts and writes none" in chat.check_model(chat.Params(), bert)[0]
    assert chat.check_model(chat.Params(), llama) == []
    for name in ("classification", "tagging", "answers", "regression"):
        assert task(name).check_model(task(name).Params(), bert) == []
        assert task(name).check_model(task(name).Params(), llama) == []
    t5 = llama.model_copy(update={"family": "encoder-decoder", "model_type": "t5"})
    assert "turns one text into another" in answers.check_model(answers.Params(), t5)[0]
    gemma = llama.model_copy(update={"model_type": "gemma3_text"})
    assert "no such head for models of the kind gemma3_text" in answers.check_model(answers.Params(), gemma)[0]


def test_the_list_of_models_with_a_head_is_the_installed_transformers() -> None:
    from transformers.models.auto import modeling_auto

    from jobs import shape
    from jobs.tasks.supported import DECODERS, NOT_ENCODERS

    decoders = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - shape._ENCODERS
    words = {"sequence": "SEQUENCE_CLASSIFICATION", "token": "TOKEN_CLASSIFICATION", "span": "QUESTION_ANSWERING"}
    assert set(DECODERS) == set(READERS) == set(words)
    for head, name in words.items():
        having = set(getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES"))
        assert DECODERS[head] == decoders & having
        assert NOT_ENCODERS.get(head, frozenset()) == shape._ENCODERS - having


@pytest.mark.parametrize("name", ["roberta", "electra", "deberta-v2", "distilbert", "gpt2", "qwen3"])
def test_a_new_head_is_counted_exactly_and_nothing_else_is_new(tmp_path: Path, name: str) -> None:
    import torch
    import transformers

    from jobs.training.load import Device, load_model

    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 64}
    config, kind = {
        "roberta": (transformers.RobertaConfig(**small, max_position_embeddings=66), "RobertaForMaskedLM"),
        "electra": (transformers.ElectraConfig(**small, embedding_size=32), "ElectraModel"),
        "deberta-v2": (transformers.DebertaV2Config(**small), "DebertaV2ForMaskedLM"),
        "distilbert": (
            transformers.DistilBertConfig(vocab_size=300, dim=32, hidden_dim=64, n_layers=2, n_heads=4),
            "DistilBertForMaskedLM",
        ),
        "gpt2": (transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4), "GPT2LMHeadModel"),
        "qwen3": (transformers.Qwen3Config(**small, num_key_value_heads=2, head_dim=8), "Qwen3ForCausalLM"),
    }[name]
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    tiny.build_tokenizer(None).save_pretrained(tmp_path)
    shape, cpu = read_shape(tmp_path), Device(torch.device("cpu"), torch.float32)
    for task_name, labels in (("classification", 5), ("tagging", 5), ("answers", 2), ("regression", 1)):
        chosen = task(task_name)
        head = {"num_labels": labels, "pad_token_id": 0}
        model, new = load_model(BaseModelRef(name="Small", folder=tmp_path), chosen.auto_class, head, None, cpu)
        parameters = dict(model.named_parameters())
        counted = chosen.head_parameters(chosen.Params(), shape, labels)
        assert sum(parameters[each].numel() for each in new) == counted, (task_name, new)


SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 64}
PLACED = SMALL | {"max_position_embeddings": 66}
STORED: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama, untied": ("llama", SMALL | {"num_key_value_heads": 2}, "AutoModelForCausalLM"),
    "llama, tied": ("llama", SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": True}, "AutoModelForCausalLM"),
    "llama, which sorted before": ("llama", SMALL | {"num_labels": 7}, "AutoModelForSequenceClassification"),
    "gpt_neox": ("gpt_neox", SMALL, "AutoModelForCausalLM"),
    "phi, with biases": ("phi", SMALL, "AutoModelForCausalLM"),
    "bert, pretrained": ("bert", PLACED, "AutoModelForPreTraining"),
    "bert, which sorted before": ("bert", PLACED | {"num_labels": 7}, "AutoModelForSequenceClassification"),
    "albert, pretrained": ("albert", PLACED | {"embedding_size": 16}, "AutoModelForPreTraining"),
    "roberta, with a pooler": ("roberta", PLACED, "AutoModel"),
    "roberta, pretrained": ("roberta", PLACED, "AutoModelForMaskedLM"),
    "roberta, which sorted before": ("roberta", PLACED | {"num_labels": 7}, "AutoModelForSequenceClassification"),
    "eurobert": ("eurobert", PLACED | {"pad_token_id": 0}, "AutoModelForMaskedLM"),
    "modernbert": ("modernbert", PLACED, "AutoModel"),
    "modernbert, pretrained": ("modernbert", PLACED, "AutoModelForMaskedLM"),
}


@pytest.mark.parametrize("name", STORED)
def test_what_is_trained_is_counted_exactly_whatever_the_files_end_with(tmp_path: Path, name: str) -> None:
    import torch
    import transformers

    from jobs.training.load import Device, load_model

    model_type, sizes, auto = STORED[name]
    if model_type == "modernbert":
        sizes = sizes | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    getattr(transformers, auto).from_config(config).save_pretrained(tmp_path)
    tiny.build_tokenizer(None).save_pretrained(tmp_path)
    shape, cpu = read_shape(tmp_path), Device(torch.device("cpu"), torch.float32)
    base, hardware = BaseModelRef(name=name, folder=tmp_path), this_machine()
    for task_name, labels in (("classification", 5), ("tagging", 5), ("answers", 2), ("regression", 1)):
        chosen = task(task_name)
        if chosen.check_model(chosen.Params(), shape):
            continue
        for how in map(method, ("full", "lora", "bitfit", "ln-tuning")):
            settings = how.Params()
            if how.check(settings, shape, hardware):
                continue
            model, new = load_model(
                base, chosen.auto_class, {"num_labels": labels, "ignore_mismatched_sizes": True}, None, cpu
            )
            tuned = how.attach(model, settings, Context(chosen.peft_task_type))
            heads.train(tuned, new)
            counted = how.trainable(settings, chosen.body(shape)) + chosen.head_parameters(None, shape, labels)
            assert tuned.get_nb_trainable_parameters()[0] == counted, (task_name, how.name)


def test_a_catalog_from_before_still_knows_its_models(tiny_bert: Path) -> None:
    shape = read_shape(tiny_bert)
    stored = shape.model_dump(mode="json")
    del stored["ends"]
    again = ModelShape.model_validate_json(json.dumps(stored | {"pretraining_head": 0}))
    for name in ("classification", "tagging"):
        chosen = task(name)
        assert chosen.body(again).parameters == chosen.body(shape).parameters
        assert chosen.head_parameters(None, again, 3) == chosen.head_parameters(None, shape, 3)
    tuned_before = ModelShape.model_validate(stored | {"pretraining_head": 500})
    assert task("tagging").body(tuned_before).parameters == task("tagging").body(shape).parameters - 500
