"""Methods that train vectors the model multiplies by: IA3 (Liu et al. 2022), and the norms' own (Zhao et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.hardware import Hardware
from jobs.memory.kept import FP32
from jobs.methods.base import Context, Method
from jobs.methods.layered import BaseWeights, LayerMethod
from jobs.methods.targets import TargetParams, TargetRow, is_attention, pattern, targeted
from jobs.shape import LinearModule, ModelShape, Vector

if TYPE_CHECKING:
    import torch
    from peft import IA3Config
    from transformers import PreTrainedModel

_KEYS_AND_VALUES = frozenset(
    {
        *("k_proj", "v_proj", "key", "value", "k", "v", "k_lin", "v_lin", "key_proj", "value_proj", "wk", "wv"),
        *("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv", "in_proj"),
    }
)
# What leads back from the MLP's inner width.
_DOWN = frozenset({"down_proj", "fc2", "wo", "w2", "c_proj", "dense_4h_to_h", "fc_out", "lin2", "Wo"})


class IA3(LayerMethod):
    name = "ia3"
    label = "IA3"
    help = "Scales keys, values and the MLP's inner signals by trained vectors: the smallest files, for simple changes."
    group = "Few parameters"
    order = 240

    class Params(BaseWeights, TargetParams):
        targets: Literal["paper", "all-linear", "attention", "mlp", "query-value", "names"] = Field(  # type: ignore[assignment]
            "paper",
            title="Layers",
            description="Which layers are scaled. The paper's choice is keys, values and the MLP's inner signals.",
            json_schema_extra={
                "labels": {
                    "paper": "Keys, values and MLP (as in the paper)",
                    "all-linear": "All linear layers",
                    "attention": "Attention",
                    "mlp": "MLP",
                    "query-value": "Queries and values",
                    "names": "By name",
                }
            },
        )

    def modules(self, params: Any, linears: Sequence[LinearModule]) -> list[LinearModule]:
        if params.targets != "paper":
            return targeted(params, linears)
        everywhere = targeted(TargetParams(depth=params.depth, depth_layers=params.depth_layers), linears)
        return [m for m in everywhere if m.leaf in _KEYS_AND_VALUES or _leads_back(m)]

    def added(self, params: Any, module: LinearModule) -> int:
        return module.in_features if _leads_back(module) else module.out_features

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return FP32 * sum(self.added(params, m) for m in self.modules(params, shape.linears))  # what it scales, widened

    def learning_rate(self, shape: ModelShape) -> float:
        return 3e-2 if shape.parameters < 1_500_000_000 else 5e-3

    def config(self, params: Any, target_modules: list[str], context: Context) -> IA3Config:
        from peft import IA3Config

        modules = [LinearModule(name=name, in_features=0, out_features=0) for name in target_modules]
        return IA3Config(
            task_type=context.task_type,
            target_modules=target_modules,
            feedforward_modules=[module.name for module in modules if _leads_back(module)],  # these scale their input
        )


def _leads_back(module: LinearModule) -> bool:
    if is_attention(module):
        return False
    return module.leaf in _DOWN or (module.leaf == "dense" and module.name.split(".")[-2] == "output")


class LayerNormTuning(Method):
    name = "ln-tuning"
    label = "LN tuning"
    help = "Trains only the model's own normalisation layers: tiny, adds nothing to the model, fits tone and format."
    group = "Few parameters"
    order = 250
    slows_answers = False

    class Params(BaseWeights):
        pass

    def trainable(self, params: Any, shape: ModelShape) -> int:
        return sum(vector.size for vector in _norms(shape))

    def kept_a_token(self, params: Any, shape: ModelShape, width: int) -> float:
        return width * sum(vector.size for vector in _norms(shape))  # what each weight scales

    def target_table(self, params: Any, shape: ModelShape) -> list[TargetRow]:
        sizes: dict[str, list[int]] = {}
        each: dict[str, int] = {}
        for vector in _norms(shape):
            module = vector.name.rpartition(".")[0]
            each[module] = each.get(module, 0) + vector.size
        for module, size in each.items():
            sizes.setdefault(pattern(module), []).append(size)
        return [TargetRow(pattern=name, count=len(found), parameters=found[0]) for name, found in sizes.items()]

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        if _norms(shape):
            return []
        return [f"You chose {self.label}, but {shape.architecture} has no normalisation with weights. Choose LoRA."]

    def learning_rate(self, shape: ModelShape) -> float:
        return 1e-2 if shape.parameters < 1_500_000_000 else 2e-3

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        from peft import LNTuningConfig, get_peft_model

        names = [name for name, module in model.named_modules() if _is_norm(name) and _only_vectors(module)]
        return get_peft_model(
            self.prepared(model, params), LNTuningConfig(task_type=context.task_type, target_modules=names)
        )


_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)", re.IGNORECASE)
_HEAD = re.compile(
    r"(^|\.)(cls|lm_head|classifier|score|pooler|predictions|qa_outputs|discriminator_predictions)(\.|$)"
)


def _is_norm(module: str) -> bool:
    return bool(_NORM.search(module.rsplit(".", 1)[-1])) and not _HEAD.search(module)


def _norms(shape: ModelShape) -> list[Vector]:
    return [vector for vector in shape.vectors if _is_norm(vector.name.rpartition(".")[0])]


def _only_vectors(module: torch.nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.ndim == 1 for parameter in parameters)
