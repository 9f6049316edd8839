"""Triton kernels: work that is bound by memory, each in one pass over it. Their references are in head.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_WIDTH = 4_096  # words of the vocabulary that a program holds at once


@triton.jit
def _cross_entropy(logits, stride, targets, losses, vocabulary, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    start = logits + row * stride
    highest = -float("inf")
    total = 0.0
    for first in range(0, vocabulary, WIDTH):  # the sum of exponentials, rescaled whenever a higher logit is met
        word = first + tl.arange(0, WIDTH)
        value = tl.load(start + word, mask=word < vocabulary, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(value, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(value - higher), 0)
        highest = higher
    log_total = highest + tl.log(total)
    counts = tl.where(target >= 0, 1.0, 0.0)
    right = tl.load(start + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, (log_total - right) * counts)
    tl.debug_barrier()  # every thread has read the target's logit before it is written over
    for first in range(0, vocabulary, WIDTH):
        word = first + tl.arange(0, WIDTH)
        value = tl.load(start + word, mask=word < vocabulary, other=-float("inf")).to(tl.float32)
        slope = tl.exp(value - log_total)
        slope = tl.where(word == target, slope - 1.0, slope) * counts
        tl.store(start + word, slope.to(logits.dtype.element_ty), mask=word < vocabulary)


def cross_entropy_kernel(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """As jobs.training.packed.head.cross_entropy_ without a cap; the slope stands where the logits [tokens,
    vocabulary] stood."""
    tokens, vocabulary = logits.shape
    _cross_entropy[(tokens,)](logits, logits.stride(0), targets, losses, vocabulary, WIDTH=_WIDTH, num_warps=8)
    return logits
