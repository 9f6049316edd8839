"""Methods that turn the weights instead of adding to them: OFT (Qiu et al. 2023), BOFT (Liu et al. 2024), HRA (Yuan et
al. 2024). A rotation keeps the angles between a layer's outputs, and with them much of what the base knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.hardware import Hardware
from jobs.memory.kept import FP32
from jobs.methods.base import Context
from jobs.methods.layered import BaseWeights, LayerMethod
from jobs.methods.products import shared_inputs
from jobs.methods.targets import TargetParams
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from peft import BOFTConfig, HRAConfig, OFTConfig


def block_size(features: int, wanted: int) -> int:
    """The divisor of `features` nearest to `wanted`, as PEFT's OFT adjusts it."""
    if features % wanted == 0:
        return wanted
    if wanted >= features:
        return features
    higher = next(n for n in range(wanted, features + 1) if features % n == 0)
    lower = next(n for n in range(wanted, 0, -1) if features % n == 0)
    return lower if wanted - lower <= higher - wanted else higher


class OFT(LayerMethod):
    name = "oft"
    label = "OFT"
    help = "Turns blocks of each layer's inputs: learns without disturbing how the base relates things to each other."
    group = "Rotations"
    order = 300
    transposed = False
    sizes: ClassVar = {"block_size": (16, 32, 64)}

    class Params(BaseWeights, TargetParams):
        block_size: int = Field(
            32,
            ge=2,
            le=512,
            title="Block size",
            description="Inputs that are turned together. Larger learns more and costs more.",
        )
        dropout: float = Field(
            0.0, ge=0, le=0.5, title="Dropout", description="Share of the blocks left as they are while training."
        )

    def added(self, params: Params, module: LinearModule) -> int:
        size = block_size(module.in_features, params.block_size)
        return module.in_features // size * (size * (size - 1) // 2)

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        modules = self.modules(params, shape.linears)
        # Each block's rotation as a matrix in 32 bits, with what its series is made of.
        each = [6 * 4 * m.in_features * params.block_size for m in modules]
        return max(each, default=0) if recompute else sum(each)

    def learning_rate(self, shape: ModelShape) -> float:
        return 2e-3 if shape.parameters < 1_500_000_000 else 5e-4

    def config(self, params: Params, target_modules: list[str], context: Context) -> OFTConfig:
        from peft import OFTConfig

        return OFTConfig(
            task_type=context.task_type,
            oft_block_size=params.block_size,
            module_dropout=params.dropout,
            target_modules=target_modules,
        )


class BOFT(LayerMethod):
    name = "boft"
    label = "BOFT"
    help = "OFT with exact rotations that also learns the size of each output. Slow, and hungry for memory."
    group = "Rotations"
    order = 310
    transposed = False

    class Params(BaseWeights, TargetParams):
        block_size: int = Field(
            4,
            ge=2,
            le=256,
            title="Block size",
            description="Inputs that are turned together; must divide the width of every chosen layer.",
        )
        dropout: float = Field(
            0.0, ge=0, le=0.5, title="Dropout", description="Share of the blocks left as they are while training."
        )

    def added(self, params: Params, module: LinearModule) -> int:
        return module.in_features * params.block_size + module.out_features

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        modules = self.modules(params, shape.linears)
        # A permutation each, and for the backward pass the rotation, the block matrix and the turned weight; under
        # autocast narrow copies of some.
        squares, wholes = (8, 8) if width == FP32 else (4, 7.5)
        each = [m.in_features * (squares * m.in_features + wholes * m.out_features) for m in modules]
        held = 4 * sum(m.in_features**2 for m in modules) + (max(each, default=0) if recompute else sum(each))
        return int(held)

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return shared_inputs(self.modules(params, shape.linears), width)

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        problems = super().check(params, shape, hardware)
        widths = sorted({m.in_features for m in self.modules(params, shape.linears)})
        if uneven := [width for width in widths if width % params.block_size]:
            problems.append(
                f"You set Block size to {params.block_size}, but it does not divide {uneven[0]}, the width of a layer "
                f"of {shape.architecture}. Choose a number that does, such as {block_size(uneven[0], 4)}."
            )
        return problems

    def learning_rate(self, shape: ModelShape) -> float:
        return 1e-3 if shape.parameters < 1_500_000_000 else 3e-4

    def config(self, params: Params, target_modules: list[str], context: Context) -> BOFTConfig:
        from peft import BOFTConfig

        return BOFTConfig(
            task_type=context.task_type,
            boft_block_size=params.block_size,
            boft_n_butterfly_factor=1,  # more need a CUDA kernel that PEFT builds only where a compiler is
            boft_dropout=params.dropout,
            target_modules=target_modules,
        )


class HRA(LayerMethod):
    name = "hra"
    label = "HRA"
    help = "Turns each layer's inputs by a chain of mirrors: between LoRA and OFT. Slow, and hungry for memory."
    group = "Rotations"
    order = 320
    transposed = False
    sizes: ClassVar = {"r": (8, 16, 32)}

    class Params(TargetParams):
        r: int = Field(
            8,
            ge=2,
            le=128,
            title="Mirrors (r)",
            description="How many, an even number: they start in pairs that undo each other.",
        )

    def added(self, params: Params, module: LinearModule) -> int:
        return params.r * module.in_features

    def held_memory(self, params: Params, shape: ModelShape, recompute: bool, width: int) -> int:
        modules = self.modules(params, shape.linears)
        # Each mirror as a matrix, and their product so far: under autocast much less of both.
        squares = 2 if width == FP32 else 1.25
        each = [width * m.in_features * (squares * params.r * m.in_features + m.out_features) for m in modules]
        return int(max(each, default=0) if recompute else sum(each))

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return shared_inputs(self.modules(params, shape.linears), width)

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        problems = super().check(params, shape, hardware)
        if params.r % 2:
            problems.append(f"You set Mirrors to {params.r}: they start in pairs, so choose an even number.")
        return problems

    def learning_rate(self, shape: ModelShape) -> float:
        return 6e-4 if shape.parameters < 1_500_000_000 else 2e-4

    def config(self, params: Params, target_modules: list[str], context: Context) -> HRAConfig:
        from peft import HRAConfig

        return HRAConfig(task_type=context.task_type, r=params.r, target_modules=target_modules)
