"""What every method on linear layers shares: the count, the checks, the table and the way into PEFT.

A method adds how many parameters it puts beside one layer and its PEFT config. Here too: how the frozen base is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.memory.kept import FP32
from jobs.methods.base import Context, Method
from jobs.methods.targets import TargetRow, linears_of, table, target_problems, targeted
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

SHARED = 0.7  # of the layers' inputs by themselves, where layers that read the same keep it once: q, k, v; gate, up


class BaseWeights(Frozen):
    """How the frozen base is held; mixed into the Params of methods that PEFT has for bitsandbytes' layers."""

    base_weights: Literal["full", "fp8", "8-bit", "4-bit"] = Field(
        "full",
        title="Base weights",
        description="How the frozen base is held. On a GPU 8-bit halves its memory and 4-bit quarters it; both slower. "
        "8-bit floats halve it and are faster, on GPUs that multiply them (H100 and newer).",
        json_schema_extra={
            "labels": {
                "full": "Full precision",
                "fp8": "8-bit floats (fp8)",
                "8-bit": "8-bit",
                "4-bit": "4-bit (NF4)",
            }
        },
    )
    double_quantization: bool = Field(
        True,
        title="Double quantization",
        description="Compresses the 4-bit scales too: saves about 0.4 bits a parameter at no visible cost.",
        json_schema_extra={"advanced": True, "where": {"base_weights": ["4-bit"]}},
    )


class LayerMethod(Method):
    """A method that puts something beside chosen linear layers; its Params are TargetParams and more."""

    transposed: ClassVar[bool] = True  # also beside GPT-2's layers, which keep their weights the other way round

    def added(self, params: Any, module: LinearModule) -> int:
        """Trainable parameters beside one layer."""
        raise NotImplementedError

    def config(self, params: Any, target_modules: list[str], context: Context) -> PeftConfig:
        """PEFT's config for these layers, by their names in the loaded model. Imports PEFT."""
        raise NotImplementedError

    def modules(self, params: Any, linears: Sequence[LinearModule]) -> list[LinearModule]:
        """The layers it goes to, of all that the model has."""
        return targeted(params, linears)

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        """Each layer's own copy of its input: autocast narrows it for each of them anew. In 32 bits they share it."""
        inputs = sum(module.in_features for module in self.modules(params, shape.linears))
        return inputs * width * (SHARED if width == FP32 else 1)

    def layers_reached(self, params: Any, shape: ModelShape) -> int:
        """From the last to the first in which something is trained."""
        if shape.decoder_layers:
            return super().layers_reached(params, shape)
        numbers = [module.layer for module in self.modules(params, shape.linears)]
        return shape.layers - min(numbers, default=0)

    def trainable(self, params: Any, shape: ModelShape) -> int:
        return sum(self.added(params, module) for module in self.modules(params, shape.linears))

    def target_table(self, params: Any, shape: ModelShape) -> list[TargetRow]:
        return table((module, self.added(params, module)) for module in self.modules(params, shape.linears))

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        if not self.transposed and shape.model_type == "gpt2":
            return [
                f"You chose {self.label}, but it cannot work on GPT-2's layers, which keep their weights the other way "
                "round. Choose LoRA, or another base model."
            ]
        return [*self._float8_problems(params, hardware), *target_problems(params, shape)]

    def _float8_problems(self, params: Any, hardware: Hardware) -> list[str]:
        if self.quantization(params) != "fp8":
            return []
        if not self.packs:
            return [
                f"You set Base weights to 8-bit floats, which {self.label} cannot train beside. Choose another form of "
                "the base, or LoRA."
            ]
        if not hardware.fp8:
            return [
                f"You set Base weights to 8-bit floats, which {hardware.name} does not multiply; an H100 or a newer "
                f"GPU does. Choose full precision{', or 4-bit' if hardware.device == 'cuda' else ''}."
            ]
        return []

    def notes(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        if self.quantization(params) == "none" or hardware.device == "cuda":
            return []
        return [
            f"{self.label} on a quantized base works on this CPU, but saves little here, and computes more slowly: the "
            "whole model is loaded before it is quantized. Choose it for a GPU; on a CPU choose full precision."
        ]

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        from peft import get_peft_model

        names = [module.name for module in self.modules(params, linears_of(model))]
        return get_peft_model(self.prepared(model, params, context.narrow), self.config(params, names, context))  # type: ignore[arg-type]
