"""One peer's trainer in a process of its own, for benchmarks.peers: TRL's SFTTrainer, or Unsloth's.

`python -m benchmarks.peer trl|unsloth` does its imports, says so, reads one job (JSON, a line) from its standard input,
trains and answers with its figures (JSON, a line). Imports nothing of Graft: only the peers' packages, in their own
versions. What the peers print goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import statistics
import sys
import time
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PACKAGES = ("torch", "transformers", "peft", "trl", "unsloth", "liger-kernel", "bitsandbytes", "flash-attn")
RANK = 16


def main(peer: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    began = time.time()
    if peer == "unsloth":
        import unsloth  # noqa: F401 - patches transformers, peft and trl, and so comes before them
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    print(json.dumps({"imports_s": round(time.time() - began, 2)}), file=answers, flush=True)
    line = sys.stdin.readline()
    if line.strip():  # else nobody needs this one
        print(json.dumps(train(peer, json.loads(line))), file=answers, flush=True)


def train(peer: str, job: dict[str, Any]) -> dict[str, Any]:
    """`job`: model (folder), dtype, rows (tokens of each, in the order of training), batch (rows a step), longest,
    steps, skip, and of the variant padded, liger, recompute, four_bits."""
    began = time.time()
    import torch
    from trl import SFTConfig, SFTTrainer

    torch.set_float32_matmul_precision("high")
    load = load_for_unsloth if peer == "unsloth" else load_for_trl
    model, more, settings = load(job, getattr(torch, job["dtype"]))
    cuda = torch.cuda.is_available()
    steps = make_callback(job["skip"], job["steps"], cuda)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir="trained",
            max_steps=job["steps"],
            per_device_train_batch_size=job["batch"],
            gradient_accumulation_steps=1,
            train_sampling_strategy="sequential",
            padding_free=not job["padded"],
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused" if cuda else "adamw_torch",
            bf16=job["dtype"] == "bfloat16",
            use_cpu=not cuda,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",  # the callback asks for three: each waits for the GPU
            disable_tqdm=True,
            seed=0,
            dataset_num_proc=None,
            **settings,
        ),
        callbacks=[steps],
        **more,
    )
    collator: Any = trainer.data_collator
    collate = collator.torch_call
    tokens: list[int] = []

    def counting(examples: list[dict[str, Any]]) -> Any:
        tokens.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    collator.torch_call = counting
    trainer.train()
    skip, last = job["skip"], job["steps"]
    return {
        "tokens_per_second": round(sum(tokens[skip:last]) / (steps.marks[last] - steps.marks[skip]), 1),
        "tokens_a_step": round(statistics.mean(tokens[skip:last]), 1),
        "step_ms": round(statistics.median(steps.milliseconds()), 2),
        "peak_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if cuda else None,
        "allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
        "loss": [round(steps.told[place]["loss"], 4) for place in (0, -1)],
        "grad_norm": [round(float(steps.told[place]["grad_norm"]), 4) for place in (0, -1)],
        "first_loss_s": round(steps.first_told - began, 2),
        "tokens": tokens[:last],
        "versions": versions(),
    }


def load_for_trl(job: dict[str, Any], dtype: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(model, what SFTTrainer gets with it, settings of its own). TRL itself puts the adapter on."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    cuda = torch.cuda.is_available()
    if cuda and not job["padded"]:
        register_varlen_attention()
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=dtype,
        attn_implementation="varlen" if cuda and not job["padded"] else "sdpa",
        device_map={"": 0} if cuda else None,
        quantization_config=four_bits if job["four_bits"] else None,
    )
    lora = LoraConfig(
        r=RANK, lora_alpha=RANK, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=TARGETS
    )
    more = {
        "train_dataset": Dataset.from_dict({"input_ids": job["rows"]}),
        "processing_class": AutoTokenizer.from_pretrained(job["model"]),
        "peft_config": lora,
    }
    settings = {
        "max_length": None,  # no row is longer
        "gradient_checkpointing": job["recompute"],
        "use_liger_kernel": job["liger"],
    }
    return model, more, settings


def register_varlen_attention() -> None:
    """transformers' `attn_implementation="varlen"`: each document attends to itself alone, through the FlashAttention
    that PyTorch brings (flash-attn has no wheels for each PyTorch)."""
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **more: Any
    ) -> Any:
        ends, longest = more["cu_seq_lens_q"], int(more["max_length_q"])
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        out: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0))
        return out[None], None

    AttentionInterface.register("varlen", attend)
    AttentionMaskInterface.register("varlen", flash_attention_mask)


def load_for_unsloth(job: dict[str, Any], dtype: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(model, what SFTTrainer gets with it, settings of its own). Unsloth pads rows of tokens; it gets text."""
    from datasets import Dataset
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        job["model"],
        max_seq_length=job["longest"],
        dtype=dtype,
        load_in_4bit=job["four_bits"],
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing="unsloth" if job["recompute"] else False,
        random_state=0,
        max_seq_length=job["longest"],
    )
    texts = [" ".join(tokenizer.convert_ids_to_tokens(row)) for row in job["rows"]]
    more = {"train_dataset": Dataset.from_dict({"text": texts}), "processing_class": tokenizer}
    return model, more, {"max_length": job["longest"], "dataset_text_field": "text"}


def make_callback(skip: int, last: int, cuda: bool) -> Any:
    """Notes the time at the end of every step, and what is told of the first step and the last."""
    import torch
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def __init__(self) -> None:
            self.told: list[dict[str, float]] = []
            self.first_told = 0.0
            self.marks: dict[int, float] = {}  # with nothing under way on the GPU
            self.ends: list[Any] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            step = state.global_step
            if cuda:
                self.ends.append(torch.cuda.Event(enable_timing=True))
                self.ends[-1].record()
            else:
                self.ends.append(time.perf_counter())
            if step in (skip, last):
                if cuda:
                    torch.cuda.synchronize()
                self.marks[step] = time.perf_counter()
            control.should_log = step in (1, last - 1, last)  # what is told is the mean since it was told before

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                self.first_told = self.first_told or time.time()
                self.told.append({name: float(logs[name]) for name in ("loss", "grad_norm")})

        def milliseconds(self) -> list[float]:
            pairs = itertools.pairwise(self.ends[skip - 1 :])
            return [begin.elapsed_time(end) if cuda else 1000 * (end - begin) for begin, end in pairs]

    return Steps()


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(sys.argv[1])
