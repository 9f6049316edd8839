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
        for document in documents:
            answer, each = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *_widened(document, query, key, value), 0.0, **_sight(document, window), scale=scaling
            )
            found[document] = answer[0].transpose(0, 1)
            logsumexp.append(each)
        ctx.save_for_backward(query, key, value, found, *logsumexp)
        ctx.given = documents, scaling, window
        return found

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        query, key, value, found, *logsumexp = ctx.saved_tensors
        documents, scaling, window = ctx.given
        slopes = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in (query, key, value)]
        for document, each in zip(documents, logsumexp, strict=True):
            given, *parts, answer = _widened(document, slope, query, key, value, found)
            answers = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                given, *parts, answer, each, 0.0, **_sight(document, window), scale=scaling
            )
            for whole, part in zip(slopes, answers, strict=True):
                whole[document] = part[0].transpose(0, 1)
        return *slopes, None, None, None


def _widened(document: slice, *parts: torch.Tensor) -> list[torch.Tensor]:
    """One document's rows of each [tokens, heads, size] as [1, heads, its tokens, size] in 32 bits."""
    return [part[document].transpose(0, 1)[None].float() for part in parts]


def _sight(document: slice, window: int | None) -> dict[str, Any]:
    """How the kernel is told whom each token of a document sees."""
    tokens = document.stop - document.start
    if window is None or tokens <= window:
        return {"is_causal": True}
    unseen = torch.full((tokens, tokens), -torch.inf).triu_(1)  # what comes later; in place, for long documents' sake
    unseen.masked_fill_(torch.ones(tokens, tokens, dtype=torch.bool).tril_(-window), -torch.inf)
    return {"is_causal": False, "attn_mask": unseen}


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
