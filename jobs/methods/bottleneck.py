"""Adapter modules: narrow networks behind attention and MLP (Houlsby et al. 2019), or behind the MLP alone
(Pfeiffer et al. 2020). PEFT has none; jobs.modules holds ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.errors import UserError
from jobs.hardware import Hardware
from jobs.methods.base import Context
from jobs.methods.layered import BaseWeights, LayerMethod
from jobs.methods.targets import linears_of
from jobs.shape import LinearModule, ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Placement = Literal["attention and MLP", "MLP"]

_BLOCK = re.compile(r"^(.*?\b\d+)\.")  # "model.layers.0"
# The linear layer in which a sublayer ends, as the architectures name it.
_ATTENTION_END = re.compile(
    r"\.(self_attn|encoder_attn|attn|attention|self_attention|SelfAttention|EncDecAttention)(\.attention|\.attn)?"
    r"\.(o_proj|out_proj|c_proj|dense|out_lin|wo|Wo|o)$"
    r"|\.(attention|crossattention)\.output\.dense$"
)
_MLP_END = re.compile(
    r"\.(mlp|ffn|feed_forward|DenseReluDense)\.(down_proj|c_proj|dense_4h_to_h|fc2|fc_out|lin2|w2|wo|Wo)$"
    r"|\.\d+\.(output\.dense|fc2|ffn_output)$"
)


def places(linears: Sequence[LinearModule], placement: Placement) -> list[LinearModule]:
    """The linear layers whose output an adapter works on.

    Raises UserError where a block ends in none that we know.
    """
    wanted = {"attention": _ATTENTION_END, "MLP": _MLP_END}
    if placement == "MLP":
        del wanted["attention"]
    if not linears:
        raise UserError("You chose adapter modules, but Graft finds no numbered blocks in this model to put them into.")
    blocks = dict.fromkeys(_block(linear.name) for linear in linears)
    for what, end in wanted.items():
        found = {_block(linear.name) for linear in linears if end.search(linear.name)}
        if missing := [block for block in blocks if block not in found]:
            raise UserError(
                f"You set Placement to {placement!r}, but Graft does not recognise the layer in which the {what} of "
                f"{missing[0]} ends (a mixture of experts, for example, has no single one). Choose LoRA."
            )
    return [linear for linear in linears if any(end.search(linear.name) for end in wanted.values())]


def _block(name: str) -> str:
    match = _BLOCK.match(name)
    assert match
    return match.group(1)


class BottleneckAdapters(LayerMethod):
    name = "bottleneck"
    label = "Adapter modules"
    help = "Puts a small network behind each block's attention and MLP: the oldest adapter, sturdy. Does not merge."
    group = "Added layers"
    order = 200
    merges = False

    class Params(BaseWeights):
        placement: Placement = Field(
            "attention and MLP",
            title="Placement",
            description=(
                "After attention and MLP of every block (Houlsby), or after the MLP alone (Pfeiffer): half the size, "
                "usually nearly as good."
            ),
            json_schema_extra={
                "labels": {"attention and MLP": "After attention and MLP (Houlsby)", "MLP": "After the MLP (Pfeiffer)"}
            },
        )
        size: int = Field(
            64,
            ge=1,
            le=2048,
            title="Bottleneck size",
            description="Width of the added networks. More learns more and costs more.",
        )
        nonlinearity: Literal["relu", "gelu", "silu"] = Field(
            "gelu",
            title="Nonlinearity",
            description="The bend in the middle of each network. It seldom matters.",
            json_schema_extra={"advanced": True},
        )
        dropout: float = Field(
            0.0,
            ge=0,
            le=0.5,
            title="Dropout",
            description="Share of the adapters' inputs zeroed while training; helps against overfitting.",
        )

    def modules(self, params: Any, linears: Sequence[LinearModule]) -> list[LinearModule]:
        try:
            return places(linears, params.placement)
        except UserError:
            return []  # `check` says why

    def added(self, params: Any, module: LinearModule) -> int:
        width = module.out_features
        return 2 * params.size * width + params.size + width  # down [size, width], up [width, size], each with biases

    def check(self, params: Any, shape: ModelShape, hardware: Hardware) -> list[str]:
        try:
            places(shape.linears, params.placement)
        except UserError as error:
            return list(error.problems)
        return []

    def learning_rate(self, shape: ModelShape) -> float:
        return 1e-3 if shape.parameters < 1_500_000_000 else 3e-4

    def attach(self, model: PreTrainedModel, params: Any, context: Context) -> Any:
        from jobs.modules.config import BottleneckConfig, Kind
        from jobs.modules.tuned import TunedModel

        config = BottleneckConfig(
            size=params.size,
            nonlinearity=params.nonlinearity,
            dropout=params.dropout,
            places=tuple(module.name for module in places(linears_of(model), params.placement)),
        )
        return TunedModel(self.prepared(model, params), Kind.BOTTLENECK, context.task_type, adapters=config)
