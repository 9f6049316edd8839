"""What stands between the matrix products of a decoder layer: norms, rotations, gates, routes. Forward and backward are
written out, so that each is one pass over memory on a GPU (kernels.py) and nothing is kept that can be had again.

The weights of norms are frozen: they get no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import silu


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(the root-mean-square norm of x, x itself), both [tokens, size]: who goes on with both saves an addition on
    the way back."""
    return _Norm.apply(x, None, weight, eps)  # type: ignore[no-any-return]


def add_norm(x: torch.Tensor, branch: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[Any, Any]:
    """(the norm of x + branch, x + branch)."""
    return _Norm.apply(x, branch, weight, eps)  # type: ignore[no-any-return]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, eps: float) -> Any:
        if x.is_cuda:
            from jobs.training.packed import kernels

            y, total, scale = kernels.norm(x, branch, weight, eps)
        else:
            y, total, scale = norm_reference(x, branch, weight, eps)
        ctx.save_for_backward(total, weight, scale)
        ctx.adds = branch is not None
        return y, total.view_as(total) if branch is None else total

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, dtotal: torch.Tensor) -> Any:
        total, weight, scale = ctx.saved_tensors
        if dy.is_cuda:
            from jobs.training.packed import kernels

            dx = kernels.norm_backward(dy.contiguous(), dtotal.contiguous(), total, weight, scale)
        else:
            dx = norm_backward_reference(dy, dtotal, total, weight, scale)
        return dx, dx if ctx.adds else None, None, None


def norm_reference(
    x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(norm, x + branch, 1 / root mean square of each row in 32 bits), rounded where transformers' norms round."""
    total = x if branch is None else x + branch
    exact = total.float()
    scale = torch.rsqrt(exact.pow(2).mean(-1) + eps)
    return weight * (exact * scale[:, None]).to(x.dtype), total, scale


def norm_backward_reference(
    dy: torch.Tensor, dtotal: torch.Tensor, total: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The slope by x (and by branch) from those of both results."""
    normed = total.float() * scale[:, None]
    slope = dy.float() * weight.float()
    found = (slope - normed * (slope * normed).mean(-1, keepdim=True)) * scale[:, None]
    return (found + dtotal.float()).to(dy.dtype)


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


def gate(both: torch.Tensor) -> torch.Tensor:
    """silu(gate) x up of [tokens, gate | up]. No autograd: the MLP's own backward pass calls `gate_backward_`."""
    if both.is_cuda:
        from jobs.training.packed import kernels

        return kernels.gate(both)
    return gate_reference(both)


def gate_backward_(dy: torch.Tensor, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the slope by `both`, gate(both) once more); on a GPU they stand where `both` and `dy` stood."""
    if dy.is_cuda:
        from jobs.training.packed import kernels

        return kernels.gate_backward_(dy, both)
    return gate_backward_reference(dy, both)


def gate_reference(both: torch.Tensor) -> torch.Tensor:
    gates, ups = both.chunk(2, dim=1)
    return silu(gates) * ups


def gate_backward_reference(dy: torch.Tensor, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gates, ups = both.chunk(2, dim=1)
    share = torch.sigmoid(gates)
    passed = gates * share
    dgates = dy * ups * share * (1 + gates * (1 - share))
    return torch.cat((dgates, dy * passed), dim=1), passed * ups


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
