"""One text into another: encodings for decoders and for T5, measures, real runs on tiny models, what they write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.data.columns import Mapping, Shape
from jobs.errors import RowProblem, UserError
from jobs.events import Evaluation
from jobs.rundir import RunFiles
from jobs.shape import read_shape
from jobs.spec import DatasetRef
from jobs.tasks import task, tasks_for
from jobs.tasks.base import Encoded
from jobs.tasks.predictions import Written
from jobs.tasks.rewriting import measures
from tests import tiny
from tests.rundirs import events, make_run, result, series, train_here

torch = pytest.importorskip("torch")

WORDS = Mapping(shape=Shape.REWRITE, columns={"source": "translation.en", "target": "translation.fox"})
ROWS = [
    {"translation": {"en": f"{animal} {number}", "fox": f"the quick {animal}"}}
    for number in range(6)
    for animal in ("dog", "fox", "ship", "captain")
]


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_t5(tmp_path_factory.mktemp("tiny") / "tiny-t5")


def trained(encoded: Encoded) -> str:
    pieces = zip(encoded.offsets, encoded.trained, strict=True)
    return "".join(encoded.text[start:end] for (start, end), on in pieces if on)


def test_a_decoder_is_asked_as_in_a_chat_and_learns_the_target_with_its_end() -> None:
    rewrite = task("rewrite")
    params = rewrite.Params(instruction="Say it well:")
    encoded = rewrite.encode(ROWS[0], WORDS, tiny.build_tokenizer(), params)
    assert encoded.text.startswith("<|im_start|>user\nSay it well:\n\ndog 0<|im_end|>")
    assert trained(encoded) == "the quick dog<|im_end|>"
    assert encoded.target == "dog 0"
    assert rewrite.cut(encoded, 500).target is None, "training has no use for the text"
    asked = rewrite.prompt("dog 0", tiny.build_tokenizer(), params)  # type: ignore[attr-defined]
    assert encoded.input_ids[: len(asked)] == asked and encoded.trained[len(asked)]


def test_an_encoder_decoder_reads_the_source_and_learns_the_target_each_with_its_end(tiny_t5: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, seq2seq = AutoTokenizer.from_pretrained(tiny_t5), task("seq2seq")
    encoded = seq2seq.encode(ROWS[1], WORDS, tokenizer, seq2seq.Params(instruction="translate:"))
    assert encoded.second is not None
    assert tokenizer.decode(encoded.input_ids) == "translate: fox 0<|im_end|>"
    assert tokenizer.decode(encoded.second.input_ids) == "the quick fox<|im_end|>"
    assert not any(encoded.trained) and all(encoded.second.trained)
    cut = seq2seq.cut(encoded, 4)
    assert cut.second is not None
    assert cut.input_ids == [*encoded.input_ids[:3], tokenizer.eos_token_id], "the encoder still sees an end"
    assert cut.second.input_ids == encoded.second.input_ids[:4], "half a text must not teach to stop there"
    with pytest.raises(RowProblem, match="is empty"):
        seq2seq.encode({"translation": {"en": "x", "fox": " "}}, WORDS, tokenizer, seq2seq.Params())


def test_instructions_come_from_the_names_of_the_columns() -> None:
    def said(name: str, source: str, target: str) -> str:
        mapping = Mapping(shape=Shape.REWRITE, columns={"source": source, "target": target})
        return str(task(name).suggest(mapping)["instruction"])

    assert said("rewrite", "translation.en", "translation.de") == "Translate English into German:"
    assert said("seq2seq", "en", "de") == "translate English to German:"
    assert said("rewrite", "French text", "English") == "Translate French into English:"
    assert said("seq2seq", "article", "highlights") == "summarize:"
    assert said("rewrite", "before", "after") == ""
    assert task("chat").suggest(WORDS) == {}


def test_the_model_decides_which_of_both_a_dataset_is_trained_with(tiny_t5: Path, tiny_llama: Path) -> None:
    from jobs.service.choices import tasks_for as choices

    assert [each.name for each in tasks_for(Shape.REWRITE)][:2] == ["rewrite", "seq2seq"]
    for folder, right in ((tiny_t5, "seq2seq"), (tiny_llama, "rewrite")):
        offered = [each for each in choices(WORDS, read_shape(folder)) if not each.problems]
        assert offered[0].name == right
    german = Mapping(shape=Shape.REWRITE, columns={"source": "en", "target": "de"})
    assert choices(german, None)[0].params["instruction"] == "Translate English into German:"


def test_a_shape_of_t5_is_read_exactly(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    folder = tiny.build_t5(tmp_path / "t5", decoder_layers=3)
    shape = read_shape(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert (shape.hidden_size, shape.head_dim, shape.heads, shape.intermediate_size) == (64, 24, 4, 128)
    assert (shape.layers, shape.decoder_layers, shape.family) == (2, 3, "encoder-decoder")
    assert shape.parameters == model.num_parameters()
    linear = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert {each.name: (each.in_features, each.out_features) for each in shape.linears} == linear


def test_measures_are_of_whole_texts_and_know_every_alphabet() -> None:
    same = measures(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert same == pytest.approx(
        {"chrf": 100, "bleu": 100, "rouge1": 100, "rouge2": 100, "rougeL": 100, "exact_match": 1}
    )
    part = measures(["the cat sat", "a dog"], ["the cat ran", "a dog"])
    assert part["rouge1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert part["exact_match"] == 0.5
    assert 0 < part["chrf"] < 100
    assert measures(["кот спит дома"], ["кот спит здесь"])["rouge1"] == pytest.approx(100 * 2 / 3)
    assert measures([""], ["the cat"])["chrf"] == 0


def test_the_loss_of_an_encoder_decoder_is_transformers_own(tiny_t5: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from jobs.training.data import as_row

    tokenizer, seq2seq = AutoTokenizer.from_pretrained(tiny_t5), task("seq2seq")
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    encoded = seq2seq.encode_batch(ROWS[:3], WORDS, tokenizer, seq2seq.Params())
    rows = [as_row(number, seq2seq.cut(item, 50)) for number, item in enumerate(encoded)]  # type: ignore[arg-type]
    setting: Any = SimpleNamespace(pad_token_id=tokenizer.pad_token_id)
    batch = seq2seq.collate(rows, setting)
    right: list[Any] = []
    ours = seq2seq.loss(model, batch, setting, right).item() / sum(map(seq2seq.items, rows))
    assert ours == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert len(right) == 3


def run_of(folder: Path, model: Path, name: str, **over: Any) -> RunFiles:
    dataset = DatasetRef(name="words.jsonl", fingerprint="f", rows=folder / "rows.parquet", mapping=WORDS)
    rate = 1e-2 if name == "rewrite" else 2e-2
    training = {"learning_rate": rate, "epochs": 15, "evaluations": 3, "early_stop": 0, "validation_percent": 17}
    over["training"] = training | {"max_steps": 75} | over.pop("training", {})
    over.setdefault("task_params", {"instruction": "Rewrite:", "longest": 12})
    over.setdefault("method_params", {"r": 8, "alpha": 16})
    return make_run(folder, model, ROWS, task=name, dataset=dataset, **over)


@pytest.fixture(scope="module", params=["rewrite", "seq2seq"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_t5: Path
) -> Iterator[Any]:
    model = tiny_llama if request.param == "rewrite" else tiny_t5
    files = run_of(tmp_path_factory.mktemp("whole") / "run", model, request.param, prompts=("fox 0",))
    train_here(files)
    yield request.param, model, files


def test_a_run_learns_to_write_the_other_text(whole: Any) -> None:
    name, _, files = whole
    end = result(files)
    assert (end.state, end.reason) == ("completed", None)
    chrf = list(series(files, "chrf").values())
    assert len(chrf) == 4, "before training, and at each evaluation"
    assert chrf[-1] > chrf[0] and chrf[-1] > 40
    perplexity = list(series(files, "perplexity").values())
    assert perplexity[-1] < perplexity[0]
    assert list(series(files, "token_accuracy").values())[-1] > 0.6
    shown = [event for event in events(files) if isinstance(event, Evaluation)][-1].details["samples"]
    assert len(shown) == 4  # the validation rows
    for sample in shown:
        assert sample["text"] == ROWS[sample["row"] - 1]["translation"]["en"], name
        assert sample["expected"] == ROWS[sample["row"] - 1]["translation"]["fox"]
    assert any(sample["predicted"].startswith("the quick") for sample in shown)


def test_what_was_learned_is_written_when_asked(whole: Any) -> None:
    from jobs.inference.predictor import Predictor
    from jobs.spec import BaseModelRef

    _, folder, files = whole
    predictor = Predictor(BaseModelRef(name="Tiny", folder=folder))
    written, _ = predictor.predict(files.adapter, [{"text": "fox 0"}, {"text": "captain 3"}])
    assert [said.text.split()[:2] for said in written if isinstance(said, Written)] == [["the", "quick"]] * 2
    alone, _ = predictor.predict(files.adapter, [{"text": "fox 0"}])
    assert alone == written[:1], "its neighbour in the batch changes nothing"


def test_a_text_that_is_too_long_is_refused_whole(tiny_t5: Path) -> None:
    from transformers import AutoTokenizer

    for name, tokenizer in (("rewrite", tiny.build_tokenizer()), ("seq2seq", AutoTokenizer.from_pretrained(tiny_t5))):
        chosen = task(name)
        setting: Any = SimpleNamespace(tokenizer=tokenizer, params=chosen.Params(), max_length=16)
        with pytest.raises(UserError, match="was trained with at most 16"):
            chosen.predict(None, [{"text": "fox " * 20}], setting)


def test_a_chosen_chat_template_is_used_when_asked(tmp_path: Path) -> None:
    from jobs.inference.predictor import Predictor
    from jobs.spec import BaseModelRef

    plain = tiny.build_llama(tmp_path / "plain", template=None)
    params = {"template": "ChatML", "longest": 4, "measured": 2}
    files = run_of(tmp_path / "run", plain, "rewrite", task_params=params, training={"max_steps": 2})
    assert (train_here(files).state, list(series(files, "chrf"))) == ("completed", [0, 1, 2])
    (said,), _ = Predictor(BaseModelRef(name="Plain", folder=plain)).predict(files.adapter, [{"text": "fox 0"}])
    assert isinstance(said, Written)


def test_a_resumed_run_has_the_same_losses(whole: Any, tmp_path: Path) -> None:
    from jobs.training.monitor import StopRequest
    from jobs.training.run import Attempt

    name, model, complete = whole
    files = run_of(tmp_path / "run", model, name)

    class After(StopRequest):
        def __bool__(self) -> bool:
            return files.events.exists() and max(series(files, "loss"), default=0) >= 40

    assert Attempt(files, 1, After(files.stop)).run().state == "stopped"
    assert train_here(files, attempt=2).state == "completed"
    for curve in ("loss", "eval_loss"):
        assert series(files, curve) == pytest.approx(series(complete, curve), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "method", "params"),
    [("seq2seq", "ia3", {}), ("seq2seq", "full", {}), ("seq2seq", "prompt-tuning", {}), ("rewrite", "dora", {})],
)
def test_other_methods_rewrite_too(
    name: str, method: str, params: dict[str, Any], tmp_path: Path, tiny_t5: Path, tiny_llama: Path
) -> None:
    files = run_of(
        tmp_path / "run",
        tiny_t5 if name == "seq2seq" else tiny_llama,
        name,
        method=method,
        method_params=params,
        task_params={"measured": 2, "longest": 4},
        training={"max_steps": 20, "learning_rate": 2e-3 if method == "full" else 2e-2},
    )
    end = train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    losses = list(series(files, "loss").values())
    assert sum(losses[-5:]) < sum(losses[:5])
    assert len(series(files, "chrf")) == 4


NEEDED = "prepare_decoder_input_ids_from_labels"


def test_a_model_that_must_be_told_the_languages_is_refused_before_anything_is_loaded(tiny_t5: Path) -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as KNOWN

    from jobs.tasks.supported import ENCODER_DECODERS, OF_LANGUAGES

    assert {*ENCODER_DECODERS, *OF_LANGUAGES} <= set(KNOWN)
    assert all(hasattr(getattr(transformers, KNOWN[kind]), NEEDED) for kind in ENCODER_DECODERS)
    chosen, shape = task("seq2seq"), read_shape(tiny_t5)
    assert chosen.check_model(chosen.Params(), shape) == []
    for kind, said in (
        ("m2m_100", "must be told the languages"),
        ("marian", "the languages"),
        ("whisper", "none that Graft knows"),
    ):
        (problem,) = chosen.check_model(chosen.Params(), shape.model_copy(update={"model_type": kind}))
        assert said in problem and f"kind {kind} " in problem and "google/flan-t5-small" in problem


SIZES = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SIZES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128}
KINDS: dict[str, dict[str, Any]] = {
    "bart": SIZES,
    "pegasus": SIZES,
    "mvp": SIZES,
    "mt5": {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "longt5": {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_with_an_encoder_and_a_decoder_learn_and_write(kind: str, tmp_path: Path, tiny_t5: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_t5)
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **KINDS[kind])
    config.pad_token_id = config.decoder_start_token_id = tokenizer.pad_token_id
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForSeq2SeqLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert task("seq2seq").check_model(task("seq2seq").Params(), read_shape(tmp_path / "base")) == []
    files = run_of(tmp_path / "run", tmp_path / "base", "seq2seq", training={"epochs": 2})
    end = train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    losses = series(files, "loss")
    assert losses[max(losses)] < losses[1]
    assert "chrf" in {name for event in events(files) for name in getattr(event, "values", {})}
