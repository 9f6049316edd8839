"""Adaption prompts, or LLaMA-Adapter (Zhang et al. 2023): virtual tokens behind a gate in the last attention layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.hardware import Hardware
from jobs.methods.base import Context, Method
from jobs.methods.layered import BaseWeights
from jobs.shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KINDS = ("llama", "mistral")  # PEFT computes the queries anew, in its own way for each


class AdaptionPrompt(Method):
    name = "adaption-prompt"
    label = "Adaption prompt"
    help = "Virtual tokens in the last attention layers, let in slowly through a gate. Llama and Mistral only."
    group = "Virtual tokens"
    order = 430
    merges = False
    task_types = ("CAUSAL_LM",)
    sizes: ClassVar = {"tokens": (10, 20, 40)}

    class Params(BaseWeights):
        tokens: int = Field(10, ge=1, le=256, title="Virtual tokens", description="How many each layer looks at.")
        depth_layers: int = Field(
            8, ge=1, le=1_000, title="How many layers", description="Counted from the last, which decides the answer."
        )

    def trainable(self, params: Params, shape: ModelShape) -> int:
        return params.depth_layers * (params.tokens * shape.hidden_size + 1)  # and the gate

    def layers_reached(self, params: Params, shape: ModelShape) -> int:
        return min(params.depth_layers, shape.layers)

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        if shape.model_type not in _KINDS or shape.heads * shape.head_dim != shape.hidden_size:
            return [
                f"You chose {self.label}, but it works on Llama and Mistral models only, and this one is a "
                f"{shape.architecture}. Choose LoRA, or Prompt tuning."
            ]
        if params.depth_layers > shape.layers:
            return [
                f"You set How many layers to {params.depth_layers}, but {shape.architecture} has {shape.layers}. "
                "Lower it."
            ]
        return []

    def learning_rate(self, shape: ModelShape) -> float:
        return 1e-1 if shape.parameters < 1_500_000_000 else 9e-3

    def attach(self, model: PreTrainedModel, params: Params, context: Context) -> Any:
        from peft import AdaptionPromptConfig, get_peft_model

        return get_peft_model(
            self.prepared(model, params),
            AdaptionPromptConfig(
                task_type=context.task_type, adapter_len=params.tokens, adapter_layers=params.depth_layers
            ),
        )
