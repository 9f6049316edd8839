"""The generated pages say what the registries and the benchmarks' results say."""

from __future__ import annotations

from typing import Any

import pytest

from docs.generate import PAGES, ROOT
from docs.measured import compared
from docs.plots import memory_plot


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_make_docs_writes(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == "\n".join(PAGES[name]()) + "\n", "run `make docs`"


def figures(speed: float, recompute: bool = False, hardware: str = "H100") -> dict[str, Any]:
    return {"tokens_per_second": speed, "tokens_a_step": 8600.0, "recompute": recompute, "hardware": hardware}


def test_a_work_is_compared_with_what_peers_did_of_it_on_the_same_machine() -> None:
    ours = {
        "llama8b lora-8k packed": figures(30_000),
        "llama8b lora-8k plain": figures(5_000),
        "llama8b lora-8k-recompute packed": figures(20_000),
        "llama1b small packed": figures(40_000),
    }
    theirs = {
        "llama8b lora-8k trl-pack": figures(9_000),
        "llama8b lora-8k trl-pack-liger-recompute": figures(8_000, recompute=True),
        "llama8b lora-8k unsloth-no-recompute": figures(15_000),
        "llama8b lora-8k unsloth": figures(10_000, recompute=True),
        "llama1b small trl-pack": figures(3_000, hardware="another"),
    }
    free, recomputed = compared(ours, theirs)  # neither the plain loop nor what no peer did here
    assert free.words == "Llama 8B, LoRA, 8.6k tokens a step" and free.ratio == "2.00 ×"
    fastest = free.fastest("trl")
    assert fastest and fastest[0] == "trl-pack"
    assert recomputed.words == "Llama 8B, LoRA, recompute, 8.6k tokens a step" and recomputed.ratio == "2.00 ×"
    assert set(recomputed.peers) == {"trl-pack-liger-recompute", "unsloth"}


def test_a_perfect_prediction_lies_on_the_plots_line_and_a_failed_run_nowhere() -> None:
    run = {"method": "lora", "loop": "packed", "measured": 16e9, "predicted": 16e9}
    marks = [line for line in memory_plot([run, run | {"measured": None}]) if line.startswith("<circle")]
    over = [line for line in memory_plot([run, run | {"predicted": 32e9}]) if line.startswith("<circle")]
    assert len(marks) == 2 and len(over) == 3  # one of them in the legend
    assert (
        'cx="64.0" cy="416.0"' in over[0] and 'cx="64.0" cy="216.0"' in over[1]
    )  # 16 to 64 GB: a corner, and half-way up
