"""The engine's speed: panes answering in one batch, against plain PEFT answering one after another.

    python -m benchmarks.engine graft-data/models/SmolLM2-135M-Instruct
    python -m benchmarks.engine --shape 1b                       # random weights of a known shape, for a GPU

Prints a table and writes benchmarks/results/engine-<device>.json. A step is one token for every pane; on a busy machine
compare the best steps, not the medians. The adapters are random LoRAs on every linear layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.loops import SHAPES, make_model
from jobs.inference.engine import Engine
from jobs.inference.load import load, use_all_cores
from jobs.inference.protocol import Row
from jobs.inference.sampling import Sampling
from jobs.shape import read_shape

RESULTS = Path(__file__).parent / "results"
MESSAGES = ({"role": "user", "content": "Tell me a long story about a captain, his ship and the sea."},)


def write_adapter(base: Path, folder: Path, seed: int, rank: int = 8) -> Path:
    """A PEFT folder with random matrices for every linear layer of `base`."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in read_shape(base).linears:
        name = f"base_model.model.{layer.name}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=random) * 0.02
        tensors[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=random) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    config |= {"target_modules": sorted({layer.leaf for layer in read_shape(base).linears}), "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def panes(engine: Engine, adapters: list[Path | None], tokens: int) -> dict[str, float]:
    """One request of as many panes: milliseconds to the first tokens and a step, tokens a second in all."""
    sampling = Sampling(temperature=0, max_tokens=tokens)
    started = time.perf_counter()
    batches, _ = engine.open([Row(adapter=adapter, messages=MESSAGES, sampling=sampling) for adapter in adapters])
    engine.ends = frozenset()  # every pane says all its tokens
    steps, first = [], 0.0
    while not all(batch.done for batch in batches):
        for batch in batches:
            before = time.perf_counter()
            said = batch.step()
            if said and not first:
                first = time.perf_counter() - started
            elif first:
                steps.append(time.perf_counter() - before)
    return {
        "first_ms": first * 1e3,
        "step_ms": statistics.median(steps) * 1e3,
        "best_step_ms": min(steps) * 1e3,
        "tokens_per_second": len(adapters) / statistics.median(steps),
    }


def plain(base: Path, adapters: list[Path | None], tokens: int) -> float:
    """Milliseconds a token of transformers' and PEFT's own generate, the adapters one after another, at best."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for number, adapter in enumerate(filter(None, adapters)):
        if number == 0:
            model = PeftModel.from_pretrained(model, adapter, adapter_name="0")
        else:
            model.load_adapter(adapter, str(number))
    model.eval()
    inputs = AutoTokenizer.from_pretrained(base)("Tell me a long story", return_tensors="pt")
    best: dict[int | None, float] = {}
    for _ in range(3):
        for number in [None, *range(sum(adapter is not None for adapter in adapters))]:
            started = time.perf_counter()
            arguments = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            if number is None:
                with model.disable_adapter():
                    model.generate(**inputs, **arguments)
            else:
                model.set_adapter(str(number))
                model.generate(**inputs, **arguments)
            spent = (time.perf_counter() - started) / tokens * 1e3
            best[number] = min(spent, best.get(number, spent))
    return sum(best.values()) / len(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a folder in Hugging Face layout")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--float32", action="store_true", help="whatever would suit the machine better")
    parser.add_argument("--plain", action="store_true", help="also time plain PEFT, on the CPU")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    use_all_cores()
    with tempfile.TemporaryDirectory() as scratch:
        base = arguments.model or _with_chat(make_model(arguments.shape, Path(scratch)))
        adapters = [write_adapter(base, Path(scratch) / str(seed), seed) for seed in (1, 2, 3)]
        started = time.perf_counter()
        engine = Engine(load(str(base), None, base.name, torch.float32 if arguments.float32 else None))
        loaded = time.perf_counter() - started
        started = time.perf_counter()
        engine.adapters.get(adapters[0])
        print(f"load {loaded:.2f} s, an adapter {time.perf_counter() - started:.2f} s; {engine.loaded.about}")
        cases: dict[str, list[Path | None]] = {
            "base": [None],
            "one adapter": [adapters[0]],
            "base + 1": [None, adapters[0]],
            "base + 2": [None, *adapters[:2]],
            "base + 3": [None, *adapters],
        }
        rows: dict[str, dict[str, float]] = {}
        for _ in range(arguments.repeats):
            for name, who in cases.items():
                now = panes(engine, who, arguments.tokens)
                if name not in rows or now["best_step_ms"] < rows[name]["best_step_ms"]:
                    rows[name] = now
        for name, row in rows.items():
            ratio = row["best_step_ms"] / rows["base"]["best_step_ms"]
            print(
                f"{name:12} first {row['first_ms']:6.0f} ms  step {row['step_ms']:6.1f} ms (best "
                f"{row['best_step_ms']:.1f}, {ratio:.2f} x base)  {row['tokens_per_second']:6.1f} tokens/s"
            )
        result: dict[str, Any] = {"model": base.name, "about": engine.loaded.about, "panes": rows}
        if arguments.plain:
            result["plain_ms_a_token"] = plain(base, [None, adapters[0]], arguments.tokens)
            print(f"plain PEFT, base and one adapter in turn: {result['plain_ms_a_token']:.1f} ms a token at best")
    out = arguments.out or RESULTS / f"engine-{engine.loaded.device.type}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


def _with_chat(model: Path) -> Path:
    """The model with a tokenizer that has a chat template, the tests' small one."""
    from tests.tiny import build_tokenizer

    build_tokenizer().save_pretrained(model)
    return model


if __name__ == "__main__":
    main()
