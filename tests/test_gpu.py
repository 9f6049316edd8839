"""On a CUDA GPU: the training child and the engine compute there, in 16 bits, and nothing of the contract changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.data.columns import Mapping, Shape
from jobs.events import Started
from jobs.hardware import this_machine
from jobs.inference.client import EngineClient
from jobs.inference.protocol import Row
from jobs.inference.sampling import Sampling
from jobs.methods import all_methods, method
from jobs.methods.base import Method
from jobs.rundir import RunFiles
from jobs.shape import read_shape
from jobs.spec import BaseModelRef, DatasetRef
from tests import rundirs, tiny
from tests.rundirs import QUESTIONS, events, make_run, series, start_child
from tests.test_methods import HELD, Base, Tuned, answer, load_base, put_on, small_params, train_until
from tests.test_tasks_classifying import KINDS, details, said
from tests.test_tasks_classifying import train as classifying_run
from tests.test_tasks_preference import run_of as preference_run
from tests.test_tasks_rewrite import run_of as rewriting_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(this_machine().device != "cuda", reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize(
    ("method", "recompute"), [("lora", False), ("lora", True), ("qlora", False), ("qlora", True)], ids=str
)
def test_a_run_trains_on_the_gpu(tmp_path: Path, tiny_llama: Path, method: str, recompute: bool) -> None:
    files = make_run(
        tmp_path, tiny_llama, method=method, training={"recompute": recompute}, prompts=("Where is ship 3?",)
    )
    assert start_child(files).wait(180) == 0
    end = rundirs.result(files)
    assert (end.state, end.reason, end.step) == ("completed", None, 12)
    started = next(event for event in events(files) if isinstance(event, Started))
    assert started.hardware["device"] == "cuda"
    assert started.hardware["dtype"] == "bfloat16"
    loss = series(files, "loss")
    assert loss[12] < loss[1] - 0.2
    assert all(0 < value < 1 << 34 for value in series(files, "memory").values())


def test_a_second_attempt_on_the_gpu_goes_on_where_the_first_was(tmp_path: Path, tiny_llama: Path) -> None:
    whole, cut = make_run(tmp_path / "whole", tiny_llama), make_run(tmp_path / "cut", tiny_llama)
    rundirs.train_here(whole)
    rundirs.train_here(cut)
    for checkpoint in sorted(cut.checkpoints.glob("checkpoint-*"))[-1:]:
        checkpoint.rename(tmp_path / "gone")  # as if it had died before the last one
    rundirs.train_here(cut, attempt=2)
    assert series(cut, "loss") == pytest.approx(series(whole, "loss"), abs=1e-2)


def test_base_and_adapters_answer_together_on_the_gpu(tmp_path: Path, tiny_llama: Path) -> None:
    adapters = [tiny.build_adapter(tiny_llama, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    sampling = Sampling(temperature=0.8, max_tokens=12, seed=3)
    rows = [
        Row(adapter=adapter, messages=({"role": "user", "content": "the quick brown fox"},), sampling=sampling)
        for adapter in (None, *adapters)
    ]
    client = EngineClient(BaseModelRef(name="tiny", folder=tiny_llama), tmp_path / "engine.log")
    try:
        first, second = (_texts(client, rows) for _ in range(2))
        assert first == second, "the same request gives the same answers"
        assert len(set(first)) == 3
    finally:
        client.close()


def _texts(client: EngineClient, rows: list[Row]) -> list[str]:
    texts = [""] * len(rows)
    for reply in client.answer("the only one", rows):
        for more in reply.more:
            texts[more.row] += more.text
    return texts


def settings_of(chosen: Method, **over: Any) -> dict[str, Any]:
    """A run of twenty steps on the same rows, so that the loss says whether the method learns."""
    params = small_params(chosen).model_copy(update=over)
    if chosen.name == "trainable-tokens":
        params = params.model_copy(update={"tokens": "<|im_start|> <|im_end|>"})
    return {"method": chosen.name, "method_params": params.model_dump()}


def run_of(folder: Path, model: Path, chosen: Method, settings: dict[str, Any]) -> RunFiles:
    rate = chosen.learning_rate(read_shape(model))
    training = {"learning_rate": rate, "epochs": 20, "max_steps": 20, "batch_size": 24, "schedule": "constant"}
    return make_run(folder, model, training=training, **settings)


def learned(files: RunFiles) -> bool:
    loss = list(series(files, "loss").values())
    return len(loss) == 20 and loss[-1] < 0.998 * loss[0]


@pytest.mark.parametrize("name", all_methods())
def test_every_method_trains_and_resumes_on_the_gpu(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    chosen, shape = method(name), read_shape(tiny_llama)
    settings = settings_of(chosen)
    params = type(chosen).Params(**settings["method_params"])
    if chosen.check(params, shape, this_machine()):
        assert name == "bitfit"
        return
    whole = run_of(tmp_path / "whole", tiny_llama, chosen, settings)
    end = rundirs.train_here(whole)
    assert (end.state, end.reason, end.trainable_parameters) == ("completed", None, chosen.trainable(params, shape))
    assert learned(whole)

    stopped = run_of(tmp_path / "stopped", tiny_llama, chosen, settings)
    assert train_until(stopped, 7).state == "stopped"
    stopped.stop.unlink()
    assert rundirs.train_here(stopped, attempt=2).state == "completed"
    assert series(stopped, "loss") == pytest.approx(series(whole, "loss"), abs=3e-2)


@pytest.mark.parametrize(("name", "held"), HELD)
def test_a_method_trains_beside_a_quantized_base_on_the_gpu(
    name: str, held: str, tmp_path: Path, tiny_llama: Path
) -> None:
    chosen = method(name)
    settings = settings_of(chosen, base_weights=held)
    params = type(chosen).Params(**settings["method_params"])
    if problems := chosen.check(params, read_shape(tiny_llama), this_machine()):
        assert (name, held) == ("dora", "8-bit") and "Choose 4-bit" in problems[0]
        return
    files = run_of(tmp_path / "run", tiny_llama, chosen, settings)
    end = rundirs.train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    assert learned(files)


@pytest.fixture(scope="module")
def narrow(tiny_llama: Path) -> Base:
    """The tiny model on the GPU as training holds it."""
    from dataclasses import replace

    from jobs.training.load import choose_device

    device = choose_device()
    base = load_base(tiny_llama, "CAUSAL_LM")
    return replace(base, model=base.model.to(device.name, device.dtype))


def taught(name: str, base: Base, rate: float = 1e-2) -> Tuned:
    """A method on a copy of `base`, after twenty steps at a rate that certainly moves it."""
    from jobs.training.load import choose_device

    tuned = Tuned(method(name), base)
    for group in tuned.optimizer.param_groups:
        group["lr"] = max(group["lr"], rate)
    with choose_device().autocast():
        for _ in range(20):
            tuned.step()
    return tuned


LEARNERS = [name for name in all_methods() if name != "bitfit"]  # the tiny model has no biases


@pytest.mark.parametrize("name", LEARNERS)
def test_what_was_saved_on_the_gpu_says_the_same(name: str, narrow: Base, tmp_path: Path) -> None:
    from jobs.training.load import choose_device

    tuned = taught(name, narrow)
    with choose_device().autocast():
        untaught = answer(narrow.model, "CAUSAL_LM").float()
        expected = answer(tuned.model, "CAUSAL_LM").float()
        with put_on(narrow.fresh(), tuned.saved(tmp_path / "adapter")) as loaded:
            found = answer(loaded, "CAUSAL_LM").float()
    moved = (expected - untaught).abs().mean()
    assert moved > 0
    assert (found - expected).abs().mean() < max(0.05 * moved, 2e-3)  # 16 bits tell neighbours apart to 1 in 256


def test_adapters_of_our_own_kinds_answer_beside_the_base_on_the_gpu(
    narrow: Base, tiny_llama: Path, tmp_path: Path
) -> None:
    names = ("bottleneck", "full", "dora", "oft")
    adapters = [taught(name, narrow, 5e-2).saved(tmp_path / name) for name in names]
    messages = ({"role": "user", "content": "the quick brown fox"},)
    rows = [
        Row(adapter=adapter, messages=messages, sampling=Sampling(temperature=0, max_tokens=12))
        for adapter in (None, *adapters, None)
    ]
    client = EngineClient(BaseModelRef(name="tiny", folder=tiny_llama), tmp_path / "engine.log")
    try:
        first, *taught_texts, last = _texts(client, rows)
        assert first == last == _texts(client, rows[:1])[0], "the base stays the base"
        assert all(text != first for text in taught_texts)
    finally:
        client.close()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_head_learns_on_the_gpu_and_is_read_back(name: str, family: str, tmp_path: Path, tiny_llama: Path) -> None:
    model = tiny_llama if family == "llama" else tiny.build_bert(tmp_path / "tiny-bert")
    files = classifying_run(tmp_path / "run", model, KINDS[name])
    end = rundirs.train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    loss = list(series(files, "loss").values())
    assert min(loss[-4:]) < loss[0]
    assert KINDS[name].measure in {key for event in events(files) for key in getattr(event, "values", {})}
    shown = [sample["predicted"] for sample in details(files)["samples"]]
    answers = [text for text, _ in said(files, model, KINDS[name])]
    if name == "numbers":
        assert [float(text) for text in answers] == pytest.approx([float(text) for text in shown], rel=2e-2)
    else:
        assert sum(one == other for one, other in zip(shown, answers, strict=True)) >= len(shown) - 1  # but for a tie


@pytest.mark.parametrize("name", ["dpo", "orpo", "kto"])
def test_preferences_are_learned_on_the_gpu(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    files = preference_run(tmp_path / "run", tiny_llama, name)
    end = rundirs.train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    margins = list(series(files, "reward_margin").values())
    assert margins[-1] > margins[0]
    assert list(series(files, "preference_accuracy").values())[-1] > 0.8


@pytest.mark.parametrize("name", ["rewrite", "seq2seq"])
def test_texts_are_rewritten_on_the_gpu(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    model = tiny_llama if name == "rewrite" else tiny.build_t5(tmp_path / "tiny-t5")
    files = rewriting_run(tmp_path / "run", model, name)
    end = rundirs.train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    chrf = list(series(files, "chrf").values())
    assert chrf[-1] > 40


def test_plain_text_is_learned_on_the_gpu(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(
        tmp_path / "run",
        tiny_llama,
        [{"text": f"{row['prompt']} {row['completion']}"} for row in QUESTIONS],
        task="text",
        dataset=DatasetRef(
            name="ships.txt",
            fingerprint="f",
            rows=tmp_path / "run" / "rows.parquet",
            mapping=Mapping(shape=Shape.TEXT, columns={"text": "text"}),
        ),
    )
    end = rundirs.train_here(files)
    assert (end.state, end.reason) == ("completed", None)
    loss = list(series(files, "loss").values())
    assert loss[-1] < loss[0] - 0.2
