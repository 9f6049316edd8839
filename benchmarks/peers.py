"""TRL and Unsloth on exactly the work of benchmarks.loops, on one GPU: speed, memory, and the loss to compare with.

    python -m benchmarks.peers --trl-site A --unsloth-site B --seconds 480        # PLAN, the most telling first
    python -m benchmarks.peers --trl-site A --unsloth-site B --only "llama8b" "llama1b small trl-pack"
    python -m benchmarks.peers --only "30m small trl"                             # a CPU, to see that it runs

The same model folder (make_model) and the same rows in each step, LoRA of rank 16 on all linear layers, AdamW at a
constant 2e-4 without warm-up or weight decay: the first loss is benchmarks.loops' but for rounding. Each variant has a
process of its own, and the settings that make it fastest: a step's rows one after another without padding, attention
for sequences of different lengths, the fused optimizer, a log line for the first step and the last alone. Figures are
those of benchmarks.loops; `allocated_gb` beside them is what tensors took of the memory that PyTorch reserved. The
first loss counts from when the imports are done; the next variants' imports run while one trains.

Peers pin packages against each other and against Graft's: each gets a folder (`pip install --target`) that comes before
the installed packages. Measured with
    --trl-site: trl 1.16.0, peft 0.21.2, datasets 5.2.0, liger-kernel 0.8.5, bitsandbytes 0.50.2, with their needs
    --unsloth-site: unsloth and unsloth_zoo 2026.10.9, trl 1.15.0, datasets 4.8.5, cut_cross_entropy 25.1.1,
    torchao 0.18.0, with their needs; it takes peft and bitsandbytes from the other folder
beside torch 2.11.0 and transformers 5.17.0. TRL's attention is the FlashAttention inside PyTorch; Unsloth takes
flash-attn where that is installed. Without folders, what is installed is used. Figures go to
benchmarks/results/peers-<device>.json, beside those of earlier calls.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.loops import SHAPES, WORKS, documents, make_model_apart
from jobs.hardware import this_machine
from jobs.training.data import epoch_order

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
END = 2  # the token that Graft puts behind each row (make_model's tokenizer)
LIMIT = 170  # seconds that one variant may take, its imports not counted
_SPARES = 2  # children that do their imports while others train


@dataclass(frozen=True)
class Variant:
    peer: Literal["trl", "unsloth"]
    padded: bool = False  # to the longest row of the step
    liger: bool = False  # TRL with Liger's kernels
    recompute: bool = False  # TRL: gradient checkpointing; Unsloth: its own, which keeps layers' inputs in host memory
    four_bits: bool = False


VARIANTS = {
    "trl": Variant("trl", padded=True),
    "trl-pack": Variant("trl"),
    "trl-pack-recompute": Variant("trl", recompute=True),
    "trl-pack-liger": Variant("trl", liger=True),
    "trl-pack-liger-recompute": Variant("trl", liger=True, recompute=True),
    "trl-qlora": Variant("trl", recompute=True, four_bits=True),
    "trl-qlora-liger": Variant("trl", liger=True, recompute=True, four_bits=True),
    "unsloth": Variant("unsloth", recompute=True),
    "unsloth-no-recompute": Variant("unsloth"),
    "unsloth-qlora": Variant("unsloth", recompute=True, four_bits=True),
    "unsloth-qlora-no-recompute": Variant("unsloth", four_bits=True),
}
PLAN = (  # shape, work, variant
    "llama1b lora-16k trl-pack-liger",
    "llama1b lora-16k unsloth-no-recompute",
    "llama1b small trl-pack",
    "llama1b small unsloth-no-recompute",
    "llama8b lora-8k trl-pack-recompute",
    "llama8b lora-8k unsloth-no-recompute",
    "llama8b qlora-8k trl-qlora",
    "llama8b qlora-8k unsloth-qlora",
    "llama8b lora-8k unsloth",
    "llama1b lora-16k trl-pack",
    "llama1b lora-16k unsloth",
    "llama8b lora-8k trl-pack-liger-recompute",
    "llama8b qlora-8k unsloth-qlora-no-recompute",
    "llama8b qlora-8k trl-qlora-liger",
    "llama1b small trl-pack-liger",
    "llama8b lora-8k trl-pack-liger",
    "llama1b lora-16k trl",
)
_LARGE = {"llama3b", "llama8b"}


@dataclass(frozen=True)
class Sites:
    trl: Path | None
    unsloth: Path | None

    def environment(self, peer: str) -> dict[str, str]:
        """What a child is started with: its packages before the others', and no word to the outside."""
        own = [self.unsloth, self.trl] if peer == "unsloth" else [self.trl]
        paths = [str(path.resolve()) for path in [*own, ROOT] if path]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # Unsloth's own choice: steps differ in size
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
            "UNSLOTH_DISABLE_STATISTICS": "1",
            "CI": "1",  # TRL then tells nobody that it is used
        }


class Child:
    """A peer's process (benchmarks.peer), from its imports to its answer."""

    def __init__(self, name: str, sites: Sites, folder: Path) -> None:
        peer = VARIANTS[name.split()[2]].peer
        own = folder / name.replace(" ", "-")
        own.mkdir()
        self.log = own / "log.txt"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peer", peer],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=sites.environment(peer),
                cwd=own,  # where Unsloth writes what it compiles
            )

    def train(self, job: dict[str, Any]) -> dict[str, Any]:
        """Its figures. Raises ChildProcessError with the end of its log where it has none."""
        assert self._process.stdin
        imported = self._answer()
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.close()
        return self._answer() | imported

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            why = "it ended" if ready else f"no answer in {LIMIT} s"
            raise ChildProcessError(f"{why}\n{self.log.read_text(errors='replace')[-1500:]}")
        return json.loads(line)  # type: ignore[no-any-return]


def rows_of(work: str, steps: int) -> list[list[int]]:
    """The rows of the first `steps` steps of a run in benchmarks.loops, as tokens."""
    asked = WORKS[work]
    texts = documents(asked.rows * asked.steps, asked.longest)
    order = epoch_order(len(texts), seed=0, epoch=0)
    return [[*texts[place].tolist(), END] for place in order[: asked.rows * steps]]


def make_job(name: str, model: Path, dtype: str, steps: int | None) -> dict[str, Any]:
    shape, work, variant = name.split()
    steps = min(steps or (10 if shape in _LARGE else 60), WORKS[work].steps)
    return {
        "model": str(model.resolve()),
        "dtype": dtype,
        "rows": rows_of(work, steps),
        "batch": WORKS[work].rows,
        "longest": WORKS[work].longest,
        "steps": steps,
        "skip": 8 if steps > 16 else max(1, steps // 3),
        **asdict(VARIANTS[variant]),
    }


def measure(child: Child, job: dict[str, Any]) -> dict[str, Any]:
    figures = child.train(job)
    expected = [sum(map(len, job["rows"][at : at + job["batch"]])) for at in range(0, len(job["rows"]), job["batch"])]
    if figures.pop("tokens") != expected:
        raise ChildProcessError("it trained other rows than it was given")
    return {key: job[key] for key in ("recompute", "steps", "skip")} | figures


def chosen(only: list[str] | None) -> list[str]:
    """PLAN; or of it what begins as asked; or what is named whole."""
    if not only:
        return list(PLAN)
    names: list[str] = []
    for given in only:
        words = given.split()
        planned = [name for name in PLAN if name.split()[: len(words)] == words]
        if not planned and not (len(words) == 3 and words[0] in SHAPES and words[1] in WORKS and words[2] in VARIANTS):
            raise SystemExit(
                f"{given!r} begins nothing in PLAN and is no shape ({', '.join(SHAPES)}), work ({', '.join(WORKS)}) "
                f"and variant ({', '.join(VARIANTS)})."
            )
        names += planned or [given]
    return list(dict.fromkeys(names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-site", type=Path, help="folder with TRL and what it needs")
    parser.add_argument("--unsloth-site", type=Path, help="folder with Unsloth and what it needs in other versions")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="how names in PLAN begin; or whole names")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further variant after so many")
    parser.add_argument("--models", type=Path, help="where models are kept from one call to the next")
    parser.add_argument("--steps", type=int, help="instead of 60, and 10 for large models")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/peers-<device>.json")
    options = parser.parse_args()
    began = time.monotonic()
    hardware = this_machine()
    target = options.out or RESULTS / f"peers-{hardware.device}.json"
    found = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    names = chosen(options.only)
    sites = Sites(options.trl_site, options.unsloth_site)
    children: dict[str, Child] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            for place, name in enumerate(names):
                if time.monotonic() - began > options.seconds:
                    print(name, "is not begun: the time is up", flush=True)
                    continue
                for soon in names[place : place + 1 + _SPARES]:
                    if soon not in children:
                        children[soon] = Child(soon, sites, folder)
                model = make_model_apart(name.split()[0], options.models or folder)
                try:
                    job = make_job(name, model, hardware.dtype, options.steps)
                    found[name] = {"hardware": hardware.name, **measure(children[name], job)}
                    print(f"{time.monotonic() - began:.0f} s", name, json.dumps(found[name]), flush=True)
                except (ChildProcessError, BrokenPipeError) as failed:
                    print(name, "failed:", failed, flush=True)
                children[name].end()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        finally:
            for child in children.values():
                child.end()


if __name__ == "__main__":
    main()
