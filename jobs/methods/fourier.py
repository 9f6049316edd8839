"""FourierFT: the difference as a few frequencies of its two-dimensional spectrum (Gao et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.hardware import Hardware
from jobs.memory.kept import FP32
from jobs.methods.base import Context
from jobs.methods.layered import LayerMethod
from jobs.methods.products import shared_inputs, whole_differences
from jobs.methods.targets import TargetParams
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from peft import FourierFTConfig


class FourierFT(LayerMethod):
    name = "fourierft"
    label = "FourierFT"
    help = "Trains a few frequencies of each layer's change: files of kilobytes, but slow steps and more memory."
    group = "Few parameters"
    order = 230
    sizes: ClassVar = {"frequencies": (1_000, 2_000, 4_000)}

    class Params(TargetParams):
        frequencies: int = Field(
            1_000,
            ge=1,
            le=100_000,
            title="Frequencies",
            description="Numbers trained in each layer. More learns more.",
        )
        scaling: float = Field(
            150,
            gt=0,
            le=1_000,
            title="Scaling",
            description="Strength of the change. 100 to 300 are usual.",
            json_schema_extra={"advanced": True},
        )

    def added(self, params: Params, module: LinearModule) -> int:
        return params.frequencies

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        return whole_differences(self.modules(params, shape.linears), 12 if width == FP32 else 5.5, recompute)

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return shared_inputs(self.modules(params, shape.linears), width)

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        problems = super().check(params, shape, hardware)
        modules = self.modules(params, shape.linears)
        smallest = min((m.in_features * m.out_features for m in modules), default=params.frequencies)
        if params.frequencies > smallest:
            problems.append(
                f"You set Frequencies to {params.frequencies:,}, but the smallest layer of {shape.architecture} has "
                f"{smallest:,} weights. Lower it."
            )
        return problems

    def learning_rate(self, shape: ModelShape) -> float:
        return 5e-2 if shape.parameters < 1_500_000_000 else 3e-2

    def config(self, params: Params, target_modules: list[str], context: Context) -> FourierFTConfig:
        from peft import FourierFTConfig

        return FourierFTConfig(
            task_type=context.task_type,
            n_frequency=params.frequencies,
            scaling=params.scaling,
            init_weights=True,  # begins as the base
            target_modules=target_modules,
        )
