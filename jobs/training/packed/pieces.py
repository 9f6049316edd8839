"""What stands before the matrix products of a decoder layer: norms, rotations, routes. Forward and backward are written
out, so that each is one pass over memory on a GPU (kernels.py) and nothing is kept that can be had again. What stands
behind a product, and finishes it, is finishing.py's.

The weights of norms are frozen: they get no gradient.
"""

from __future__ import annotations

from typing import Any

import torch


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(the root-mean-square norm of x, x itself), both [tokens, size]: who goes on with both saves an addition on
    the way back."""
    return _Norm.apply(x, weight, eps)  # type: ignore[no-any-return]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> Any:
        if x.is_cuda:
            from jobs.training.packed import kernels

            y, scale = kernels.norm(x, weight, eps)
        else:
            y, scale = norm_reference(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, onto: torch.Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        if dy.is_cuda:
            from jobs.training.packed import kernels

            dx = kernels.norm_backward(dy.contiguous(), onto.contiguous(), x, weight, scale)
        else:
            dx = norm_backward_reference(dy, onto, x, weight, scale)
        return dx, None, None


def norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm, 1 / root mean square of each row in 32 bits), rounded where transformers' norms round."""
    exact = x.float()
    scale = torch.rsqrt(exact.pow(2).mean(-1) + eps)
    return weight * (exact * scale[:, None]).to(x.dtype), scale


def norm_backward_reference(
    dy: torch.Tensor, onto: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The slope by x: from that by its norm, and `onto`, the slope by x from whatever else went on with it."""
    normed = x.float() * scale[:, None]
    slope = dy.float() * weight.float()
    found = (slope - normed * (slope * normed).mean(-1, keepdim=True)) * scale[:, None]
    return (found + onto.float()).to(dy.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on [tokens, heads, size], with cos and sin [tokens, size] as transformers gives them."""
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return]


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate_(x.clone(memory_format=torch.contiguous_format), cos, sin)

    @staticmethod
    def backward(ctx: Any, dx: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return rotate_(dx.clone(memory_format=torch.contiguous_format), cos, sin, back=True), None, None


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool = False) -> torch.Tensor:
    """The same written over x, whose tokens may lie apart; the other way round with `back`. No autograd."""
    sign = -1.0 if back else 1.0
    if x.is_cuda:
        from jobs.training.packed import kernels

        kernels.rotate_(x, cos, sin, sign)
    else:
        rotate_reference_(x, cos, sin, sign)
    return x


def rotate_reference_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> None:
    """Turn each pair (i, i + size / 2) by its token's angle; back where `sign` is -1."""
    half = x.shape[-1] // 2
    c, s = cos[:, None, :half], sin[:, None, :half] * sign
    first, second = x[..., :half].clone(), x[..., half:].clone()
    x[..., :half] = first * c - second * s
    x[..., half:] = second * c + first * s


def route_(x: torch.Tensor, adapters: torch.Tensor, owners: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Leave each token its own adapter's columns, scaled, and none of the others': x [tokens, columns], written over,
    `adapters` [tokens], `owners` and `scales` [columns]. Its own backward pass. No autograd."""
    if x.is_cuda:
        from jobs.training.packed import kernels

        return kernels.route_(x, adapters, owners, scales)
    return route_reference_(x, adapters, owners, scales)


def route_reference_(
    x: torch.Tensor, adapters: torch.Tensor, owners: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    return x.mul_(torch.where(adapters[:, None] == owners, scales, 0.0))
