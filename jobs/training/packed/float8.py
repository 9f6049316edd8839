"""A frozen base in 8-bit floats (e4m3): half the memory of 16 bits, and products at up to twice the speed.

Each row of the weights has a scale of its own, kept beside it; each row of what they are multiplied with gets one anew
for every product (Micikevicius et al. 2022). On the way back the weights' scales stand on the side that is summed over:
they go into the slope before that is rounded. Sums are the GPU's fast ones, somewhat short of 32 bits. Adapters, norms,
embeddings and the output head stay in 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

HIGHEST = 448.0  # the largest e4m3
_KIND = torch.float8_e4m3fn


class Float8Linear(torch.nn.Linear):
    """A linear layer that was rounded: `weight` [out, in] in 8 bits, `scales` [out] in 32."""

    scales: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x.reshape(-1, x.shape[-1]), self).view(*x.shape[:-1], -1)


def round_layers(alike: Sequence[torch.nn.Module]) -> None:
    """Hold the linear layers of a module, bare ones and those under PEFT's, in 8-bit floats from now on: of several
    around the same weights each the same, so that nobody holds, or computes with, the wide ones."""
    for layers in zip(*(module.modules() for module in alike), strict=True):
        first = layers[0]
        # Not what is trained: PEFT's A and B are linear layers, too.
        if type(first) is torch.nn.Linear and not first.weight.requires_grad and _divides(first):
            rounded, scales = round_rows_reference(first.weight.detach())
            weight = torch.nn.Parameter(rounded, requires_grad=False)
            for layer in layers:
                layer.weight = weight
                layer.__class__ = Float8Linear
                layer.register_buffer("scales", scales, persistent=False)


def holds(layer: Any) -> bool:
    return isinstance(layer, Float8Linear)


def _divides(layer: torch.nn.Linear) -> bool:
    """Whether the GPU's products take such sizes."""
    return layer.in_features % 16 == 0 and layer.out_features % 16 == 0


class Float8:
    """As frozen.Frozen: `weight` [the outputs of all, in] in 8 bits, `scales` [the outputs of all]."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._scales, self._bias = weight, scales, bias
        self.keeps = False  # the way back turns the weights

    def product(self, x: torch.Tensor) -> torch.Tensor:
        rounded, scales = round_rows(x)
        y = _product(rounded, scales, self._weight, self._scales, x.dtype)
        return y if self._bias is None else y.add_(self._bias)

    def product_back(self, dy: torch.Tensor) -> torch.Tensor:
        rounded, scales = round_rows(dy, self._scales)
        return _product(rounded, scales, transposed(self._weight), None, dy.dtype)


def linear(x: torch.Tensor, layer: Float8Linear) -> torch.Tensor:
    """[tokens, out] from [tokens, in]."""
    return _Linear.apply(x, layer)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Float8Linear) -> torch.Tensor:
        ctx.held = Float8(layer.weight.detach(), layer.scales, layer.bias)
        return ctx.held.product(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return ctx.held.product_back(dy), None


def _product(
    x: torch.Tensor, x_scales: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """(x W^T) x_scales scales: [tokens, out] from x [tokens, in] and W [out, in], both rounded."""
    if scales is None:
        scales = x_scales.new_ones(len(weight))
    if not x.is_cuda:
        return ((x.float() @ weight.float().t()) * x_scales[:, None] * scales).to(dtype)
    return torch._scaled_mm(
        x, weight.t(), scale_a=x_scales[:, None], scale_b=scales[None], out_dtype=dtype, use_fast_accum=True
    )


def round_rows(x: torch.Tensor, factors: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x in 8 bits, the scale of each row): x [rows, size], its columns multiplied with `factors` [size] before."""
    if x.is_cuda:
        from jobs.training.packed import kernels

        return kernels.round_rows(x.contiguous(), factors)
    return round_rows_reference(x, factors)


def round_rows_reference(x: torch.Tensor, factors: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    exact = x.float() if factors is None else x.float() * factors
    scales = exact.abs().amax(dim=1).clamp_min(1e-12) / HIGHEST
    return (exact / scales[:, None]).clamp(-HIGHEST, HIGHEST).to(_KIND), scales


def transposed(weight: torch.Tensor) -> torch.Tensor:
    """[in, out] in memory of its own: the GPU multiplies 8-bit floats only where both run along what is summed."""
    if weight.is_cuda:
        from jobs.training.packed import kernels

        return kernels.transposed(weight)
    return weight.t().contiguous()
