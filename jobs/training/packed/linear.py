"""One LoRA layer by itself: x W^T + scale (x A^T) B^T in the precision of the base.

For layers that are not computed as part of a group (groups.py): other architectures, dropout, DoRA; and for all while
the model answers or is evaluated. PEFT's modules stay where they are, under their names, with their parameters: only
their class, and with it `forward`, is another one while the loop trains. Saving, merging, switching off are PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jobs.training.packed.frozen import frozen_linear, unpacked


@dataclass
class LowRank:
    """What is trained beside one layer, in the compute dtype."""

    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [out, rank]
    scale: float
    dropout: float = 0.0
    magnitude: torch.Tensor | None = None  # [out]: DoRA's length of each row
    lengths: torch.Tensor | None = None  # [out], 32 bits: those of the frozen rows, squared


class PackedLinear:
    """Goes before one of PEFT's LoRA layers in the order of its bases."""

    low_rank: LowRank

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer: Any = self
        if layer.disable_adapters or layer.merged:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc,no-any-return]
        tokens = x.reshape(-1, x.shape[-1])
        return _linear(tokens, layer.base_layer, self.low_rank, layer.training).view(*x.shape[:-1], -1)


def _linear(x: torch.Tensor, frozen: Any, low: LowRank, training: bool) -> torch.Tensor:
    """[tokens, out] from [tokens, in]."""
    x = x.to(low.a.dtype)
    inner = torch.nn.functional.dropout(x, low.dropout, training) @ low.a.t()
    if low.magnitude is None:
        # In place: the product belongs to nobody else, and its own values are not needed to go backward.
        return frozen_linear(x, frozen).addmm_(inner, low.b.t(), alpha=low.scale)
    y = frozen_linear(x, frozen)
    factor = (low.magnitude / _row_lengths(frozen, low)).to(x.dtype)
    if frozen.bias is None:
        return factor * y.addmm_(inner, low.b.t(), alpha=low.scale)
    return factor * (y - frozen.bias).addmm_(inner, low.b.t(), alpha=low.scale) + frozen.bias


def _row_lengths(frozen: Any, low: LowRank) -> torch.Tensor:
    """The length of each row of W + scale B A, [out], without making that matrix; a constant to autograd (DoRA,
    section 4.3): |w|^2 + 2 scale (W A^T) . B + scale^2 (B A A^T) . B."""
    assert low.lengths is not None
    with torch.no_grad():
        a, b = low.a.float(), low.b.float()
        crossed = (unpacked(frozen, low.a.dtype) @ low.a.t()).float()
        squares = low.lengths + 2 * low.scale * (crossed * b).sum(1) + low.scale**2 * ((b @ (a @ a.t())) * b).sum(1)
        return squares.clamp_min(1e-12).sqrt()


def lora_layers(model: torch.nn.Module) -> list[Any]:
    """PEFT's LoRA layers of the model, in its order."""
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def fuse(layers: list[Any], value: Callable[[torch.nn.Parameter], torch.Tensor]) -> None:
    """Let the layers compute as above, with what `value` gives for each of their parameters."""
    for layer in layers:
        (name,) = layer.active_adapters
        magnitude = layer.lora_magnitude_vector[name].weight if name in layer.lora_magnitude_vector else None
        layer.__dict__["low_rank"] = LowRank(
            a=value(layer.lora_A[name].weight),
            b=value(layer.lora_B[name].weight),
            scale=float(layer.scaling[name]),
            dropout=float(getattr(layer.lora_dropout[name], "p", 0.0)),
            magnitude=None if magnitude is None else value(magnitude),
            lengths=None if magnitude is None else unpacked(layer.base_layer, torch.float32).pow(2).sum(1),
        )
        layer.__class__ = _fused(type(layer))


def unfuse(layers: list[Any]) -> None:
    """Give them back to PEFT."""
    for layer in layers:
        layer.__class__ = type(layer).__mro__[2]
        del layer.__dict__["low_rank"]


_CLASSES: dict[type, type] = {}


def _fused(kind: type) -> type:
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Packed{kind.__name__}", (PackedLinear, kind), {})
    return _CLASSES[kind]
