"""A decoder's layers as the packed loop computes them: norm, attention, norm, gated MLP, each added to what came in.

That is how Llama's descendants are built (jobs.loops.FUSED). Where a layer is built otherwise, or something else than
LoRA is trained beside it, transformers' own code computes it, with our attention and our LoRA inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.loops import FUSED
from jobs.training.packed.attention import attend
from jobs.training.packed.finishing import Heads
from jobs.training.packed.grouping import can_group, group_of
from jobs.training.packed.groups import Group, gated_mlp, project, project_heads
from jobs.training.packed.leaves import Leaves
from jobs.training.packed.pieces import norm, rotate


@dataclass
class Positions:
    """Where the tokens of a pack stand."""

    cos: torch.Tensor  # [tokens, head size]
    sin: torch.Tensor
    ends: torch.Tensor  # int32 [documents + 1]
    longest: int  # tokens that a document may have
    adapters: torch.Tensor | None = None  # int32 [tokens]: whose each is, of several that train together


@dataclass
class FusedLayer:
    """One decoder layer: x [tokens, hidden] to [tokens, hidden]."""

    norms: tuple[torch.Tensor, torch.Tensor]  # before attention, before the MLP
    eps: float
    qkv: Group
    o: Group
    gate_up: Group
    down: Group
    heads: tuple[int, int]  # of queries; of keys, and of values
    head_norms: tuple[torch.Tensor, torch.Tensor] | None  # of queries and keys
    turns: bool  # whether positions turn queries and keys
    scaling: float
    window: int | None

    def __call__(self, x: torch.Tensor, at: Positions, whole: bool = True) -> torch.Tensor:
        """Not `whole`: what the way back needs, and no values (groups.gated_mlp)."""
        h, x = norm(x, self.norms[0], self.eps)
        x = project(self._attention(h, at), x, self.o, at.adapters)
        h, x = norm(x, self.norms[1], self.eps)
        return gated_mlp(h, x, self.gate_up, self.down, at.adapters, whole)

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [leaf for group in self.groups for leaf in group.leaves]

    def _attention(self, h: torch.Tensor, at: Positions) -> torch.Tensor:
        cos, sin = (at.cos, at.sin) if self.turns else (None, None)
        if self.head_norms is None:
            q, k, v = project_heads(h, self.qkv, Heads(*self.heads, at.cos.shape[1], cos, sin), at.adapters)
        else:
            q, k, v = project_heads(h, self.qkv, Heads(*self.heads, at.cos.shape[1], None, None), at.adapters)
            q, k = (_norm_heads(part, weight, self.eps) for part, weight in zip((q, k), self.head_norms, strict=True))
            if cos is not None and sin is not None:
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return attend(q, k, v, at.ends, at.longest, self.scaling, self.window).reshape(len(h), -1)


def fused_layers(decoders: Sequence[Any], leaves: Leaves) -> list[FusedLayer]:
    """The layers of a decoder in this form, which must be built so (can_fuse): one of several that share what is
    frozen, each with an adapter of its own."""
    found = []
    for layers in zip(*(decoder.layers for decoder in decoders), strict=True):
        found.append(_fused(layers, leaves))
        if found[-1].norms[0].is_cuda:
            torch.cuda.empty_cache()  # weights that were joined leave holes that hold none of the next ones
    return found


def can_fuse(base: Any, decoder: Any) -> bool:
    if base.config.model_type not in FUSED or getattr(base.config, "hidden_act", "silu") != "silu":
        return False
    return all(can_group(layers) for layer in decoder.layers for layers in _groups(layer))


def stacks(decoder: Any) -> list[list[torch.nn.Parameter]]:
    """The A matrices that are to lie one under the other in memory."""
    found = [
        [layer.lora_A[layer.active_adapters[0]].weight for layer in layers if hasattr(layer, "lora_A")]
        for block in decoder.layers
        for layers in _groups(block)
    ]
    return [matrices for matrices in found if len(matrices) > 1]


def _groups(layer: Any) -> tuple[list[Any], ...]:
    attention, mlp = layer.self_attn, layer.mlp
    return (
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    )


def _fused(alike: Sequence[Any], leaves: Leaves) -> FusedLayer:
    layer = alike[0]
    attention, config = layer.self_attn, layer.self_attn.config
    together = zip(*(_groups(each) for each in alike), strict=True)
    qkv, o, gate_up, down = (group_of(layers, leaves) for layers in together)
    head_norms = None
    if hasattr(attention, "q_norm"):
        head_norms = (attention.q_norm.weight.detach(), attention.k_norm.weight.detach())
    return FusedLayer(
        norms=(layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()),
        eps=layer.input_layernorm.variance_epsilon,
        qkv=qkv,
        o=o,
        gate_up=gate_up,
        down=down,
        heads=(config.num_attention_heads, config.num_key_value_heads),
        head_norms=head_norms,
        turns=bool(getattr(attention, "use_rope", True)),
        scaling=attention.scaling,
        window=_window(attention),
    )


def _window(attention: Any) -> int | None:
    if attention.config.model_type == "mistral":  # says it for all layers at once
        return attention.config.sliding_window  # type: ignore[no-any-return]
    return getattr(attention, "sliding_window", None)


def _norm_heads(part: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The norm of each head, [tokens, heads, size]."""
    normed, _ = norm(part.reshape(-1, part.shape[-1]), weight, eps)
    return normed.view(part.shape)
