"""Triton kernels that finish a product, and add on the way what adapters add to it: left [tokens, rank] times right
[rank, columns], a tile at a time.

Rows are taken in turns by few programs, each of which keeps its tile of `right`: so the next rows are fetched while
these are computed, and the pass is about as fast as if nothing were added.

What depends on how many rows there are is not compiled in: passes are of many sizes, and while one is recorded
(passes.py) nothing may be compiled.

The reference of each stands beside its call in finishing.py; tests/test_packed_gpu.py holds them together.
"""

# Triton reads these functions' source: their arguments cannot carry types that mypy knows.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from jobs.training.packed.finishing import Addend, Heads

_ROWS, _COLUMNS = 16, 128  # of a tile
_HEAD_ROWS = 64  # of a tile that is as wide as half a head
_AT_ONCE = 8  # programs on each of a GPU's processors


@triton.jit
def _left(left, stride, rank, row, rows, RANK: tl.constexpr):
    r = tl.arange(0, RANK)
    return tl.load(
        left + row[:, None] * stride + r[None, :], mask=(row < rows)[:, None] & (r < rank)[None, :], other=0.0
    )


@triton.jit
def _right(right, down, across, rank, column, columns, RANK: tl.constexpr):
    r = tl.arange(0, RANK)
    place = right + r[:, None] * down + column[None, :] * across
    return tl.load(place, mask=(r < rank)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit(do_not_specialize=["rows", "blocks"])
def _add(
    y, onto, out, rows, columns, left, left_stride, right, down, across, rank, blocks,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if RANK:
        tile = _right(right, down, across, rank, column, columns, RANK)
    for block in tl.range(tl.program_id(1), blocks, tl.num_programs(1), num_stages=2):
        row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        place = row[:, None] * columns + column[None, :]
        value = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(onto + place, mask=inside, other=0.0).to(tl.float32)
        if RANK:
            value += tl.dot(_left(left, left_stride, rank, row, rows, RANK), tile)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def add(y: torch.Tensor, onto: torch.Tensor, waits: Addend | None, out: torch.Tensor) -> torch.Tensor:
    """As jobs.training.packed.finishing.add_reference, for contiguous [rows, columns]."""
    rows, columns = y.shape
    grid, blocks = _turns(rows, columns, y.device)
    _add[grid](
        y, onto, out, rows, columns, *_operands(waits, y), blocks,
        RANK=_tile_rank(waits), ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows", "blocks"])
def _gate(
    both, y, rows, inner,
    gate_left, gate_stride, gate_right, gate_down, gate_across, gate_rank,
    up_left, up_stride, up_right, up_down, up_across, up_rank, blocks,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if RANK:
        gate_tile = _right(gate_right, gate_down, gate_across, gate_rank, column, inner, RANK)
        up_tile = _right(up_right, up_down, up_across, up_rank, column, inner, RANK)
    for block in tl.range(tl.program_id(1), blocks, tl.num_programs(1), num_stages=2):
        row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < inner)[None, :]
        place = both + row[:, None] * 2 * inner + column[None, :]
        gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(place + inner, mask=inside, other=0.0).to(tl.float32)
        if RANK:
            gate += tl.dot(_left(gate_left, gate_stride, gate_rank, row, rows, RANK), gate_tile)
            up += tl.dot(_left(up_left, up_stride, up_rank, row, rows, RANK), up_tile)
        found = (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty)
        tl.store(y + row[:, None] * inner + column[None, :], found, mask=inside)


@triton.jit(do_not_specialize=["rows", "blocks"])
def _gate_backward(
    dy, both, rows, inner,
    gate_left, gate_stride, gate_right, gate_down, gate_across, gate_rank,
    up_left, up_stride, up_right, up_down, up_across, up_rank,
    slope_left, slope_stride, slope_right, slope_down, slope_across, slope_rank, blocks,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if RANK:
        gate_tile = _right(gate_right, gate_down, gate_across, gate_rank, column, inner, RANK)
        up_tile = _right(up_right, up_down, up_across, up_rank, column, inner, RANK)
        slope_tile = _right(slope_right, slope_down, slope_across, slope_rank, column, inner, RANK)
    for block in tl.range(tl.program_id(1), blocks, tl.num_programs(1), num_stages=2):
        row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < inner)[None, :]
        place = both + row[:, None] * 2 * inner + column[None, :]
        slope_place = dy + row[:, None] * inner + column[None, :]
        gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(place + inner, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(slope_place, mask=inside, other=0.0).to(tl.float32)
        if RANK:
            gate += tl.dot(_left(gate_left, gate_stride, gate_rank, row, rows, RANK), gate_tile)
            up += tl.dot(_left(up_left, up_stride, up_rank, row, rows, RANK), up_tile)
            slope += tl.dot(_left(slope_left, slope_stride, slope_rank, row, rows, RANK), slope_tile)
        share = tl.sigmoid(gate)
        passed = gate * share
        kind = dy.dtype.element_ty
        tl.store(slope_place, (passed * up).to(kind), mask=inside)
        tl.store(place + inner, (slope * passed).to(kind), mask=inside)
        tl.store(place, (slope * up * share * (1.0 + gate * (1.0 - share))).to(kind), mask=inside)


def gate(both: torch.Tensor, wait: Sequence[Addend | None]) -> torch.Tensor:
    """As jobs.training.packed.finishing.gate_reference, for contiguous [tokens, 2 x inner]."""
    tokens, inner = both.shape[0], both.shape[1] // 2
    y = both.new_empty(tokens, inner)
    grid, blocks = _turns(tokens, inner, both.device)
    _gate[grid](
        both, y, tokens, inner, *_operands(wait[0], both), *_operands(wait[1], both), blocks,
        RANK=_tile_rank(*wait), ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return y


def gate_backward_(
    dy: torch.Tensor, both: torch.Tensor, wait: Sequence[Addend | None], slope: Addend | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As jobs.training.packed.finishing.gate_backward_reference, written over `both` and `dy`."""
    tokens, inner = dy.shape
    grid, blocks = _turns(tokens, inner, dy.device)
    _gate_backward[grid](
        dy, both, tokens, inner,
        *_operands(wait[0], dy), *_operands(wait[1], dy), *_operands(slope, dy), blocks,
        RANK=_tile_rank(*wait, slope), ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return both, dy


@triton.jit(do_not_specialize=["rows", "blocks"])
def _finish_heads(
    x, cos, sin, rows, heads, turned, queries, keys, half,
    q_left, q_right, q_rank, k_left, k_right, k_rank, v_left, v_right, v_rank, stride, blocks,
    HALF: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    head, pair = tl.program_id(0), tl.arange(0, HALF)
    if RANK:
        if head < queries:
            left, right = q_left, q_right
        elif head < queries + keys:
            left, right = k_left, k_right
        else:
            left, right = v_left, v_right
        rank = tl.where(head < queries, q_rank, tl.where(head < queries + keys, k_rank, v_rank))
        own = head - tl.where(head < queries, 0, tl.where(head < queries + keys, queries, queries + keys))
        right += own * 2 * half * rank
        first_tile = _right(right, 1, rank, rank, pair, half, RANK)
        second_tile = _right(right + half * rank, 1, rank, rank, pair, half, RANK)
    for block in tl.range(tl.program_id(1), blocks, tl.num_programs(1), num_stages=2):
        row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (pair < half)[None, :]
        place = x + (row[:, None] * heads + head) * 2 * half + pair[None, :]
        first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
        if RANK:
            narrow = _left(left, stride, rank, row, rows, RANK)
            first += tl.dot(narrow, first_tile)
            second += tl.dot(narrow, second_tile)
        turns = inside & (head < turned)  # of the others cosine and sine are 1 and 0, unread
        angle = row[:, None] * 2 * half + pair[None, :]
        c = tl.load(cos + angle, mask=turns, other=1.0).to(tl.float32)
        s = tl.load(sin + angle, mask=turns, other=0.0).to(tl.float32)
        tl.store(place, (first * c - second * s).to(x.dtype.element_ty), mask=inside)
        tl.store(place + half, (second * c + first * s).to(x.dtype.element_ty), mask=inside)


def finish_heads_(x: torch.Tensor, heads: Heads, wait: Sequence[Addend | None]) -> None:
    """As jobs.training.packed.finishing.finish_heads_reference_, for contiguous [tokens, heads, size]. `wait`:
    parts of one product, times contiguous matrices turned over."""
    tokens, count, size = x.shape
    cos, sin = (x, x) if heads.cos is None or heads.sin is None else (heads.cos, heads.sin)
    turned = 0 if heads.cos is None else heads.queries + heads.keys
    operands = [each for addend in wait for each in ((x, x, 0) if addend is None else (*addend, addend.left.shape[1]))]
    stride = next((addend.left.stride(0) for addend in wait if addend), 0)
    blocks = triton.cdiv(tokens, _HEAD_ROWS)
    _finish_heads[(count, _programs(blocks, count, x.device))](
        x, cos, sin, tokens, count, turned, heads.queries, heads.keys, size // 2, *operands, stride, blocks,
        HALF=max(16, triton.next_power_of_2(size // 2)), RANK=_tile_rank(*wait), ROWS=_HEAD_ROWS, num_warps=4,
    )  # fmt: skip


def _operands(addend: Addend | None, any_tensor: torch.Tensor) -> tuple[Any, ...]:
    """As kernels take them: left, its stride, right, its strides, the rank; of rank 0 where there is nothing."""
    if addend is None:
        return any_tensor, 0, any_tensor, 0, 0, 0
    left, right = addend
    return left, left.stride(0), right, *right.stride(), left.shape[1]


def _tile_rank(*addends: Addend | None) -> int:
    """What the tiles are wide, in whole tiles of the GPU's products; 0 where nothing is added."""
    widest = max((each.left.shape[1] for each in addends if each is not None), default=0)
    return max(16, triton.next_power_of_2(widest)) if widest else 0


def _turns(rows: int, columns: int, device: torch.device) -> tuple[tuple[int, int], int]:
    """(the programs, the blocks of rows that those of a column share)."""
    blocks, across = triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS)
    return (across, _programs(blocks, across, device)), blocks


def _programs(blocks: int, across: int, device: torch.device) -> int:
    return max(1, min(blocks, _AT_ONCE * _processors(device) // across))


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
