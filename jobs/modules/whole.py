"""Whole models in transformers' own layout: how a fully fine-tuned one is saved and read again.

Saved in the precision that it was measured in: where the run computed in 32 bits, so that what is loaded says what the
evaluations said; where it computed in 16, in that of the base's own files. Further training has 32 bits in any case
(Method.state).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARD = "4GB"


def stored_dtype(model: PreTrainedModel) -> str:
    """The precision of the files that `model` was loaded from: "bfloat16". "float32" where they do not say."""
    from transformers import AutoConfig

    if not model.name_or_path:
        return "float32"  # built from a config: there are no files
    config = AutoConfig.from_pretrained(model.name_or_path, revision=_revision(model))
    return str(config.dtype or torch.float32).removeprefix("torch.")


def save(model: PreTrainedModel, folder: Path, precision: str) -> None:
    """The weights in `precision`, in shards, and the base's tokenizer."""
    from transformers import AutoTokenizer

    config: Any = model.config
    cached, config.use_cache = config.use_cache, True  # training turns it off; who answers with the model needs it
    dtype = getattr(torch, precision)
    try:
        model.save_pretrained(folder, state_dict=_narrowed(model, dtype), max_shard_size=_SHARD)
    finally:
        config.use_cache = cached
    file = folder / "config.json"
    stated = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(stated | {"dtype": precision}, indent=2) + "\n", encoding="utf-8")
    if model.name_or_path:
        AutoTokenizer.from_pretrained(model.name_or_path, revision=_revision(model)).save_pretrained(folder)


def _narrowed(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """The model's state with its numbers in `dtype`, on the CPU; None where they are in it already."""
    if model.dtype == dtype:
        return None
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights stay one
    state = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in copies:
            copies[key] = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        state[name] = copies[key]
    return state


def read(kind: type[PreTrainedModel], folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The parameters of the model in `folder` by their names, on the CPU."""
    model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return {name: parameter.data for name, parameter in model.named_parameters()}


def _revision(model: PreTrainedModel) -> str:
    return getattr(model.config, "_commit_hash", None) or "main"
