"""The training loops' speed on one device: tokens a second, memory, the time to the first loss.

    python -m benchmarks.loops --shapes llama1b --work lora-16k small            # a GPU
    python -m benchmarks.loops --shapes 30m --work small --loops packed plain    # a CPU, to see that it runs

Each line is a real run in a real child (jobs.training.child): a random-weight model in the given shape, read from disk,
and documents of log-normal length (median 350 tokens), trained whole. Tokens are real ones; the first `--skip` steps do
not count. Prints figures and writes them beside those of earlier lines to benchmarks/results/loops-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import children
from jobs.data.columns import Mapping, Shape
from jobs.data.readers import Row
from jobs.data.store import RowWriter
from jobs.events import Metrics, Phase, Started
from jobs.hardware import this_machine
from jobs.rundir import RunFiles
from jobs.shape import ModelShape, shape_of
from jobs.spec import BaseModelRef, DatasetRef, RunSpec, TrainingParams

RESULTS = Path(__file__).parent / "results"
_AT_ONCE = 4  # children whose imports are done before the first of them trains
WORDS = 32_000  # the tokenizer knows so many, one token each

# hidden, layers, heads, key-value heads, head size, inner, vocabulary, tied
SHAPES: dict[str, tuple[int, int, int, int, int, int, int, bool]] = {
    "30m": (384, 6, 6, 2, 64, 1024, 32_000, True),
    "135m": (576, 30, 9, 3, 64, 1536, 49_152, True),
    "llama1b": (2048, 16, 32, 8, 64, 8192, 128_256, True),
    "llama3b": (3072, 28, 24, 8, 128, 8192, 128_256, True),
    "llama8b": (4096, 32, 32, 8, 128, 14336, 128_256, False),
}


@dataclass(frozen=True)
class Work:
    """What one run is asked to do. `rows` of `longest` tokens at most make a step."""

    rows: int
    longest: int = 2048
    method: str = "lora"
    steps: int = 24
    training: dict[str, Any] = field(default_factory=dict)
    method_params: dict[str, Any] = field(default_factory=dict)
    beside: str | None = None  # the work that peers (benchmarks.peers) did instead
    adapters: int = 1  # runs that share their steps, each with rows and a rate of its own


WORKS: dict[str, Work] = {
    "lora-16k": Work(rows=34),
    "lora-8k": Work(rows=17),
    "lora-8k-fp8": Work(rows=17, method_params={"base_weights": "fp8"}, beside="lora-8k"),
    "lora-8k-recompute": Work(rows=17, training={"recompute": "on"}, beside="lora-8k"),
    "lora-2k-least": Work(rows=4, training={"memory_limit_gb": 18.0}),
    "qlora-8k": Work(rows=17, method="qlora"),
    "qlora-8k-least": Work(rows=17, method="qlora", training={"memory_limit_gb": 8.9}, beside="qlora-8k"),
    "dora-8k": Work(rows=17, method="dora"),
    "small": Work(rows=3, longest=512, steps=120),
    "small-eight": Work(rows=3, longest=512, steps=400, adapters=8),
    "curve-2k": Work(rows=4, steps=200),
    "curve-2k-fp8": Work(rows=4, steps=200, method_params={"base_weights": "fp8"}),
}


def make_model(shape: str, folder: Path) -> Path:
    """A Llama with random weights in bf16, and a tokenizer of one token a word, in Hugging Face layout."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    target = folder / shape
    if (target / "tokenizer.json").exists():
        return target
    hidden, layers, heads, kv_heads, head_dim, inner, vocabulary, tied = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(target)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, **{f"w{number}": number for number in range(4, WORDS)}}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(target)
    return target


def shape_of_model(shape: str) -> ModelShape:
    """What jobs.shape reads of such a model's files, without making them."""
    hidden, layers, heads, kv_heads, head_dim, inner, vocabulary, tied = SHAPES[shape]
    sizes = {
        "self_attn.q_proj": [heads * head_dim, hidden],
        "self_attn.k_proj": [kv_heads * head_dim, hidden],
        "self_attn.v_proj": [kv_heads * head_dim, hidden],
        "self_attn.o_proj": [hidden, heads * head_dim],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    whole = {"model.embed_tokens": [vocabulary, hidden], "model.norm": [hidden]}
    whole |= {} if tied else {"lm_head": [vocabulary, hidden]}
    whole |= {f"model.layers.{number}.{name}": size for number in range(layers) for name, size in sizes.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
    }
    tensors = {f"{name}.weight": {"dtype": "BF16", "shape": size} for name, size in whole.items()}
    return shape_of(config, tensors, has_chat_template=False)


def make_model_apart(shape: str, folder: Path) -> Path:
    """The same in a process of its own: no GPU memory stays with this one."""
    if (folder / shape / "tokenizer.json").exists():
        return folder / shape
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(make_model, shape, folder).result()


def documents(count: int, longest: int, seed: int = 1234) -> list[np.ndarray]:
    """Token numbers, a few common and many rare ones, so that a loss can fall; lengths as in instruction data."""
    draw = np.random.default_rng(seed)
    median = min(350, longest // 4)
    lengths = np.clip(draw.lognormal(np.log(median), 0.85, count).astype(int), min(24, longest // 4), longest - 1)
    shares = 1.0 / (np.arange(WORDS - 4) + 10.0)
    edges = np.cumsum(shares / shares.sum())
    names = np.random.default_rng(7).permutation(WORDS - 4) + 4
    return [names[np.minimum(np.searchsorted(edges, draw.random(n)), WORDS - 5)] for n in lengths.tolist()]


def make_run(folder: Path, model: Path, work: Work, loop: str, steps: int, number: int = 0) -> RunFiles:
    """A run directory of its own, the `number`th of those that share their steps; its rows are as many as its steps
    see."""
    files = RunFiles(folder)
    folder.mkdir(parents=True)
    rows, texts = folder / "rows.parquet", documents(work.rows * steps, work.longest, 1234 + number)
    with RowWriter(rows) as writer:
        for row, tokens in enumerate(texts, start=1):
            values = {"text": " ".join(f"w{token}" for token in tokens)}
            writer.add([Row(row, values, json.dumps(values))])
    training = {
        "batch_size": work.rows,
        "max_length": work.longest,
        "max_steps": steps,
        "epochs": 1,
        "learning_rate": 2e-4 * 1.2**number,
        "schedule": "constant",
        "warmup_percent": 0,
        "validation_percent": 0,
        "evaluations": 1,
        "loop": "plain" if loop == "plain" else "auto",
    }
    spec = RunSpec(
        name="benchmark",
        base_model=BaseModelRef(name=model.name, folder=model.resolve()),
        dataset=DatasetRef(
            name="words", fingerprint="words", rows=rows, mapping=Mapping(shape=Shape.TEXT, columns={"text": "text"})
        ),
        task="text",
        method=work.method,
        method_params={"r": 16, "alpha": 16, **work.method_params},
        training=TrainingParams(**training | work.training),
    )
    files.spec.write_text(spec.model_dump_json(), encoding="utf-8")
    return files


def measure(trainers: children.Children, runs: list[RunFiles], skip: int) -> dict[str, Any]:
    """Train them in a child whose imports are done, and time what it says. Of several the tokens are all of theirs, the
    losses those of the first."""
    told = children.completed(trainers.train(runs, limit=560), runs[0])
    run, steps = told[0], steps_of(told[0])
    started = next(event for event in run.events if isinstance(event, Started))
    seconds = np.diff([event.time for event in steps])
    tokens = np.sum([tokens_of(steps_of(each)) for each in told], axis=0)
    phases = [(event.text, round(event.time - run.began, 2)) for event in run.events if isinstance(event, Phase)]
    return {
        "loop": started.hardware["loop"],
        "why": started.hardware["loop_why"],
        "tokens_per_second": round(tokens[skip:].sum() / seconds[skip:].sum(), 1),
        "tokens_a_step": round(tokens[skip:].mean(), 1),
        "step_ms": round(1000 * statistics.median(seconds[skip:].tolist()), 2),
        "peak_gb": round((run.result.peak_memory or 0) / 1e9, 2),
        "loss": [round(steps[0].values["loss"], 4), round(steps[-1].values["loss"], 4)],
        "grad_norm": [round(steps[0].values["grad_norm"], 4), round(steps[-1].values["grad_norm"], 4)],
        "losses": [round(event.values["loss"], 4) for event in steps[9::10]],  # every tenth
        "time_left": time_left(steps),
        "first_loss_s": round(steps[0].time - run.began, 2),
        "imports_s": round(run.imports or 0, 2),
        "phases": phases,
    }


def steps_of(told: children.Told) -> list[Metrics]:
    return [event for event in told.events if isinstance(event, Metrics) and "tokens_per_second" in event.values]


def tokens_of(steps: list[Metrics]) -> np.ndarray:
    """Of each step but the first. A rate is told for the time since the step before."""
    seconds = np.diff([event.time for event in steps])
    return np.array([event.values["tokens_per_second"] for event in steps[1:]]) * seconds


def time_left(steps: list[Metrics]) -> list[float] | None:
    """After 20 steps: seconds that were said to be left, and those that it took; None of a short run."""
    if len(steps) < 60:
        return None
    return [round(steps[19].eta_seconds or 0, 2), round(steps[-1].time - steps[19].time, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["30m"])
    parser.add_argument("--work", nargs="+", choices=WORKS, default=["small"])
    parser.add_argument("--loops", nargs="+", choices=("packed", "plain"), default=["packed"])
    parser.add_argument("--models", type=Path, help="where models are kept from one call to the next")
    parser.add_argument("--steps", type=int, help="instead of the work's")
    parser.add_argument("--skip", type=int, default=8, help="steps that do not count")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/loops-<device>.json")
    options = parser.parse_args()
    hardware = this_machine()
    target = options.out or RESULTS / f"loops-{hardware.device}.json"
    found = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    at_once = _AT_ONCE if hardware.device == "cuda" else 1
    with tempfile.TemporaryDirectory() as temporary, children.Children(at_once) as trainers:
        folder = Path(temporary)
        for shape in options.shapes:
            model = make_model_apart(shape, options.models or folder)
            for work in options.work:
                for loop in options.loops:
                    steps = options.steps or WORKS[work].steps
                    runs = [
                        make_run(folder / f"run{number}", model, WORKS[work], loop, steps, number)
                        for number in range(WORKS[work].adapters)
                    ]
                    name = f"{shape} {work} {loop}"
                    try:
                        found[name] = {"hardware": hardware.name, **measure(trainers, runs, options.skip)}
                        print(name, json.dumps(found[name]), flush=True)
                    except SystemExit as failed:
                        print(name, failed, flush=True)
                    for files in runs:
                        shutil.rmtree(files.directory)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
