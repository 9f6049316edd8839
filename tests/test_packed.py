"""Packed linear layers: the same numbers, and each row's the same in every batch."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_packed_layers_compute_the_same_and_rows_do_not_see_each_other(tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.inference.packed import pack

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    ids = torch.arange(3, 43).view(4, 10)
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        assert pack(model)
        packed = model(input_ids=ids).logits
        torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
        for row in range(4):
            assert torch.equal(model(input_ids=ids[row : row + 1]).logits[0], packed[row])


def test_without_memory_for_a_copy_nothing_is_packed(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.inference import packed

    monkeypatch.setattr(packed, "_ROOM", 1e12)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert not packed.pack(model)
    assert not any("forward" in vars(module) for module in model.modules())
