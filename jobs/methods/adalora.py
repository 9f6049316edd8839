"""AdaLoRA: LoRA that gives its ranks to the layers that need them while it trains (Zhang et al. 2023)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.hardware import Hardware
from jobs.methods.base import Context
from jobs.methods.layered import BaseWeights, LayerMethod
from jobs.methods.lora import lora_rate
from jobs.methods.targets import TargetParams
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    import torch
    from peft import AdaLoraConfig
    from transformers import PreTrainedModel

# Shares of the run: before the first rank is taken away, and after the last.
_BEFORE, _AFTER = 0.15, 0.25
_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # of the allocator: how much each parameter matters
_PATTERN = "rank_pattern"


class AdaLoRA(LayerMethod):
    name = "adalora"
    label = "AdaLoRA"
    help = "LoRA that starts with a large rank everywhere and keeps it only where the data needs it."
    order = 70
    sizes: ClassVar = {"start_r": (8, 16, 32), "r": (4, 8, 16), "alpha": (16, 32, 64)}

    class Params(BaseWeights, TargetParams):
        start_r: int = Field(
            12, ge=2, le=256, title="Rank at the start", description="Every layer's, before ranks are taken away."
        )
        r: int = Field(
            8, ge=1, le=255, title="Rank at the end", description="On average over the layers; some keep none."
        )
        alpha: int = Field(
            32,
            ge=1,
            le=512,
            title="Alpha",
            description="Strength of the adapter: its output is scaled by alpha / rank.",
        )
        dropout: float = Field(
            0.0, ge=0, le=0.5, title="Dropout", description="Share of the adapter's inputs zeroed while training."
        )
        orthogonality: float = Field(
            0.5,
            ge=0,
            le=10,
            title="Orthogonality",
            description="Weight of the penalty that keeps a layer's directions apart, so that ranks can be compared.",
            json_schema_extra={"advanced": True},
        )

    def added(self, params: Params, module: LinearModule) -> int:
        return params.start_r * (module.in_features + module.out_features + 1)  # A, B, and a strength for each rank

    def check(self, params: Params, shape: ModelShape, hardware: Hardware) -> list[str]:
        problems = super().check(params, shape, hardware)
        if params.r >= params.start_r:
            problems.append(
                f"You set Rank at the end to {params.r} and Rank at the start to {params.start_r}, but AdaLoRA works "
                "by taking ranks away. Lower the one, or raise the other."
            )
        return problems

    def learning_rate(self, shape: ModelShape) -> float:
        return 10 * lora_rate(shape)  # its strengths start at zero

    def config(self, params: Params, target_modules: list[str], context: Context) -> AdaLoraConfig:
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            task_type=context.task_type,
            init_r=params.start_r,
            target_r=params.r,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            orth_reg_weight=params.orthogonality,
            total_step=context.total_steps,
            tinit=int(_BEFORE * context.total_steps),
            tfinal=int(_AFTER * context.total_steps),
            deltaT=1,
            target_modules=target_modules,
        )

    def attach(self, model: PreTrainedModel, params: Params, context: Context) -> Any:
        tuned = super().attach(model, params, context)
        for name, parameter in tuned.named_parameters():
            if ".ranknum." in name:  # how many ranks a layer has: PEFT makes it trainable beside a 16-bit base
                parameter.requires_grad_(False)
        return tuned

    def regularisation(self, model: Any, params: Params) -> torch.Tensor | None:
        """How far A's rows and B's columns are from orthonormal, as PEFT's own forward adds it."""
        import torch

        if not params.orthogonality:
            return None
        distances = []
        for name, p in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                products = p @ p.T if ".lora_A." in name else p.T @ p
                distances.append(torch.linalg.norm(products - torch.eye(len(products), device=p.device)))
        return params.orthogonality * torch.stack(distances).mean()

    def before_zero_grad(self, model: Any, params: Params, step: int) -> None:
        model.base_model.update_and_allocate(step)

    def state(self, model: Any) -> dict[str, torch.Tensor]:
        import torch

        state = super().state(model)
        for kind in _AVERAGES:
            averages = getattr(model.base_model.rankallocator, kind)
            state |= {f"{kind}:{name}": tensor for name, tensor in averages.items()}
        pattern = json.dumps(model.peft_config["default"].rank_pattern)
        return state | {_PATTERN: torch.frombuffer(bytearray(pattern.encode()), dtype=torch.uint8)}

    def restore(self, model: Any, state: dict[str, torch.Tensor]) -> None:
        parameters = dict(model.named_parameters())
        super().restore(model, {name: value for name, value in state.items() if name in parameters})
        allocator = model.base_model.rankallocator
        device = next(model.parameters()).device
        for name, value in state.items():
            kind, _, parameter = name.partition(":")
            if kind in _AVERAGES:
                getattr(allocator, kind)[parameter] = value.to(device)
                allocator.ipt[parameter] = value.to(device)  # its presence says that the averages have begun
        model.peft_config["default"].rank_pattern = json.loads(bytes(state[_PATTERN].tolist()))
