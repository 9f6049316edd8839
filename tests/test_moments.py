"""AdamW's moments in 8 bits and in pages: they learn as 32 bits do, take what is said, and survive a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.hardware import processor, this_machine
from jobs.memory.estimate import Planner
from jobs.methods import method
from jobs.result import Result
from jobs.rundir import RunFiles
from jobs.shape import read_shape
from jobs.spec import TrainingParams
from tests import tiny
from tests.rundirs import make_run, series, train_here

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
from jobs.training import plain  # noqa: E402
from jobs.training.moments import HeldAdamW, embeddings  # noqa: E402

# A method, the loop that trains it, and the file in which a checkpoint of that loop has the moments.
LOOPS = [("full", "plain", "optimizer.pt"), ("lora", "packed", "packed.pt")]
GPU = pytest.mark.skipif(this_machine().device != "cuda", reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for 8 bits and for pages."""
    return tiny.build_llama(tmp_path_factory.mktemp("wide") / "model", hidden=256)


def run_of(folder: Path, model: Path, name: str, optimizer: str) -> RunFiles:
    params = {"r": 64} if name == "lora" else {}  # 8 layers of up to 512: more numbers than a page takes
    rate = 2e-3 if name == "lora" else 5e-4
    training = {"optimizer": optimizer, "learning_rate": rate, "max_steps": 8, "early_stop": 0, "evaluations": 2}
    return make_run(folder, model, method=name, method_params=params, training=training)


def stopped_after(files: RunFiles, step: int, loop: str) -> Result:
    """One attempt that is asked to stop when `step` is taken."""
    from jobs.training.monitor import StopRequest
    from jobs.training.packed.loop import train
    from jobs.training.run import Attempt

    def stopping(job: Any, monitor: Any) -> None:
        due, done = monitor.due, monitor.step_done

        def step_done(number: int, **values: Any) -> bool:
            if number == step:
                files.stop.touch()
            return bool(done(number, **values))

        monitor.step_done = step_done
        monitor.due = lambda number: number == step or due(number)
        (train if loop == "packed" else plain.train)(job, monitor)

    return Attempt(files, 1, StopRequest(files.stop), stopping).run()


def kept(files: RunFiles, state: str) -> list[Any]:
    """The first moments in the newest checkpoint."""
    newest = max(files.checkpoints.iterdir(), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
    saved = torch.load(newest / "state" / state, weights_only=True)
    each = saved.get("optimizer", saved)["state"].values()
    return [values[HeldAdamW._FSDP_WRAPPED_QUANT_STATE_KEY]["state1"] for values in each]


def learns_and_goes_on(folder: Path, model: Path, name: str, loop: str, state: str, optimizer: str) -> None:
    usual, whole, cut = (
        run_of(folder / each, model, name, "adamw" if each == "usual" else optimizer)
        for each in ("usual", "whole", "cut")
    )
    assert {train_here(files).state for files in (usual, whole)} == {"completed"}
    exact, narrow = (series(files, "loss") for files in (usual, whole))
    assert narrow[8] < narrow[1] - 0.2
    if optimizer.endswith("8bit"):
        assert narrow == pytest.approx(exact, rel=0.03) and narrow != exact
    else:  # the same numbers; bitsandbytes' kernels round some of them otherwise than PyTorch's
        assert narrow == pytest.approx(exact, rel=1e-4)
    moments = kept(whole, state)
    if optimizer.endswith("8bit"):
        wide = [moment for moment in moments if moment.dtype is not torch.uint8 and moment.numel() >= 4096]
        embedded = [read_shape(model).vocab_size] if name == "full" else []
        assert len(wide) < len(moments) and [len(moment) for moment in wide] == embedded

    assert stopped_after(cut, 5, loop).step == 5
    cut.stop.unlink()
    assert train_here(cut, attempt=2).state == "completed"
    assert series(cut, "loss") == pytest.approx(narrow, rel=1e-6)


@pytest.mark.parametrize(("name", "loop", "state"), LOOPS)
def test_8_bits_learn_as_32_do_and_go_on_from_a_checkpoint(
    name: str, loop: str, state: str, tmp_path: Path, model: Path
) -> None:
    learns_and_goes_on(tmp_path, model, name, loop, state, "adamw-8bit")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("optimizer", ["adamw-8bit", "adamw-paged", "adamw-paged-8bit"])
@pytest.mark.parametrize(("name", "loop", "state"), LOOPS)
def test_on_a_gpu_each_learns_and_goes_on(
    name: str, loop: str, state: str, optimizer: str, tmp_path: Path, model: Path
) -> None:
    learns_and_goes_on(tmp_path, model, name, loop, state, optimizer)


@pytest.mark.gpu
@GPU
def test_pages_stay_pages_when_they_come_back_from_a_checkpoint() -> None:
    weight = torch.nn.Parameter(torch.randn(500, 400, device="cuda"))
    weight.grad = torch.randn_like(weight)
    first, second = (HeldAdamW([{"params": [weight]}], 1e-3, narrow=True, paged=True) for _ in range(2))
    first.step()
    second.load_state_dict(first.state_dict())
    for name in ("state1", "state2"):
        moment = second.state[weight][name]
        assert moment.is_paged and torch.equal(moment, first.state[weight][name])
        assert moment.data_ptr() != first.state[weight][name].data_ptr()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_the_estimate_counts_the_bytes_that_are_held(optimizer: str, model: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model)
    training = TrainingParams(optimizer=optimizer)  # type: ignore[arg-type]
    groups = [{"params": list(loaded.parameters())}]
    made = HeldAdamW(groups, 1e-3, narrow=training.narrow_moments, paged=False, exact=embeddings(loaded))
    for parameter in loaded.parameters():
        parameter.grad = torch.randn_like(parameter)
    made.step()
    tables = ("qmap1", "qmap2")  # of 256 numbers, one for all
    held = sum(
        value.nbytes
        for state in made.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in tables
    )
    full = method("full")
    counted = Planner(read_shape(model), full, type(full).Params(), training, processor()).planned()[1].optimizer
    assert counted == pytest.approx(held, rel=0.01)
