"""LoRA and what was made of it: low-rank matrices beside the linear layers.

Hu et al. 2021 (LoRA), Dettmers et al. 2023 (QLoRA), Kalajdzievski 2023 (rsLoRA), Liu et al. 2024 (DoRA), Hayou et al.
2024 (LoRA+). PiSSA, which changes the base, has a file of its own, as has AdaLoRA, which changes its ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.methods.base import Context, Quantization
from jobs.methods.layered import BaseWeights, LayerMethod
from jobs.methods.targets import TargetParams
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from peft import LoraConfig


class RankParams(Frozen):
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


def lora_rate(shape: ModelShape) -> float:
    """About ten times a full fine-tune's; larger models want less (TRL's 2e-5 shows no change after 30 steps).

    The rates of small models for LoRA, DoRA, rsLoRA, LoRA+, HRA and trainable tokens gave the lowest validation loss of
    five, each about three times the next, over 40 steps of the starter on the first example. Those of larger models are
    the literature's (Schulman et al. 2025), not tried.
    """
    if shape.parameters < 1_500_000_000:
        return 1e-3
    return 5e-4 if shape.parameters < 5_000_000_000 else 2e-4


class LoRA(LayerMethod):
    name = "lora"
    label = "LoRA"
    help = "Trains two small matrices beside each chosen layer. The safe choice: fast, small, merges into the base."
    order = 10
    sizes: ClassVar = {"r": (8, 16, 32), "alpha": (16, 32, 64), "dropout": (0, 0, 0.05)}
    packs = True

    class Params(BaseWeights, TargetParams, RankParams):
        pass

    def added(self, params: Any, module: LinearModule) -> int:
        return params.r * (module.in_features + module.out_features)  # A is [r, in], B is [out, r]; no biases

    def learning_rate(self, shape: ModelShape) -> float:
        return lora_rate(shape)

    def config(self, params: Any, target_modules: list[str], context: Context) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            task_type=context.task_type,
            r=params.r,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            target_modules=target_modules,
            **self.lora_extras(params),
        )

    def recommended(self, hardware: Hardware) -> bool:
        return type(self) is LoRA

    def lora_extras(self, params: Any) -> dict[str, Any]:
        """What makes another kind of it: more of LoraConfig's arguments."""
        return {}


class QLoRA(LoRA):
    name = "qlora"
    label = "QLoRA (4-bit)"
    help = "LoRA on a base held in 4 bits (NF4): a quarter of the memory, somewhat slower, nearly the same quality."
    order = 20

    class Params(TargetParams, RankParams):
        double_quantization: bool = Field(
            True,
            title="Double quantization",
            description="Also compresses the 4-bit scales: saves about 0.4 bits a parameter at no visible cost.",
        )

    def quantization(self, params: Any) -> Quantization:
        return "nf4"

    def recommended(self, hardware: Hardware) -> bool:
        return hardware.device == "cuda"  # on a CPU it saves nothing


class RsLoRA(LoRA):
    name = "rslora"
    label = "rsLoRA"
    help = "LoRA scaled by the square root of its rank: choose it for ranks of 32 and more, where LoRA stops gaining."
    order = 30
    sizes: ClassVar = {"r": (32, 64, 128), "dropout": (0, 0, 0.05)}

    class Params(BaseWeights, TargetParams, RankParams):
        r: int = Field(
            32, ge=1, le=1_024, title="Rank (r)", description="Size of the added matrices. Large ranks pay off here."
        )
        alpha: int = Field(
            16,
            ge=1,
            le=512,
            title="Alpha",
            description="Strength of the adapter: its output is scaled by alpha / √r.",
        )

    def lora_extras(self, params: Any) -> dict[str, Any]:
        return {"use_rslora": True}

    def learning_rate(self, shape: ModelShape) -> float:
        return lora_rate(shape) / 6  # its output is several times LoRA's at the same alpha


class DoRA(LoRA):
    name = "dora"
    label = "DoRA"
    help = "LoRA that learns the length of each weight apart from its direction: better at small ranks, a third slower."
    order = 40

    class Params(BaseWeights, TargetParams, RankParams):
        pass

    def added(self, params: Any, module: LinearModule) -> int:
        return super().added(params, module) + module.out_features  # a magnitude for each output

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        problems = super().check(params, shape, hardware)
        if params.base_weights == "8-bit":
            problems.append(
                "You set Base weights to 8-bit, but DoRA needs the lengths of the weights, which PEFT cannot read from "
                "8-bit ones. Choose 4-bit or full precision."
            )
        return problems

    def lora_extras(self, params: Any) -> dict[str, Any]:
        return {"use_dora": True}


class LoRAPlus(LoRA):
    name = "lora-plus"
    label = "LoRA+"
    help = "LoRA whose second matrix learns faster than its first: reaches the same loss in fewer steps."
    order = 50

    class Params(BaseWeights, TargetParams, RankParams):
        ratio: float = Field(
            8,
            ge=1,
            le=64,
            title="Rate ratio",
            description="How many times faster the second matrix (B) learns. The paper found 2 to 16 to help.",
        )

    def learning_rate(self, shape: ModelShape) -> float:
        return lora_rate(shape) / 8  # of the first matrix

    def parameter_groups(
        self, model: Any, params: Any, learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        groups: dict[tuple[bool, bool], list[Any]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((".lora_B." in name, parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": members,
                "lr": learning_rate * (params.ratio if fast else 1),
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (fast, decays), members in sorted(groups.items(), key=lambda item: item[0])
        ]
