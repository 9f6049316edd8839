"""Attention in a packed sequence: every document attends to itself alone, causally.

Given to transformers under the name `NAME`, so that each architecture's own code computes everything around it. On a
GPU it is PyTorch's own kernel for sequences of different lengths, on a CPU PyTorch's own for one, in 32 bits. Where
logits are capped, `attend_one` computes each document by itself, which is also the reference.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "graft_packed"


@functools.cache
def register() -> None:
    """Make transformers know it. It needs no mask, so none is registered and transformers makes none."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, tokens, size], key and value [1, their heads, tokens, size],
    the answer [1, tokens, heads, size]; the last two as `attend`'s `ends` and `longest`."""
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    return attend(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window, softcap)[None], None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
    softcap: float | None = None,
) -> torch.Tensor:
    """[tokens, heads, size] from query [tokens, heads, size], key and value [tokens, their heads, size]. `ends`
    [documents + 1] says where documents begin and end, `longest` how many tokens one may have."""
    if query.is_cuda and softcap is None:
        return _Varlen.apply(query, key, value, ends, longest, scaling, window)  # type: ignore[no-any-return]
    documents = [slice(begin, end) for begin, end in itertools.pairwise(ends.tolist()) if end > begin]
    if query.device.type == "cpu" and softcap is None:
        return _InFull.apply(query, key, value, documents, scaling, window)  # type: ignore[no-any-return]
    found = []
    for document in documents:
        parts = (part[document].transpose(0, 1)[None] for part in (query, key, value))
        found.append(attend_one(*parts, scaling=scaling, window=window, softcap=softcap))
    return torch.cat(found, dim=2)[0].transpose(0, 1)


def attend_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One document's causal attention, [1, heads, tokens, size]: each token sees itself and the `window` - 1 before."""
    tokens, groups = query.shape[2], query.shape[1] // key.shape[1]
    if softcap is None and (window is None or tokens <= window):
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1)
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=groups > 1)
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    logits = query @ key.transpose(2, 3) * (scaling or query.shape[3] ** -0.5)
    logits = (softcap * torch.tanh(logits / softcap)).masked_fill(~seen, float("-inf"))
    return logits.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


class _InFull(torch.autograd.Function):
    """[tokens, heads, size] from the same, document by document in 32 bits; only what is given and found is kept.

    Of many small products oneDNN's 16-bit ones are the slower, on documents of 40 tokens 2.8 times, of 128 1.6 times,
    while on long ones they are a sixth faster; and for each length of a document it would compile and keep its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        documents: list[slice],
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        found, logsumexp = torch.empty_like(query, memory_format=torch.contiguous_format), []
        sights = [sight for document in documents for sight in _sights(document, window)]
        for rows, seen in sights:
            answer, each = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *_widened(rows, query), *_widened(seen, key, value), 0.0, **_masked(rows, seen, window), scale=scaling
            )
            found[rows] = answer[0].transpose(0, 1)
            logsumexp.append(each)
        ctx.save_for_backward(query, key, value, found, *logsumexp)
        ctx.given = sights, scaling, window
        return found

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        query, key, value, found, *logsumexp = ctx.saved_tensors
        sights, scaling, window = ctx.given
        of_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        of_key, of_value = (torch.zeros_like(part, memory_format=torch.contiguous_format) for part in (key, value))
        for (rows, seen), each in zip(sights, logsumexp, strict=True):
            given, asking, answer = _widened(rows, slope, query, found)
            slopes = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                given, asking, *_widened(seen, key, value), answer, each, 0.0, **_masked(rows, seen, window),
                scale=scaling,
            )  # fmt: skip
            of_asking, of_seen, of_seen_value = (part[0].transpose(0, 1) for part in slopes)
            of_query[rows] = of_asking
            of_key[seen] += of_seen
            of_value[seen] += of_seen_value
        return of_query, of_key, of_value, None, None, None


def _sights(document: slice, window: int | None) -> list[tuple[slice, slice]]:
    """Tokens of one document that are computed together, and those that they see. With a window so many at a time: a
    whole long document's mask alone would be its length squared."""
    if window is None:
        return [(document, document)]
    begins = range(document.start, document.stop, window)
    return [
        (slice(begin, end), slice(max(document.start, begin - window + 1), end))
        for begin, end in ((begin, min(begin + window, document.stop)) for begin in begins)
    ]


def _widened(rows: slice, *parts: torch.Tensor) -> list[torch.Tensor]:
    """These rows of each [tokens, heads, size] as [1, heads, rows, size] in 32 bits."""
    return [part[rows].transpose(0, 1)[None].float() for part in parts]


def _masked(rows: slice, seen: slice, window: int | None) -> dict[str, Any]:
    """How the kernel is told which of `seen` each of `rows` sees."""
    if window is None or rows.start == seen.start:
        return {"is_causal": True}
    before = rows.start - seen.start
    hidden = torch.full((rows.stop - rows.start, seen.stop - seen.start), -torch.inf).triu_(before + 1)  # what is later
    hidden.masked_fill_(torch.ones_like(hidden, dtype=torch.bool).tril_(before - window), -torch.inf)
    return {"is_causal": False, "attn_mask": hidden}


class _Varlen(torch.autograd.Function):
    """[tokens, heads, size] from the same, by the kernel behind torch.nn.attention.varlen: what stands between them
    there takes as long in Python as all the rest of a layer."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ends: torch.Tensor,
        longest: int,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        # It masks what comes later where no window is given; with one, what comes later lies outside of it.
        before, after = (window - 1, 0) if window else (None, None)
        found, *kept = torch.ops.aten._flash_attention_forward(
            query, key, value, ends, ends, longest, longest, 0.0, not window, False,
            scale=scaling, window_size_left=before, window_size_right=after,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, ends, found, *kept[:3])
        ctx.given = longest, scaling, before, after
        return found  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        query, key, value, ends, found, logsumexp, *random = ctx.saved_tensors
        longest, scaling, before, after = ctx.given
        slopes = torch.ops.aten._flash_attention_backward(
            slope, query, key, value, found, logsumexp, ends, ends, longest, longest, 0.0, before is None, *random,
            scale=scaling, window_size_left=before, window_size_right=after,
        )  # fmt: skip
        return *slopes, None, None, None, None
