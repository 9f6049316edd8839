"""LoRA and QLoRA: low-rank matrices beside the linear layers (Hu et al. 2021, Dettmers et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.methods.base import Context, Method, Quantization
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Targets = Literal["all-linear", "attention", "mlp"]

_ATTENTION = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "c_attn",
    "query",
    "key",
    "value",
    "query_key_value",
    "qkv_proj",
)
_ATTENTION_PARENTS = ("attn", "self_attn", "attention", "self_attention")


def _is_attention(module: LinearModule) -> bool:
    parents = module.name.split(".")[:-1]
    return module.leaf in _ATTENTION or any(part in _ATTENTION_PARENTS for part in parents)


def targeted(targets: Targets, shape: ModelShape) -> list[LinearModule]:
    """The linear layers that get an adapter: the model's own, never its embedding or output head."""
    if targets == "all-linear":
        return list(shape.linears)
    return [module for module in shape.linears if _is_attention(module) == (targets == "attention")]


class LoRA(Method):
    name = "lora"
    label = "LoRA"
    help = "Trains two small matrices beside each chosen layer. The safe choice: fast, small, merges into the base."
    order = 10

    class Params(Frozen):
        r: int = Field(
            8,
            ge=1,
            le=256,
            title="Rank (r)",
            description="Size of the added matrices. More learns more and costs more.",
        )
        alpha: int = Field(
            16,
            ge=1,
            le=512,
            title="Alpha",
            description="Strength of the adapter: its output is scaled by alpha / r.",
        )
        dropout: float = Field(
            0.0,
            ge=0,
            le=0.5,
            title="Dropout",
            description="Share of the adapter's inputs zeroed while training; helps against overfitting.",
        )
        targets: Targets = Field(
            "all-linear",
            title="Layers",
            description="Which layers get an adapter. All linear layers learn best; attention alone is smaller.",
        )

    def trainable(self, params: Params, shape: ModelShape) -> int:
        # A is [r, in], B is [out, r]; no biases.
        return sum(params.r * (m.in_features + m.out_features) for m in targeted(params.targets, shape))

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        if targeted(params.targets, shape):
            return []
        return [
            f"You set Layers to {params.targets!r}, but {shape.architecture} has no such layers by name. "
            "Choose all-linear."
        ]

    def learning_rate(self, shape: ModelShape) -> float:
        # About ten times a full fine-tune's; larger models want less (TRL's 2e-5 shows no change after 30 steps).
        if shape.parameters < 1_500_000_000:
            return 1e-3
        return 5e-4 if shape.parameters < 5_000_000_000 else 2e-4

    def attach(self, model: PreTrainedModel, params: Params, context: Context) -> Any:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(**self.lora_config(model, params), task_type=context.task_type))

    def lora_config(self, model: PreTrainedModel, params: Params) -> dict[str, Any]:
        """LoraConfig's arguments. Layers are named one by one, as the estimate counted them."""
        return {
            "r": params.r,
            "lora_alpha": params.alpha,
            "lora_dropout": params.dropout,
            "target_modules": target_names(params.targets, model),
        }


def target_names(targets: Targets, model: PreTrainedModel) -> list[str] | str:
    """PEFT's `target_modules` for the choice: its own "all-linear", or the leaf names that the choice selects."""
    if targets == "all-linear":
        return "all-linear"
    import torch
    from transformers.pytorch_utils import Conv1D

    linear = (torch.nn.Linear, Conv1D)
    head = model.get_output_embeddings()
    modules = [
        LinearModule(name=name, in_features=0, out_features=0)
        for name, module in model.named_modules()
        if isinstance(module, linear) and module is not head
    ]
    return [m.name for m in modules if _is_attention(m) == (targets == "attention")]


class QLoRA(LoRA):
    name = "qlora"
    label = "QLoRA (4-bit)"
    help = "LoRA on a base held in 4 bits (NF4): a quarter of the memory, somewhat slower, nearly the same quality."
    order = 20

    class Params(LoRA.Params):
        double_quantization: bool = Field(
            True,
            title="Double quantization",
            description="Also compresses the 4-bit scales: saves about 0.4 bits a parameter at no visible cost.",
        )

    def notes(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        if hardware.device == "cuda":
            return []
        return [
            "QLoRA works on this CPU, but saves nothing here: the whole model is loaded before it is quantized, and it "
            "computes in 32 bits, somewhat slower. Choose it for a GPU; on a CPU choose LoRA."
        ]

    def quantization(self, params: Any) -> Quantization:
        return "nf4"

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        from peft import prepare_model_for_kbit_training

        # Recomputation is the trainer's choice, not this call's.
        return super().attach(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), params, context)
