"""The packed loop on a CUDA GPU: each kernel against its reference, a recorded pass against the pass itself."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.hardware import this_machine

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(this_machine().device != "cuda", reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("size", (576, 2048, 4096))
@pytest.mark.parametrize("adds", (False, True))
def test_the_norm_kernels_are_their_reference(size: int, adds: bool) -> None:
    from jobs.training.packed import kernels, pieces

    x, branch, dy, dtotal = (drawn(300, size) for _ in range(4))
    weight = drawn(size)
    found, expected = (of(x, branch if adds else None, weight, 1e-5) for of in (kernels.norm, pieces.norm_reference))
    for one, other in zip(found, expected, strict=True):
        assert apart(one, other) < 1e-5
    total, scale = expected[1:]
    slope = kernels.norm_backward(dy, dtotal, total, weight, scale)
    assert apart(slope, pieces.norm_backward_reference(dy, dtotal, total, weight, scale)) < 1e-4


@pytest.mark.parametrize(("heads", "size"), ((40, 64), (9, 64), (12, 128), (3, 80)))
def test_the_rotation_kernel_is_its_reference(heads: int, size: int) -> None:
    from jobs.training.packed import kernels, pieces

    x, angle = drawn(300, heads + 5, size), torch.randn(300, size // 2, device="cuda")
    cos, sin = (torch.cat((part, part), 1).bfloat16() for part in (angle.cos(), angle.sin()))
    found, expected = x.clone(), x.float()
    kernels.rotate_(found[:, :heads], cos, sin, 1.0)
    pieces.rotate_reference_(expected[:, :heads], cos.float(), sin.float(), 1.0)
    assert apart(found, expected) < 4e-3
    kernels.rotate_(found[:, :heads], cos, sin, -1.0)
    assert apart(found, x) < 8e-3


def test_the_gate_kernels_are_their_reference() -> None:
    from jobs.training.packed import kernels, pieces

    both, dy = drawn(300, 2 * 1536), drawn(300, 1536)
    assert apart(kernels.gate(both), pieces.gate_reference(both.float())) < 4e-3
    expected = pieces.gate_backward_reference(dy.float(), both.float())
    for one, other in zip(kernels.gate_backward(dy, both), expected, strict=True):
        assert apart(one, other) < 4e-3


def test_the_cross_entropy_kernel_is_its_reference() -> None:
    from jobs.training.packed import head, kernels

    logits, targets = drawn(200, 49_153) * 3, torch.randint(-1, 49_153, (200,), device="cuda")
    found, expected = torch.zeros(200, device="cuda"), torch.zeros(200)
    slope = head.cross_entropy_(logits.float().cpu(), targets.cpu(), expected, None, 1.0)
    assert apart(kernels.cross_entropy(logits, targets, found).cpu(), slope) < 4e-3
    assert apart(found.cpu(), expected) < 1e-5


@pytest.mark.parametrize("family", ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3"))
def test_a_packed_pass_on_the_gpu_is_as_exact_as_autocast_and_its_recording_is_the_pass(family: str) -> None:
    from jobs.tasks import task
    from jobs.training.data import collate
    from jobs.training.load import Device
    from jobs.training.loss import summed_loss
    from jobs.training.objective import Objective
    from jobs.training.packed.model import PackedModel
    from jobs.training.packed.packs import lay_out
    from jobs.training.packed.passes import Passes
    from tests.test_packed_loop import random_rows, with_lora

    model, rows = with_lora(family).to("cuda"), random_rows(40, longest=60)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = {name: value.to("cuda") for name, value in collate(rows, 0).items()}

    def plain(narrow: bool) -> list[Any]:
        with torch.autocast("cuda", torch.bfloat16, enabled=narrow):
            summed_loss(model, batch).backward()
        found = [parameter.grad.clone() for parameter in trained]
        model.zero_grad()
        return found

    exact = plain(narrow=False)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    worst = max(map(apart, plain(narrow=True), exact))
    packing = PackedModel(model, [{"params": trained}], torch.bfloat16, recomputed=0, longest=64)
    pack = lay_out(rows)
    objective = Objective(task("text"), None)  # type: ignore[arg-type]  # the sum of losses needs no setting
    passes = Passes(packing, objective, Device(torch.device("cuda", 0), torch.bfloat16), [pack], 2)
    with packing.engaged():
        for _ in range(2):  # recorded, then replayed
            packing.weights.gradients.zero_()
            passes(pack, 1)
            found = [packing.weights.gradient(parameter).clone() for parameter in trained]
            assert max(map(apart, found, exact)) < 1.5 * worst
    packing.release()


def drawn(*shape: int) -> Any:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def apart(one: Any, other: Any) -> float:
    """How far `one` is from `other`, as a share of it."""
    return float((one.float() - other.float()).norm() / other.float().norm())
