"""Methods on frozen random matrices that all layers share: VeRA (Kopiczko et al. 2024), RandLoRA (Albert et al. 2025).

The matrices are drawn from a fixed seed and saved with the adapter, so that it answers alike on every machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.methods.base import Context
from jobs.methods.layered import BaseWeights, LayerMethod
from jobs.methods.products import shared_inputs
from jobs.methods.targets import TargetParams
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from peft import RandLoraConfig, VeraConfig


class VeRA(LayerMethod):
    name = "vera"
    label = "VeRA"
    help = "One pair of random matrices for the whole model; trains two small vectors a layer. Tiny files."
    group = "Few parameters"
    order = 200
    sizes: ClassVar = {"r": (64, 128, 256)}

    class Params(BaseWeights, TargetParams):
        r: int = Field(
            64,
            ge=1,
            le=2_048,
            title="Rank (r)",
            description="Size of the random matrices. Only r numbers a layer are trained for it, so it may be large.",
        )
        dropout: float = Field(
            0.0, ge=0, le=0.5, title="Dropout", description="Share of the adapter's inputs zeroed while training."
        )

    def added(self, params: Params, module: LinearModule) -> int:
        return params.r + module.out_features

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        modules = self.modules(params, shape.linears)
        widest = max((m.in_features for m in modules), default=0) + max((m.out_features for m in modules), default=0)
        return 4 * params.r * widest

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        """What each of the two vectors scales; the random matrices, being frozen, keep nothing."""
        return width * sum(params.r + m.out_features for m in self.modules(params, shape.linears))

    def learning_rate(self, shape: ModelShape) -> float:
        return 5e-2 if shape.parameters < 1_500_000_000 else 4e-3

    def config(self, params: Params, target_modules: list[str], context: Context) -> VeraConfig:
        from peft import VeraConfig

        return VeraConfig(
            task_type=context.task_type, r=params.r, vera_dropout=params.dropout, target_modules=target_modules
        )


class RandLoRA(LayerMethod):
    name = "randlora"
    label = "RandLoRA"
    help = "Sums many random low-rank matrices with trained weights: changes of full rank for few parameters. Slower."
    order = 80

    class Params(BaseWeights, TargetParams):
        r: int = Field(
            32,
            ge=1,
            le=512,
            title="Rank of each random matrix (r)",
            description="The other way round than for LoRA: smaller trains more parameters, and learns more.",
        )
        alpha: int = Field(
            640, ge=1, le=16_384, title="Alpha", description="Strength of the adapter; about twenty times r."
        )
        dropout: float = Field(
            0.0, ge=0, le=0.5, title="Dropout", description="Share of the adapter's inputs zeroed while training."
        )

    def added(self, params: Params, module: LinearModule) -> int:
        narrow = min(module.in_features, module.out_features)
        return math.ceil(narrow / params.r) * (params.r + narrow)

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        modules = self.modules(params, shape.linears)
        inputs = max((m.in_features for m in modules), default=0)
        outputs = max((m.out_features for m in modules), default=0)
        wide, narrow = max(inputs, outputs), min(inputs, outputs)
        bases = math.ceil(narrow / params.r) * params.r if narrow else 0
        # The shared matrices, and each layer's scaled ones for the backward pass.
        each = [4 * bases * min(m.in_features, m.out_features) for m in modules]
        return 4 * (params.r * narrow + bases * wide) + (max(each, default=0) if recompute else sum(each))

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return shared_inputs(self.modules(params, shape.linears), width)

    def learning_rate(self, shape: ModelShape) -> float:
        return 1e-3 if shape.parameters < 1_500_000_000 else 2e-4

    def config(self, params: Params, target_modules: list[str], context: Context) -> RandLoraConfig:
        from peft import RandLoraConfig

        return RandLoraConfig(
            task_type=context.task_type,
            r=params.r,
            randlora_alpha=params.alpha,
            randlora_dropout=params.dropout,
            target_modules=target_modules,
        )
