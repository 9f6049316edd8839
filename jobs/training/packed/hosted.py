"""The embeddings in the host's memory: a pass needs a few rows of a table that may take more than a gigabyte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class HostEmbedding(torch.nn.Module):
    """In the place of an embedding. Its table is no parameter: a model is said to be where its first one is."""

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        super().__init__()
        self.__dict__["weight"] = embedding.weight.detach().to("cpu")
        self._device = embedding.weight.device

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] in page-locked memory, for ids [tokens] in the host's."""
        weight: torch.Tensor = self.__dict__["weight"]
        pinned = torch.empty(len(ids), weight.shape[1], dtype=weight.dtype, pin_memory=self._device.type == "cuda")
        return torch.index_select(weight, 0, ids, out=pinned)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """For all but packs, which have their rows brought: waits for the ids."""
        found = self.rows(ids.reshape(-1).cpu())
        return found.view(*ids.shape, -1).to(ids.device, non_blocking=True)


def can_move(decoder: Any, head: torch.Tensor) -> bool:
    """Whether the decoder's embedding is a plain table that is nobody's but its own."""
    embedding = decoder.embed_tokens
    return type(embedding) is torch.nn.Embedding and embedding.weight.data_ptr() != head.data_ptr()


def is_moved(decoder: Any) -> bool:
    return isinstance(decoder.embed_tokens, HostEmbedding)


def move(decoders: Sequence[Any]) -> HostEmbedding:
    """Put the embedding that these decoders share into the host's memory, where it is not there yet."""
    first = decoders[0]
    if not is_moved(first):
        embedding = HostEmbedding(first.embed_tokens)
        for decoder in decoders:
            decoder.embed_tokens = embedding
    return first.embed_tokens  # type: ignore[no-any-return]
