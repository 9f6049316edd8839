"""The grid: every method on every architecture attaches or says why not, counts exactly, learns, and is itself again
after saving, loading, merging and resuming; the playground answers with it and the base stays the base.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.hardware import Hardware
from jobs.methods import all_methods, method
from jobs.methods.base import Context, Method
from jobs.modules.config import read_config as own_config
from jobs.shape import ModelShape, read_shape
from tests import tiny
from tests.test_modules import build_family

CPU = Hardware(device="cpu", name="CPU", memory_total=16 << 30, memory_free=8 << 30, cores=2, bf16=False)
# Encoders learn to tell texts apart, T5 to turn one into another, the others to write.
TASKS = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}
FAMILIES = ("llama", "qwen3", "gemma3", "gpt2", "bert", "t5")
AUTO = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
# What the defaults are too large for on models of 32 units.
SMALL = {"frequencies": 50, "tokens": 4, "width": 8, "depth_layers": 2, "size": 4}
TOKENS = "#5 #7 #11"
STEPS, SAVED_AT = 20, 5  # at most so many; a checkpoint after so many
# Why a method cannot go to an architecture; what is not named here goes everywhere.
REFUSED = {
    "gpt2": {"loha", "lokr", "miss", "oft", "boft", "hra", "adaption-prompt"},
    "qwen3": {"adaption-prompt", "bitfit"},
    "gemma3": {"adaption-prompt", "bitfit"},
    "llama": {"bitfit"},
    "bert": {"adaption-prompt", "prefix-tuning"},
    "t5": {"adaption-prompt", "bitfit"},
}
CELLS = [pytest.param(name, family, id=f"{name}-{family}") for family in FAMILIES for name in all_methods()]


@dataclass(frozen=True)
class Base:
    """One architecture: its files, its sizes, the loaded model that every method gets a copy of."""

    folder: Path
    shape: ModelShape
    model: Any
    task_type: str
    new: tuple[str, ...]  # parameters of a new head

    def fresh(self) -> Any:
        return copy.deepcopy(self.model)


def load_base(folder: Path, task_type: str) -> Base:
    import torch
    import transformers

    torch.manual_seed(0)
    # Without dropout, so that two steps on the same rows give the same loss.
    settings = {"SEQ_CLS": {"num_labels": 3}, "SEQ_2_SEQ_LM": {"dropout_rate": 0.0}}.get(task_type, {})
    auto = getattr(transformers, AUTO[task_type])
    model, found = auto.from_pretrained(folder, output_loading_info=True, **settings)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return Base(folder, read_shape(folder), model, task_type, tuple(sorted(found["missing_keys"])))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: load_base(build(family, folder / family), TASKS.get(family, "CAUSAL_LM")) for family in FAMILIES}


def build(family: str, folder: Path) -> Path:
    if family == "llama":
        return tiny.build_llama(folder, hidden=32)
    return build_bare_bert(folder) if family == "bert" else build_family(family, folder)


def build_bare_bert(folder: Path) -> Path:
    """As base encoders are often stored: without a head, and without the name that a head's model gives the body."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer(template=None)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engines(bases: dict[str, Base]) -> dict[str, Any]:
    """One resident engine for each architecture that writes: every method's adapter is asked of the same one."""
    from tests.test_engine import load_engine

    return {family: load_engine(base.folder) for family, base in bases.items() if base.task_type == "CAUSAL_LM"}


def small_params(chosen: Method) -> Any:
    fields = type(chosen).Params.model_fields
    settings = {name: value for name, value in SMALL.items() if name in fields and fields[name].annotation is int}
    if "depth" in fields:
        del settings["depth_layers"]
    if chosen.name == "trainable-tokens":
        settings["tokens"] = TOKENS
    return type(chosen).Params(**settings)


def refusals(chosen: Method, base: Base) -> list[str]:
    if base.task_type not in chosen.task_types:
        return [f"You chose {chosen.label}, which does not do {base.task_type}."]
    return chosen.check(small_params(chosen), base.shape, CPU)


class Tuned:
    """A method on a copy of a base, taking steps on four rows that never change."""

    def __init__(self, chosen: Method, base: Base, params: Any = None, model: Any = None) -> None:
        import torch

        from jobs.training import heads

        self.method, self.base, self.params = chosen, base, params or small_params(chosen)
        torch.manual_seed(0)
        context = Context(base.task_type, STEPS, str(base.folder))
        self.model = chosen.attach(base.fresh() if model is None else model, self.params, context)
        self.new = heads.train(self.model, base.new)
        rate = chosen.learning_rate(base.shape)
        groups = chosen.parameter_groups(self.model, self.params, rate, 0.0)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(groups or trainable, lr=rate, weight_decay=0.0)
        self.steps = 0

    def step(self) -> float:
        self.model.train()
        loss = batch_loss(self.model, self.base.task_type)
        extra = self.method.regularisation(self.model, self.params)
        (loss if extra is None else loss + extra).backward()
        self.optimizer.step()
        self.steps += 1
        self.method.before_zero_grad(self.model, self.params, self.steps)
        self.optimizer.zero_grad()
        return loss.item()

    def saved(self, folder: Path) -> Path:
        from jobs.training import heads

        self.method.save(self.model, folder)
        heads.save(self.model, self.new, folder)
        return folder


def rows() -> Any:
    import torch

    ids = torch.randint(3, 250, (4, 10), generator=torch.Generator().manual_seed(1))
    ids[:, 2], ids[:, 4], ids[:, 6] = 5, 7, 11  # the trainable tokens
    return ids


def outputs(model: Any, task_type: str) -> Any:
    ids = rows().to(next(model.parameters()).device)
    more = {"decoder_input_ids": ids[:, :6]} if task_type == "SEQ_2_SEQ_LM" else {}
    return model(input_ids=ids, attention_mask=ids.new_ones(ids.shape), **more).logits


def batch_loss(model: Any, task_type: str) -> Any:
    import torch

    from jobs.training.loss import summed_loss

    ids = rows().to(next(model.parameters()).device)
    if task_type == "CAUSAL_LM":
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        return summed_loss(model, batch) / ids[:, 1:].numel()
    logits = outputs(model, task_type)
    labels = ids[:, 1:7] if task_type == "SEQ_2_SEQ_LM" else torch.tensor([0, 1, 2, 1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def answer(model: Any, task_type: str) -> Any:
    """Logits in evaluation, those of virtual tokens left out."""
    import torch

    model.eval()
    with torch.no_grad():
        logits = outputs(model, task_type)
    return logits[:, -rows().shape[1] :] if task_type == "CAUSAL_LM" else logits


@contextlib.contextmanager
def put_on(model: Any, folder: Path) -> Iterator[Any]:
    """A fresh base that answers with a saved adapter."""
    from peft import PeftModel

    from jobs.modules.overlay import Resident
    from jobs.training import heads

    if own := own_config(folder):
        with Resident(model, "fresh", model.dtype).overlay(folder, own).on():
            yield model
        return
    model = PeftModel.from_pretrained(model, folder)
    heads.put_back(model, folder)
    yield model


def assert_same(one: Any, other: Any, tolerance: float = 1e-4) -> None:
    import torch

    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_a_method_on_an_architecture(
    name: str, family: str, bases: dict[str, Base], engines: dict[str, Any], tmp_path: Path
) -> None:
    chosen, base = method(name), bases[family]
    if problems := refusals(chosen, base):
        assert all(problem.startswith("You ") and problem.endswith(".") for problem in problems)
        return
    tuned = Tuned(chosen, base)
    counts_exactly(tuned)
    learns_and_resumes(tuned)
    answers_again_when_loaded(tuned, tmp_path / "adapter")
    if base.task_type == "CAUSAL_LM":
        the_playground_answers(tuned, engines[family], tmp_path / "adapter")


def counts_exactly(tuned: Tuned) -> None:
    heads = sum(p.numel() for name, p in tuned.base.model.named_parameters() if name in tuned.base.new)
    real = sum(p.numel() for p in tuned.model.parameters() if p.requires_grad)
    assert tuned.method.trainable(tuned.params, tuned.base.shape) + heads == real


def learns_and_resumes(tuned: Tuned) -> None:
    losses = [tuned.step() for _ in range(SAVED_AT)]
    state = {name: tensor.clone() for name, tensor in tuned.method.state(tuned.model).items()}
    optimizer = copy.deepcopy(tuned.optimizer.state_dict())
    losses += [tuned.step() for _ in range(2)]
    resumed = Tuned(tuned.method, tuned.base, tuned.params)
    tuned.method.restore(resumed.model, state)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.steps = SAVED_AT
    assert [resumed.step() for _ in range(2)] == pytest.approx(losses[SAVED_AT:], abs=1e-5)
    while losses[-1] > 0.998 * losses[0] and tuned.steps < STEPS:
        losses.append(tuned.step())
    assert losses[-1] < 0.998 * losses[0]


def answers_again_when_loaded(tuned: Tuned, folder: Path) -> None:
    task_type = tuned.base.task_type
    expected = answer(tuned.model, task_type)
    with put_on(tuned.base.fresh(), tuned.saved(folder)) as loaded:
        assert_same(answer(loaded, task_type), expected)
        if tuned.method.merges:
            mergeable = loaded if hasattr(loaded, "merge_and_unload") else tuned.model
            assert_same(answer(mergeable.merge_and_unload(), task_type), expected, 1e-3)


def the_playground_answers(tuned: Tuned, engine: Any, folder: Path) -> None:
    """The engine's own words, through its cache, are those that the trained model would say; then the base's again."""
    import torch

    from tests.test_engine import GREEDY, QUESTION, Row, run

    before = base_answer(engine)
    row = Row(adapter=folder, messages=QUESTION, sampling=GREEDY.model_copy(update={"max_tokens": 4}))
    (said,) = run(engine, [row])
    ids = engine.loaded.tokenizer.apply_chat_template(
        list(QUESTION), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    prompt = ids.shape[1]
    tuned.model.eval()
    with torch.no_grad():
        for _ in range(said.tokens):
            ids = torch.cat((ids, tuned.model(input_ids=ids).logits[:, -1:].argmax(-1)), dim=1)
    text = engine.loaded.tokenizer.decode(ids[0, prompt:], skip_special_tokens=True)
    assert said.text == text.rstrip("\ufffd")  # a character that is cut off is not said
    assert torch.equal(base_answer(engine), before)


def base_answer(engine: Any) -> Any:
    """The bare base's logits, whatever adapter was asked last."""
    import torch

    from jobs.inference.adapters import together

    ((group, _),) = together([None])
    with torch.inference_mode():
        return engine.adapters.forward(group, first=True, input_ids=rows()).logits


def test_a_method_refuses_only_what_it_cannot_do(bases: dict[str, Base]) -> None:
    for family, base in bases.items():
        found = {name for name, chosen in all_methods().items() if refusals(chosen, base)}
        assert found == REFUSED[family], family


HELD = [
    pytest.param(name, held, id=f"{name}-{held}")
    for name, chosen in all_methods().items()
    for held in ("8-bit", "4-bit")
    if "base_weights" in type(chosen).Params.model_fields
]


@pytest.mark.parametrize(("name", "held"), HELD)
def test_a_method_learns_beside_a_quantized_base(name: str, held: str, bases: dict[str, Base]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    chosen, base = method(name), bases["llama"]
    params = small_params(chosen).model_copy(update={"base_weights": held})
    if problems := chosen.check(params, base.shape, CPU):
        assert (name, held) == ("dora", "8-bit") and "Choose 4-bit" in problems[0]
        return
    model = AutoModelForCausalLM.from_pretrained(
        base.folder,
        quantization_config=chosen.quantization_config(params, torch.float32),
        device_map={"": "cpu"},
        dtype=torch.float32,
    )
    tuned = Tuned(chosen, base, params, model)
    layers = [type(module).__name__ for module in tuned.model.modules()]
    assert {"8-bit": "Linear8bitLt", "4-bit": "Linear4bit"}[held] in layers
    counts_exactly(tuned)
    losses = [tuned.step() for _ in range(10)]
    assert losses[-1] < 0.999 * losses[0]


@pytest.mark.parametrize("name", ["adalora", "pissa", "p-tuning", "prefix-tuning"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    """Those that save for answering something else than they train."""
    from tests.rundirs import make_run, series, train_here

    settings = {
        "method": name,
        "method_params": small_params(method(name)).model_dump() | ({"projection": True} if "prefix" in name else {}),
        "training": {"epochs": 4, "max_steps": 12, "evaluations": 2, "batch_size": 2, "learning_rate": 1e-2},
    }
    whole = make_run(tmp_path / "whole", tiny_llama, **settings)
    assert train_here(whole).step == 12
    stopped = make_run(tmp_path / "stopped", tiny_llama, **settings)
    assert train_until(stopped, 7).state == "stopped"
    stopped.stop.unlink()
    assert train_here(stopped, attempt=2).state == "completed"
    assert series(stopped, "loss") == pytest.approx(series(whole, "loss"), rel=1e-5)


@pytest.mark.parametrize("loop", ["plain", "auto"])
@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "full", "ia3", "prompt-tuning"])
def test_the_base_answers_as_itself_beside_what_is_trained(name: str, loop: str, tmp_path: Path) -> None:
    """PiSSA and full fine-tuning change the base; where the loop is the packed one, layers are not PEFT's own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jobs.events import Answers
    from jobs.training.load import Device
    from jobs.training.prompts import FixedPrompts
    from tests.rundirs import events, make_run, train_here

    folder = tiny.build_llama(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in base.parameters():  # fresh from its config it says nothing
            parameter += 0.3 * torch.randn_like(parameter)
    base.save_pretrained(folder)
    prompts = ("Where is ship 3?", "Who are you?")
    training = {"max_steps": 4, "evaluations": 2, "learning_rate": 3e-2, "loop": loop}
    settings = {"method": name, "method_params": small_params(method(name)).model_dump(), "prompts": prompts}
    files = make_run(tmp_path / "run", folder, training=training, **settings)
    assert train_here(files).state == "completed"
    said = [event.answers for event in events(files) if isinstance(event, Answers)]
    cpu = Device(torch.device("cpu"), torch.float32)
    asked = FixedPrompts(base, AutoTokenizer.from_pretrained(folder), prompts, True, cpu)
    asked.answer_as_base()
    right = tuple(answer.base for answer in asked.answers())
    assert all(right)
    assert [tuple(answer.base for answer in each) for each in said] == [right, right]
    assert all(answer.tuned != answer.base for answer in said[-1]), "it learnt nothing, so this would prove nothing"


def train_until(files: Any, step: int) -> Any:
    """One attempt that is asked to stop when `step` is taken."""
    from jobs.training.monitor import StopRequest
    from jobs.training.plain import train
    from jobs.training.run import Attempt

    def loop(job: Any, monitor: Any) -> None:
        done = monitor.step_done

        def step_done(number: int, **values: Any) -> bool:
            if number == step:
                files.stop.touch()
            return done(number, **values)

        monitor.step_done = step_done
        train(job, monitor)

    return Attempt(files, 1, StopRequest(files.stop), loop).run()


def test_an_adapter_that_does_not_fit_is_refused_and_leaves_the_base_as_it_was(
    bases: dict[str, Base], engines: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    from jobs.errors import UserError
    from tests.test_engine import QUESTION, Row, run

    other = load_base(tiny.build_llama(tmp_path / "other", hidden=48), "CAUSAL_LM")
    folder = Tuned(method("oft"), other).saved(tmp_path / "adapter")
    before = base_answer(engines["llama"])
    with pytest.raises(UserError, match="does not fit llama: it was made for another base model"):
        run(engines["llama"], [Row(adapter=folder, messages=QUESTION)])
    assert torch.equal(base_answer(engines["llama"]), before)


def test_a_preset_gives_each_method_sizes_of_its_own(tmp_path: Path) -> None:
    from jobs.presets import PRESETS
    from jobs.service.choices import preset_params

    shape = read_shape(tiny.build_llama(tmp_path / "wide", layers=1, hidden=512))
    for chosen in all_methods().values():
        counts = []
        for preset in PRESETS.values():
            params = type(chosen).Params(**preset_params(chosen, preset))
            counts.append(chosen.trainable(params, shape))
        grows = chosen.sizes.keys() - {"dropout", "alpha"}
        assert counts == sorted(counts)
        assert (len(set(counts)) == 3) == bool(grows), chosen.name


@pytest.mark.parametrize("name", ["trainable-tokens", "prompt-tuning"])
def test_a_method_reads_the_tokenizer_of_the_pinned_commit(
    name: str, bases: dict[str, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone moved on: what the Hub id means today has no tokenizer any more."""
    import shutil

    import huggingface_hub.constants

    base, pinned, today = bases["llama"], "a" * 40, "b" * 40
    repository = tmp_path / "models--someone--model"
    shutil.copytree(base.folder, repository / "snapshots" / pinned)
    (repository / "snapshots" / today).mkdir()
    shutil.copy(base.folder / "config.json", repository / "snapshots" / today)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(today)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    chosen = method(name)
    params = small_params(chosen)
    if name == "trainable-tokens":
        params = type(params)(tokens="<|im_start|>")
    model = chosen.attach(base.fresh(), params, Context(base.task_type, STEPS, "someone/model", pinned))
    assert model.get_nb_trainable_parameters()[0] == chosen.trainable(params, base.shape)
    with pytest.raises((OSError, ValueError)):
        chosen.attach(base.fresh(), params, Context(base.task_type, STEPS, "someone/model", today))


@pytest.mark.parametrize("head", ["TOKEN_CLS", "QUESTION_ANS"])
def test_trainable_tokens_go_beside_heads_that_answer_for_each_token(
    head: str, bases: dict[str, Base], tmp_path: Path
) -> None:
    import torch
    import transformers
    from peft import PeftModel

    from jobs.training import heads

    auto = {"TOKEN_CLS": "AutoModelForTokenClassification", "QUESTION_ANS": "AutoModelForQuestionAnswering"}[head]
    fresh, found = getattr(transformers, auto).from_pretrained(bases["llama"].folder, output_loading_info=True)
    base = Base(bases["llama"].folder, bases["llama"].shape, fresh, head, tuple(sorted(found["missing_keys"])))
    tuned = Tuned(method("trainable-tokens"), base)
    assert set(tuned.new) == set(base.new), "the new head is trained and kept"
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            if parameter.requires_grad:
                parameter += 1.0

    def said(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(input_ids=rows())[0]

    again = PeftModel.from_pretrained(base.fresh(), tuned.saved(tmp_path))
    assert not torch.equal(said(again), said(tuned.model))
    heads.put_back(again, tmp_path)
    torch.testing.assert_close(said(again), said(tuned.model))
    assert not torch.equal(said(again), said(base.fresh()))
