"""Several runs in the same steps: each as if it were alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs import loops
from jobs.events import Metrics, Started
from jobs.result import Result
from jobs.rundir import RunFiles
from jobs.spec import RunSpec
from tests import decoders, tiny
from tests.rundirs import CHILD, ROOT, events, make_run, series, train_here

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from jobs.rpc import child_environment  # noqa: E402
from jobs.training.monitor import StopRequest  # noqa: E402
from jobs.training.together import run_together  # noqa: E402

# Of different rates, lengths, scales, schedules, clipping, rows a step and data.
DIFFERENT: tuple[dict[str, Any], ...] = (
    {"training": {"batch_size": 4, "epochs": 2, "learning_rate": 2e-3}},
    {"training": {"batch_size": 2, "learning_rate": 1e-3, "schedule": "cosine", "max_steps": 9, "seed": 5}},
    {
        "method_params": {"r": 4, "alpha": 3},
        "training": {
            "batch_size": 3,
            "gradient_accumulation": 2,
            "learning_rate": 3e-3,
            "max_grad_norm": 0.05,
            "weight_decay": 0.1,
        },
        "rows": [{"prompt": f"What is {n} and {n}?", "completion": f"{2 * n}" + "!" * (n % 7)} for n in range(31)],
    },
)


def runs_in(folder: Path, model: Path, kinds: tuple[dict[str, Any], ...] = DIFFERENT) -> list[RunFiles]:
    found = []
    for number, over in enumerate(kinds):
        over = dict(over)
        rows = {"rows": over.pop("rows")} if "rows" in over else {}
        found.append(make_run(folder / str(number), model, **rows, **over))
    return found


def together(runs: list[RunFiles], attempt: int = 1) -> list[Result]:
    return run_together([(files, attempt, StopRequest(files.stop)) for files in runs])


def assert_same(one: RunFiles, other: RunFiles) -> None:
    for name in ("loss", "grad_norm", "eval_loss", "learning_rate"):
        assert series(other, name) == pytest.approx(series(one, name), rel=5e-5, abs=1e-6), name
    adapters = [load_file(files.adapter / "adapter_model.safetensors") for files in (one, other)]
    assert set(adapters[0]) == set(adapters[1])
    for name, value in adapters[0].items():
        assert (value - adapters[1][name]).abs().max() <= 1e-5 * max(1.0, float(value.abs().max())), name


@pytest.mark.parametrize("method", ("lora", "lora-plus", "qlora"))
def test_each_ends_with_the_weights_that_it_has_alone(method: str, tmp_path: Path, tiny_llama: Path) -> None:
    kinds = tuple({"method": method, **over} for over in DIFFERENT)
    alone, shared = (runs_in(tmp_path / name, tiny_llama, kinds) for name in ("alone", "shared"))
    for files in alone:
        assert train_here(files).state == "completed"
    assert [result.state for result in together(shared)] == ["completed"] * 3
    steps = [len(series(files, "loss")) for files in shared]
    assert len(set(steps)) == 3, "they end at different times"
    for one, other in zip(alone, shared, strict=True):
        assert_same(one, other)


def test_all_reckon_with_the_memory_that_was_free_before_the_first(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second was taken to need a base of its own beside the one that lies there, and so was told to save memory."""
    from jobs.training import load

    free = iter((40 << 30, 8 << 30, 7 << 30))
    machine = load.hardware_of(load.choose_device())
    monkeypatch.setattr(
        "jobs.training.load.hardware_of", lambda device: machine.model_copy(update={"memory_free": next(free)})
    )
    runs = runs_in(tmp_path, tiny_llama)
    assert [result.state for result in together(runs)] == ["completed"] * 3
    told = [event.hardware["memory_free"] for files in runs for event in events(files) if isinstance(event, Started)]
    assert told == [40 << 30] * 3


def test_those_that_are_left_go_on_with_the_plan_that_fitted(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.training.packed.passes import Passes

    tokens: list[int] = []
    real = Passes.__call__

    def call(passes: Passes, pack: Any, items: Any) -> Any:
        losses = real(passes, pack, items)
        tokens.append(pack.tokens)
        if len(tokens) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")
        return losses

    monkeypatch.setattr(Passes, "__call__", call)
    runs = runs_in(tmp_path, tiny_llama)
    assert [result.state for result in together(runs)] == ["completed"] * 3
    assert len({len(series(files, "loss")) for files in runs}) == 3, "they end at different times"
    assert max(tokens[2:]) < max(tokens[:2])


@pytest.mark.parametrize("after", ((), DIFFERENT[1:2]), ids=("one other", "two others"))
def test_one_that_goes_wrong_leaves_the_others_alone(
    after: tuple[dict[str, Any], ...], tmp_path: Path, tiny_llama: Path
) -> None:
    wild = {"training": {"learning_rate": 1.0, "max_grad_norm": 0, "batch_size": 1, "schedule": "constant"}}
    kinds = (DIFFERENT[0], {**wild, "method_params": {"r": 4, "alpha": 512}}, *after)
    alone, shared = (runs_in(tmp_path / name, tiny_llama, kinds) for name in ("alone", "shared"))
    results = together_with_a_broken_one(shared, broken=1)
    assert [result.state for result in results] == ["completed", "failed", "completed"][: len(kinds)]
    assert "not-a-number at step 3" in (results[1].reason or "")
    for place in (0, 2)[: 1 + len(after)]:
        assert train_here(alone[place]).state == "completed"
        assert_same(alone[place], shared[place])


def together_with_a_broken_one(runs: list[RunFiles], broken: int) -> list[Result]:
    """As if its second step had gone far too far."""
    from jobs.training.packed.adapter import Adapter

    real = Adapter.step

    def step(self: Adapter, skipped: Any) -> None:
        real(self, skipped)
        if self.place == broken and self._number == 2:
            self.weights.values.mul_(1e30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adapter, "step", step)
        return together(runs)


def test_one_that_is_stopped_goes_on_by_itself_as_if_nothing_had_been(tmp_path: Path, tiny_llama: Path) -> None:
    alone, shared = (runs_in(tmp_path / name, tiny_llama) for name in ("alone", "shared"))
    stop = StopAfter(shared[0], step=3)
    results = run_together(
        [(files, 1, stop if place == 0 else StopRequest(files.stop)) for place, files in enumerate(shared)]
    )
    assert [result.state for result in results] == ["stopped", "completed", "completed"]
    assert results[0].step < len(series(alone[0], "loss")) or results[0].step == 3
    assert train_here(shared[0], attempt=2).state == "completed"
    for one, other in zip(alone, shared, strict=True):
        assert train_here(one).state == "completed"
        assert_same(one, other)


class StopAfter(StopRequest):
    """Asks once so many steps were told."""

    def __init__(self, files: RunFiles, step: int) -> None:
        super().__init__(files.stop)
        self._files, self._step = files, step

    def __bool__(self) -> bool:
        told = [event for event in events(self._files) if isinstance(event, Metrics)]
        return bool(told) and told[-1].step >= self._step


def test_a_child_trains_them_in_its_own_process(tmp_path: Path, tiny_llama: Path) -> None:
    runs = runs_in(tmp_path, tiny_llama, DIFFERENT[:2])
    command = [*CHILD, "--together", *(str(files.directory) for files in runs)]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert subprocess.run(command, cwd=ROOT, env=child_environment(), check=False, timeout=300).returncode == 0
    for files in runs:
        assert Result.model_validate_json(files.result.read_bytes()).state == "completed"
        assert (files.adapter / "adapter_model.safetensors").is_file()
    assert str(runs[0].log) in runs[1].log.read_text()
    assert os.getpriority(os.PRIO_PROCESS, 0) == own, "a session that is not the child's does not give way"


@pytest.mark.parametrize(
    ("over", "reason"),
    (
        ({"method_params": {"r": 8}}, "differ in rank"),
        ({"method": "dora"}, "DoRA trains by itself"),
        ({"method_params": {"r": 4, "dropout": 0.1}}, "with dropout trains by itself"),
        ({"method": "rslora"}, "different methods"),
    ),
)
def test_what_cannot_share_steps_is_told_and_nothing_is_trained(
    over: dict[str, Any], reason: str, tmp_path: Path, tiny_llama: Path
) -> None:
    runs = runs_in(tmp_path, tiny_llama, (DIFFERENT[0], over))
    specs = [RunSpec.model_validate_json(files.spec.read_bytes()) for files in runs]
    assert reason in (loops.why_apart(specs) or "")
    for result, files in zip(together(runs), runs, strict=True):
        assert result.state == "failed" and reason in (result.reason or "")
        assert not series(files, "loss")


def test_models_whose_layers_are_transformers_own_are_told_to_train_apart(tmp_path: Path) -> None:
    model = tmp_path / "model"
    decoders.build("gemma3_text").save_pretrained(model)
    tiny.build_tokenizer().save_pretrained(model)
    for result in together(runs_in(tmp_path, model, DIFFERENT[:2])):
        assert result.state == "failed"
        assert "gemma3_text" in (result.reason or "") and "Start each by itself" in (result.reason or "")


def test_a_run_of_another_base_is_refused_also_where_a_third_cannot_be_read(tmp_path: Path, tiny_llama: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    runs = runs_in(tmp_path / "one", tiny_llama, DIFFERENT[:2]) + runs_in(tmp_path / "two", other, DIFFERENT[:1])
    runs[1].spec.write_text("{")
    results = together(runs)
    assert [result.state for result in results] == ["failed"] * 3
    assert "different base models" in (results[0].reason or "") or "another base" in (results[2].reason or "")
    assert not series(runs[2], "loss")
