"""Adapter modules, BitFit and full fine-tuning: what they add, change, save and give back, on tiny models."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import UserError
from jobs.events import Answers, Phase, Started
from jobs.hardware import Hardware
from jobs.memory.estimate import Planner
from jobs.methods import method
from jobs.methods.base import Context
from jobs.methods.bottleneck import places
from jobs.modules.config import Kind, read_config
from jobs.service import adapter_zip
from jobs.shape import LinearModule, read_shape
from jobs.spec import TrainingParams
from jobs.training import heads
from tests import rundirs, tiny
from tests.rundirs import events, make_run, series, train_here
from tests.test_engine import GREEDY, LONGER, QUESTION, Row, load_engine, run
from tests.test_shape import build

CPU = Hardware(device="cpu", name="CPU", memory_total=16 << 30, memory_free=8 << 30, cores=2, bf16=False)
GPU = Hardware(device="cuda", name="GPU", memory_total=24 << 30, memory_free=23 << 30, cores=8, bf16=True)
METHODS = ("bottleneck", "bitfit", "full")
# The two placements and the families differ in names alone.
AUTO = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}


def build_family(family: str, folder: Path) -> Path:
    """A tiny random model, BERT and T5 among them."""
    import torch
    import transformers as t

    if family not in AUTO:
        return build(family, folder)
    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer()
    sizes: dict[str, Any]
    if family == "bert":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config: Any = t.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    else:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        config = t.T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes)
    model: Any = getattr(t, AUTO[family]).from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family: build_family(family, folder / family) for family in ("gpt2", "bert", "t5")}


@pytest.fixture(scope="module")
def gpt2(families: dict[str, Path]) -> Path:
    """Has biases, as BitFit needs, and keeps its weights the other way round."""
    return families["gpt2"]


def load(folder: Path, auto: str = "AutoModelForCausalLM", **arguments: Any) -> Any:
    import transformers

    return getattr(transformers, auto).from_pretrained(folder, **arguments).eval()


def attach(name: str, folder: Path, **params: Any) -> Any:
    """The method on a fresh base, in evaluation."""
    chosen = method(name)
    return chosen.attach(load(folder), chosen.Params(**params), Context(source=str(folder))).eval()


def stir(model: Any, seed: int = 1, strength: float = 0.1) -> Any:
    """As if it had been trained: every trained number is another one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += strength * torch.randn(parameter.shape, generator=generator)
    return model


def ids(rows: int = 1) -> Any:
    import torch

    return torch.arange(3, 23).expand(rows, -1)


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=ids()).logits


@pytest.mark.parametrize("placement", ["attention and MLP", "MLP"])
@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_adapters_stand_where_the_estimate_counted_them(placement: str, family: str, families: dict[str, Path]) -> None:
    chosen: Any = method("bottleneck")
    params = chosen.Params(placement=placement, size=5)
    shape = read_shape(families[family])
    model = chosen.attach(load(families[family], AUTO.get(family, "AutoModelForCausalLM")), params, Context())
    found = model.adapter_config.bottleneck.places
    # Two layers; T5 has an encoder and a decoder, and the decoder also attends to the encoder.
    mlps, attentions = (4, 6) if family == "t5" else (2, 2)
    assert len(found) == (mlps + attentions if placement != "MLP" else mlps)
    trainable, total = model.get_nb_trainable_parameters()
    assert trainable == chosen.trainable(params, shape) == len(found) * (2 * 5 * 32 + 5 + 32)
    assert total == shape.parameters + trainable


def test_an_untrained_adapter_changes_nothing_and_a_trained_one_adds_its_formula(gpt2: Path) -> None:
    import torch

    model = attach("bottleneck", gpt2, placement="MLP", size=5, nonlinearity="relu")
    assert torch.equal(logits(model), logits(load(gpt2)))

    stir(model)
    place = "transformer.h.1.mlp.c_proj"
    base = load(gpt2)
    adapter = model.adapters[place.replace(".", "/")]
    x = torch.randn(2, 3, 32)
    w = dict(adapter.named_parameters())
    bend = (x @ w["down.weight"].T + w["down.bias"]).clamp(min=0)
    assert torch.allclose(adapter(x), x + bend @ w["up.weight"].T + w["up.bias"], atol=1e-6)
    with torch.inference_mode():
        module = model.get_submodule(f"base.{place}")
        x = torch.randn(1, 3, 128)
        assert torch.allclose(module(x), adapter(base.get_submodule(place)(x)), atol=1e-6)
    assert not torch.allclose(logits(model), logits(base), atol=1e-3)


@pytest.mark.parametrize(
    ("block", "attention", "mlp"),
    [
        ("model.layers.0", "self_attn.o_proj", "mlp.down_proj"),  # Llama, Qwen, Gemma, Mistral
        ("model.layers.0", "self_attn.dense", "mlp.fc2"),  # Phi
        ("model.decoder.layers.0", "self_attn.out_proj", "fc2"),  # OPT
        ("h.0", "self_attention.dense", "mlp.dense_4h_to_h"),  # Falcon, Bloom
        ("gpt_neox.layers.0", "attention.dense", "mlp.dense_4h_to_h"),
        ("transformer.h.0", "attn.attention.out_proj", "mlp.c_proj"),  # GPT-Neo
        ("roberta.encoder.layer.0", "attention.output.dense", "output.dense"),
        ("distilbert.transformer.layer.0", "attention.out_lin", "ffn.lin2"),
        ("model.layers.0", "attn.Wo", "mlp.Wo"),  # ModernBERT
    ],
)
def test_the_ends_of_attention_and_mlp_are_known_by_their_names(block: str, attention: str, mlp: str) -> None:
    linears = [
        LinearModule(name=f"{block}.{name}", in_features=4, out_features=4)
        for name in ("self_attn.q_proj", "attention.self.query", attention, "mlp.gate_proj", "intermediate.dense", mlp)
    ]
    assert [m.name for m in places(linears, "attention and MLP")] == [f"{block}.{attention}", f"{block}.{mlp}"]
    assert [m.name for m in places(linears, "MLP")] == [f"{block}.{mlp}"]


def test_blocks_that_are_not_recognised_are_named_before_anything_is_loaded(gpt2: Path) -> None:
    chosen, shape = method("bottleneck"), read_shape(gpt2)
    block = next(m.name for m in shape.linears if ".1.mlp." in m.name).partition(".mlp.")[0]
    experts = [m for m in shape.linears if not m.name.startswith(f"{block}.mlp")]
    names = [f"{block}.mlp.experts.{number}.down_proj" for number in range(2)]
    experts += [LinearModule(name=name, in_features=4, out_features=4) for name in names]
    mixed = shape.model_copy(update={"linears": tuple(experts)})
    (problem,) = chosen.check(chosen.Params(), mixed, CPU)
    assert problem.startswith("You set Placement to 'attention and MLP'")
    assert f"the MLP of {block} ends" in problem and "Choose LoRA" in problem
    assert chosen.trainable(chosen.Params(), mixed) == 0
    assert chosen.check(chosen.Params(), shape, CPU) == []


def test_bitfit_says_what_is_near_on_a_model_without_biases(tiny_llama: Path) -> None:
    bitfit = method("bitfit")
    (problem,) = bitfit.check(bitfit.Params(), read_shape(tiny_llama), CPU)
    assert "LlamaForCausalLM has no biases" in problem and "LN tuning" in problem and "LoRA" in problem
    with pytest.raises(UserError, match="no biases"):
        attach("bitfit", tiny_llama)


def test_bitfit_trains_the_blocks_biases_and_leaves_every_other_weight(families: dict[str, Path]) -> None:
    import torch

    for family in ("gpt2", "bert"):
        folder, auto = families[family], AUTO.get(family, "AutoModelForCausalLM")
        bitfit = method("bitfit")
        model = bitfit.attach(load(folder, auto), bitfit.Params(), Context())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model(input_ids=ids()).logits.square().sum().backward()
        optimizer.step()
        before = dict(load(folder, auto).named_parameters())
        changed = {n for n, p in model.get_base_model().named_parameters() if not torch.equal(p, before[n])}
        assert changed and all(name.endswith(".bias") for name in changed)
        heads = {"cls.predictions.bias", "transformer.ln_f.bias", "bert.embeddings.LayerNorm.bias"}
        assert not changed & heads
        assert sum(before[name].numel() for name in changed) <= bitfit.trainable(None, read_shape(folder))


@pytest.mark.parametrize("name", ["bottleneck", "bitfit"])
def test_a_disabled_adapter_is_the_base_to_the_last_bit(name: str, gpt2: Path) -> None:
    import torch

    model = stir(attach(name, gpt2))
    tuned, base = logits(model), logits(load(gpt2))
    for _ in range(2):
        with model.disable_adapter():
            assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), tuned)
    with pytest.raises(RuntimeError, match="in the middle"), model.disable_adapter():
        raise RuntimeError("in the middle")
    assert torch.equal(logits(model), tuned)
    assert not torch.allclose(tuned, base, atol=1e-3)


def shipped(model: Any, base: Path, folder: Path) -> tuple[Path, str]:
    """The adapter saved, downloaded and unpacked, as a folder beside its base, and the Python in its README."""
    model.save_pretrained(folder / "saved")
    pipe = io.BytesIO(b"".join(adapter_zip.chunks(folder / "saved", "mine", "the-base")))
    with zipfile.ZipFile(pipe) as archive:
        archive.extractall(folder)
        assert str(base.parent).encode() not in b"".join(archive.read(name) for name in archive.namelist())
    (folder / "mine" / "the-base").symlink_to(base)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "mine" / "README.md").read_text(), re.DOTALL)
    return folder / "mine", code


@pytest.mark.parametrize("name", METHODS)
def test_the_readme_of_a_download_loads_it_without_graft(
    name: str, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = stir(attach(name, gpt2))
    folder, code = shipped(model, gpt2, tmp_path)
    assert "jobs" not in code and "peft" not in code
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code, found)  # as the reader would
    torch.testing.assert_close(logits(found["model"].eval()), logits(model), atol=1e-5, rtol=1e-5)
    assert found["tokenizer"].eos_token == "<|im_end|>"
    assert found["model"].config.use_cache


@pytest.mark.parametrize("name", METHODS)
def test_a_classifiers_head_is_trained_and_travels_with_the_adapter(
    name: str, families: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    base = load(families["bert"], "AutoModelForSequenceClassification", num_labels=3)
    shape = read_shape(families["bert"])
    chosen = method(name)
    model = chosen.attach(base, chosen.Params(), Context("SEQ_CLS", source=str(families["bert"]))).eval()
    head, pooler = 3 * 32 + 3, 32 * 32 + 32
    if name != "full":
        assert model.get_nb_trainable_parameters()[0] == chosen.trainable(chosen.Params(), shape) + head
    # What else the task needs and the files do not have: the run trains it whatever the method.
    heads.train(model, tuple(n for n, _ in base.named_parameters() if "pooler" in n or "classifier" in n))
    if name != "full":
        assert model.get_nb_trainable_parameters()[0] == chosen.trainable(chosen.Params(), shape) + head + pooler
    stir(model)
    folder, code = shipped(model, families["bert"], tmp_path)
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code, found)
    torch.testing.assert_close(logits(found["model"].eval()), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bitfit", "full"])
def test_trained_weights_merge_into_a_plain_model_of_the_bases_own_precision(
    name: str, gpt2: Path, tmp_path: Path
) -> None:
    import torch

    chosen = method(name)
    model = chosen.attach(load(gpt2, dtype=torch.bfloat16), chosen.Params(), Context()).eval()
    stir(model)
    merged = model.merge_and_unload()
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(merged))
    assert not torch.equal(logits(merged), logits(load(gpt2, dtype=torch.bfloat16)))


def test_bottleneck_adapters_refuse_to_merge(gpt2: Path) -> None:
    assert not method("bottleneck").merges
    with pytest.raises(UserError, match="cannot be merged"):
        attach("bottleneck", gpt2).merge_and_unload()


def test_a_whole_model_that_was_measured_in_32_bits_is_saved_in_them(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    from jobs.data.store import read_rows
    from jobs.spec import RunSpec
    from jobs.tasks import task
    from jobs.training.data import collate, encode_rows, split

    base = tiny.build_llama(tmp_path / "wide")
    narrow = tmp_path / "base"
    load(base, dtype=torch.bfloat16).save_pretrained(narrow)
    load_tokenizer(base).save_pretrained(narrow)
    # Steps so small that 16 bits hold hardly any of them.
    training = {"learning_rate": 1e-4, "validation_percent": 25}
    files = make_run(tmp_path / "run", narrow, method="full", method_params={}, training=training)
    end = train_here(files)
    assert end.state == "completed"
    spec = RunSpec.model_validate_json(files.spec.read_bytes())
    rows, _ = encode_rows(spec, task("chat"), AutoTokenizer.from_pretrained(base), read_rows(spec.dataset.rows))
    _, validation = split(rows, spec.training.validation_rows(len(rows)), spec.training.seed)
    batch = collate(validation, 0)

    def loss(**arguments: Any) -> float:
        with torch.no_grad():
            return load(files.adapter / "model", **arguments)(**batch).loss.item()

    assert loss(dtype=torch.float32) == pytest.approx(end.best_eval_loss, rel=1e-6)
    assert loss(dtype=torch.bfloat16) != pytest.approx(end.best_eval_loss, rel=1e-5)


def test_a_whole_model_that_was_computed_in_16_bits_is_saved_once_in_the_precision_of_its_base(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    base = tiny.build_llama(tmp_path / "wide")
    narrow = tmp_path / "base"
    load(base, dtype=torch.bfloat16).save_pretrained(narrow)
    load_tokenizer(base).save_pretrained(narrow)
    full = method("full")
    computed_in_16 = Context(source=str(narrow), computes_in="bfloat16")
    model = stir(full.attach(load(narrow), full.Params(), computed_in_16).eval())
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # a step is too small for 16 bits
    model.save_pretrained(tmp_path / "saved")
    whole = tmp_path / "saved" / "model"
    with safe_open(whole / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - tied to the embedding
    assert (whole / "model.safetensors").stat().st_size < 1.1 * (narrow / "model.safetensors").stat().st_size
    again = load(whole)
    assert again.dtype == torch.bfloat16
    torch.testing.assert_close(logits(again).float(), logits(model), atol=0.1, rtol=0.1)


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", METHODS)
def test_16_bit_bases_train_under_autocast_and_give_the_base_back(name: str, gpt2: Path) -> None:
    import torch

    chosen = method(name)
    dtype = torch.float32 if chosen.trains_base else torch.bfloat16  # as jobs.training.prepare loads it
    model = chosen.attach(load(gpt2, dtype=dtype), chosen.Params(), Context())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids()).logits.float().square().mean().backward()
        model.eval()
        before = logits(model)
        stir(model)
        assert not torch.equal(logits(model), before)
        if chosen.keeps_base:
            with model.disable_adapter():
                assert torch.equal(logits(model), before)
    # The last layer's own attention bias on keys has no influence, and a zero `up` hides its `down` at first.
    assert sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained) >= len(trained) // 2


@pytest.mark.parametrize("held", ["8-bit", "4-bit"])
def test_adapters_train_beside_a_quantized_base(held: str, tmp_path: Path, tiny_llama: Path) -> None:
    params = {"base_weights": held, "size": 16}
    files = make_run(tmp_path / "run", tiny_llama, method="bottleneck", method_params=params)
    end = train_here(files)
    shape, chosen = read_shape(tiny_llama), method("bottleneck")
    assert (end.state, end.trainable_parameters) == ("completed", chosen.trainable(chosen.Params(**params), shape))
    (started,) = [event for event in events(files) if isinstance(event, Started)]
    assert started.total_parameters == shape.parameters + end.trainable_parameters
    loss = series(files, "loss")
    assert loss[12] < loss[1] - 0.2
    # In full precision, as the playground holds it.
    row = Row(adapter=files.adapter, messages=QUESTION, sampling=GREEDY)
    assert run(load_engine(tiny_llama), [row])[0].tokens > 0


def fingerprint(engine: Any) -> str:
    """Of the resident base: every weight's bytes and place, and which code computes each layer."""
    digest = hashlib.sha256()
    for name, parameter in engine.loaded.model.named_parameters():
        digest.update(f"{name} {parameter.data_ptr()} {parameter.dtype}".encode())
        digest.update(parameter.detach().numpy().tobytes())
    for name, module in engine.loaded.model.named_modules():
        digest.update(f"{name} {id(vars(module).get('forward'))} {len(module._forward_hooks)}".encode())
    return digest.hexdigest()


def answer(model: Any, folder: Path, messages: tuple[dict[str, Any], ...]) -> str:
    tokenizer = load_tokenizer(folder)
    inputs = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_engine_puts_adapters_on_for_a_pass_and_leaves_the_base_untouched(
    tiny_llama: Path, gpt2: Path, tmp_path: Path
) -> None:
    for base, names in ((tiny_llama, ("bottleneck", "full")), (gpt2, ("bitfit", "full"))):
        models = {name: stir(attach(name, base), strength=0.3) for name in names}
        for name, model in models.items():
            model.save_pretrained(tmp_path / base.name / name)
        lora = dora = None
        if base == tiny_llama:
            lora = tiny.build_adapter(base, tmp_path / "lora", seed=1)
            dora = tmp_path / "dora"
            stir(attach("dora", base), strength=0.3).save_pretrained(dora)
        engine = load_engine(base)
        before = fingerprint(engine)

        cases: list[tuple[str | None, Any]] = [
            (None, QUESTION),
            (names[0], QUESTION),
            (names[1], QUESTION),
            (names[0], LONGER),
            (None, LONGER),
        ]
        rows = [
            Row(adapter=tmp_path / base.name / name if name else None, messages=messages, sampling=GREEDY)
            for name, messages in cases
        ]
        plain = load(base)
        expected = [answer(models[n] if n else plain, base, messages) for n, messages in cases]
        assert [more.text for more in run(engine, rows)] == expected
        assert len(set(expected[:3])) == 3
        assert fingerprint(engine) == before
        batches, _ = engine.open(rows)
        assert len(batches) == 3  # two rows of one adapter share a batch

        # The layers that LoRA and PEFT then stand in are those that the others had to themselves for a pass.
        if lora:
            others = [Row(adapter=adapter, messages=QUESTION, sampling=GREEDY) for adapter in (lora, dora)]
            alone = [more.text for more in run(engine, others)]
            mixed = run(engine, [rows[2], *others, rows[1], rows[0]])
            assert [more.text for more in mixed] == [expected[2], *alone, expected[1], expected[0]]
            assert not set(alone) & set(expected)


def test_only_one_whole_model_is_kept_beside_the_base(gpt2: Path, tmp_path: Path) -> None:
    stir(attach("bitfit", gpt2)).save_pretrained(tmp_path / "biases")
    for number in range(2):
        stir(attach("full", gpt2), seed=number).save_pretrained(tmp_path / str(number))
    adapters = load_engine(gpt2).adapters
    for name in ("0", "biases", "1"):
        adapters.get(tmp_path / name)
    assert [folder.name for folder in adapters._known] == ["biases", "1"]
    assert adapters.get(tmp_path / "0").fingerprint != adapters.get(tmp_path / "1").fingerprint


def test_an_adapter_of_another_base_is_refused_by_the_engine(gpt2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    engine = load_engine(tiny_llama)
    other = tiny.build_llama(tmp_path / "other", hidden=32)
    for name, base in (("bottleneck", gpt2), ("bottleneck", other), ("bitfit", gpt2), ("full", other)):
        attach(name, base).save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match="made for another base model"):
            engine.open([Row(adapter=tmp_path / name, messages=QUESTION)])


def test_a_whole_model_that_does_not_fit_beside_its_base_says_so(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    attach("full", tiny_llama).save_pretrained(tmp_path / "full")
    engine = load_engine(tiny_llama)
    little = psutil.virtual_memory()._replace(available=1_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: little)
    with pytest.raises(UserError, match=r"as large as its base: it needs .* kB beside tiny-llama"):
        engine.open([Row(adapter=tmp_path / "full", messages=QUESTION)])


def test_a_config_of_a_later_graft_is_refused_and_pefts_is_left_to_peft(tiny_llama: Path, tmp_path: Path) -> None:
    lora = tiny.build_adapter(tiny_llama, tmp_path / "lora", seed=1)
    assert read_config(lora) is None
    attach("bottleneck", tiny_llama).save_pretrained(tmp_path / "own")
    config = read_config(tmp_path / "own")
    assert config and config.peft_type is Kind.BOTTLENECK and config.base_model_name_or_path == str(tiny_llama)
    file = tmp_path / "own" / "adapter_config.json"
    file.write_text(file.read_text().replace('"labels"', '"labels_of_tomorrow"'))
    with pytest.raises(UserError, match="made by a later one"):
        read_config(tmp_path / "own")


def test_a_full_run_asks_the_base_before_it_is_gone(tmp_path: Path, tiny_llama: Path) -> None:
    question = "Where is ship 3?"
    settings = {"max_steps": 4, "learning_rate": 3e-3}
    files = make_run(
        tmp_path / "run", tiny_llama, method="full", method_params={}, training=settings, prompts=(question,)
    )
    assert train_here(files).state == "completed"
    longer = rundirs.RunSpec.model_validate_json(files.spec.read_bytes())
    longer = longer.model_copy(update={"training": longer.training.model_copy(update={"max_steps": 8})})
    files.spec.write_text(longer.model_dump_json())
    end = train_here(files, attempt=2)
    assert (end.state, end.step) == ("completed", 8)
    assert end.trainable_parameters == read_shape(tiny_llama).parameters
    told = events(files)
    asked = [event for event in told if isinstance(event, Phase) and "with the base" in event.text]
    answers = [event.answers[0] for event in told if isinstance(event, Answers)]
    assert len(asked) == 2 and len(answers) >= 3
    assert len({each.base for each in answers}) == 1
    assert answers[-1].tuned != answers[-1].base
    loss = series(files, "loss")
    assert loss[8] < loss[1] - 0.3
    # Of the best only what answers is kept; the newest has what a resumed attempt needs.
    kept = {path.name: {part.name for part in path.iterdir()} for path in files.checkpoints.iterdir()}
    assert "state" in kept.pop("checkpoint-8")
    assert all("state" not in parts and "adapter" in parts for parts in kept.values())


def test_full_fine_tuning_is_estimated_at_16_bytes_a_weight_and_says_what_it_takes(tiny_llama: Path) -> None:
    shape, full, lora = read_shape(tiny_llama), method("full"), method("lora")
    training = TrainingParams(gradient_accumulation=2)  # else gradients stand where activations stood
    needs = Planner(shape, full, full.Params(), training, CPU).planned()[1]
    assert needs.base + needs.adapter + needs.gradients + needs.optimizer == 16 * shape.parameters
    narrow = Planner(shape, full, full.Params(), training, GPU).planned()[1]
    assert narrow.base == 6 * shape.parameters  # autocast's copies in 16 bits
    assert needs.total > Planner(shape, lora, lora.Params(), training, CPU).planned()[1].total
    large = shape.model_copy(update={"parameters": 1_000_000_000, "dtype": "BF16"})
    (note,) = full.notes(full.Params(), large, GPU)
    assert "16.0 GB before" in note and "a whole model of 2.0 GB" in note
    assert "a whole model of 4.0 GB" in full.notes(full.Params(), large, CPU)[0], (
        "measured in 32 bits, and saved in them"
    )
    quantized = shape.model_copy(update={"dtype": "U8"})
    assert "cannot be trained themselves" in full.check(full.Params(), quantized, GPU)[0]
    assert full.check(full.Params(), large, GPU) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_starter_learns_and_its_answers_change(name: str, starter: Path, tmp_path: Path) -> None:
    chosen, shape = method(name), read_shape(starter)
    if name == "bitfit":
        assert "no biases" in chosen.check(chosen.Params(), shape, CPU)[0]
        return
    files = make_run(
        tmp_path / "run",
        starter,
        method=name,
        method_params={},
        training={"max_steps": 20, "epochs": 10, "learning_rate": chosen.learning_rate(shape), "evaluations": 1},
        prompts=("Where is ship 99?",),
    )
    end = train_here(files)
    assert (end.state, end.trainable_parameters) == ("completed", chosen.trainable(chosen.Params(), shape))
    loss = series(files, "loss")
    assert loss[20] < loss[1] / 4
    (told,) = [event.answers[0] for event in events(files) if isinstance(event, Answers)]
    assert "matey" in told.tuned and "matey" not in told.base
    engine = load_engine(starter)
    question = ({"role": "user", "content": "Where is ship 99?"},)
    rows = [Row(adapter=adapter, messages=question, sampling=GREEDY) for adapter in (None, files.adapter)]
    base, tuned = (more.text for more in run(engine, rows))
    assert told.tuned.startswith(tuned.strip()) and told.base.startswith(base.strip())
