"""The packed loop on a CUDA GPU: each kernel against its reference, a recorded pass against the pass itself."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from jobs.hardware import this_machine

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(this_machine().device != "cuda", reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("size", (576, 2048, 4096))
def test_the_norm_kernels_are_their_reference(size: int) -> None:
    from jobs.training.packed import kernels, pieces

    x, dy, onto = (drawn(300, size) for _ in range(3))
    weight = drawn(size)
    found, expected = (of(x, weight, 1e-5) for of in (kernels.norm, pieces.norm_reference))
    for one, other in zip(found, expected, strict=True):
        assert apart(one, other) < 2e-4  # a value on the edge of rounding may go either way
    scale = expected[1]
    slope = kernels.norm_backward(dy, onto, x, weight, scale)
    assert apart(slope, pieces.norm_backward_reference(dy, onto, x, weight, scale)) < 1e-4


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


@pytest.mark.parametrize("rank", (0, 1, 8, 16, 48, 64))
@pytest.mark.parametrize("rows", (5, 3_000))
def test_a_sum_and_what_waits_for_it_are_their_reference(rows: int, rank: int) -> None:
    from jobs.training.packed import finishing, finishing_kernels

    y, onto = drawn(rows, 576), drawn(rows, 576)
    (waits,) = waiting(rows, (576,), (rank,))
    expected = finishing.add_reference(y.float(), onto.float(), waits)
    apart_from_it = torch.empty_like(y)
    assert apart(finishing_kernels.add(y, onto, waits, apart_from_it), expected) < 4e-3
    assert apart(finishing_kernels.add(y, onto, waits, out=y), expected) < 4e-3


@pytest.mark.parametrize("ranks", ((0, 0, 0), (16, 16, 16), (4, 0, 64), (0, 1, 0), (0, 0, 8)))
@pytest.mark.parametrize("rows", (5, 3_000))
def test_the_gate_kernels_are_their_reference(rows: int, ranks: tuple[int, ...]) -> None:
    from jobs.training.packed import finishing, finishing_kernels

    inner = 1_000  # no multiple of a tile
    both, dy = drawn(rows, 2 * inner), drawn(rows, inner)
    wait = waiting(rows, (inner, inner), ranks[:2])
    left, right = drawn(rows, ranks[2]) / 4, drawn(ranks[2], inner) / 4
    slope = finishing.Addend(left, right) if ranks[2] else None
    before = both.clone()
    assert apart(finishing_kernels.gate(both, wait), finishing.gate_reference(both.float(), wait)) < 4e-3
    assert torch.equal(both, before)
    expected = finishing.gate_backward_reference(dy.float(), both.float(), wait, slope)
    for one, other in zip(finishing_kernels.gate_backward_(dy, both, wait, slope), expected, strict=True):
        assert apart(one, other) < 4e-3


@pytest.mark.parametrize("turns", (False, True))
@pytest.mark.parametrize("ranks", ((0, 0, 0), (16, 16, 16), (8, 0, 8), (0, 1, 64)))
@pytest.mark.parametrize(("queries", "keys", "size"), ((32, 8, 64), (9, 3, 64), (8, 2, 128), (4, 1, 256), (3, 1, 80)))
def test_finished_heads_are_their_reference_and_so_is_the_way_back(
    queries: int, keys: int, size: int, ranks: tuple[int, ...], turns: bool
) -> None:
    from jobs.training.packed import finishing

    counts, angle = (queries, keys, keys), torch.randn(300, size // 2, device="cuda")
    cos, sin = (torch.cat((part, part), 1).bfloat16() if turns else None for part in (angle.cos(), angle.sin()))
    heads = finishing.Heads(queries, keys, size, cos, sin)
    exact = finishing.Heads(queries, keys, size, *(part.float() if turns else None for part in (cos, sin)))
    x = drawn(300, sum(counts), size)
    wait = waiting(300, tuple(count * size for count in counts), ranks)
    expected = x.float()
    finishing.finish_heads_reference_(expected, exact, wait)
    heads.finish_(x, wait)
    assert apart(x, expected) < 4e-3
    parts = [drawn(300, count, size) for count in counts]
    parts[0] = drawn(queries, 300, size).transpose(0, 1)  # as attention may leave it
    expected = torch.cat([part.float() for part in parts], dim=1)
    if turns:
        expected = finishing.join_heads_reference([part.float() for part in parts], exact.cos, exact.sin)
    assert apart(heads.slope(parts), expected) < 4e-3


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
    from jobs.training.packed.packs import lay_out
    from jobs.training.packed.passes import _TIMED, Passes
    from tests.test_packed_loop import packed_model, random_rows, with_lora

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
    packing = packed_model(model, torch.bfloat16)
    pack = lay_out(rows)
    objective = Objective(task("text"), None)  # type: ignore[arg-type]  # the sum of losses needs no setting
    passes = Passes(packing, [objective], Device(torch.device("cuda", 0), torch.bfloat16), [pack], 2)
    with packing.engaged():
        for _ in range(_TIMED.stop + 2):  # computed and timed; recorded, then replayed
            packing.weights[0].gradients.zero_()
            passes(pack, [1])
            found = [packing.weights[0].gradient(parameter).clone() for parameter in trained]
            assert max(map(apart, found, exact)) < 1.5 * worst
    assert len(passes._recorded) == 1, "a model as small as this one waits for its launches"
    packing.release()


@pytest.mark.parametrize(
    "plan",
    (
        {"recomputed": 2},
        {"recomputed": 3},
        {"embedding_on_host": True},
        {"recomputed": 3, "embedding_on_host": True, "offloaded": True},
    ),
)
@pytest.mark.parametrize("family", ("mistral", "qwen3", "gemma3_text"))
def test_a_plan_that_saves_memory_computes_the_same(family: str, plan: dict[str, Any]) -> None:
    one, other = (bf16_gradients(family, 3, **settings) for settings in ({}, plan))
    for mine, theirs in zip(one, other, strict=True):
        assert apart(theirs, mine) < 1e-3


def bf16_gradients(family: str, packs: int, **plan: Any) -> list[Any]:
    """Of several passes one after another."""
    from jobs.tasks import task
    from jobs.training.load import Device
    from jobs.training.objective import Objective
    from jobs.training.packed.packs import lay_out
    from jobs.training.packed.passes import Passes
    from tests.test_packed_loop import packed_model, random_rows, with_lora

    model = with_lora(family).to("cuda")
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    packing = packed_model(model, torch.bfloat16, **plan)
    objective = Objective(task("text"), None)  # type: ignore[arg-type]
    passes = Passes(packing, [objective], Device(torch.device("cuda", 0), torch.bfloat16), [], 2)
    passes._sizes = None  # computed each time, not recorded
    with packing.engaged():
        for number in range(packs):
            passes(lay_out(random_rows(30, seed=number, longest=60)), [1])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = [packing.weights[0].gradient(parameter).clone() for parameter in trained]
    packing.release()
    return found


@pytest.mark.parametrize("nested", (False, True))
def test_unpacking_4_bits_is_what_bitsandbytes_unpacks(nested: bool) -> None:
    from bitsandbytes.functional import quantize_4bit

    from jobs.training.packed import frozen, kernels

    for shape in ((320, 576), (4096, 1024), (7, 64)):
        packed, state = quantize_4bit(drawn(*shape), blocksize=64, quant_type="nf4", compress_statistics=nested)
        found = torch.full(shape, float("nan"), device="cuda", dtype=torch.bfloat16)
        kernels.unpack_4bit(packed, state, found)
        assert torch.equal(found, frozen.unpack_reference(packed, state, torch.bfloat16))


@pytest.mark.parametrize("window", (None, 20))
@pytest.mark.parametrize(("heads", "keys", "size"), ((8, 2, 64), (4, 4, 128)))
def test_attention_to_packed_documents_is_that_to_each(heads: int, keys: int, size: int, window: int | None) -> None:
    from jobs.training.packed import attention

    ends = torch.tensor([0, 40, 41, 200, 300, 300], device="cuda", dtype=torch.int32)  # the last one is empty
    given = [drawn(300, count, size).requires_grad_() for count in (heads, keys, keys)]
    exact = [each.detach().float().cpu().requires_grad_() for each in given]
    slope = drawn(300, heads, size)
    found = attention.attend(*given, ends, 200, None, window)
    expected = attention.attend(*exact, ends.cpu(), 200, None, window)
    assert apart(found.cpu(), expected) < 8e-3
    slopes = torch.autograd.grad(found, given, slope)
    for one, other in zip(slopes, torch.autograd.grad(expected, exact, slope.float().cpu()), strict=True):
        assert apart(one.cpu(), other) < 1e-2


def test_the_route_kernel_is_its_reference() -> None:
    from jobs.training.packed import kernels, pieces

    x = drawn(300, 96)
    adapters = torch.randint(0, 3, (300,), device="cuda", dtype=torch.int32)
    owners = torch.arange(3, device="cuda", dtype=torch.int32).repeat_interleave(16).repeat(2)
    scales = torch.rand(96, device="cuda") + 0.5
    expected = pieces.route_reference_(x.float(), adapters, owners, scales)
    assert apart(kernels.route_(x.clone(), adapters, owners, scales), expected) < 4e-3


@pytest.mark.parametrize("size", (576, 4096, 28_672))
def test_rounding_to_8_bits_is_its_reference(size: int) -> None:
    from jobs.training.packed import float8, kernels

    x, factors = drawn(100, size), torch.rand(size, device="cuda") + 0.5
    for given in (None, factors):
        found, scales = kernels.round_rows(x, given)
        expected, expected_scales = float8.round_rows_reference(x, given)
        assert apart(scales, expected_scales) < 1e-6
        assert apart(found.float(), expected.float()) < 4e-3  # a value on the edge may go either way
    weight = float8.round_rows_reference(drawn(320, size))[0]
    assert torch.equal(kernels.transposed(weight).view(torch.uint8), weight.t().contiguous().view(torch.uint8))


@pytest.mark.skipif(not this_machine().fp8, reason="needs a GPU that multiplies 8-bit floats")
def test_products_in_8_bits_are_the_rounded_ones() -> None:
    from jobs.training.packed import float8

    weight, x, dy = drawn(768, 512) * 0.02, drawn(300, 512), drawn(300, 768)
    rounded, scales = float8.round_rows_reference(weight)
    held = float8.Float8(rounded, scales, drawn(768))
    on_cpu = float8.Float8(rounded.cpu(), scales.cpu(), held._bias.cpu())  # type: ignore[union-attr]
    assert apart(held.product(x).cpu(), on_cpu.product(x.cpu())) < 1e-2
    assert apart(held.product_back(dy).cpu(), on_cpu.product_back(dy.cpu())) < 1e-2
    assert apart(held.product_back(dy), dy @ weight) < 5e-2


def test_several_adapters_learn_as_one_does(tmp_path: Any) -> None:
    """On the GPU, recorded: the curves of runs together against those of each alone, in bf16."""
    from tests.rundirs import series, train_here
    from tests.test_together import DIFFERENT, runs_in, together
    from tests.tiny import build_llama

    model = build_llama(tmp_path / "model")
    kinds = tuple({**over, "training": {**over["training"], "evaluations": 1}} for over in DIFFERENT)
    alone, shared = (runs_in(tmp_path / name, model, kinds) for name in ("alone", "shared"))
    assert [result.state for result in together(shared)] == ["completed"] * 3
    for one, other in zip(alone, shared, strict=True):
        assert train_here(one).state == "completed"
        assert series(other, "loss") == pytest.approx(series(one, "loss"), rel=2e-2)


@pytest.mark.parametrize("bytes_left", (0, 4 << 20))
def test_memory_that_runs_out_while_a_pass_is_recorded_does_not_end_the_run(
    bytes_left: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.rundirs import series, train_here
    from tests.test_packed_memory import ships
    from tests.tiny import build_llama

    class Starved(torch.cuda.graph):
        """There is next to nothing left for it: its memory is apart from what the process keeps."""

        begun = 0

        def __enter__(self) -> None:
            super().__enter__()
            Starved.begun += 1
            there = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + bytes_left) / there)

        def __exit__(self, *error: Any) -> None:
            torch.cuda.set_per_process_memory_fraction(1.0)
            super().__exit__(*error)

    model = build_llama(tmp_path / "model")
    calm, tried = (ships(tmp_path / name, model, epochs=8) for name in ("calm", "tried"))
    assert train_here(calm).state == "completed"
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "graph", Starved)
    assert train_here(tried).state == "completed"
    assert Starved.begun == caplog.text.count("Memory ran out with packs") == 1, "what needs the least is not recorded"
    for name in ("loss", "eval_loss"):
        assert series(tried, name) == pytest.approx(series(calm, name), rel=2e-2), name


def waiting(rows: int, columns: tuple[int, ...], ranks: tuple[int, ...]) -> list[Any]:
    """What waits for each of the parts of a product, as a group gives it: parts of one product of low rank."""
    from jobs.training.packed.finishing import Addend

    parts = (drawn(rows, sum(ranks)) / 4).split(ranks, dim=1)
    return [
        Addend(part, (drawn(width, rank) / 4).t()) if rank else None
        for part, width, rank in zip(parts, columns, ranks, strict=True)
    ]


def drawn(*shape: int) -> Any:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def apart(one: Any, other: Any) -> float:
    """How far `one` is from `other`, as a share of it."""
    return float((one.float() - other.float()).norm() / other.float().norm())
