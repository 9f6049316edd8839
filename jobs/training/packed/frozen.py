"""Frozen layers under adapters: their product in whatever form their weights are held, forward and backward.

Nothing is kept for the backward pass but the weights themselves: 4-bit ones are unpacked again there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Frozen:
    """Linear layers side by side: [tokens, in] to [tokens, the outputs of all]."""

    layers: Sequence[Any]
    weight: torch.Tensor | None  # [the outputs of all, in]; None where they are held in 4 bits
    bias: torch.Tensor | None  # [the outputs of all]

    @classmethod
    def of(cls, layers: Sequence[Any]) -> Frozen:
        """The layers' weights become parts of one matrix, where they are not quantized."""
        bias = None
        if layers[0].bias is not None:
            bias = torch.cat([layer.bias.detach() for layer in layers])
        if is_quantized(layers[0]):
            return cls(layers, None, bias)
        weight = layers[0].weight.detach()
        if len(layers) > 1:
            weight = torch.cat([layer.weight.detach() for layer in layers])
            begin = 0
            for layer in layers:
                layer.weight.data = weight[begin : begin + layer.out_features]
                begin += layer.out_features
        return cls(layers, weight, bias)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + bias."""
        return torch.nn.functional.linear(x, self._matrix(x.dtype), self.bias)

    def product_back(self, dy: torch.Tensor) -> torch.Tensor:
        """dy W: the slope by x from that by the product."""
        return dy @ self._matrix(dy.dtype)

    def _matrix(self, dtype: torch.dtype) -> torch.Tensor:
        if self.weight is not None:
            return self.weight
        if len(self.layers) == 1:
            return unpacked(self.layers[0], dtype)
        return torch.cat([unpacked(layer, dtype) for layer in self.layers])


def is_quantized(layer: Any) -> bool:
    return getattr(layer.weight, "quant_state", None) is not None


def frozen_linear(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """layer(x) for x [tokens, in] in the compute dtype: [tokens, out]."""
    if not is_quantized(layer):
        return torch.nn.functional.linear(x, layer.weight, layer.bias)
    y = _Unpacked.apply(x, layer)
    return y if layer.bias is None else y + layer.bias


class _Unpacked(torch.autograd.Function):
    """x W^T with W in 4 bits."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return x @ unpacked(layer, x.dtype).t()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return dy @ unpacked(ctx.layer, dy.dtype), None


def unpacked(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The layer's weights as they are computed with: [out, in]."""
    if not is_quantized(layer):
        return layer.weight.to(dtype)  # type: ignore[no-any-return]
    state = layer.weight.quant_state
    scales = state.absmax
    if state.nested:  # double quantization: the scales of 64 weights each are held in 8 bits themselves
        nested = state.state2
        scales = state.offset + torch.ops.bitsandbytes.dequantize_blockwise(
            scales, nested.absmax, nested.code, nested.blocksize, torch.float32
        )
    return torch.ops.bitsandbytes.dequantize_4bit(  # type: ignore[no-any-return]
        layer.weight, scales, state.blocksize, state.quant_type, list(state.shape), dtype
    )
