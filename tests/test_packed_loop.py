"""The packed loop against the plain path, on fresh random numbers: the same losses, the same gradients, the same runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import loops
from jobs.loops import FAMILIES
from jobs.training.rows import Row
from tests import decoders
from tests.rundirs import events, make_run, result, series, train_here

torch = pytest.importorskip("torch")

from jobs.training.data import collate  # noqa: E402
from jobs.training.loss import summed_loss  # noqa: E402
from jobs.training.packed.model import PackedModel  # noqa: E402
from jobs.training.packed.packs import lay_out, pack_rows, step_rows  # noqa: E402


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

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = get_peft_model(decoders.build(family), config)
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
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [{"params": list(trained.values())}]
    packing = PackedModel(model, groups, dtype or torch.float32, recomputed=recomputed, longest=64)
    packing.weights.begin_pass()
    with packing.engaged():
        loss = packing.losses(tensors(lay_out(rows))).sum()
        loss.backward()
    packing.weights.end_pass()
    packing.release()
    return loss.item(), {name: packing.weights.gradient(parameter) for name, parameter in trained.items()}


def tensors(pack: Any) -> dict[str, Any]:
    names = ("input_ids", "positions", "ends", "kept", "targets")
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


def test_in_16_bits_the_loss_stays_within_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
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
