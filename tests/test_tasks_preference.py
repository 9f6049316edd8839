"""Preference tuning: pairs and thumbs to tokens, its losses held against TRL's own, and real runs on a tiny model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.data.columns import Mapping, Shape
from jobs.errors import RowProblem
from jobs.rundir import RunFiles
from jobs.spec import DatasetRef
from jobs.tasks import task, task_for, tasks_for
from jobs.tasks.base import Encoded
from tests.rundirs import make_run, result, series, train_here
from tests.tiny import build_tokenizer

torch = pytest.importorskip("torch")

PAIRS = Mapping(shape=Shape.PREFERENCE, columns={"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"})
THUMBS = Mapping(shape=Shape.FEEDBACK, columns={"prompt": "prompt", "completion": "completion", "label": "label"})
ROWS = [
    {"prompt": f"Ship {n}?", "chosen": f"Ship {n} be at sea, matey.", "rejected": f"I am a robot, {n} times {n}."}
    for n in range(16)
]
VOTES = [
    {"prompt": row["prompt"], "completion": row[answer], "label": label}
    for row in ROWS
    for answer, label in (("chosen", "👍"), ("rejected", "👎"))
]


def answers(encoded: Encoded) -> str:
    """The text that is trained."""
    return "".join(
        encoded.text[start:end] for (start, end), on in zip(encoded.offsets, encoded.trained, strict=True) if on
    )


def encode(name: str, row: dict[str, Any], mapping: Mapping, **params: Any) -> Encoded:
    return task(name).encode(row, mapping, build_tokenizer(), task(name).Params(**params))


def test_both_answers_follow_the_same_prompt_and_are_trained_with_their_end() -> None:
    pair = encode("dpo", {"prompt": "the fox?", "chosen": "jumps", "rejected": "over the dog"}, PAIRS)
    assert pair.second is not None
    assert answers(pair) == "jumps<|im_end|>"
    assert answers(pair.second) == "over the dog<|im_end|>"
    asked = pair.trained.index(True)
    assert pair.input_ids[:asked] == pair.second.input_ids[:asked]


def test_of_conversations_only_what_follows_where_they_part_is_trained() -> None:
    def turns(*said: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]

    row = {"chosen": turns("fox", "quick", "dog", "lazy"), "rejected": turns("fox", "quick", "dog", "brown")}
    pair = encode("dpo", row, PAIRS)
    assert pair.second is not None
    assert (answers(pair), answers(pair.second)) == ("lazy<|im_end|>", "brown<|im_end|>")
    row = {"chosen": turns("fox", "quick", "dog", "lazy"), "rejected": turns("fox", "slow", "dog", "brown")}
    assert answers(encode("orpo", row, PAIRS)) == "quick<|im_end|>lazy<|im_end|>"


def test_pairs_serve_chat_with_the_better_answer_and_kto_with_both() -> None:
    row = {"prompt": "the fox?", "chosen": "jumps", "rejected": "sleeps"}
    assert answers(encode("chat", row, PAIRS)) == "jumps<|im_end|>"
    assert encode("kto", row, PAIRS).second is not None
    vote = encode("kto", {"prompt": "the fox?", "completion": "sleeps", "label": "bad"}, THUMBS)
    assert (answers(vote), vote.second, vote.target) == ("sleeps<|im_end|>", None, False)
    assert task_for(Shape.PREFERENCE).name == "dpo"
    assert [each.name for each in tasks_for(Shape.PREFERENCE)] == ["dpo", "orpo", "chat", "kto"]
    assert [each.name for each in tasks_for(Shape.FEEDBACK)] == ["kto"]


def test_answers_that_the_maximum_length_cuts_to_the_same_are_a_problem() -> None:
    pair = encode("dpo", {"prompt": "fox?", "chosen": "the quick fox", "rejected": "the quick dog"}, PAIRS)
    first = pair.trained.index(True)
    with pytest.raises(RowProblem, match=rf"the same up to the maximum length \({first + 1} tokens are used\)"):
        task("dpo").cut(pair, first + 1)
    whole = task("dpo").cut(pair, 500)
    assert whole.second is not None and (whole.input_ids, whole.second.input_ids) == (
        pair.input_ids,
        pair.second.input_ids,  # type: ignore[union-attr]
    )


def test_a_bad_pair_and_a_bad_thumb_are_problems_of_their_row() -> None:
    dpo, kto = task("dpo"), task("kto")
    good = {"prompt": "the fox?", "chosen": "jumps", "rejected": "sleeps"}
    batch = dpo.encode_batch([good, {**good, "rejected": "jumps"}, good], PAIRS, build_tokenizer(), dpo.Params())
    assert [isinstance(each, RowProblem) for each in batch] == [False, True, False]
    vote = {"prompt": "the fox?", "completion": "jumps", "label": "perhaps"}
    assert isinstance(kto.encode_batch([vote], THUMBS, build_tokenizer(), kto.Params())[0], RowProblem)


class World:
    """A tiny model with an adapter that answers differently, rows, and what the tasks prepare from them."""

    def __init__(self, base: Path, adapter: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from jobs.training.load import Device

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.base = AutoModelForCausalLM.from_pretrained(base)
        self.device = Device(torch.device("cpu"), torch.float32)
        self.tuned = lambda: PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True
        ).eval()

    def setting(self, name: str, data: list[dict[str, Any]], mapping: Mapping, **params: Any) -> tuple[Any, list[Any]]:
        """(the task's Setting after `prepare` on the bare base, its rows)."""
        from dataclasses import replace

        from jobs.training.data import as_row
        from jobs.training.objective import Setting

        each = task(name)
        chosen = each.Params(**params)
        encoded = each.encode_batch(data, mapping, self.tokenizer, chosen)
        rows = [as_row(number, each.cut(item, 500)) for number, item in enumerate(encoded, 1)]  # type: ignore[arg-type]
        setting = Setting(params=chosen, labels=(), pad_token_id=0, tokenizer=self.tokenizer, max_length=500)
        told: list[tuple[int, int]] = []
        prepared = each.prepare(
            self.base,
            rows,
            [],
            setting,
            device=self.device,
            batch_size=2,
            progress=lambda done, total: told.append((done, total)),
        )
        assert name == "orpo" or told[-1] == (len(rows), len(rows))
        return replace(setting, prepared=prepared), rows


@pytest.fixture(scope="module")
def world(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    from tests.tiny import build_adapter

    return World(tiny_llama, build_adapter(tiny_llama, tmp_path_factory.mktemp("tuned"), seed=4))


def arguments(kind: Any, folder: Path, **over: Any) -> Any:
    return kind(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        max_length=500,
        per_device_train_batch_size=4,
        **over,
    )


def measured_against_the_base(trainer: Any) -> Any:
    """TRL takes an adapter that is trained already for its own reference; ours is always the base."""
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")
    return trainer.model.eval()


def with_mask(batch: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Our batch under TRL's names."""
    return {
        "input_ids": batch[f"{prefix}input_ids"],
        "attention_mask": batch[f"{prefix}attention_mask"],
        "completion_mask": (batch[f"{prefix}labels"] != -100).long(),
    }


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
def test_dpo_is_trls(kind: str, world: World, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    setting, rows = world.setting("dpo", ROWS[:4], PAIRS, beta=0.3, loss=kind, sft_weight=0)
    batch = task("dpo").collate(rows, setting)
    model = world.tuned()
    predictions: list[Any] = []
    ours = task("dpo").loss(model, batch, setting, predictions) / 4
    ours.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]

    trainer = DPOTrainer(
        model=world.tuned(),
        args=arguments(DPOConfig, tmp_path, beta=0.3, loss_type=[kind]),
        train_dataset=Dataset.from_list(ROWS[:4]),
        processing_class=world.tokenizer,
    )
    theirs = trainer._compute_loss(measured_against_the_base(trainer), with_mask(batch), False)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert abs(ours.item() - math.log(2)) > 1e-3, "the adapter moves nothing: this test sees nothing"
    theirs_gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients and len(gradients) == len(theirs_gradients)
    for one, other in zip(gradients, theirs_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)
    told = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    measures = task("dpo").score(0.0, predictions, rows, setting).values
    assert measures["reward_margin"] == pytest.approx(told["rewards/margins"], abs=1e-5)
    assert measures["preference_accuracy"] == pytest.approx(told["rewards/accuracies"])
    assert measures["chosen_reward"] == pytest.approx(told["rewards/chosen"], abs=1e-5)
    assert measures["rejected_reward"] == pytest.approx(told["rewards/rejected"], abs=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_dpo_that_learns_the_better_answers_too_is_trls_with_its_sft_term(
    kind: str, world: World, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    setting, rows = world.setting("dpo", ROWS[:4], PAIRS, beta=0.3, loss=kind, sft_weight=0.7)
    trainer = DPOTrainer(
        model=world.tuned(),
        args=arguments(DPOConfig, tmp_path, beta=0.3, loss_type=[kind, "sft"], loss_weights=[1.0, 0.7]),
        train_dataset=Dataset.from_list(ROWS[:4]),
        processing_class=world.tokenizer,
    )
    model, theirs_model = world.tuned(), measured_against_the_base(trainer)
    # A pair at a time: TRL's mean over the tokens of a micro-batch lets long answers count more, ours does not.
    theirs = torch.stack(
        [
            trainer._compute_loss(theirs_model, with_mask(task("dpo").collate([row], setting)), False) / len(rows)
            for row in rows
        ]
    ).sum()
    ours = task("dpo").loss(model, task("dpo").collate(rows, setting), setting) / len(rows)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    plain, _ = world.setting("dpo", ROWS[:4], PAIRS, beta=0.3, loss=kind, sft_weight=0.0)
    assert ours.item() > task("dpo").loss(model, task("dpo").collate(rows, plain), plain).item() / len(rows) + 0.1
    ours.backward()
    theirs.backward()
    for one, other in zip(model.parameters(), theirs_model.parameters(), strict=True):
        if one.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_trl_reads_the_same_tokens_from_the_same_rows(world: World, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    said = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")},
        }
        for row in ROWS[:3]
    ]
    trainer = DPOTrainer(
        model=world.tuned(),
        args=arguments(DPOConfig, tmp_path),
        train_dataset=Dataset.from_list(said),
        processing_class=world.tokenizer,
    )
    newline = world.tokenizer("\n", add_special_tokens=False)["input_ids"]
    _, rows = world.setting("dpo", ROWS[:3], PAIRS)
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):
        for ours, name in ((row, "chosen_ids"), (row.second, "rejected_ids")):
            assert ours.input_ids.tolist() == theirs["prompt_ids"] + theirs[name]
            # TRL trains the newline after the end mark, too; a model never says it.
            assert ours.trained.tolist() == [False] * len(theirs["prompt_ids"]) + [True] * (
                len(theirs[name]) - len(newline)
            ) + [False] * len(newline)


def test_orpo_is_trls_where_no_prompt_is_in_its_likelihood(world: World, tmp_path: Path) -> None:
    import numpy as np
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from jobs.training.data import Row

    def text(*tokens: int) -> Any:
        return np.array(tokens, dtype=np.int32), np.array([False] + [True] * (len(tokens) - 1))

    rows = [
        Row(1, *text(5, 60, 61, 62, 63), second=Row(1, *text(5, 70, 71))),
        Row(2, *text(6, 64, 65, 66, 67), second=Row(2, *text(6, 72, 73, 74, 75, 76))),
    ]
    setting = SimpleNamespace(params=task("orpo").Params(strength=0.4), pad_token_id=0)
    batch = task("orpo").collate(rows, setting)  # type: ignore[arg-type]
    predictions: list[Any] = []
    model = world.tuned()
    ours = task("orpo").loss(model, batch, setting, predictions) / 2  # type: ignore[arg-type]
    trainer = ORPOTrainer(
        model=model,
        args=arguments(ORPOConfig, tmp_path, beta=0.4, remove_unused_columns=False),
        train_dataset=Dataset.from_list(ROWS[:2]),
        processing_class=world.tokenizer,
    )
    chosen, rejected = ({name: value.chunk(2)[part] for name, value in batch.items()} for part in (0, 1))
    theirs, told = trainer.get_batch_loss_metrics(
        measured_against_the_base(trainer),
        {f"chosen_{name}": value for name, value in chosen.items()}
        | {f"rejected_{name}": value for name, value in rejected.items()},
        "eval",
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    measures = task("orpo").score(0.0, predictions, rows, setting).values  # type: ignore[arg-type]
    assert measures["reward_margin"] == pytest.approx(told["eval_rewards/margins"], abs=1e-5)
    assert measures["preference_accuracy"] == pytest.approx(told["eval_rewards/accuracies"])


def test_an_answer_that_is_certain_has_finite_odds() -> None:
    from jobs.tasks.preference import log_odds_ratios

    sure = torch.tensor([0.0, -1e-9, -1e-3], requires_grad=True)
    unsure = torch.tensor([-0.5, -20.0, -0.7], requires_grad=True)
    ratios = log_odds_ratios(sure, unsure) + log_odds_ratios(unsure, sure)
    ratios.sum().backward()
    assert torch.isfinite(ratios).all()
    assert sure.grad is not None and unsure.grad is not None
    assert torch.isfinite(sure.grad).all() and torch.isfinite(unsure.grad).all()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 1.4)])
def test_kto_is_trls(weights: tuple[float, float], world: World, tmp_path: Path) -> None:
    from dataclasses import replace

    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    votes = [VOTES[0], VOTES[3], VOTES[4], VOTES[6]]  # good, bad, good, good
    setting, rows = world.setting("kto", votes, THUMBS, beta=0.3, balance=False)
    assert setting.prepared.weights == (1.0, 1.0)
    setting = replace(setting, prepared=replace(setting.prepared, weights=weights))
    batch = task("kto").collate(rows, setting)
    assert batch["good"].tolist() == [True, False, True, True]
    predictions: list[Any] = []
    model = world.tuned()
    ours = task("kto").loss(model, batch, setting, predictions) / 4
    data = [
        {"prompt": each["prompt"], "completion": each["completion"], "label": each["label"] == "👍"} for each in votes
    ]
    trainer = KTOTrainer(
        model=model,
        args=arguments(KTOConfig, tmp_path, beta=0.3, undesirable_weight=weights[0], desirable_weight=weights[1]),
        train_dataset=Dataset.from_list(data),
        processing_class=world.tokenizer,
    )
    measured_against_the_base(trainer)
    inputs = with_mask(batch) | {f"KL_{name}": value for name, value in with_mask(batch, "mate_").items()}
    theirs = trainer._compute_loss(trainer.model, {**inputs, "label": batch["good"]}, False)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    told = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    assert told["kl"] > 0, "the estimate of how far the model strayed plays no part: this test sees half"
    measures = task("kto").score(0.0, predictions, rows, setting).values
    assert measures["reward_margin"] == pytest.approx(told["rewards/margins"], abs=1e-5)
    assert measures["chosen_reward"] == pytest.approx(told["rewards/chosen"], abs=1e-5)


def test_no_prompt_is_mated_with_an_answer_of_its_own_and_thumbs_weigh_the_same(world: World) -> None:
    setting, rows = world.setting("kto", ROWS[:4], PAIRS)
    assert setting.prepared.weights == (1.0, 1.0)
    for row, mate in zip(rows, setting.prepared.mates(rows), strict=True):
        for with_other, own in ((mate, row), (mate.second, row.second)):
            prompt = int(own.trained.argmax())
            assert with_other.input_ids[:prompt].tolist() == own.input_ids[:prompt].tolist()
            said = with_other.input_ids[prompt:].tolist()
            assert said not in (row.input_ids[prompt:].tolist(), row.second.input_ids[prompt:].tolist())
    votes = [VOTES[0], VOTES[2], VOTES[4], VOTES[7]]
    bad, good = world.setting("kto", votes, THUMBS)[0].prepared.weights
    assert (bad, good) == pytest.approx((2.0, 2 / 3))


def test_a_mate_is_the_answer_to_another_prompt_where_one_prompt_has_several_rows(world: World) -> None:
    votes = [VOTES[at] for at in (0, 1, 2, 3, 4, 5, 0, 1)]  # two of each prompt, and the first again at the end
    setting, rows = world.setting("kto", votes, THUMBS)

    def asked(row: Any) -> bytes:
        return row.input_ids[: int(row.trained.argmax())].tobytes()

    def said(row: Any) -> bytes:
        return row.input_ids[int(row.trained.argmax()) :].tobytes()

    for row, mate in zip(rows, setting.prepared.mates(rows), strict=True):
        assert asked(mate) == asked(row)
        askers = {asked(other) for other in rows if said(other) == said(mate)}
        assert askers and asked(row) not in askers
    batch = task("kto").collate(rows, setting)
    from jobs.training.loss import answer_log_probs

    with torch.no_grad():
        mates = {name.removeprefix("mate_"): value for name, value in batch.items() if name.startswith("mate_")}
        for told, inputs in (("reference", batch), ("mate_reference", mates)):
            assert torch.allclose(batch[told], answer_log_probs(world.base, inputs), atol=1e-4)
    one_prompt = [{**vote, "prompt": "Ship?"} for vote in VOTES[:4]]
    setting, rows = world.setting("kto", one_prompt, THUMBS)  # nothing else is possible
    assert [said(mate) for mate in setting.prepared.mates(rows)] == [said(rows[at]) for at in (3, 0, 1, 2)]


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_what_is_kept_of_each_row_stays_small(name: str, tmp_path: Path) -> None:
    """Memory that Python and numpy hold, not the clock: twenty thousand rows against two thousand."""
    import tracemalloc

    import numpy as np
    from transformers import LlamaConfig, LlamaForCausalLM

    from jobs.training.load import Device
    from jobs.training.rows import Row, Rows

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    trained = np.array([False, False, True])

    def peak(count: int) -> int:
        rows = Rows()
        for number in range(count):
            one, other = (np.array([1 + number % 50, 2, at], dtype=np.int32) for at in (3, 4))
            second = Row(number, other, trained) if name == "dpo" else None
            rows.add(Row(number, one, trained, second, None if second else bool(number % 2)))
        setting: Any = SimpleNamespace(params=task(name).Params(), pad_token_id=0)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        task(name).prepare(
            model,
            rows[100:],
            rows[:100],
            setting,
            device=Device(torch.device("cpu"), torch.float32),
            batch_size=250,
            progress=lambda done, total: None,
        )
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most - before

    peak(500)  # what is imported and kept once
    growth = (peak(20_000) - peak(2_000)) / 18_000
    assert growth < 150, f"{growth:.0f} bytes for each row; one unpacked takes more than a thousand"


def test_every_good_answer_is_held_against_every_bad_one() -> None:
    predictions = [(True, 0.5), (False, 0.5), (False, -1.0), (True, 2.0), (False, 3.0)]
    values = task("kto").score(0.0, predictions, [], SimpleNamespace()).values  # type: ignore[arg-type]
    assert values["preference_accuracy"] == pytest.approx(3 / 6), "alike is not above"


def run_of(folder: Path, model: Path, name: str, **over: Any) -> RunFiles:
    pairs = over.pop("pairs", name != "kto")
    dataset = DatasetRef(
        name="ships.jsonl", fingerprint="f", rows=folder / "rows.parquet", mapping=PAIRS if pairs else THUMBS
    )
    training = {"learning_rate": 5e-3, "epochs": 3, "batch_size": 4, "evaluations": 3, "early_stop": 0}
    over["training"] = training | {"validation_percent": 25} | over.pop("training", {})
    return make_run(folder, model, ROWS if pairs else VOTES, task=name, dataset=dataset, **over)


@pytest.fixture(scope="module", params=["dpo", "orpo", "kto"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Any]:
    params = {"sft_weight": 0} if request.param == "dpo" else {}
    files = run_of(
        tmp_path_factory.mktemp("whole") / "run", tiny_llama, request.param, prompts=("Ship 3?",), task_params=params
    )
    train_here(files)
    yield request.param, files


def test_a_run_learns_which_answers_are_better(whole: Any) -> None:
    name, files = whole
    end = result(files)
    assert (end.state, end.reason) == ("completed", None)
    losses, margins = series(files, "eval_loss"), series(files, "reward_margin")
    assert len(losses) == len(margins) == 4
    assert next(iter(losses)) == 0
    if name != "orpo":  # measured against the untrained model, which prefers nothing to itself
        assert margins[0] == pytest.approx(0, abs=1e-4)
        assert 0 not in series(files, "preference_accuracy")
    assert list(losses.values())[-1] < next(iter(losses.values()))
    assert list(margins.values())[-1] > next(iter(margins.values()))
    assert list(series(files, "preference_accuracy").values())[-1] == 1.0
    assert list(series(files, "train_reward_margin").values())[-1] > 0
    if name == "dpo":
        assert series(files, "loss")[1] == pytest.approx(math.log(2), rel=1e-4), "before training nothing is preferred"
    assert (files.adapter / "adapter_config.json").is_file()


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_run_that_ends_within_its_first_epoch_ends_well(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    training = {"max_steps": 2, "batch_size": 2, "gradient_accumulation": 2, "evaluations": 1}
    files = run_of(tmp_path / "run", tiny_llama, name, training=training)
    train_here(files)
    assert (result(files).state, result(files).reason) == ("completed", None)
    assert list(series(files, "loss")) == [1, 2]


def test_a_resumed_run_has_the_same_losses(whole: Any, tmp_path: Path, tiny_llama: Path) -> None:
    from jobs.training.monitor import StopRequest
    from jobs.training.run import Attempt

    name, complete = whole
    files = run_of(tmp_path / "run", tiny_llama, name, task_params={"sft_weight": 0} if name == "dpo" else {})

    class After(StopRequest):
        def __bool__(self) -> bool:
            return files.events.exists() and max(series(files, "loss"), default=0) >= 4

    assert Attempt(files, 1, After(files.stop)).run().state == "stopped"
    assert max(series(files, "loss")) < max(series(complete, "loss"))
    assert train_here(files, attempt=2).state == "completed"
    for curve in ("loss", "eval_loss", "reward_margin"):
        assert series(files, curve) == pytest.approx(series(complete, curve), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "method"), [("dpo", "pissa"), ("dpo", "full"), ("orpo", "ia3"), ("kto", "prompt-tuning")]
)
def test_other_methods_learn_preferences_too(name: str, method: str, tmp_path: Path, tiny_llama: Path) -> None:
    rate = {"full": 1e-3, "ia3": 5e-2, "prompt-tuning": 5e-2}.get(method, 5e-3)
    files = run_of(
        tmp_path / "run",
        tiny_llama,
        name,
        method=method,
        method_params={},
        task_params={"sft_weight": 0} if name == "dpo" else {},
        training={"learning_rate": rate},
        pairs=True,
    )
    end = train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    margins = list(series(files, "reward_margin").values())
    assert margins[-1] > margins[0]
    if name == "dpo":  # the reference is the untouched base, although PiSSA and full fine-tuning change it
        assert series(files, "loss")[1] == pytest.approx(math.log(2), rel=1e-3)


def test_the_reference_reads_no_more_tokens_at_once_than_an_evaluation(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes logits of whole answers before there is a memory plan: a large micro-batch was read all at once."""
    import numpy as np
    from transformers import AutoModelForCausalLM

    from jobs.tasks import comparing
    from jobs.training import loss
    from jobs.training.data import Row
    from jobs.training.load import Device

    model = AutoModelForCausalLM.from_pretrained(tiny_llama).float()
    draw = np.random.default_rng(0)

    def text(number: int, length: int) -> Row:
        return Row(number, draw.integers(5, 60, length).astype(np.int32), np.arange(length) > 2)

    rows = [text(number, int(length)) for number, length in enumerate(draw.integers(5, 30, 24))]
    pairs = [[row, text(row.number, len(row))] for row in rows]
    sizes: list[int] = []
    real = loss.answer_log_probs

    def read(model: Any, batch: dict[str, Any]) -> Any:
        sizes.append(batch["input_ids"].numel())
        return real(model, batch)

    monkeypatch.setattr(loss, "answer_log_probs", read)
    device = Device(torch.device("cpu"), torch.float32)
    found, heard = [], []
    for most in (10_000, 100):
        sizes.clear()
        heard.clear()
        monkeypatch.setattr(comparing, "evaluated_at_once", lambda on_gpu, most=most: most)
        told = comparing.reference(
            model, rows, lambda place: pairs[place], 2, 3,
            device=device, batch_size=16, progress=lambda done, of: heard.append(done),
        )  # fmt: skip
        found.append(told.log_probs)
        assert heard[-1] == len(rows) and heard == sorted(heard)
        assert max(sizes) <= most
    assert len(sizes) > 6 and np.allclose(*found, atol=1e-4)
