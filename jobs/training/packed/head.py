"""The loss over a large vocabulary, without its logits: a chunk of tokens at a time is scored, and the gradient of
the hidden states is made at once, so that no logits live to see the backward pass."""

from __future__ import annotations

from typing import Any

import torch

from jobs.memory.packed import logits_at_once


def token_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float | None = None, scale: float = 1.0
) -> torch.Tensor:
    """The cross entropy of each token, [tokens], in 32 bits.

    From hidden states [tokens, hidden] and the frozen output head [vocabulary, hidden]; the logits are
    softcap x tanh(scale x head(hidden) / softcap) where there is one. A target below 0 counts nothing.
    """
    if not hidden.requires_grad:
        return _TokenLosses.forward(None, hidden, weight, targets, softcap, scale)
    return _TokenLosses.apply(hidden, weight, targets, softcap, scale)  # type: ignore[no-any-return]


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        softcap: float | None,
        scale: float,
    ) -> torch.Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if ctx else None  # of each token's loss by its hidden state
        size = logits_at_once(len(hidden), hidden.is_cuda)
        room = hidden.new_empty(size, len(weight))  # for the logits of every chunk in turn
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = room[: len(hidden[part])]
            torch.mm(hidden[part], weight.t(), out=logits)
            slope = cross_entropy_(logits, targets[part], losses[part], softcap, scale)
            if slopes is not None:
                torch.mm(slope, weight, out=slopes[part])
        if ctx:
            ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None, None, None


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, softcap: float | None, scale: float
) -> torch.Tensor:
    """Fill `losses` [tokens] and return the losses' slope by the head's own output, [tokens, vocabulary], in the
    logits' memory where that can be."""
    if logits.is_cuda and softcap is None and scale == 1.0:
        from jobs.training.packed.kernels import cross_entropy

        return cross_entropy(logits, targets, losses)
    known = targets >= 0
    places = targets.clamp_min(0)[:, None]
    values = logits.float() if scale == 1.0 else logits.float() * scale
    if softcap is not None:
        squashed = torch.tanh(values / softcap)
        values = softcap * squashed
    log_total = values.logsumexp(dim=-1, keepdim=True)
    losses.copy_((log_total - values.gather(1, places))[:, 0] * known)
    slope = values.sub_(log_total).exp_()
    slope.scatter_add_(1, places, torch.full_like(slope[:, :1], -1.0).expand(len(places), 1))
    slope *= known[:, None]
    if softcap is not None:
        slope *= 1 - squashed**2
    return (slope if scale == 1.0 else slope.mul_(scale)).to(logits.dtype)
