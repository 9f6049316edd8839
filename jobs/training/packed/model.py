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
from jobs.training.packed.layers import FusedLayer, Positions, fused_layers, stacks
from jobs.training.packed.linear import fuse, lora_layers, unfuse
from jobs.training.packed.pieces import norm


class PackedModel:
    """`model`: a PeftModel whose only trained parameters are LoRA's, in the optimizer's `groups`. `recomputed`: how
    many of its layers, from the first, keep nothing but their input for the backward pass. `longest`: tokens of the
    longest document. `dtype`: of the products."""

    def __init__(
        self, model: Any, groups: list[dict[str, Any]], dtype: torch.dtype, *, recomputed: int, longest: int
    ) -> None:
        attention.register()
        base = model.get_base_model()
        self._decoder = getattr(base, base.base_model_prefix)
        self._head = base.get_output_embeddings()
        self._softcap = getattr(base.config, "final_logit_softcapping", None)
        self.longest = longest
        self._lora = lora_layers(base)
        stacked = stacks(base, self._decoder)
        self.weights = FlatWeights(groups, dtype, stacked)
        self._fused = fused_layers(base, self._decoder, self.weights.leaf)
        in_stacks = {id(parameter) for stack in stacked for parameter in stack}
        fuse(self._lora, functools.partial(self._value, in_stacks=in_stacks))
        self._forwards = [
            self._forward_of(layer, index < recomputed)
            for index, layer in enumerate(self._fused or self._decoder.layers)
        ]
        # What draws random numbers again when it is recomputed reads the generator's state, which no graph can.
        self.recordable = not (self._random and recomputed)
        self.layers = len(self._forwards)
        self.operations_a_token = 2 * sum(parameter.numel() for parameter in base.parameters())

    def losses(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Token losses [kept] of one pack: tensors `input_ids`, `positions` [tokens], `ends` [documents + 1], `kept`
        and `targets` [kept] on the model's device. To be called while `engaged`."""
        hidden = self._run_fused(batch) if self._fused else self._run_decoder(batch)
        return token_losses(hidden.index_select(0, batch["kept"]), self._head.weight, batch["targets"], self._softcap)

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """The model computes packs in here, and ordinary batches outside."""
        assert self.weights.whole(), "a parameter was put elsewhere: what is trained is not what would be saved"
        if self._fused:
            yield
            return
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

    def _run_fused(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The last hidden states, [tokens, hidden], by our own layers."""
        decoder = self._decoder
        x = decoder.embed_tokens(batch["input_ids"])
        cos, sin = decoder.rotary_emb(x[None], batch["positions"][None])
        at = Positions(cos[0].contiguous(), sin[0].contiguous(), batch["ends"], self.longest)
        for forward in self._forwards:
            x = forward(x, at)
        return norm(x, decoder.norm.weight.detach(), decoder.norm.variance_epsilon)[0]

    def _run_decoder(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The same by transformers' layers, with our attention and our LoRA."""
        found = self._decoder(
            input_ids=batch["input_ids"][None],
            position_ids=batch["positions"][None],
            use_cache=False,
            cu_seq_lens_q=batch["ends"],
            max_length_q=self.longest,
        )
        return found.last_hidden_state[0]  # type: ignore[no-any-return]

    def _forward_of(self, layer: Any, recomputed: bool) -> Callable[..., Any]:
        forward = layer if isinstance(layer, FusedLayer) else layer.forward
        if recomputed:
            return functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=self._random)
        return forward  # type: ignore[no-any-return]

    @property
    def _random(self) -> bool:
        return any(layer.low_rank.dropout for layer in self._lora)

    def _value(self, parameter: torch.nn.Parameter, in_stacks: set[int]) -> torch.Tensor:
        """The parameter as a layer by itself computes with it. What is in a stack is trained there."""
        return self.weights.narrow(parameter) if id(parameter) in in_stacks else self.weights.leaf([parameter])
