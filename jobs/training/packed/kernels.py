"""Triton kernels: work that is bound by memory, each in one pass over it.

The reference of each stands beside its call, in pieces.py, finishing.py, head.py, frozen.py and float8.py;
tests/test_packed_gpu.py holds them together. Those that also add what an adapter adds are finishing_kernels.py's.
"""

# Triton reads these functions' source: their arguments cannot carry types that mypy knows.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

_WORDS = 4_096  # of the vocabulary that a program holds at once


@triton.jit
def _cross_entropy(logits, stride, targets, losses, vocabulary, WORDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    start = logits + row * stride
    highest = -float("inf")
    total = 0.0
    for first in range(0, vocabulary, WORDS):  # the sum of exponentials, rescaled whenever a higher logit is met
        word = first + tl.arange(0, WORDS)
        value = tl.load(start + word, mask=word < vocabulary, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(value, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(value - higher), 0)
        highest = higher
    log_total = highest + tl.log(total)
    counts = tl.where(target >= 0, 1.0, 0.0)
    right = tl.load(start + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, (log_total - right) * counts)
    tl.debug_barrier()  # every thread has read the target's logit before it is written over
    for first in range(0, vocabulary, WORDS):
        word = first + tl.arange(0, WORDS)
        value = tl.load(start + word, mask=word < vocabulary, other=-float("inf")).to(tl.float32)
        slope = tl.exp(value - log_total)
        slope = tl.where(word == target, slope - 1.0, slope) * counts
        tl.store(start + word, slope.to(logits.dtype.element_ty), mask=word < vocabulary)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """As jobs.training.packed.head.cross_entropy_ without a cap; the slope stands where the logits [tokens,
    vocabulary] stood."""
    tokens, vocabulary = logits.shape
    _cross_entropy[(tokens,)](logits, logits.stride(0), targets, losses, vocabulary, WORDS=_WORDS, num_warps=8)
    return logits


@triton.jit
def _norm(x, weight, y, scale, size, eps, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    inside = column < size
    place = row * size + column
    exact = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(exact * exact, 0) / size + eps)
    tl.store(scale + row, inverse)
    normed = (exact * inverse).to(y.dtype.element_ty)
    tl.store(y + place, normed * tl.load(weight + column, mask=inside, other=0.0), mask=inside)


@triton.jit
def _norm_backward(dy, onto, x, weight, scale, dx, size, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    inside = column < size
    place = row * size + column
    inverse = tl.load(scale + row)
    normed = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * inverse
    slope = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    slope *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    found = (slope - normed * (tl.sum(slope * normed, 0) / size)) * inverse
    found += tl.load(onto + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + place, found.to(dx.dtype.element_ty), mask=inside)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As jobs.training.packed.pieces.norm_reference, for contiguous [rows, size]."""
    rows, size = x.shape
    y, scale = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
    _norm[(rows,)](x, weight, y, scale, size, eps, SIZE=triton.next_power_of_2(size), num_warps=_warps(size))
    return y, scale


def norm_backward(
    dy: torch.Tensor, onto: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """As jobs.training.packed.pieces.norm_backward_reference."""
    rows, size = x.shape
    dx = torch.empty_like(x)
    _norm_backward[(rows,)](
        dy, onto, x, weight, scale, dx, size, SIZE=triton.next_power_of_2(size), num_warps=_warps(size)
    )
    return dx


@triton.jit
def _rotate(x, stride, cos, sin, heads, half, sign, HEADS: tl.constexpr, HALF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (pair < half)
    c = tl.load(cos + row * 2 * half + pair, mask=pair < half, other=0.0).to(tl.float32)
    s = tl.load(sin + row * 2 * half + pair, mask=pair < half, other=0.0).to(tl.float32) * sign
    place = x + row * stride + head * 2 * half + pair
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (first * c - second * s).to(x.dtype.element_ty), mask=inside)
    tl.store(place + half, (second * c + first * s).to(x.dtype.element_ty), mask=inside)


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> None:
    """As jobs.training.packed.pieces.rotate_reference_, for [tokens, heads, size] whose heads are contiguous."""
    tokens, heads, size = x.shape
    _rotate[(tokens,)](
        x, x.stride(0), cos, sin, heads, size // 2, sign,
        HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(size // 2), num_warps=4,
    )  # fmt: skip


@triton.jit
def _join_heads(dq, dk, dv, cos, sin, y, heads, queries, keys, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    size, values = 2 * half, heads - queries - keys
    narrow = pair < half
    c = tl.load(cos + row * size + pair, mask=narrow, other=0.0).to(tl.float32)
    s = tl.load(sin + row * size + pair, mask=narrow, other=0.0).to(tl.float32)
    of_q, of_k = head < queries, (head >= queries) & (head < queries + keys)
    of_v = (head >= queries + keys) & (head < heads)
    from_q = dq + (row * queries + head) * size + pair
    from_k = dk + (row * keys + head - queries) * size + pair
    from_v = dv + (row * values + head - queries - keys) * size + pair
    one = tl.load(from_q, mask=of_q & narrow, other=0.0).to(tl.float32)
    one += tl.load(from_k, mask=of_k & narrow, other=0.0).to(tl.float32)
    other = tl.load(from_q + half, mask=of_q & narrow, other=0.0).to(tl.float32)
    other += tl.load(from_k + half, mask=of_k & narrow, other=0.0).to(tl.float32)
    first = one * c + other * s + tl.load(from_v, mask=of_v & narrow, other=0.0).to(tl.float32)
    second = other * c - one * s + tl.load(from_v + half, mask=of_v & narrow, other=0.0).to(tl.float32)
    place = y + (row * heads + head) * size + pair
    tl.store(place, first.to(y.dtype.element_ty), mask=(head < heads) & narrow)
    tl.store(place + half, second.to(y.dtype.element_ty), mask=(head < heads) & narrow)


def join_heads(parts: Sequence[torch.Tensor], cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As jobs.training.packed.finishing.join_heads_reference, for parts [tokens, heads, size]."""
    tokens, _, size = parts[0].shape
    parts, counts = [part.contiguous() for part in parts], [part.shape[1] for part in parts]
    y = parts[0].new_empty(tokens, sum(counts), size)
    _join_heads[(tokens,)](
        *parts, cos, sin, y, sum(counts), counts[0], counts[1], size // 2,
        HEADS=triton.next_power_of_2(sum(counts)), HALF=triton.next_power_of_2(size // 2), num_warps=4,
    )  # fmt: skip
    return y


@triton.jit
def _round_rows(x, factors, y, scales, size, HIGHEST: tl.constexpr, COLUMNS: tl.constexpr, FACTORS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    value = tl.load(x + row * size + column, mask=column < size, other=0.0).to(tl.float32)
    if FACTORS:
        value *= tl.load(factors + column, mask=column < size, other=0.0)
    scale = tl.maximum(tl.max(tl.abs(value), 0), 1e-12) / HIGHEST
    tl.store(scales + row, scale)
    value = tl.minimum(tl.maximum(value / scale, -HIGHEST), HIGHEST)
    tl.store(y + row * size + column, value.to(y.dtype.element_ty), mask=column < size)


def round_rows(x: torch.Tensor, factors: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """As jobs.training.packed.float8.round_rows_reference, for contiguous [rows, size]."""
    rows, size = x.shape
    y, scales = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(rows, dtype=torch.float32)
    _round_rows[(rows,)](
        x, x if factors is None else factors, y, scales, size,
        HIGHEST=448.0, COLUMNS=triton.next_power_of_2(size), FACTORS=factors is not None,
        num_warps=4 if size <= 4096 else 8 if size <= 16384 else 16,
    )  # fmt: skip
    return y, scales


@triton.jit
def _transpose(x, y, rows, columns, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(x + row[:, None] * columns + column[None, :], mask=inside)
    inside = (column[:, None] < columns) & (row[None, :] < rows)
    tl.store(y + column[:, None] * rows + row[None, :], tl.trans(tile), mask=inside)


def transposed(x: torch.Tensor) -> torch.Tensor:
    """A contiguous [rows, columns] of bytes as a contiguous [columns, rows]."""
    rows, columns = x.shape
    y = x.new_empty(columns, rows)
    tiles = (triton.cdiv(rows, 128), triton.cdiv(columns, 128))
    _transpose[tiles](x.view(torch.uint8), y.view(torch.uint8), rows, columns, TILE=128, num_warps=8)
    return y


@triton.jit
def _route(x, adapters, owners, scales, columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < columns
    mine = tl.load(owners + column, mask=inside, other=-1) == tl.load(adapters + row)
    scale = tl.where(mine, tl.load(scales + column, mask=inside, other=0.0), 0.0)
    value = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row * columns + column, (value * scale).to(x.dtype.element_ty), mask=inside)


def route_(x: torch.Tensor, adapters: torch.Tensor, owners: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """As jobs.training.packed.pieces.route_reference_, for contiguous [tokens, columns]."""
    tokens, columns = x.shape
    _route[(tokens,)](x, adapters, owners, scales, columns, COLUMNS=triton.next_power_of_2(columns), num_warps=4)
    return x


@triton.jit
def _unpack_4bit(
    packed, code, scales, nested_code, nested_scales, offset, y, blocks,
    HALF: tl.constexpr, NESTED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < blocks
    scale = tl.load(scales + block, mask=inside, other=0)
    if NESTED:
        whole = tl.load(nested_scales + block // NESTED, mask=inside, other=0.0)
        scale = tl.load(nested_code + scale.to(tl.int32)) * whole + tl.load(offset)
    half, place = tl.arange(0, HALF)[None, :], block[:, None] * HALF
    both = tl.load(packed + place + half, mask=inside[:, None], other=0).to(tl.int32)
    first = tl.load(code + (both >> 4)) * scale[:, None]
    second = tl.load(code + (both & 15)) * scale[:, None]
    pairs = tl.reshape(tl.join(first, second), (BLOCKS, 2 * HALF)).to(y.dtype.element_ty)
    tl.store(y + 2 * place + tl.arange(0, 2 * HALF)[None, :], pairs, mask=inside[:, None])


def unpack_4bit(packed: torch.Tensor, state: Any, y: torch.Tensor) -> torch.Tensor:
    """As jobs.training.packed.frozen.unpack_reference, with `state` as bitsandbytes keeps it, into a contiguous y of
    whole blocks."""
    packed, blocks = packed.view(torch.uint8), y.numel() // state.blocksize  # bytes, whatever they are stored as
    nested = state.state2 if state.nested else state
    _unpack_4bit[(triton.cdiv(blocks, 32),)](
        packed, state.code, state.absmax, nested.code, nested.absmax, state.offset if state.nested else state.code, y,
        blocks, HALF=state.blocksize // 2, NESTED=nested.blocksize if state.nested else 0, BLOCKS=32,
        num_warps=4, enable_fp_fusion=False,  # rounded as bitsandbytes rounds
    )  # fmt: skip
    return y


def _warps(size: int) -> int:
    return 4 if size <= 2048 else 8 if size <= 8192 else 16
