"""The packed loop against the plain one, on fresh random numbers: the same losses, gradients and runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.loops import shape_of_model
from jobs import loops, methods, tasks
from jobs.data.columns import Mapping, Shape
from jobs.events import Started
from jobs.hardware import processor
from jobs.loops import FAMILIES
from jobs.memory.packed import logits_at_once, rounded_up
from jobs.memory.plan import MemoryPlan
from jobs.rundir import RunFiles
from jobs.spec import RunSpec, TrainingParams
from jobs.training.rows import Row
from tests import decoders
from tests.rundirs import events, make_run, series, train_here

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from jobs.training.data import collate  # noqa: E402
from jobs.training.load import Device  # noqa: E402
from jobs.training.loss import summed_loss  # noqa: E402
from jobs.training.packed import attention, finishing, head  # noqa: E402
from jobs.training.packed import loop as packed_loop  # noqa: E402
from jobs.training.packed.model import PackedModel, flat_weights  # noqa: E402
from jobs.training.packed.packs import lay_out, pack_rows, step_rows  # noqa: E402
from jobs.training.packed.passes import arrays, filled  # noqa: E402
from jobs.training.packed.sizes import Size, Sizes, chosen, finely  # noqa: E402


def random_rows(count: int, seed: int = 0, longest: int = 24) -> list[Row]:
    """Rows of different lengths whose second half is trained."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(draw.integers(3, longest))
        ids = draw.integers(3, decoders.SIZES["vocab_size"], length).astype(np.int32)
        rows.append(Row(number, ids, np.arange(length) >= length // 2))
    return rows


def with_lora(family: str, **settings: Any) -> Any:
    """A tiny decoder with LoRA on every linear layer, its matrices all random."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "target_modules": "all-linear", **settings}
    config = LoraConfig(lora_alpha=8, task_type="CAUSAL_LM", **settings)
    return shaken(get_peft_model(decoders.build(family), config))


def shaken(model: Any) -> Any:
    """Ready to train, with nothing left at zero."""
    model.train()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
            elif parameter.requires_grad and parameter.ndim == 1:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    return model


def plain(model: Any, rows: list[Row]) -> tuple[float, dict[str, Any]]:
    loss = summed_loss(model, collate(rows, 0))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return loss.item(), found


def packed(model: Any, rows: list[Row], dtype: Any = None, recomputed: int = 0) -> tuple[float, dict[str, Any]]:
    packing = packed_model(model, dtype or torch.float32, recomputed=recomputed)
    packing.leaves.begin_pass()
    with packing.engaged():
        loss = packing.losses(tensors(lay_out(rows))).sum()
        loss.backward()
    packing.leaves.end_pass()
    packing.release()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return loss.item(), {name: packing.weights[0].gradient(parameter) for name, parameter in trained.items()}


def packed_model(model: Any, dtype: Any = None, longest: int = 64, **plan: Any) -> PackedModel:
    weights = flat_weights(model, [{"params": [p for p in model.parameters() if p.requires_grad]}])
    return PackedModel([model], [weights], dtype or torch.float32, plan=MemoryPlan(**plan), longest=longest)


def tensors(pack: Any) -> dict[str, Any]:
    names = ("input_ids", "positions", "ends", "kept", "targets", "texts")
    return {name: torch.from_numpy(getattr(pack, name)) for name in names}


def assert_alike(one: tuple[float, dict[str, Any]], other: tuple[float, dict[str, Any]], rel: float) -> None:
    assert other[0] == pytest.approx(one[0], rel=rel)
    assert set(one[1]) == set(other[1])
    for name, gradient in one[1].items():
        assert gradient.abs().max() > 0, f"{name} learns nothing, so this would prove nothing"
        assert (gradient - other[1][name]).norm() <= 10 * rel * gradient.norm(), name


@pytest.mark.parametrize("recomputed", (0, 2))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_losses_and_gradients_of_the_plain_path(family: str, recomputed: int) -> None:
    model, rows = with_lora(family), random_rows(6)
    assert_alike(plain(model, rows), packed(model, rows, recomputed=recomputed), rel=1e-5)


@pytest.mark.parametrize("family", ("llama", "qwen3"))
def test_dora_has_them_too(family: str) -> None:
    model, rows = with_lora(family, use_dora=True), random_rows(6)
    assert_alike(plain(model, rows), packed(model, rows), rel=1e-5)


@pytest.mark.parametrize("targets", (["q_proj", "v_proj"], ["down_proj"], ["k_proj", "up_proj", "o_proj"]))
def test_layers_that_are_not_trained_stay_out_of_their_groups(targets: list[str]) -> None:
    model, rows = with_lora("llama", target_modules=targets), random_rows(6)
    assert_alike(plain(model, rows), packed(model, rows), rel=1e-5)


@pytest.mark.parametrize("family", ("llama", "qwen2", "qwen3"))
@pytest.mark.parametrize(
    "settings",
    (
        {},
        {"r": 7},
        {"target_modules": ["q_proj", "v_proj", "up_proj"]},
        {"rank_pattern": {"gate_proj": 9, "k_proj": 1}, "alpha_pattern": {"gate_proj": 18, "k_proj": 2}},
    ),
)
@pytest.mark.parametrize("recomputed", (0, 2))
def test_what_is_left_to_the_pass_after_a_product_is_added_there(
    family: str, settings: dict[str, Any], recomputed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with the passes' references."""
    model, rows = with_lora(family, **settings), random_rows(6)
    expected = plain(model, rows)
    asked = []
    monkeypatch.setattr("jobs.training.packed.groups.may_wait", lambda b: asked.append(b) or True)
    assert_alike(expected, packed(model, rows, recomputed=recomputed), rel=1e-5)
    assert asked


def test_the_base_in_4_bits_computes_the_same(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from jobs.training.load import _keep_weights_as_quantized

    decoders.build("qwen3", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"],
    )
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    _keep_weights_as_quantized(base)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model, rows = shaken(get_peft_model(base, lora)), random_rows(6)
    assert_alike(plain(model, rows), packed(model, rows), rel=1e-5)


def test_documents_of_one_pack_do_not_see_each_other() -> None:
    """Bit for bit: another document beside it changes nothing of a document's losses."""
    for family in ("llama", "gemma3_text"):
        model = with_lora(family)
        one, other = random_rows(4, seed=1), random_rows(4, seed=1)
        ids = other[2].input_ids.copy()
        ids[:] = ids[::-1] % 100 + 5
        other[2] = Row(2, ids, other[2].trained)
        losses = [document_losses(model, rows) for rows in (one, other)]
        assert [bool((a == b).all()) for a, b in zip(*losses, strict=True)] == [True, True, False, True]


def document_losses(model: Any, rows: list[Row]) -> list[Any]:
    packing, pack = packed_model(model), lay_out(rows)
    with packing.engaged(), torch.no_grad():
        losses = packing.losses(tensors(pack))
    packing.release()
    return [losses[torch.from_numpy(pack.texts) == number] for number in range(len(rows))]


def test_in_16_bits_the_loss_stays_within_a_thousandth() -> None:
    rows = random_rows(8)
    exact = plain(with_lora("llama"), rows)
    model = with_lora("llama")
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = plain(model, rows)
    ours = packed(model, rows, torch.bfloat16)
    assert ours[0] == pytest.approx(rounded[0], rel=2e-2)
    worst = max(float((g - exact[1][n]).norm() / exact[1][n].norm()) for n, g in rounded[1].items())
    for name, gradient in ours[1].items():
        assert (gradient - exact[1][name]).norm() <= 1.5 * worst * exact[1][name].norm(), name


PAIRS = [
    {
        "prompt": f"Ship {n}?",
        "completion": f"Ship {n} be at sea, matey{'!' * (n % 5)}",
        "rejected": f"I am a robot, {n} times {n}.",
    }
    for n in range(24)
]
MAPPINGS = {
    "chat": Mapping(shape=Shape.PROMPT, columns={"prompt": "prompt", "completion": "completion"}),
    "text": Mapping(shape=Shape.TEXT, columns={"text": "completion"}),
    "rewrite": Mapping(shape=Shape.REWRITE, columns={"source": "prompt", "target": "completion"}),
    "dpo": Mapping(
        shape=Shape.PREFERENCE, columns={"prompt": "prompt", "chosen": "completion", "rejected": "rejected"}
    ),
}
MAPPINGS["orpo"] = MAPPINGS["dpo"]


def run_in(loop: str, folder: Path, model: Path, task: str = "chat", **over: Any) -> RunFiles:
    training = {"gradient_accumulation": 2, "batch_size": 2, "loop": loop, **over.pop("training", {})}
    files = make_run(folder, model, PAIRS, task=task, training=training, **over)
    spec = RunSpec.model_validate_json(files.spec.read_bytes())
    dataset = spec.dataset.model_copy(update={"mapping": MAPPINGS[task]})
    files.spec.write_text(spec.model_copy(update={"dataset": dataset}).model_dump_json())
    return files


@pytest.mark.parametrize("task", MAPPINGS)
def test_a_run_is_the_same_in_both_loops(task: str, tmp_path: Path, tiny_llama: Path) -> None:
    runs = {loop: run_in(loop, tmp_path / loop, tiny_llama, task) for loop in ("plain", "auto")}
    for files in runs.values():
        assert train_here(files).state == "completed"
    loops_used = [started(files).hardware["loop"] for files in runs.values()]
    assert loops_used == ["plain", "packed"]
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss", "train_reward_margin"):
        one, other = (series(files, name) for files in runs.values())
        assert set(one) == set(other)
        assert other == pytest.approx(one, rel=2e-4, abs=1e-5), name
    adapters = [load_file(files.adapter / "adapter_model.safetensors") for files in runs.values()]
    assert set(adapters[0]) == set(adapters[1])
    for name, value in adapters[0].items():
        assert (value - adapters[1][name]).abs().max() <= 2e-3 * value.abs().max(), name


@pytest.mark.parametrize("method", ("lora-plus", "pissa", "rslora", "dora"))
def test_the_kinds_of_lora_run_the_same(method: str, tmp_path: Path, tiny_llama: Path) -> None:
    runs = [
        run_in(loop, tmp_path / loop, tiny_llama, method=method, method_params={"r": 4}, training={"max_steps": 6})
        for loop in ("plain", "auto")
    ]
    for files in runs:
        assert train_here(files).state == "completed"
    assert series(runs[1], "loss") == pytest.approx(series(runs[0], "loss"), rel=1e-4)
    assert series(runs[1], "eval_loss") == pytest.approx(series(runs[0], "eval_loss"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_the_starter_the_curves_of_200_steps_lie_on_each_other(tmp_path: Path, starter: Path) -> None:
    settings = {"max_steps": 200, "epochs": 100, "learning_rate": 1e-3, "early_stop": 0, "evaluations": 2}
    runs = [
        run_in(loop, tmp_path / loop, starter, training=settings | {"gradient_accumulation": 1})
        for loop in ("plain", "auto")
    ]
    for files in runs:
        assert train_here(files).state == "completed"
    one, other = (np.array(list(series(files, "loss").values())) for files in runs)
    assert len(one) == len(other) == 200
    assert np.abs(one - other).max() < 0.02 * one.max()


@pytest.mark.parametrize("loop", ("auto", "plain"))
def test_gradients_that_are_no_numbers_in_the_last_step_are_not_saved(
    loop: str, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later step's loss, and without validation rows nothing else, would tell of them."""
    from jobs.training.objective import Objective
    from jobs.training.packed.adapter import Adapter

    clip, loss, calls = Adapter.clip, Objective.loss, itertools.count(1)

    def broken_clip(self: Adapter) -> Any:
        if self.steps_left == 1:
            self.weights.gradients.mul_(float("nan"))
        return clip(self)

    def broken_loss(self: Objective, model: Any, inputs: Any) -> Any:
        trained = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        found = loss(self, model, inputs)
        return found + (trained.sum() * 0).sqrt() if next(calls) == 3 else found  # 0, and its slope no number

    monkeypatch.setattr(Adapter, "clip", broken_clip)
    training = {"max_steps": 3, "validation_percent": 0, "early_stop": 0, "evaluations": 1, "gradient_accumulation": 1}
    files = run_in(loop, tmp_path / "run", tiny_llama, training=training)
    if loop == "plain":
        monkeypatch.setattr(Objective, "loss", broken_loss)
    result = train_here(files)
    assert result.state == "failed" and "not-a-number at step 3" in (result.reason or "")
    assert not files.adapter.exists() and not list(files.checkpoints.iterdir())


def test_a_run_says_why_it_goes_the_plain_way(tmp_path: Path, tiny_llama: Path) -> None:
    files = run_in("auto", tmp_path / "run", tiny_llama, method="ia3", method_params={}, training={"max_steps": 1})
    assert train_here(files).state == "completed"
    assert "does not know IA3" in started(files).hardware["loop_why"]


GPU = {"device": "cuda", "bf16": True}


@pytest.mark.parametrize(
    ("training", "task", "method", "params", "model", "there", "reason"),
    (
        ({"loop": "plain"}, "chat", "lora", {}, {"model_type": "llama"}, {}, "you set Training loop to Plain"),
        ({}, "kto", "lora", {}, {"model_type": "llama"}, {}, "the task Thumbs up and down (KTO)"),
        ({}, "chat", "ia3", {}, {"model_type": "llama"}, {}, "does not know IA3"),
        ({}, "chat", "lora", {}, {"model_type": "gpt2"}, {}, "models of the kind gpt2"),
        ({}, "chat", "lora", {"base_weights": "8-bit"}, {"model_type": "llama"}, {}, "in 8 bits"),
        ({}, "chat", "dora", {"dropout": 0.1}, {"model_type": "llama"}, {}, "DoRA with dropout"),
        ({}, "chat", "lora", {}, {}, GPU | {"bf16": False}, "in bf16"),
        ({}, "chat", "lora", {}, {"model_type": "gemma2"}, GPU, "cap their attention"),
        ({}, "chat", "lora", {}, {}, GPU | {"compiles": False}, "apt install gcc python3-dev"),
        ({}, "chat", "lora", {}, {"head_dim": 100}, GPU, "attention heads of size 100"),
        ({}, "chat", "lora", {}, {"head_dim": 512}, GPU, "attention heads of size 512"),
    ),
)
def test_what_the_packed_loop_does_not_know_goes_the_plain_way(
    training: Any, task: str, method: str, params: Any, model: Any, there: Any, reason: str
) -> None:
    chosen = methods.method(method)
    shape = shape_of_model("30m").model_copy(update=model)
    hardware = processor().model_copy(update=there)
    choice = loops.choose(
        TrainingParams(**training), tasks.task(task), chosen, chosen.Params(**params), shape, hardware
    )
    assert choice.loop == "plain"
    assert reason in choice.why


def test_a_gpu_takes_the_packed_way_where_everything_is_there() -> None:
    lora = methods.method("lora")
    shape, hardware = shape_of_model("llama1b"), processor().model_copy(update=GPU)
    choice = loops.choose(TrainingParams(), tasks.task("chat"), lora, type(lora).Params(), shape, hardware)
    assert choice.loop == "packed"


def test_every_row_of_an_epoch_is_in_one_step_and_packs_keep_within_their_capacity() -> None:
    rows = random_rows(23)
    training = TrainingParams(batch_size=2, gradient_accumulation=3, seed=5)
    steps = list(step_rows(rows, training, 8, 0))
    for epoch in (steps[:4], steps[4:]):
        assert sorted(row.number for step in epoch for row in step) == list(range(23))
    assert [len(step) for step in steps] == [6, 6, 6, 5] * 2
    assert [row.number for step in step_rows(rows, training, 8, 3) for row in step] == [
        row.number for step in steps[3:] for row in step
    ]
    for step in steps:
        packs = pack_rows(step, 40)
        assert sorted(row.number for pack in packs for row in pack.rows) == sorted(row.number for row in step)
        assert all(pack.tokens <= 40 for pack in packs)


def test_a_padded_pack_has_the_losses_of_the_pack_itself() -> None:
    model, rows = with_lora("qwen3"), random_rows(5)
    packing, pack = packed_model(model, longest=24), lay_out(rows)
    batch = arrays(pack, [3])
    size = Sizes([pack], 1, token_cost=1, size_cost=1, longest=24).of(pack)
    padded = filled(batch, Size(size.tokens + 64, 32, size.kept + 16), 24)
    assert len(padded["input_ids"]) == size.tokens + 64
    assert padded["ends"][-1] == size.tokens + 64
    assert np.diff(padded["ends"]).max() <= 24
    with packing.engaged(), torch.no_grad():
        one, other = (
            packing.losses({name: torch.from_numpy(array) for name, array in arrays_.items()})
            for arrays_ in (batch, padded)
        )
    assert torch.allclose(one, other[: len(one)], atol=1e-5)
    assert not other[len(one) :].any()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_pass_that_is_not_recorded_is_rounded_up_finely(on_gpu: bool) -> None:
    for seed, longest in ((1, 24), (2, 9), (3, 300)):
        pack = lay_out(random_rows(9, seed=seed, longest=min(longest, 60)))
        assert finely(pack, longest, on_gpu=on_gpu, whole_answers=True).kept == len(pack.kept)
        size = finely(pack, longest, on_gpu=on_gpu, whole_answers=False)
        assert 0 <= size.tokens - pack.tokens < (64 if on_gpu else pack.tokens / 16)
        assert size.holds(pack, longest)
        padded = filled(arrays(pack, [len(pack.kept)]), size, longest)
        assert [len(padded[name]) for name in ("input_ids", "positions", "kept")] == [size.tokens] * 2 + [size.kept]
        assert len(padded["ends"]) == size.documents + 1 and padded["ends"][-1] == size.tokens


def test_what_waits_to_be_added_is_as_if_it_had_been_added_at_once() -> None:
    torch.manual_seed(0)
    product, onto, dy = torch.randn(50, 96), torch.randn(50, 96), torch.randn(50, 48)
    inner = torch.randn(50, 12)

    def addend(columns: int, place: int) -> finishing.Addend:
        return finishing.Addend(inner[:, 4 * place : 4 * place + 4], torch.randn(columns, 4).t())

    waits = addend(96, 0)
    whole = product + waits.left @ waits.right
    torch.testing.assert_close(finishing.add(product, onto, waits, torch.empty_like(product)), whole + onto)
    wait = [addend(48, 0), addend(48, 1)]
    whole = product + torch.cat([each.left @ each.right for each in wait], dim=1)
    torch.testing.assert_close(finishing.gate(product, wait), finishing.gate(whole, (None, None)))
    slope = addend(48, 2)
    found = finishing.gate_backward_(dy, product, wait, slope)
    expected = finishing.gate_backward_(dy + slope.left @ slope.right, whole, (None, None), None)
    torch.testing.assert_close(found, expected)
    of_heads = [addend(columns, place) for place, columns in enumerate((64, 16, 16))]
    heads = finishing.Heads(4, 1, 16, torch.randn(50, 16), torch.randn(50, 16))
    found, whole = (
        product.view(50, 6, 16).clone(),
        product + torch.cat([each.left @ each.right for each in of_heads], 1),
    )
    heads.finish_(found, of_heads)
    expected = whole.view(50, 6, 16).clone()
    heads.finish_(expected, (None, None, None))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tokens", (0, 1, 258, 700))
def test_the_losses_of_many_chunks_are_those_of_all_logits_at_once(tokens: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 24, requires_grad=True), torch.randn(97, 24)
    targets = torch.randint(-1, 97, (tokens,))
    share = torch.rand(tokens)
    for softcap, scale in ((None, 1.0), (5.0, 0.5)):
        found = head.token_losses(hidden, weight, targets, softcap, scale)
        logits = scale * (hidden @ weight.t())
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        slopes = [torch.autograd.grad((each * share).sum(), hidden)[0] for each in (found, expected)]
        torch.testing.assert_close(*slopes, atol=1e-5, rtol=1e-5)


def test_on_a_cpu_no_chunk_of_logits_is_of_few_tokens() -> None:
    for tokens in range(1, 3_000):
        size = logits_at_once(tokens, on_gpu=False)
        last = tokens - size * (-(-tokens // size) - 1)
        assert (size <= 320 if tokens > 320 else size == tokens) and last > size - 12


@pytest.mark.parametrize("window", (None, 20))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_attention_on_a_cpu_is_that_to_each_document(dtype: torch.dtype, window: int | None) -> None:
    torch.manual_seed(0)
    ends = torch.tensor([0, 40, 41, 130, 130])  # the last one is empty
    given = [torch.randn(130, heads, 16, dtype=dtype, requires_grad=True) for heads in (8, 2, 2)]
    slope = torch.randn(130, 8, 16, dtype=dtype)
    found = attention.attend(*given, ends, 130, None, window)
    exact = [part.detach().double().requires_grad_() for part in given]
    expected = torch.cat(
        [
            attention.attend_one(
                *(part[begin:end].transpose(0, 1)[None] for part in exact), scaling=None, window=window, softcap=None
            )[0].transpose(0, 1)
            for begin, end in itertools.pairwise(ends.tolist())
            if end > begin
        ]
    )
    close = {"atol": 2e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.02}
    assert torch.allclose(found.double(), expected, **close)
    slopes = torch.autograd.grad(found, given, slope)
    for one, other in zip(slopes, torch.autograd.grad(expected, exact, slope.double()), strict=True):
        assert one.dtype == dtype and torch.allclose(one.double(), other, **close)


def test_freed_memory_goes_back_before_the_longest_step_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, given = object.__new__(packed_loop._Crew), []
    crew._device, crew._limited = Device(torch.device("cpu"), torch.float32), False
    crew._longest, crew._since = 0, 0
    begun: list[int] = []
    monkeypatch.setattr(packed_loop, "give_freed_memory_back", lambda: given.append(len(begun)))
    for tokens in [100, 90, 120, *[100] * 40]:
        begun.append(tokens)
        crew._give_back([[range(tokens)]])  # a row of so many
    assert given == [1, 3, 19, 35]
    crew._limited = True
    crew._give_back([[range(1)]])
    assert given[-1] == 43, "a limit is worth the time"


def test_on_a_cpu_passes_are_of_few_sizes_and_little_longer() -> None:
    for tokens in (1, 15, 100, 1_000, 10_000):
        sizes = {rounded_up(count, on_gpu=False) for count in range(tokens, 2 * tokens)}
        assert len(sizes) <= max(17, tokens / 64 + 1)
        assert all(0 <= rounded_up(count, on_gpu=False) - count < count / 16 for count in range(tokens, 2 * tokens))


def test_sizes_weigh_padding_against_recording() -> None:
    counts = [100, 110, 120, 500, 505, 510]
    assert chosen(counts, token_cost=0, size_cost=1) == [512]
    assert chosen(counts, token_cost=1, size_cost=100) == [128, 512]
    assert chosen(counts, token_cost=1, size_cost=0) == [112, 128, 512]


def started(files: RunFiles) -> Started:
    return next(event for event in events(files) if isinstance(event, Started))
