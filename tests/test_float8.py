"""A base in 8-bit floats, where they are only computed as such (a CPU): near what it was, and one for all."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest

from jobs.hardware import processor
from tests.rundirs import make_run, series, train_here
from tests.test_packed_loop import flat_weights, random_rows, started, with_lora

torch = pytest.importorskip("torch")
from jobs.memory.plan import MemoryPlan  # noqa: E402
from jobs.training.packed.model import PackedModel  # noqa: E402
from jobs.training.packed.packs import join, lay_out  # noqa: E402
from jobs.training.packed.passes import arrays  # noqa: E402


@pytest.mark.parametrize("method", ("lora", "dora"))
def test_a_run_learns_nearly_as_in_full_precision(
    method: str, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed here by the products' references: as if this processor multiplied 8-bit floats."""
    able = processor().model_copy(update={"fp8": True})
    monkeypatch.setattr("jobs.training.load.hardware_of", lambda device: able)
    exact, rounded = (
        make_run(tmp_path / held, tiny_llama, method=method, method_params={"r": 4, "base_weights": held})
        for held in ("full", "fp8")
    )
    for files in (exact, rounded):
        assert train_here(files).state == "completed"
        assert started(files).hardware["loop"] == "packed"
    for name in ("loss", "eval_loss"):
        one, other = series(exact, name), series(rounded, name)
        assert other == pytest.approx(one, rel=0.03), name
        assert other != one, "it was not rounded"


def test_where_the_processor_does_not_multiply_them_a_run_says_so(tmp_path: Path, tiny_llama: Path) -> None:
    """Also one that was planned for another machine."""
    result = train_here(make_run(tmp_path, tiny_llama, method_params={"r": 4, "base_weights": "fp8"}))
    assert result.state == "failed" and "an H100 or a newer GPU does" in (result.reason or "")


def test_models_around_the_same_weights_hold_and_answer_the_same(tmp_path: Path) -> None:
    """Of several runs that train together each is evaluated by its own model."""
    first = with_lora("qwen2")  # with biases, and a head that is not its embedding
    shared = {id(each): each for each in itertools.chain(first.parameters(), first.buffers()) if not each.requires_grad}
    models = [first, copy.deepcopy(first, shared)]
    wide = first.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight
    packing = together(models, rounded=True, embedding_on_host=True)
    narrow, other = (model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight for model in models)
    assert narrow is other and narrow.dtype is torch.float8_e4m3fn is not wide.dtype
    assert models[0].get_input_embeddings() is models[1].get_input_embeddings(), "one of them is still on the GPU"
    ids = torch.from_numpy(random_rows(1)[0].input_ids)[None].long()
    with torch.no_grad():
        answers = [model(ids).logits for model in models]
    assert torch.equal(*answers)
    packs = join({number: lay_out(random_rows(3, seed=number)) for number in range(2)})
    batch: Any = {name: torch.from_numpy(array) for name, array in arrays(packs, [1, 1]).items()}
    packing.leaves.begin_pass()
    with packing.engaged():
        packing.losses(batch | packing.brought(batch["input_ids"])).sum().backward()
    packing.leaves.end_pass()
    assert all(bool(weights.gradients.any()) for weights in packing.weights)


def together(models: list[Any], *, rounded: bool = False, **plan: Any) -> PackedModel:
    weights = [
        flat_weights(model, [{"params": [each for each in model.parameters() if each.requires_grad]}])
        for model in models
    ]
    return PackedModel(models, weights, torch.float32, plan=MemoryPlan(**plan), longest=64, rounded=rounded)
