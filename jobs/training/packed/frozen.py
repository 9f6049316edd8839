"""The frozen layer under an adapter: its product in whatever form its weights are held.

Nothing is kept for the backward pass but the weights themselves: 4-bit ones are unpacked again there.
"""

from __future__ import annotations

from typing import Any

import torch


def frozen_linear(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """layer(x) for x [tokens, in] in the compute dtype: [tokens, out]."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return torch.nn.functional.linear(x, layer.weight, layer.bias)
    scales, nested = state.absmax, state.state2
    if nested is not None:
        scales = _Scales.of(state)
    y = _Unpacked.apply(x, layer.weight, scales, state.blocksize, state.quant_type, list(state.shape))
    return y if layer.bias is None else y + layer.bias


def unpacked(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The layer's weights as they are computed with: [out, in]."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.to(dtype)  # type: ignore[no-any-return]
    scales = _Scales.of(state) if state.state2 is not None else state.absmax
    return _unpack(layer.weight, scales, state.blocksize, state.quant_type, list(state.shape), dtype)


class _Scales:
    """Double quantization: the scales of 64 weights each are held in 8 bits themselves."""

    @staticmethod
    def of(state: Any) -> torch.Tensor:
        nested = state.state2
        scales = torch.ops.bitsandbytes.dequantize_blockwise(
            state.absmax, nested.absmax, nested.code, nested.blocksize, torch.float32
        )
        return scales + state.offset  # type: ignore[no-any-return]


def _unpack(
    weight: torch.Tensor, scales: torch.Tensor, blocksize: int, kind: str, shape: list[int], dtype: torch.dtype
) -> torch.Tensor:
    return torch.ops.bitsandbytes.dequantize_4bit(weight, scales, blocksize, kind, shape, dtype)  # type: ignore[no-any-return]


class _Unpacked(torch.autograd.Function):
    """x W^T with W in 4 bits."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, blocksize: int, kind: str, shape: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scales)
        ctx.blocksize, ctx.kind, ctx.shape = blocksize, kind, shape
        return x @ _unpack(weight, scales, blocksize, kind, shape, x.dtype).t()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        weight, scales = ctx.saved_tensors
        return dy @ _unpack(weight, scales, ctx.blocksize, ctx.kind, ctx.shape, dy.dtype), None, None, None, None, None
