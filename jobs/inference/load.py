"""The base model in memory, in the best form this machine can answer with: what device, which precision."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from jobs.errors import UserError
from jobs.hardware import Hardware, processor, this_machine, usable_cores
from jobs.sizes import bytes_texts

_ROOM = 1.15  # weights, and some for the cache and what is computed
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers")


@dataclass(frozen=True)
class Loaded:
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype  # of the activations
    max_length: int  # tokens, prompt and answer together
    about: dict[str, Any]  # what a sample keeps: device, dtype, quantization, packages


def load(source: str, revision: str | None, name: str, dtype: torch.dtype | None = None) -> Loaded:
    """The model as this machine answers best with it, or in `dtype`.

    Raises UserError where it cannot be read, or does not fit.
    """
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    except (OSError, ValueError) as error:
        raise UserError(f"{name} could not be read: {str(error).splitlines()[0]}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = this_machine() if device.type == "cuda" else processor()
    quantization = None
    if dtype is None:
        dtype, quantization = _form(parameters, machine, device, name)
    arguments: dict[str, Any] = {"dtype": dtype, "revision": revision, "use_safetensors": True}
    if quantization:
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if device.type == "cuda":
        arguments["device_map"] = {"": 0}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **arguments).eval()
    except torch.OutOfMemoryError as error:
        raise UserError(f"{name} does not fit into the memory of {machine.name} that is free now.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name} could not be loaded: {str(error).splitlines()[0]}") from error
    return Loaded(
        name=name,
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        max_length=getattr(config.get_text_config(), "max_position_embeddings", None) or 2048,
        about={
            "device": device.type,
            "hardware": machine.name,
            "dtype": str(dtype).removeprefix("torch."),
            "quantization": quantization or "none",
            "threads": torch.get_num_threads(),
            "packages": {package: found for package in _PACKAGES if (found := _version(package))},
        },
    )


def _form(parameters: int, machine: Hardware, device: torch.device, name: str) -> tuple[torch.dtype, str | None]:
    """Precision and quantization: the full precision where it fits, NF4 on a GPU where it does not."""
    if device.type == "cpu":
        dtype = torch.bfloat16 if machine.bf16 else torch.float32
        needed = parameters * dtype.itemsize * _ROOM
        if needed > machine.memory_free:
            needs, there = bytes_texts(needed, machine.memory_free)
            raise UserError(
                f"{name} needs about {needs} of memory here, but {there} are free. Choose a smaller model, or end what "
                "else uses the memory."
            )
        return dtype, None
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    free, _ = torch.cuda.mem_get_info()
    if parameters * dtype.itemsize * _ROOM <= free:
        return dtype, None
    if (needed := parameters * 0.6 * _ROOM) > free:  # 4 bits, their scales, and embeddings in full precision
        needs, there = bytes_texts(needed, free)
        raise UserError(
            f"{name} needs about {needs} on the GPU even in 4 bits, but {there} are free on {machine.name}. Wait for a "
            "run to end, or choose a smaller model."
        )
    return dtype, "nf4"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def use_all_cores() -> None:
    """Before anything is computed: as many threads as this process may use cores."""
    torch.set_num_threads(usable_cores())
