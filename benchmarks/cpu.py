"""The packed loop against TRL's SFTTrainer and the plain loop on a CPU: 200 short chats, the starter model, LoRA.

    python -m benchmarks.cpu FOLDER_OF_THE_STARTER --rounds 3          # needs trl: requirements-dev.txt

Each trains the same rows in the same batches, in turns, in processes of their own, so that a busy machine is busy for
all of them; the ratio of each round counts, not the seconds. Tokens are real ones, the first two steps do not count.
TRL gets what serves it best here: no recomputation, no cache, padding to the batch's longest row. Prints figures and
writes benchmarks/results/cpu.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.children import Children
from benchmarks.loops import measure
from jobs.data.columns import Mapping, Shape
from jobs.data.readers import Row
from jobs.data.store import RowWriter
from jobs.hardware import this_machine
from jobs.rpc import child_environment
from jobs.rundir import RunFiles
from jobs.service.examples import all_examples
from jobs.spec import BaseModelRef, DatasetRef, RunSpec, TrainingParams

RESULTS = Path(__file__).parent / "results"
CHATS, BATCH, RANK, SKIP = 200, 4, 8, 2


def chats() -> list[dict[str, Any]]:
    """The first example's conversations, over and over."""
    recipe = next(iter(all_examples().values()))
    rows = [json.loads(line) for line in (recipe.path / recipe.file if recipe.path.is_dir() else recipe.path).open()]
    return [rows[number % len(rows)] for number in range(CHATS)]


def graft(base: Path, folder: Path, loop: str, steps: int) -> dict[str, Any]:
    files = RunFiles(folder)
    folder.mkdir()
    with RowWriter(folder / "rows.parquet") as writer:
        for number, row in enumerate(chats(), start=1):
            writer.add([Row(number, row, json.dumps(row))])
    mapping = Mapping(shape=Shape.MESSAGES, columns={"messages": "messages"})
    spec = RunSpec(
        name="benchmark",
        base_model=BaseModelRef(name=base.name, folder=base.resolve()),
        dataset=DatasetRef(name="chats", fingerprint="chats", rows=folder / "rows.parquet", mapping=mapping),
        task="chat",
        method="lora",
        method_params={"r": RANK, "alpha": 2 * RANK},
        training=TrainingParams(
            batch_size=BATCH,
            max_steps=steps,
            epochs=10,
            schedule="constant",
            warmup_percent=0,
            validation_percent=0,
            evaluations=1,
            loop="plain" if loop == "plain" else "auto",
        ),
    )
    files.spec.write_text(spec.model_dump_json(), encoding="utf-8")
    with Children(1) as trainers:
        return measure(trainers, [files], SKIP)


def trl_in_a_process(base: Path, folder: Path, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cpu", str(base), "--peer", str(folder), "--steps", str(steps)]
    answer = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"TRL did not train:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def trl(base: Path, folder: Path, steps: int) -> dict[str, Any]:
    """SFTTrainer on the same rows, in this process."""
    began = time.time()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from jobs.training.load import choose_device

    device = choose_device()
    narrow = device.dtype is torch.bfloat16
    imported = time.time()
    ends: list[float] = []
    losses: list[float] = []

    class Times(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.time())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    rows = [
        {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in chats()
    ]  # so it trains the answers alone, too
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=device.dtype),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_length=512,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=narrow,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        ),
        callbacks=[Times()],
    )
    collate, tokens = trainer.data_collator, []

    def counting(examples: list[Any]) -> Any:
        batch = collate(examples)
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator = counting
    trainer.train()
    seconds = ends[-1] - ends[SKIP - 1]
    return {
        "loop": "trl",
        "tokens_per_second": round(sum(tokens[SKIP:steps]) / seconds, 1),
        "step_ms": round(1000 * seconds / (steps - SKIP), 1),
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
        "first_loss_s": round(ends[0] - imported, 2),
        "imports_s": round(imported - began, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the starter model's folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(trl(options.base, options.peer, options.steps)))
        return
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            found = {
                "packed": graft(options.base, folder / "packed", "packed", options.steps),
                "trl": trl_in_a_process(options.base, folder / "trl", options.steps),
                "plain": graft(options.base, folder / "plain", "plain", options.steps),
            }
        for name, figures in found.items():
            for more in ("phases", "losses", "time_left", "why"):
                figures.pop(more, None)
            print(f"round {number + 1} {name}", json.dumps(figures), flush=True)
        rounds.append(found)
    ratios = {}
    for peer in ("trl", "plain"):
        of_each = [r["packed"]["tokens_per_second"] / r[peer]["tokens_per_second"] for r in rounds]
        ratios[peer] = round(float(statistics.median(of_each)), 2)
    print("packed over", ratios)
    hardware = this_machine()
    target = RESULTS / "cpu.json"  # what was computed in the other precision stays
    known = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    known["bfloat16" if hardware.bf16 else "float32"] = {
        "hardware": hardware.model_dump(include={"name", "cores"}),
        "packed over": ratios,
        "rounds": rounds,
    }
    RESULTS.mkdir(exist_ok=True)
    target.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
