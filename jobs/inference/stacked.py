"""Many LoRA adapters in one forward pass: each row of the batch gets its own A and B.

PEFT's mixed batch sorts rows by adapter in every layer; on a small model that costs more than the model. Here a
batch's matrices are laid out once, when its rows are known, and each layer then adds two thin products. Serves plain
LoRA and rsLoRA on linear layers; `read` says None for anything else, which then goes through PEFT itself.
tests/test_engine.py holds it against PEFT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# Down [in, r] and up [r, out], the scale already in up.
Pair = tuple[torch.Tensor, torch.Tensor]
Pairs = dict[str, Pair]
# Rows start to stop of a batch get down [rows, in, r] and up [rows, r, out].
Part = tuple[int, int, torch.Tensor, torch.Tensor]
Plan = dict[str, list[Part]]

_PREFIX = "base_model.model."
ORDINARY_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # others change the base weights as they are loaded
# What a config may say and still be plain LoRA; a key we do not know, and that is set, is a kind we do not know.
_ORDINARY_KEYS = frozenset(
    """peft_type task_type auto_mapping base_model_name_or_path revision inference_mode peft_version r target_modules
    exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora init_lora_weights layers_to_transform
    layers_pattern rank_pattern alpha_pattern megatron_core loftq_config eva_config qalora_group_size
    ensure_weight_tying runtime_config""".split()  # noqa: SIM905 - thirty quoted names would not read better
)


class StackedLora:
    """Stands in the linear layers of one model and adds what `active` says to their output."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.active: Plan = {}
        self._modules = {name: module for name, module in model.named_modules() if _linear(module)}
        self._taken: set[str] = set()

    def read(self, folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Pairs | None:
        """A PEFT folder's matrices by layer, or None where it is more than LoRA on this model's linear layers."""
        unusual = any(value and key not in _ORDINARY_KEYS for key, value in config.items())
        if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unusual:
            return None
        if config.get("init_lora_weights", True) not in ORDINARY_STARTS:
            return None
        found: dict[str, dict[str, torch.Tensor]] = {}
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                name, _, kind = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
                if name not in self._modules or kind not in ("lora_A", "lora_B") or "experts" in name:
                    return None
                found.setdefault(name, {})[kind] = file.get_tensor(key)
        pairs: Pairs = {}
        for name, pair in found.items():
            if len(pair) != 2:
                return None
            scale = _scale(config, name, rank=pair["lora_A"].shape[0])
            down = pair["lora_A"].float().t().contiguous()
            up = (pair["lora_B"].float() * scale).t().contiguous()
            pairs[name] = (down.to(device, dtype), up.to(device, dtype))
        for name in found.keys() - self._taken:
            self._stand_in(name, self._modules[name])
        return pairs

    def _stand_in(self, name: str, module: torch.nn.Module) -> None:
        plain: Callable[..., torch.Tensor] = module.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            out = plain(x)
            for part in self.active.get(name, ()):
                _add(out, x, *part)
            return out

        module.forward = forward
        self._taken.add(name)


def lay_out(rows: Sequence[Pairs]) -> Plan:
    """The plan for a batch: one entry a row, an empty one for the bare base. Bare rows must come first.

    On a GPU all tuned rows of a layer go into one product; where adapters differ in rank, or one leaves a layer out,
    zeros fill up and add exactly nothing. On a CPU each row goes by itself: such thin matrices take 2 microseconds
    alone and 20 in a batch of two, and a row's numbers then do not depend on its neighbours.
    """
    first = next((index for index, pairs in enumerate(rows) if pairs), len(rows))
    tuned = rows[first:]
    plan: Plan = {}
    for name in dict.fromkeys(name for pairs in tuned for name in pairs):
        pairs = [row.get(name) for row in tuned]
        some = next(pair for pair in pairs if pair)
        if some[0].device.type == "cpu":
            plan[name] = [
                (first + index, first + index + 1, pair[0].unsqueeze(0), pair[1].unsqueeze(0))
                for index, pair in enumerate(pairs)
                if pair
            ]
            continue
        rank = max(pair[0].shape[1] for pair in pairs if pair)
        down = some[0].new_zeros(len(pairs), some[0].shape[0], rank)
        up = some[1].new_zeros(len(pairs), rank, some[1].shape[1])
        for index, pair in enumerate(pairs):
            if pair:
                down[index, :, : pair[0].shape[1]] = pair[0]
                up[index, : pair[1].shape[0]] = pair[1]
        plan[name] = [(first, len(rows), down, up)]
    return plan


def _add(out: torch.Tensor, x: torch.Tensor, start: int, stop: int, down: torch.Tensor, up: torch.Tensor) -> None:
    """out[start:stop] += x[start:stop] @ down @ up, in place; x is [rows, length, in]."""
    if stop - start < len(x):
        x, out = x[start:stop], out[start:stop]
    if x.dtype == down.dtype == out.dtype:
        out.baddbmm_(torch.bmm(x, down), up)
    else:
        out += torch.bmm(torch.bmm(x.to(down.dtype), down), up).to(out.dtype)


def _linear(module: torch.nn.Module) -> bool:
    """Linear layers, quantized ones (subclasses) included, and GPT-2's transposed kind."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _scale(config: dict[str, Any], name: str, rank: int) -> float:
    alpha = config["lora_alpha"]
    if patterns := config.get("alpha_pattern"):
        from peft.utils.other import get_pattern_key

        alpha = patterns.get(get_pattern_key(patterns, name), alpha)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
