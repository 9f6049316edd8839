"""Predicted against measured peak memory: real training children on random weights of known shapes.

    python -m benchmarks.memory                       # small shapes, for a CPU
    python -m benchmarks.memory --shapes 1b 3b        # for a GPU

Each setting is a whole run (jobs.training.child in its own process) of a few steps on rows of exactly the maximum
length, so that the peak is reached. Prints a table and writes benchmarks/results/memory-<device>.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.data.columns import Mapping, Shape
from jobs.data.readers import Row
from jobs.data.store import RowWriter
from jobs.hardware import this_machine
from jobs.loops import choose
from jobs.memory import estimate
from jobs.methods import method
from jobs.result import Result
from jobs.rpc import child_environment
from jobs.rundir import RunFiles
from jobs.shape import read_shape
from jobs.spec import BaseModelRef, DatasetRef, RunSpec, TrainingParams
from jobs.tasks import task

RESULTS = Path(__file__).parent / "results"
# Llama shapes: hidden, intermediate, layers, heads, key-value heads, vocabulary, tied head.
SHAPES = {
    "30m": (384, 1024, 8, 6, 2, 16_000, True),
    "135m": (576, 1536, 30, 9, 3, 49_152, True),
    "1b": (2048, 8192, 16, 32, 8, 128_256, True),
    "3b": (3072, 8192, 28, 24, 8, 128_256, True),
    "8b": (4096, 14336, 32, 32, 8, 128_256, False),
}
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["30m", "135m"])
    parser.add_argument("--methods", nargs="+", default=["lora", "qlora"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--recompute", nargs="+", type=int, choices=(0, 1), default=[0, 1])
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape in arguments.shapes:
            model = build_model(shape, Path(scratch) / shape)
            grid = itertools.product(arguments.methods, arguments.lengths, arguments.batches, arguments.recompute)
            for number, (name, length, batch, recompute) in enumerate(grid):
                folder = Path(scratch) / f"run-{shape}-{number}"
                training = TrainingParams(
                    max_steps=STEPS,
                    batch_size=batch,
                    max_length=length,
                    recompute=bool(recompute),
                    validation_percent=0,
                    evaluations=1,
                )
                results.append({"shape": shape, "method": name, **measure(model, folder, name, training)})
                print(line(results[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    out = arguments.out or RESULTS / f"memory-{this_machine().device}.json"
    out.write_text(json.dumps({"machine": this_machine().name, "results": results}, indent=1) + "\n")


def build_model(name: str, folder: Path) -> Path:
    """Random weights in the shape's sizes, with the tests' small tokenizer; bf16 on disk."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tests.tiny import build_tokenizer

    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = SHAPES[name]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def measure(model: Path, folder: Path, method_name: str, training: TrainingParams) -> dict:
    """One run's predicted and measured peak, in bytes."""
    folder.mkdir()
    chosen = method(method_name)
    params = type(chosen).Params()
    rows = write_text_rows(folder / "rows.parquet", training.batch_size * STEPS, training.max_length)
    spec = RunSpec(
        name="memory",
        base_model=BaseModelRef(name=model.name, folder=model),
        dataset=DatasetRef(
            name="random", fingerprint="0", rows=rows, mapping=Mapping(shape=Shape.TEXT, columns={"text": "text"})
        ),
        task="text",
        method=method_name,
        method_params=params.model_dump(),
        training=training,
    )
    files = RunFiles(folder)
    files.spec.write_text(spec.model_dump_json())
    subprocess.run(
        [sys.executable, "-m", "jobs.training.child", str(folder)],
        env=child_environment(),
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    result = Result.model_validate_json(files.result.read_text())
    hardware = this_machine()
    shape = read_shape(model)
    loop = choose(training, task("text"), chosen, params, shape.model_type, hardware.compute).loop
    needs = estimate(shape, chosen, params, training, hardware, loop=loop)
    return {
        "loop": loop,
        "length": training.max_length,
        "batch": training.batch_size,
        "recompute": training.recompute,
        "predicted": needs.total,
        "parts": needs.model_dump(),
        "measured": result.peak_memory if result.state == "completed" else None,
        "failed": result.reason if result.state != "completed" else None,
    }


def write_text_rows(path: Path, count: int, length: int) -> Path:
    """Rows of random letters, longer than `length` tokens."""
    letters = random.Random(0)
    texts = ["".join(letters.choices("bcdfghjkmnpqstvwxyz ", k=4 * length)) for _ in range(count)]
    rows = (Row(number, {"text": text}, json.dumps({"text": text})) for number, text in enumerate(texts, start=1))
    with RowWriter(path) as writer:
        writer.add(list(rows))
    return path


def line(result: dict) -> str:
    setting = f"{result['shape']:>5} {result['method']:>6} {result['batch']} x {result['length']:<5}"
    setting += " recompute" if result["recompute"] else "          "
    if result["measured"] is None:
        return f"{setting}  failed: {result['failed']}"
    predicted, measured = result["predicted"] / 1e9, result["measured"] / 1e9
    off = 100 * (predicted / measured - 1)
    return f"{setting}  predicted {predicted:6.2f} GB  measured {measured:6.2f} GB  {off:+5.1f} %"


if __name__ == "__main__":
    main()
