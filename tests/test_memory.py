"""The estimate: it moves with every setting, and in the right direction."""

from __future__ import annotations

import pytest

from jobs.hardware import Hardware
from jobs.memory import LABELS, Estimate, estimate
from jobs.methods import method
from jobs.shape import ModelShape, read_shape
from jobs.spec import TrainingParams

CPU = Hardware(device="cpu", name="CPU", memory_total=16 << 30, memory_free=8 << 30, cores=2, bf16=False)
GPU = Hardware(device="cuda", name="GPU", memory_total=24 << 30, memory_free=23 << 30, cores=8, bf16=True)


@pytest.fixture(scope="module")
def shape(tiny_llama) -> ModelShape:
    return read_shape(tiny_llama)


def needs(shape: ModelShape, method_name: str = "lora", hardware: Hardware = GPU, **settings) -> Estimate:
    chosen = method(method_name)
    fields = type(chosen).Params.model_fields
    params = type(chosen).Params(**{name: value for name, value in settings.items() if name in fields})
    training = TrainingParams(**{name: value for name, value in settings.items() if name not in fields})
    return estimate(shape, chosen, params, training, hardware)


def test_every_part_has_a_name_for_the_page() -> None:
    assert list(LABELS) == list(Estimate.model_fields)


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({"batch_size": 1}, {"batch_size": 2}),
        ({"max_length": 128}, {"max_length": 256}),
        ({"recompute": True}, {"recompute": False}),
        ({"r": 4}, {"r": 8}),
        ({"targets": "attention"}, {"targets": "all-linear"}),
    ],
)
def test_the_estimate_moves_with_a_setting(shape: ModelShape, smaller: dict, larger: dict) -> None:
    assert needs(shape, **smaller).total < needs(shape, **larger).total


def test_gradient_accumulation_costs_no_memory(shape: ModelShape) -> None:
    assert needs(shape, gradient_accumulation=8) == needs(shape, gradient_accumulation=1)


def test_a_4_bit_base_is_smaller_on_a_gpu(shape: ModelShape) -> None:
    parameters = 1000 * shape.linear_parameters + shape.embedding_parameters
    large = shape.model_copy(update={"linears": shape.linears * 1000, "parameters": parameters})
    assert needs(large, "qlora").base < needs(large, "lora").base / 3


def test_a_4_bit_base_saves_nothing_on_a_cpu(shape: ModelShape) -> None:
    assert needs(shape, "qlora", CPU).total >= needs(shape, "lora", CPU).total


def test_double_quantization_saves_a_little(shape: ModelShape) -> None:
    with_it = needs(shape, "qlora", double_quantization=True).base
    assert with_it < needs(shape, "qlora", double_quantization=False).base


def test_a_cpu_without_bf16_computes_in_32_bits(shape: ModelShape) -> None:
    assert needs(shape, hardware=CPU).base == 2 * needs(shape, hardware=GPU).base


def test_rows_shorter_than_the_maximum_length_need_less(shape: ModelShape) -> None:
    lora, training = method("lora"), TrainingParams(max_length=512)
    params = type(lora).Params()
    short = estimate(shape, lora, params, training, CPU, longest_row=64)
    assert short.activations * 8 == estimate(shape, lora, params, training, CPU).activations
    pairs = estimate(shape, lora, params, training, CPU, longest_row=64, sequences=2)
    assert (pairs.activations, pairs.logits) == (2 * short.activations, 2 * short.logits)


def test_an_8_bit_base_lies_between_4_bits_and_full_precision(shape: ModelShape) -> None:
    parameters = 1000 * shape.linear_parameters + shape.embedding_parameters
    large = shape.model_copy(update={"linears": shape.linears * 1000, "parameters": parameters})
    full, eight, four = (needs(large, base_weights=held).base for held in ("full", "8-bit", "4-bit"))
    assert four < eight < full
    assert eight == pytest.approx(full / 2, rel=0.1)


def test_what_a_method_holds_beside_its_parameters_counts(shape: ModelShape) -> None:
    """LoHa multiplies out whole matrices for every layer and keeps them; recomputed, one layer's at a time."""
    plain, recomputed = needs(shape, "loha"), needs(shape, "loha", recompute=True)
    assert plain.workspace > recomputed.workspace > needs(shape, "lora").workspace


def test_virtual_tokens_lengthen_every_row(shape: ModelShape) -> None:
    short, long = needs(shape, "prompt-tuning", tokens=1), needs(shape, "prompt-tuning", tokens=101)
    assert long.activations / short.activations == pytest.approx(613 / 513, rel=1e-3)
