"""On a CUDA GPU: the training child and the engine compute there, in 16 bits, and nothing of the contract changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.events import Started
from jobs.hardware import this_machine
from jobs.inference.client import EngineClient
from jobs.inference.protocol import Row
from jobs.inference.sampling import Sampling
from jobs.spec import BaseModelRef
from tests import rundirs, tiny
from tests.rundirs import events, make_run, series, start_child

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
