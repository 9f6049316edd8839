"""LoRA and QLoRA: what the estimate counts is what attaching makes, on four architectures; QLoRA on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.methods import all_methods, method
from jobs.methods.base import Context
from jobs.shape import read_shape
from tests.rundirs import make_run, series, train_here
from tests.test_shape import build

FAMILIES = ("llama", "gpt2", "qwen3", "gemma3")
TARGETS = ("all-linear", "attention", "mlp")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp("families") / request.param)


@pytest.mark.parametrize("targets", TARGETS)
def test_estimated_trainable_parameters_are_the_real_ones(folder: Path, targets: str) -> None:
    from transformers import AutoModelForCausalLM

    lora = method("lora")
    params = lora.Params(r=3, targets=targets)
    model = lora.attach(AutoModelForCausalLM.from_pretrained(folder), params, Context())
    real = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert real > 0
    assert lora.trainable(params, read_shape(folder)) == real


@pytest.mark.parametrize("targets", TARGETS)
def test_qlora_has_the_same_trainable_parameters(tiny_llama: Path, targets: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    qlora = method("qlora")
    params = qlora.Params(r=3, targets=targets)
    base = AutoModelForCausalLM.from_pretrained(
        tiny_llama, quantization_config=qlora.quantization_config(params, torch.float32), device_map={"": "cpu"}
    )
    model = qlora.attach(base, params, Context())
    real = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert qlora.trainable(params, read_shape(tiny_llama)) == real


def test_settings_stored_before_there_were_more_of_them_still_load(tiny_llama: Path) -> None:
    shape = read_shape(tiny_llama)
    old = {"r": 4, "alpha": 8, "dropout": 0.1, "targets": "mlp"}
    assert method("lora").quantization(method("lora").Params(**old)) == "none"
    qlora = method("qlora")
    assert qlora.quantization(qlora.Params(**old, double_quantization=False)) == "nf4"
    assert qlora.trainable(qlora.Params(**old), shape) == method("lora").trainable(method("lora").Params(**old), shape)


def test_a_large_model_gets_a_smaller_rate(tiny_llama: Path) -> None:
    small = read_shape(tiny_llama)
    large = small.model_copy(update={"parameters": 7_000_000_000})
    for chosen in all_methods().values():
        assert 0 < chosen.learning_rate(large) <= chosen.learning_rate(small) <= 0.1
    assert method("lora").learning_rate(large) == pytest.approx(2e-4)


def test_the_second_matrix_of_lora_plus_learns_faster(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    plus = method("lora-plus")
    params = plus.Params(ratio=4)
    model = plus.attach(AutoModelForCausalLM.from_pretrained(tiny_llama), params, Context())
    groups = plus.parameter_groups(model, params, 1e-3, 0.1)
    assert groups is not None
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates.pop(id(parameter)) == pytest.approx(4e-3 if ".lora_B." in name else 1e-3)
    assert not rates


def test_qlora_learns_on_a_cpu_in_full_precision(tmp_path: Path, tiny_llama: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    files = make_run(tmp_path / "run", tiny_llama, method="qlora", prompts=("Where is ship 3?",))
    end = train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    loss = series(files, "loss")
    assert loss[max(loss)] < loss[1] - 0.3
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), files.adapter)  # on a full base, too


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_other_architectures_train_too(family: str, tmp_path: Path) -> None:
    files = make_run(
        tmp_path / "run", build(family, tmp_path / family), prompts=("Where is ship 3?",), training={"recompute": "on"}
    )
    end = train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    assert series(files, "loss")[end.step] < series(files, "loss")[1]
