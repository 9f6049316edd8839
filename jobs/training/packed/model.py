"""A transformers decoder with LoRA, computing a pack at a time: [kept] token losses out of one long sequence.

Or several adapters of one decoder: as many models that share all that is frozen, whose passes are one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from jobs.errors import UserError
from jobs.memory.plan import MemoryPlan
from jobs.training.packed import attention, float8, hosted
from jobs.training.packed.flat import FlatWeights
from jobs.training.packed.head import token_losses
from jobs.training.packed.layers import Positions, can_fuse, fused_layers, stacks
from jobs.training.packed.leaves import JoinedLeaves, Leaves, OwnLeaves
from jobs.training.packed.linear import fuse, lora_layers, unfuse
from jobs.training.packed.pieces import norm
from jobs.training.packed.recompute import HostMemory, Recomputed


def flat_weights(model: Any, groups: list[dict[str, Any]]) -> FlatWeights:
    """What a PeftModel trains, LoRA's matrices and nothing else, in the optimizer's groups: as PackedModel wants it."""
    base, decoder = _parts(model)
    return FlatWeights(groups, stacks(decoder) if can_fuse(base, decoder) else ())


class PackedModel:
    """`models`: PeftModels of one frozen decoder, each with its `weights`. `longest`: tokens of the longest document.
    `dtype`: of the products. `rounded`: whether the decoder's layers are to be held in 8-bit floats."""

    def __init__(
        self,
        models: Sequence[Any],
        weights: Sequence[FlatWeights],
        dtype: torch.dtype,
        *,
        plan: MemoryPlan,
        longest: int,
        rounded: bool = False,
    ) -> None:
        attention.register()
        base, self._decoder = _parts(models[0])
        self._head = base.get_output_embeddings()
        self._softcap = getattr(base.config, "final_logit_softcapping", None)
        self.longest = longest
        self.weights = weights
        self._fuses = can_fuse(base, self._decoder)
        decoders = [_parts(model)[1] for model in models]
        if len(models) > 1 and not self._fuses:  # only layers of our own know whose a token is
            raise UserError(
                f"These runs cannot be trained together: the packed loop has no layers of its own for such models as "
                f"this one (of the kind {base.config.model_type}). Start each by itself."
            )
        if rounded:
            float8.round_layers([decoder.layers for decoder in decoders])
            torch.cuda.empty_cache()  # the wide weights' places, which smaller pieces would take
        self.leaves: Leaves
        self._lora = []
        if len(models) == 1:
            self.leaves = own = OwnLeaves(weights[0], dtype)
            self._lora = lora_layers(base)
            in_stacks = {id(parameter) for unit in weights[0].units if len(unit) > 1 for parameter in unit}
            fuse(self._lora, functools.partial(_value, leaves=own, in_stacks=in_stacks))
        else:
            self.leaves = JoinedLeaves(weights, dtype)
        self._embedding = hosted.move(decoders) if self._moves_embedding(plan) else None
        self._forwards = self._forwards_of(decoders, plan)
        # What draws random numbers again when it is recomputed reads the generator's state, which no graph can; nor can
        # it wait for the host's memory, or for how long a sequence is, on which some turn their queries and keys.
        waits = plan.offloaded or _turns_by_length(self._decoder.config)
        self.recordable = not (self._random and plan.recomputed) and not waits
        self.layers = len(self._forwards)
        self.operations_a_token = 2 * sum(parameter.numel() for parameter in base.parameters())

    def losses(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Token losses [kept] of one pack: tensors `input_ids`, `positions` [tokens], `ends` [documents + 1], `kept`
        and `targets` [kept] on the model's device; of several adapters `adapters` [tokens], int32; what `brought`
        gives. To be called while `engaged`."""
        hidden = self._run_fused(batch) if self._fuses else self._run_decoder(batch)
        return token_losses(hidden.index_select(0, batch["kept"]), self._head.weight, batch["targets"], self._softcap)

    def brought(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What `losses` needs besides, from ids [tokens] in the host's memory: still in it, too."""
        return {"embedded": self._embedding.rows(ids)} if self._embedding else {}

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """The models compute packs in here, and ordinary batches outside."""
        for weights in self.weights:
            assert weights.whole(), "a parameter was put elsewhere: what is trained is not what would be saved"
        if self._fuses:
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
        """Give the models back as PEFT made them, with what was trained."""
        unfuse(self._lora)

    def _run_fused(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The last hidden states, [tokens, hidden], by our own layers."""
        decoder = self._decoder
        x = batch["embedded"] if self._embedding else decoder.embed_tokens(batch["input_ids"])
        cos, sin = decoder.rotary_emb(x[None], batch["positions"][None])
        at = Positions(cos[0].contiguous(), sin[0].contiguous(), batch["ends"], self.longest, batch.get("adapters"))
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

    def _moves_embedding(self, plan: MemoryPlan) -> bool:
        if not self._fuses:
            return False
        moves = plan.embedding_on_host and hosted.can_move(self._decoder, self._head.weight)
        return moves or hosted.is_moved(self._decoder)  # for an earlier plan: there it stays

    def _forwards_of(self, decoders: Sequence[Any], plan: MemoryPlan) -> list[Callable[..., Any]]:
        found: list[Callable[..., Any]] = []
        again = self._recomputed(plan)
        host = HostMemory() if plan.offloaded and self._fuses else None
        if self._fuses:
            for index, fused in enumerate(fused_layers(decoders, self.leaves)):
                found.append(Recomputed(fused, host) if index in again else fused)
            return found
        through = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=self._random)
        for index, layer in enumerate(self._decoder.layers):
            found.append(functools.partial(through, layer.forward) if index in again else layer.forward)
        return found

    def _recomputed(self, plan: MemoryPlan) -> range:
        """The layers that are, from the first that the way back reaches: those before it keep nothing anyway."""
        trained = (any(each.requires_grad for each in layer.parameters()) for layer in self._decoder.layers)
        first = next((index for index, found in enumerate(trained) if found), 0)
        return range(first, first + plan.recomputed)

    @property
    def _random(self) -> bool:
        return any(layer.low_rank.dropout for layer in self._lora)


def _parts(model: Any) -> tuple[Any, Any]:
    """(the model with its head, the decoder in it)."""
    base = model.get_base_model()
    return base, getattr(base, base.base_model_prefix)


def _turns_by_length(config: Any) -> bool:
    """Whether its rotary embedding looks at how long a sequence is, and so waits for it."""
    given = getattr(config, "rope_parameters", None) or {}  # of all layers, or by their kind
    return any(each.get("rope_type") == "dynamic" for each in (given, *given.values()) if isinstance(each, dict))


def _value(parameter: torch.nn.Parameter, leaves: OwnLeaves, in_stacks: set[int]) -> torch.Tensor:
    """The parameter as a layer by itself computes with it. What is in a stack is trained there."""
    return leaves.narrow(parameter) if id(parameter) in in_stacks else leaves.rows([[parameter]])
