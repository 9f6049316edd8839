"""The packed loop where memory runs out in mid-run: the step is taken once more in less, and nothing else changes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from benchmarks.children import train
from jobs.hardware import processor, this_machine
from jobs.postmortem import _OOM_WORDS
from jobs.rundir import RunFiles
from tests.rundirs import make_run, series, train_here
from tests.test_packed_loop import packed_model, random_rows, run_in, started, tensors, with_lora

torch = pytest.importorskip("torch")
from jobs.training.objective import Objective  # noqa: E402
from jobs.training.packed.model import PackedModel  # noqa: E402
from jobs.training.packed.packs import lay_out  # noqa: E402
from jobs.training.packed.passes import Passes  # noqa: E402

SHIPS = [
    {"prompt": f"Where is ship {n}?", "completion": "Arr, be at sea, " + "far from its harbour, " * (1 + n % 7)}
    for n in range(24)
]
TWICE = "To save memory, all layers are computed twice instead of being remembered: it learns the same, more slowly."
SETTINGS = {"batch_size": 8, "max_length": 128, "validation_percent": 20, "learning_rate": 3e-3}


class RunsOut:
    """In the place of Passes.__call__: passes of such numbers are computed, gradients and all, and then fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Any) -> None:
        self.tokens: list[int] = []
        real = Passes.__call__

        def call(passes: Passes, pack: Any, items: Any) -> Any:
            losses = real(passes, pack, items)
            self.tokens.append(pack.tokens)
            if fails(len(self.tokens)):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")
            return losses

        monkeypatch.setattr(Passes, "__call__", call)


def ships(folder: Path, model: Path, **training: Any) -> RunFiles:
    return make_run(folder, model, SHIPS, training=SETTINGS | training)


def test_a_step_that_runs_out_of_memory_is_taken_again_and_the_curve_is_the_same(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calm, tried = ships(tmp_path / "calm", tiny_llama), ships(tmp_path / "tried", tiny_llama)
    assert train_here(calm).state == "completed"
    assert "Memory ran out" not in caplog.text
    with monkeypatch.context() as patched:
        passes = RunsOut(patched, lambda number: number == 2)
        assert train_here(tried).state == "completed"
    first, second = passes.tokens[:2]
    assert max(passes.tokens[2:]) < min(first, second), "from then on its packs are smaller"
    said = [record.message for record in caplog.records if record.name == "jobs.training.packed.loop"]
    assert said == [
        "Memory ran out with packs of 1,024 tokens.",
        f"Going on with packs of 128 tokens. {TWICE}",
    ]
    assert not _OOM_WORDS.search(" ".join(said)), "whatever ends the run later, it was not this"
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        one, other = series(calm, name), series(tried, name)
        assert set(one) == set(other) and len(one) > 1
        assert other == pytest.approx(one, rel=1e-5), name


@pytest.mark.parametrize("loop", ["auto", "plain"])
def test_memory_that_runs_out_in_an_evaluation_does_not_end_the_run(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    caplog.set_level(logging.INFO)
    settings = {"batch_size": 4, "max_length": 48, "validation_percent": 30}
    runs = [run_in(loop, tmp_path / name, tiny_llama, training=settings) for name in ("calm", "tried")]
    assert train_here(runs[0]).state == "completed"
    real = Objective.collate
    together: list[int] = []

    def collate(self: Objective, rows: Any) -> Any:
        if torch.is_inference_mode_enabled():
            together.append(len(rows))
            if len(rows) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 656.00 MiB.")
        return real(self, rows)

    monkeypatch.setattr(Objective, "collate", collate)
    assert train_here(runs[1]).state == "completed"
    assert max(together) > 2 and together.count(1) > 4
    assert "one at a time" in caplog.text and not _OOM_WORDS.search(caplog.text)
    one, other = (series(files, "eval_loss") for files in runs)
    assert len(one) > 1 and other == pytest.approx(one, rel=1e-4)


def test_what_a_task_follows_is_not_counted_twice(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preference tuning tells how far apart a step's answers are: those of a pass before the one that failed, too."""
    settings = {"batch_size": 1, "gradient_accumulation": 4, "max_length": 48}
    runs = [run_in("auto", tmp_path / name, tiny_llama, task="dpo", training=settings) for name in ("calm", "tried")]
    assert train_here(runs[0]).state == "completed"
    with monkeypatch.context() as patched:
        RunsOut(patched, lambda number: number == 6)  # of four a step
        assert train_here(runs[1]).state == "completed"
    one, other = (series(files, "train_reward_margin") for files in runs)
    assert one and other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_where_nothing_needs_less_the_run_says_that_memory_ran_out(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patched:
        passes = RunsOut(patched, lambda number: True)
        result = train_here(ships(tmp_path / "run", tiny_llama))
    assert result.state == "failed" and result.reason and "memory" in result.reason
    assert 2 <= len(passes.tokens) < 20, "it tries a few plans, each once"
    assert "layers are computed twice" in caplog.text


def test_where_not_even_the_smaller_plan_can_be_set_up_it_says_so_too(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[PackedModel] = []
    real = PackedModel.__init__

    def make(self: PackedModel, *given: Any, **more: Any) -> None:
        made.append(self)
        if len(made) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")
        real(self, *given, **more)

    monkeypatch.setattr(PackedModel, "__init__", make)
    RunsOut(monkeypatch, lambda number: True)
    result = train_here(ships(tmp_path / "run", tiny_llama))
    assert len(made) == 2
    assert result.state == "failed" and result.reason and "Ran out of GPU memory" in result.reason


def test_on_a_processor_memory_does_not_climb_with_each_new_length(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor with a document's: what products in 16 bits are compiled to for each is half a megabyte."""
    monkeypatch.delenv("GRAFT_CPU_BF16")
    if not processor().bf16:
        pytest.skip("needs a processor that computes in bfloat16")
    rows = [{"prompt": f"Ship {n}?", "completion": "far at sea " * (2 + n * 7 % 43)} for n in range(200)]
    settings = {"batch_size": 4, "max_length": 256, "validation_percent": 0, "epochs": 1}
    files = make_run(tmp_path / "run", tiny_llama, rows, training=settings)
    train(files)
    resident = series(files, "memory")
    early, last = max(resident[step] for step in range(1, 11)), resident[max(resident)]
    assert last - early < 64 << 20, f"{(last - early) / 1e6:.0f} MB in {len(resident)} steps"


@pytest.mark.gpu
@pytest.mark.skipif(this_machine().device != "cuda", reason="needs a CUDA GPU")
def test_on_a_gpu_passes_are_recorded_anew(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calm, tried = ships(tmp_path / "calm", tiny_llama), ships(tmp_path / "tried", tiny_llama)
    assert train_here(calm).state == "completed"
    with monkeypatch.context() as patched:
        RunsOut(patched, lambda number: number == 3)
        assert train_here(tried).state == "completed"
    assert "Going on with packs of" in caplog.text
    assert series(tried, "loss") == pytest.approx(series(calm, "loss"), rel=2e-2)


@pytest.mark.parametrize("loop", ("auto", "plain"))
def test_a_run_keeps_its_memory_limit_in_either_loop_and_learns_the_same(
    loop: str, tmp_path: Path, tiny_llama: Path
) -> None:
    roomy, short = (
        ships(tmp_path / str(limit), tiny_llama, loop=loop, memory_limit_gb=limit, max_steps=3) for limit in (0, 0.1)
    )
    for files in (roomy, short):
        assert train_here(files).state == "completed"
    assert TWICE not in started(roomy).hardware["loop_why"]
    assert started(short).hardware["loop_why"].endswith(TWICE)
    assert series(short, "loss") == pytest.approx(series(roomy, "loss"), rel=1e-5)


def test_embeddings_that_once_went_to_the_host_are_found_there_by_every_later_plan() -> None:
    model, rows = with_lora("qwen2"), random_rows(5)  # whose head is not its embedding
    batch = tensors(lay_out(rows))
    found = []
    for moved in (False, True, True, False):
        packing = packed_model(model, embedding_on_host=moved)
        packing.leaves.begin_pass()
        with packing.engaged():
            brought = packing.brought(batch["input_ids"])
            found.append(packing.losses(batch | brought).detach())
        packing.leaves.end_pass()
        packing.release()
        assert bool(brought) == (len(found) > 1)
    assert all(torch.equal(found[0], each) for each in found[1:])
