"""Differences made of products: LoHa and LoKr (Yeh et al. 2023, from LyCORIS), MiSS (Kang et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.hardware import Hardware
from jobs.memory.kept import FP32
from jobs.methods.base import Context
from jobs.methods.layered import SHARED, BaseWeights, LayerMethod
from jobs.methods.targets import TargetParams
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from peft import LoHaConfig, LoKrConfig, MissConfig


def whole_differences(modules: list[LinearModule], bytes_a_weight: float, recompute: bool) -> int:
    """What is kept for the backward pass of matrices of each layer's own size: how much was measured."""
    each = [int(bytes_a_weight * m.in_features * m.out_features) for m in modules]
    return max(each, default=0) if recompute else sum(each)


def shared_inputs(modules: list[LinearModule], width: int) -> float:
    """Bytes a token: the layers' inputs as they come, once for all that read the same."""
    return SHARED * width * sum(module.in_features for module in modules)


class LoHa(LayerMethod):
    name = "loha"
    label = "LoHa"
    help = "Multiplies two low-rank matrices entry by entry: the rank of r² for twice LoRA's parameters. More memory."
    order = 90
    transposed = False
    sizes: ClassVar = {"r": (8, 12, 16), "alpha": (16, 24, 32)}

    class Params(TargetParams):
        r: int = Field(8, ge=1, le=128, title="Rank (r)", description="Of both factors; the difference has up to r².")
        alpha: int = Field(
            16, ge=1, le=512, title="Alpha", description="Strength of the adapter: its output is scaled by alpha / r."
        )
        dropout: float = Field(
            0.0, ge=0, le=0.5, title="Dropout", description="Share of the ranks left out while training."
        )

    def added(self, params: Params, module: LinearModule) -> int:
        return 2 * params.r * (module.in_features + module.out_features)

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        return whole_differences(self.modules(params, shape.linears), 9.6 if width == FP32 else 2, recompute)

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return shared_inputs(self.modules(params, shape.linears), width)

    def learning_rate(self, shape: ModelShape) -> float:
        return 5e-3 if shape.parameters < 1_500_000_000 else 5e-4

    def config(self, params: Params, target_modules: list[str], context: Context) -> LoHaConfig:
        from peft import LoHaConfig

        return LoHaConfig(
            task_type=context.task_type,
            r=params.r,
            alpha=params.alpha,
            rank_dropout=params.dropout,
            target_modules=target_modules,
        )


class LoKr(LayerMethod):
    name = "lokr"
    label = "LoKr"
    help = "Repeats a small low-rank matrix in blocks (a Kronecker product): far fewer parameters than LoRA."
    group = "Few parameters"
    order = 210
    transposed = False
    sizes: ClassVar = {"r": (8, 16, 32), "alpha": (16, 32, 64)}

    class Params(TargetParams):
        r: int = Field(
            8, ge=1, le=256, title="Rank (r)", description="Of the repeated matrix. More learns more and costs more."
        )
        alpha: int = Field(
            16, ge=1, le=512, title="Alpha", description="Strength of the adapter: its output is scaled by alpha / r."
        )
        factor: int = Field(
            8,
            ge=2,
            le=64,
            title="Blocks",
            description="Into how many blocks a layer is cut, each way. More costs less.",
        )
        dropout: float = Field(
            0.0, ge=0, le=0.5, title="Dropout", description="Share of the ranks left out while training."
        )

    def added(self, params: Params, module: LinearModule) -> int:
        few_in, many_in = factorized(module.in_features, params.factor)
        few_out, many_out = factorized(module.out_features, params.factor)
        if params.r >= max(many_in, many_out) / 2:  # a whole matrix is no larger than its low-rank form
            return few_in * few_out + many_in * many_out
        return few_in * few_out + params.r * (many_in + many_out)

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        return whole_differences(self.modules(params, shape.linears), 11 if width == FP32 else 3, recompute)

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return shared_inputs(self.modules(params, shape.linears), width)

    def learning_rate(self, shape: ModelShape) -> float:
        return 1.5e-2 if shape.parameters < 1_500_000_000 else 1e-3

    def config(self, params: Params, target_modules: list[str], context: Context) -> LoKrConfig:
        from peft import LoKrConfig

        return LoKrConfig(
            task_type=context.task_type,
            r=params.r,
            alpha=params.alpha,
            decompose_factor=params.factor,
            rank_dropout=params.dropout,
            target_modules=target_modules,
        )


def factorized(dimension: int, factor: int) -> tuple[int, int]:
    """`dimension` as a product of two, the first at most `factor`: as LyCORIS and PEFT cut a layer."""
    if dimension % factor == 0:
        return factor, dimension // factor
    few, many = 1, dimension
    while few < many:
        more = few + 1
        while dimension % more:
            more += 1
        if more + dimension // more > few + many or more > factor:
            break
        few, many = more, dimension // more
    return min(few, many), max(few, many)


class MiSS(LayerMethod):
    name = "miss"
    label = "MiSS"
    help = "One small matrix a layer, shared by groups of its inputs: half of LoRA's parameters at the same rank."
    order = 85
    transposed = False
    sizes: ClassVar = {"r": (16, 32, 64)}

    class Params(BaseWeights, TargetParams):
        r: int = Field(16, ge=1, le=512, title="Rank (r)", description="Groups that a layer's inputs are summed into.")
        dropout: float = Field(
            0.0, ge=0, le=0.5, title="Dropout", description="Share of the adapter's inputs zeroed while training."
        )

    def added(self, params: Params, module: LinearModule) -> int:
        return params.r * module.out_features

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return 0.0  # sums of a few of the inputs

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        problems = super().check(params, shape, hardware)
        narrowest = min((m.in_features for m in self.modules(params, shape.linears)), default=params.r)
        if params.r > narrowest:
            problems.append(
                f"You set Rank to {params.r}, but the narrowest layer of {shape.architecture} has {narrowest} "
                "inputs. Lower it."
            )
        return problems

    def learning_rate(self, shape: ModelShape) -> float:
        return 1e-3 if shape.parameters < 1_500_000_000 else 2e-4

    def config(self, params: Params, target_modules: list[str], context: Context) -> MissConfig:
        from peft import MissConfig

        return MissConfig(
            task_type=context.task_type, r=params.r, miss_dropout=params.dropout, target_modules=target_modules
        )
