"""Frozen layers under adapters: their product in whatever form their weights are held, forward and backward.

Nothing is kept for the backward pass but the weights themselves: 4-bit ones are unpacked again there. Weights in 8-bit
floats, which are multiplied as such, are float8.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from jobs.training.packed import float8


class Frozen(Protocol):
    """Linear layers side by side: [tokens, in] to [tokens, the outputs of all]. While `keeps` is set what a product was
    computed with is kept for the way back, which follows at once."""

    keeps: bool

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + bias."""
        ...

    def product_back(self, dy: torch.Tensor) -> torch.Tensor:
        """dy W: the slope by x from that by the product."""
        ...


def frozen(layers: Sequence[Any]) -> Frozen:
    """The layers as one. Their weights become parts of one matrix, where they are not held in 4 bits."""
    bias = None
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias.detach() for layer in layers])
    if is_quantized(layers[0]):
        return _FourBits(layers, bias)
    weight = _joined(layers)
    if float8.holds(layers[0]):
        return float8.Float8(weight, torch.cat([layer.scales for layer in layers]), bias)
    return _Dense(weight, bias)


class _Dense:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self.keeps = False  # it is there anyway

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self._weight, self._bias)

    def product_back(self, dy: torch.Tensor) -> torch.Tensor:
        return dy @ self._weight


class _FourBits:
    def __init__(self, layers: Sequence[Any], bias: torch.Tensor | None) -> None:
        self._layers, self._bias = layers, bias
        self.keeps = False
        self._kept: torch.Tensor | None = None

    def product(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self._matrix(x.dtype)
        self._kept = matrix if self.keeps else None
        return torch.nn.functional.linear(x, matrix, self._bias)

    def product_back(self, dy: torch.Tensor) -> torch.Tensor:
        matrix, self._kept = self._kept, None
        return dy @ (self._matrix(dy.dtype) if matrix is None else matrix)

    def _matrix(self, dtype: torch.dtype) -> torch.Tensor:
        first = self._layers[0]
        rows = [layer.out_features for layer in self._layers]
        matrix = torch.empty(sum(rows), first.in_features, dtype=dtype, device=first.weight.device)
        for layer, part in zip(self._layers, matrix.split(rows), strict=True):
            _unpack(layer, part)
        return matrix


def _joined(layers: Sequence[Any]) -> torch.Tensor:
    """[the outputs of all, in], of which each layer's weight is a part from now on."""
    weights = [layer.weight.detach() for layer in layers]
    if len(weights) == 1:
        return weights[0]  # type: ignore[no-any-return]
    rows = [len(weight) for weight in weights]
    if _adjacent(weights):
        first = weights[0]
        return torch.as_strided(first, (sum(rows), first.shape[1]), first.stride(), first.storage_offset())
    joined = torch.cat(weights)
    for layer, part in zip(layers, joined.split(rows), strict=True):
        layer.weight.data = part
    return joined


def _adjacent(weights: Sequence[torch.Tensor]) -> bool:
    """Whether they were joined before."""
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    return all(
        end == after.data_ptr() and weights[0].untyped_storage().data_ptr() == after.untyped_storage().data_ptr()
        for end, after in zip(ends, weights[1:], strict=False)
    )


def is_quantized(layer: Any) -> bool:
    """Whether bitsandbytes holds it in 4 bits."""
    return getattr(layer.weight, "quant_state", None) is not None


def frozen_linear(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """layer(x) for x [tokens, in] in the compute dtype: [tokens, out]."""
    if float8.holds(layer):
        return float8.linear(x, layer)
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
    if float8.holds(layer):
        return layer.weight.to(dtype) * layer.scales[:, None].to(dtype)  # type: ignore[no-any-return]
    if not is_quantized(layer):
        return layer.weight.to(dtype)  # type: ignore[no-any-return]
    return _unpack(layer, torch.empty(list(layer.weight.quant_state.shape), dtype=dtype, device=layer.weight.device))


def _unpack(layer: Any, matrix: torch.Tensor) -> torch.Tensor:
    """Fill [out, in] with what the layer holds in 4 bits."""
    state = layer.weight.quant_state
    if matrix.is_cuda and matrix.numel() % state.blocksize == 0:
        from jobs.training.packed import kernels

        return kernels.unpack_4bit(layer.weight, state, matrix)
    return matrix.copy_(unpack_reference(layer.weight, state, matrix.dtype))


def unpack_reference(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """Weights in 4 bits, two in a byte, each block of them with a scale; as bitsandbytes packed them."""
    scales = state.absmax
    if state.nested:  # double quantization: the scales are held in 8 bits themselves
        nested = state.state2
        scales = state.offset + torch.ops.bitsandbytes.dequantize_blockwise(
            scales, nested.absmax, nested.code, nested.blocksize, torch.float32
        )
    return torch.ops.bitsandbytes.dequantize_4bit(  # type: ignore[no-any-return]
        packed, scales, state.blocksize, state.quant_type, list(state.shape), dtype
    )
