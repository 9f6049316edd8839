"""A transformers decoder with LoRA, computing a pack at a time: [kept] token losses out of one long sequence."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from jobs.training.packed import attention
from jobs.training.packed.flat import FlatWeights
from jobs.training.packed.head import token_losses
from jobs.training.packed.linear import fuse, lora_layers, unfuse


class PackedModel:
    """`model`: a PeftModel whose only trained parameters are LoRA's. `recomputed`: how many of the layers, from the
    first, keep nothing but their input for the backward pass. `longest`: tokens of the longest document."""

    def __init__(self, model: Any, weights: FlatWeights, *, recomputed: int, compiled: bool, longest: int) -> None:
        attention.register()
        base = model.get_base_model()
        self._decoder = getattr(base, base.base_model_prefix)
        self._head = base.get_output_embeddings()
        self._softcap = getattr(base.config, "final_logit_softcapping", None)
        self._weights = weights
        self.longest = longest
        self._lora = lora_layers(base)
        fuse(self._lora, weights.leaf)
        self._random = any(layer.low_rank.dropout for layer in self._lora)
        # What draws random numbers again when it is recomputed reads the generator's state, which a graph cannot.
        self.recordable = not (self._random and recomputed)
        self.operations_a_token = 2 * sum(parameter.numel() for parameter in base.parameters())
        self._forwards = [
            self._forward_of(layer, index < recomputed, compiled) for index, layer in enumerate(self._decoder.layers)
        ]

    def losses(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Token losses [kept] of one pack: tensors `input_ids`, `positions` [tokens], `ends` [documents + 1], `kept`
        and `targets` [kept] on the model's device. To be called while `engaged`."""
        hidden = self._decoder(
            input_ids=batch["input_ids"][None],
            position_ids=batch["positions"][None],
            use_cache=False,
            cu_seq_lens_q=batch["ends"],
            max_length_q=self.longest,
        ).last_hidden_state[0]
        return token_losses(hidden.index_select(0, batch["kept"]), self._head.weight, batch["targets"], self._softcap)

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """The model computes packs in here, and ordinary batches outside."""
        config = self._decoder.config
        before = config._attn_implementation
        config._attn_implementation = attention.NAME
        for layer, forward in zip(self._decoder.layers, self._forwards, strict=True):
            layer.forward = forward
        try:
            yield
        finally:
            config._attn_implementation = before
            for layer in self._decoder.layers:
                del layer.forward

    def release(self) -> None:
        """Give the model back as PEFT made it, with what was trained."""
        unfuse(self._lora)

    def _forward_of(self, layer: Any, recomputed: bool, compiled: bool) -> Callable[..., Any]:
        forward = layer.forward
        if compiled:
            forward = torch.compile(forward, fullgraph=True, dynamic=True)
        if recomputed:
            forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=self._random)
        return forward
